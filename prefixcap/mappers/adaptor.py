"""The adaptor decoder of MacCap (Qiu et al., "Mining Fine-Grained Image-Text Alignment for Zero-Shot Captioning via
Text-Only Training", 2024, section 4.2, equations 5 to 8)."""

import math
from math import gcd
from typing import cast

import torch
from torch import Tensor, nn

from prefixcap.errors import OptionError
from prefixcap.features import Feature
from prefixcap.mappers.base import Mapper
from prefixcap.utils.options import Count


class AdaptorMapper(Mapper):
    """Learned queries attend to each other and then to the regions of a text or an image; an MLP computes the prefix.

    It consists of one transformer decoder layer as PyTorch has it (post-norm, ReLU, dropout 0.1, feed-forward width
    2048), a layer norm, and an MLP of three layers with ReLU. With ViT-B/32 and OPT-1.3B it has 5,797,376 parameters,
    the paper's 5.7M.

    Only the initialization differs from the released code: the weights that compute keys and values from the regions
    start sqrt(embedding_dim) times as large. PyTorch's initialization suits elements of variance one; a region has
    length one, so it would contribute almost nothing beside the queries until training has enlarged these weights.

    Args:
        embedding_dim: width of a region's embedding.
        lm_dim: width of the language model's word embeddings.
        prefix_length: N_q, the number of queries, and so of prefix vectors; 32 in the released code.
        layers: number of decoder layers.
        heads: attention heads in each.

    Raises:
        InputError: `embedding_dim` is not a multiple of `heads`.

    Examples:
        >>> mapper = AdaptorMapper(embedding_dim=512, lm_dim=768)
        >>> mapper(torch.randn(4, 10, 512)).shape  # ten regions each
        torch.Size([4, 32, 768])
    """

    features = Feature.REGIONS

    def __init__(
        self, embedding_dim: int, lm_dim: int, prefix_length: Count = 32, layers: Count = 1, heads: Count = 8
    ) -> None:
        super().__init__()
        if embedding_dim % heads:
            problem = f"embeddings of width {embedding_dim} cannot be split into {heads} heads"
            raise OptionError(problem, heads=gcd(embedding_dim, heads))
        self.prefix_length = prefix_length
        self.queries = nn.Parameter(torch.randn(prefix_length, embedding_dim))
        layer = nn.TransformerDecoderLayer(embedding_dim, heads, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers, nn.LayerNorm(embedding_dim))
        with torch.no_grad():
            for decoder_layer in self.decoder.layers:
                attention = cast(nn.TransformerDecoderLayer, decoder_layer).multihead_attn
                keys_and_values = attention.in_proj_weight[embedding_dim:]
                keys_and_values *= math.sqrt(embedding_dim)
        self.to_prefix = nn.Sequential(
            nn.Linear(embedding_dim, embedding_dim), nn.ReLU(),
            nn.Linear(embedding_dim, embedding_dim), nn.ReLU(),
            nn.Linear(embedding_dim, lm_dim),
        )  # fmt: skip

    def forward(self, regions: Tensor) -> Tensor:
        """(batch, regions, embedding_dim), of any number of regions -> (batch, prefix_length, lm_dim)."""
        queries = self.queries.expand(len(regions), -1, -1)  # (batch, prefix_length, embedding_dim)
        prefix: Tensor = self.to_prefix(self.decoder(queries, regions))
        return prefix
