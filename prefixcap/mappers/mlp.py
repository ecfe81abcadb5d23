"""The MLP mapping network of ClipCap (Mokady et al. 2021, section 3.3)."""

from torch import Tensor, nn


class MLPMapper(nn.Module):
    """One hidden layer with tanh, half as wide as the whole prefix.

    Args:
        embedding_dim: width of the encoder's embedding.
        lm_dim: width of the language model's word embeddings.
        prefix_length: K, how many prefix vectors to make.
    """

    features = "embedding"

    def __init__(self, embedding_dim: int, lm_dim: int, prefix_length: int = 10) -> None:
        super().__init__()
        self.prefix_length = prefix_length
        width = prefix_length * lm_dim
        self.model = nn.Sequential(nn.Linear(embedding_dim, width // 2), nn.Tanh(), nn.Linear(width // 2, width))

    def forward(self, embedding: Tensor) -> Tensor:
        """(batch, embedding_dim) -> (batch, prefix_length, lm_dim)."""
        prefix: Tensor = self.model(embedding)
        return prefix.view(len(embedding), self.prefix_length, -1)
