"""A mapper of your own: one linear layer beside a learned beginning that is the same for every image.

python docs/examples/add_mapper.py model=mlp model.mapper.name=linear model.mapper.prefix_length=8
"""

import torch
from torch import Tensor, nn

from prefixcap.commands.common.hydra_main import run
from prefixcap.commands.train import main
from prefixcap.features import Feature
from prefixcap.mappers import MAPPERS, Mapper


class LinearMapper(Mapper):
    """Half of the prefix is learned and the same for all images; the other half is a linear function of the embedding.

    Args:
        embedding_dim: width of the encoder's embedding.
        lm_dim: width of the language model's word embeddings.
        prefix_length: the number of prefix vectors, an even one.
    """

    features = Feature.IMAGE

    def __init__(self, embedding_dim: int, lm_dim: int, prefix_length: int = 8) -> None:
        super().__init__()
        self.prefix_length = prefix_length
        self.beginning = nn.Parameter(torch.randn(prefix_length // 2, lm_dim) / lm_dim**0.5)
        self.linear = nn.Linear(embedding_dim, prefix_length // 2 * lm_dim)

    def forward(self, embedding: Tensor) -> Tensor:
        """(batch, embedding_dim) -> (batch, prefix_length, lm_dim)."""
        beginning = self.beginning.expand(len(embedding), -1, -1)
        return torch.cat((beginning, self.linear(embedding).view_as(beginning)), dim=1)


MAPPERS["linear"] = LinearMapper

if __name__ == "__main__":
    run(main, "train")
