"""The transformer mapping network of ClipCap (Mokady et al. 2021, section 3.3 and implementation details)."""

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefixcap.errors import OptionError
from prefixcap.features import Feature
from prefixcap.mappers.base import Mapper
from prefixcap.utils.options import Count


class TransformerMapper(Mapper):
    """Self-attention over the image and a learned constant; the outputs at the constant's positions are the prefix.

    One linear layer expands the embedding to `clip_length` vectors. The learned constant collects information from them
    by attention, and adapts a frozen language model to the task.

    Args:
        embedding_dim: width of the encoder's embedding.
        lm_dim: width of the language model's word embeddings.
        prefix_length: the number of prefix vectors (the length of the constant).
        clip_length: K, the number of vectors that the embedding is expanded to.
        layers: number of transformer layers.
        heads: attention heads in each.

    Raises:
        InputError: `lm_dim` is not a multiple of `heads`.

    Examples:
        >>> mapper = TransformerMapper(embedding_dim=512, lm_dim=768, layers=2)
        >>> mapper(torch.randn(4, 512)).shape
        torch.Size([4, 10, 768])
    """

    features = Feature.IMAGE

    def __init__(
        self,
        embedding_dim: int,
        lm_dim: int,
        prefix_length: Count = 10,
        clip_length: Count = 10,
        layers: Count = 8,
        heads: Count = 8,
    ) -> None:
        super().__init__()
        if lm_dim % heads:
            problem = f"a language model of width {lm_dim} cannot be split into {heads} heads"
            raise OptionError(problem, heads=gcd(lm_dim, heads))
        self.prefix_length = prefix_length
        self.clip_length = clip_length
        self.linear = nn.Linear(embedding_dim, clip_length * lm_dim)
        self.prefix_const = nn.Parameter(torch.randn(prefix_length, lm_dim))
        self.layers = nn.ModuleList(Layer(lm_dim, heads) for _ in range(layers))

    def forward(self, embedding: Tensor) -> Tensor:
        """(batch, embedding_dim) -> (batch, prefix_length, lm_dim)."""
        return self.prefix(self.linear(embedding).unflatten(1, (self.clip_length, -1)))

    def prefix(self, image: Tensor) -> Tensor:
        """(batch, clip_length, lm_dim) vectors of an image -> (batch, prefix_length, lm_dim)."""
        # len() is a constant to torch.export
        constant = self.prefix_const.expand(image.shape[0], -1, -1)  # (batch, prefix_length, lm_dim)
        hidden = torch.cat((image, constant), dim=1)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden[:, self.clip_length :]


class Layer(nn.Module):
    """A pre-norm transformer layer: attention without bias on queries, keys and values; a ReLU MLP twice as wide."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, hidden: Tensor, context: Tensor | None = None) -> Tensor:
        """(batch, length, dim) -> the same shape; attends to (batch, keys, dim) `context`, or to `hidden` itself."""
        hidden = hidden + self.attn(self.norm1(hidden), context)
        return torch.add(hidden, self.mlp(self.norm2(hidden)))


class Attention(nn.Module):
    """Multi-head attention; keys and values come from one linear layer, laid out as (2, heads, head dim)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(dim, dim, bias=False)
        self.to_keys_values = nn.Linear(dim, 2 * dim, bias=False)
        self.project = nn.Linear(dim, dim)

    def forward(self, hidden: Tensor, context: Tensor | None = None) -> Tensor:
        """(batch, length, dim) -> the same shape; attends to (batch, keys, dim) `context`, or to `hidden` itself."""
        context = hidden if context is None else context
        # each (batch, heads, length or keys, head dim)
        queries = self.to_queries(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys, values = self.to_keys_values(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values)  # (batch, heads, length, head dim)
        projected: Tensor = self.project(attended.transpose(1, 2).flatten(2))
        return projected
