"""The fusion module and mapping network of IFCap (Lee et al., "IFCap: Image-like Retrieval and Frequency-based Entity
Filtering for Zero-shot Captioning", EMNLP 2024, section 3.2, and `src/ClipCap.py` of github.com/boreng0817/IFCap)."""

from torch import Tensor, nn

from prefixcap.mappers.transformer import Layer, TransformerMapper
from prefixcap.utils.options import Count

_LENGTH = 8.0  # of the texts' embeddings: 7.8 in the mean of the 20, by ViT-B/32, that ViECap's authors published


class FusionMapper(TransformerMapper):
    """ClipCap's transformer, which reads an image and the captions of a datastore that are nearest to it.

    The vectors that the image's embedding is expanded to attend to the retrieved captions' embeddings, each through one
    linear layer, in a layer like those of the transformer; the transformer goes on with the result.

    The released code scales the image's embedding to unit length and leaves those of the captions as the encoder gives
    them. Here, stores may hold either, so that captioners of `normalize_embeddings` scale all to unit length, and this
    mapper multiplies those of the captions by 8, about their length by ViT-B/32.

    Args:
        embedding_dim: width of the encoder's embeddings.
        lm_dim: width of the language model's word embeddings.
        prefix_length: the number of prefix vectors.
        clip_length: the number of vectors that the image's embedding is expanded to.
        layers: number of transformer layers.
        heads: attention heads in each, and in the layer before them.
        retrieved: k, the number of retrieved captions.

    Raises:
        InputError: as `TransformerMapper`.

    Examples:
        >>> import torch
        >>> mapper = FusionMapper(embedding_dim=512, lm_dim=768, layers=2, retrieved=5)
        >>> mapper(torch.randn(4, 6, 512)).shape  # an image and five captions each
        torch.Size([4, 10, 768])
    """

    def __init__(
        self,
        embedding_dim: int,
        lm_dim: int,
        prefix_length: Count = 10,
        clip_length: Count = 10,
        layers: Count = 8,
        heads: Count = 8,
        retrieved: Count = 5,
    ) -> None:
        super().__init__(embedding_dim, lm_dim, prefix_length, clip_length, layers, heads)
        self.retrieved = retrieved
        self.linear_retrieved = nn.Linear(embedding_dim, lm_dim)
        self.fuse = Layer(lm_dim, heads)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(batch, 1 + retrieved, embedding_dim), the image's first -> (batch, prefix_length, lm_dim)."""
        image = self.linear(embeddings[:, 0]).unflatten(1, (self.clip_length, -1))  # (batch, clip_length, lm_dim)
        captions = self.linear_retrieved(_LENGTH * embeddings[:, 1:])  # (batch, retrieved, lm_dim)
        return self.prefix(self.fuse(image, captions))
