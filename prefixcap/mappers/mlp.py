"""The MLP mapping network of ClipCap (Mokady et al. 2021, section 3.3), DeCap and CapDec."""

from collections.abc import Sequence

from torch import Tensor, nn

from prefixcap.errors import InputError
from prefixcap.features import Feature
from prefixcap.mappers.base import Mapper
from prefixcap.utils.options import Count, Positive

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


class MLPMapper(Mapper):
    """A multilayer perceptron from an embedding to all vectors of the prefix; ClipCap's by default.

    ClipCap's has one hidden layer, half as wide as the prefix, with tanh. DeCap (Li et al. 2023) has no hidden layer
    and a prefix of one vector; MacCap's reproductions of DeCap and CapDec have two hidden layers as wide as the
    embedding, with ReLU.

    Args:
        embedding_dim: width of the encoder's embedding.
        lm_dim: width of the language model's word embeddings.
        prefix_length: K, the number of prefix vectors.
        hidden: width of each hidden layer; None: prefix_length * lm_dim // 2, as ClipCap.
        activation: "tanh" or "relu", after each hidden layer.

    Raises:
        InputError: `activation` is neither.

    Examples:
        >>> import torch
        >>> mapper = MLPMapper(embedding_dim=512, lm_dim=768, prefix_length=10)
        >>> mapper(torch.randn(4, 512)).shape
        torch.Size([4, 10, 768])
    """

    features = Feature.IMAGE

    def __init__(
        self,
        embedding_dim: int,
        lm_dim: int,
        prefix_length: Count = 10,
        hidden: Sequence[Positive] | None = None,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise InputError(f"activation must be {' or '.join(ACTIVATIONS)}, not {activation!r}")
        self.prefix_length = prefix_length
        width = prefix_length * lm_dim
        layers: list[nn.Module] = []
        for size in [width // 2] if hidden is None else hidden:
            layers += [nn.Linear(embedding_dim, size), ACTIVATIONS[activation]()]
            embedding_dim = size
        self.model = nn.Sequential(*layers, nn.Linear(embedding_dim, width))

    def forward(self, embedding: Tensor) -> Tensor:
        """(batch, embedding_dim) -> (batch, prefix_length, lm_dim)."""
        prefix: Tensor = self.model(embedding)
        return prefix.view(embedding.shape[0], self.prefix_length, -1)  # len() is a constant to torch.export
