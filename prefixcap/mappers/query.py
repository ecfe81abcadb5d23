"""A query mapping network: learned queries compute the prefix from the patches or regions of an image by attention.

A layer is one of the Q-Former of Li et al. ("BLIP-2", ICML 2023, section 3.1): the queries attend to each other, and
then to the image. So do the Perceiver (Jaegle et al., ICML 2021) and the resampler of Flamingo (Alayrac et al., NeurIPS
2022) read inputs of any size into a fixed number of vectors.
"""

from math import gcd

import torch
from torch import Tensor, nn

from prefixcap.errors import InputError, OptionError
from prefixcap.features import Feature
from prefixcap.mappers.base import Mapper
from prefixcap.mappers.transformer import Attention
from prefixcap.utils.options import Count

FEATURES = ("patches", "regions")


class QueryMapper(Mapper):
    """Learned queries, each of which becomes a prefix vector, attend over the patches or regions of an image.

    The order of the patches does not matter: where each one lies is in its embedding, as the encoder made it.

    Args:
        embedding_dim: width of a patch's or region's embedding.
        lm_dim: width of the language model's word embeddings.
        prefix_length: the number of queries, and so of prefix vectors.
        features: the feature of an image to read: "patches" or "regions".
        width: of the queries.
        layers: number of layers.
        heads: attention heads in each.

    Raises:
        InputError: `features` is neither, or `width` is not a multiple of `heads`.

    Examples:
        >>> mapper = QueryMapper(embedding_dim=512, lm_dim=768, layers=2)
        >>> mapper(torch.randn(4, 49, 512)).shape  # 7 x 7 patches each
        torch.Size([4, 10, 768])
    """

    def __init__(
        self,
        embedding_dim: int,
        lm_dim: int,
        prefix_length: Count = 10,
        features: str = "patches",
        width: Count = 512,
        layers: Count = 4,
        heads: Count = 8,
    ) -> None:
        super().__init__()
        if features not in FEATURES:
            raise InputError(f"features of mapper 'query' must be {' or '.join(FEATURES)}, not {features!r}")
        if width % heads:
            raise OptionError(f"queries of width {width} cannot be split into {heads} heads", heads=gcd(width, heads))
        self.prefix_length = prefix_length
        self.features = Feature.parse(features)
        self.project = nn.Sequential(nn.Linear(embedding_dim, width), nn.LayerNorm(width))
        self.queries = nn.Parameter(torch.randn(prefix_length, width))
        self.layers = nn.ModuleList(QueryLayer(width, heads) for _ in range(layers))
        self.to_prefix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, lm_dim))

    def forward(self, patches: Tensor) -> Tensor:
        """(batch, patches, embedding_dim), of any number of patches -> (batch, prefix_length, lm_dim)."""
        image = self.project(patches)  # (batch, patches, width)
        hidden = self.queries.expand(len(image), -1, -1)  # (batch, prefix_length, width)
        for layer in self.layers:
            hidden = layer(hidden, image)
        prefix: Tensor = self.to_prefix(hidden)
        return prefix


class QueryLayer(nn.Module):
    """A pre-norm layer: self-attention of the queries, their attention to the image, and an MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = Attention(dim, heads)
        self.norm3 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, hidden: Tensor, image: Tensor) -> Tensor:
        """(batch, length, dim) queries and (batch, patches, dim) image -> the shape of the queries."""
        hidden = hidden + self.self_attn(self.norm1(hidden))
        hidden = hidden + self.cross_attn(self.norm2(hidden), image)
        return torch.add(hidden, self.mlp(self.norm3(hidden)))
