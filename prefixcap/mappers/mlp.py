"""The MLP mapping network of ClipCap (Mokady et al. 2021, section 3.3), and those of captioners after it."""

from collections.abc import Sequence

from torch import Tensor, nn

from prefixcap.errors import InputError
from prefixcap.mappers.base import Mapper
from prefixcap.utils.options import Count, Positive

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


class MLPMapper(Mapper):
    """ClipCap's: one hidden layer with tanh, half as wide as the whole prefix.

    DeCap (Li et al. 2023) has no hidden layer, and a prefix of one vector; MacCap's reproductions of DeCap and CapDec
    have two as wide as the embedding, with ReLU.

    Args:
        embedding_dim: width of the encoder's embedding.
        lm_dim: width of the language model's word embeddings.
        prefix_length: K, how many prefix vectors to make.
        hidden: width of each hidden layer; None: ClipCap's one.
        activation: "tanh" or "relu", after each hidden layer.

    Raises:
        InputError: there is no such activation.
    """

    features = "embedding"

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
            raise InputError(f"unknown activation '{activation}': set model.mapper.activation to tanh or relu")
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
