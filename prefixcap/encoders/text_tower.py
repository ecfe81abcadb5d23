"""The text transformer of a CLIP, which reads the common beginning of many sentences only once.

The transformer is causal: the state of a token does not depend on the tokens behind it. So sentences with the same
beginning share its keys and values, and only the rest of each sentence, up to the end token, is read.

Shapes: S sentences, L tokens that are read of a sentence, M beginnings, K tokens of the longest beginning, W width of
the transformer, H attention heads, D = W / H width of a head, E width of the joint space.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

KeysAndValues = Sequence[tuple[Tensor, Tensor]]  # of each layer, (rows, H, length, D) each

# The most and the fewest tokens in a batch. More than the most need more memory and save no time. A batch with fewer
# than the fewest also takes in longer sentences, at the cost of padding: on a GPU small batches take as long as large.
ON_GPU, ELSEWHERE = (1 << 15, 1 << 12), (1 << 11, 1)
TOKENIZED_AT_ONCE = 2048  # texts: longer lists of token ids would make Python's garbage collector scan all objects


@dataclass(frozen=True)
class TextLayer:
    """One block of the transformer: x = x + out(attention(norm1(x))), then x = x + mlp(norm2(x)).

    Attributes:
        weight, bias: (3 * W, W) and (3 * W,), the projection to queries, keys and values, in this order.
    """

    norm1: nn.Module
    weight: Tensor
    bias: Tensor
    out: nn.Module
    norm2: nn.Module
    mlp: nn.Module


def layers_of_clip(transformer: Any) -> list[TextLayer]:
    """Those of a text transformer of OpenAI's CLIP, or of open_clip."""
    return [
        TextLayer(
            block.ln_1, block.attn.in_proj_weight, block.attn.in_proj_bias, block.attn.out_proj, block.ln_2, block.mlp
        )
        for block in transformer.resblocks
    ]


@dataclass(frozen=True)
class TextTower:
    """A text transformer and its tokenizer.

    Attributes:
        layers: from the first to the last.
        heads: H, attention heads of each layer.
        token_embedding: token ids -> (…, W).
        positions: (context, W) position embeddings.
        head: (…, W) last hidden states of end tokens -> (…, E) text embeddings.
        start, end: ids of the tokens that every sentence begins and ends with.
        tokenize: texts -> the token ids of each, without these two.
    """

    layers: Sequence[TextLayer]
    heads: int
    token_embedding: nn.Embedding
    positions: Tensor
    head: Callable[[Tensor], Tensor]
    start: int
    end: int
    tokenize: Callable[[Sequence[str]], list[list[int]]]

    @cached_property
    def context(self) -> int:
        """The most tokens of a sentence."""
        return len(self.positions)

    def sentences(self, texts: Sequence[str], *parts: Sequence[int]) -> Tensor:
        """Token ids of sentences with start and end token, cut to the context and at the first end token, the one whose
        state becomes the embedding.

        Args:
            texts: each a sentence, if there are no parts; each is tokenized by itself.
            parts: what sentences consist of, as indices in `texts`: (S,) the first part of each sentence, (S,) the
                second of each, and so on.

        Returns:
            (S, longest) token ids, on the tower's device; tokens behind the end token are ignored.
        """
        # (texts, longest text) the tokens of each text, padded with end tokens.
        flat, lengths = self._tokenized(texts)
        columns = np.arange(lengths.max(initial=0))
        table = np.full((len(texts), len(columns)), self.end)
        table[columns < lengths[:, None]] = flat
        # The parts of each sentence, one behind the other.
        chosen = [np.asarray(part, np.int64) for part in parts or [range(len(texts))]]
        sentences = np.full((len(chosen[0]), len(chosen) * len(columns) + 2), self.end)
        sentences[:, 0] = self.start
        filled = np.ones(len(sentences), np.int64)  # (S,) tokens of each sentence so far
        for part in chosen:
            rows, column = np.nonzero(columns < lengths[part][:, None])
            sentences[rows, filled[rows] + column] = table[part[rows], column]
            filled += lengths[part]
        sentences = sentences[:, : min(self.context, filled.max(initial=1) + 1)]
        sentences[:, -1] = self.end
        return torch.from_numpy(sentences).to(self.positions.device)

    def _tokenized(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens of all texts, concatenated, and (texts,) the number of tokens of each."""
        tokens, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start in range(0, len(texts), TOKENIZED_AT_ONCE):
            part = self.tokenize(texts[start : start + TOKENIZED_AT_ONCE])
            lengths.append(np.fromiter(map(len, part), np.int64, len(part)))
            tokens.append(np.fromiter(chain.from_iterable(part), np.int64))
        return np.concatenate(tokens), np.concatenate(lengths)

    @torch.no_grad()
    def encode(self, sentences: Tensor, beginnings: Tensor | None = None, beginning_of: Sequence[int] = ()) -> Tensor:
        """Text embeddings, not normalized.

        Args:
            sentences: (S, longest) token ids, see `sentences`.
            beginnings: (M, K) token ids likewise, each of which is read once.
            beginning_of: (S,) the beginning of each sentence; the tokens that both have in common are shared.

        Returns:
            (S, E)
        """
        if beginnings is None:
            beginnings, beginning_of = sentences[:1, :1], [0] * len(sentences)  # the start token
        group = torch.tensor(beginning_of, dtype=torch.long, device=sentences.device)  # (S,)
        # The keys and values of the beginnings. Those of tokens that a sentence does not share are masked below.
        past = self._states(beginnings, torch.zeros_like(beginnings[:, 0]))[1]
        # How many tokens of a sentence are shared, and how many must be read: at least the end token.
        width = min(sentences.shape[1], beginnings.shape[1])
        common = (sentences[:, :width] == beginnings[group, :width]).long().cumprod(1).sum(1)  # (S,)
        lengths = (sentences[:, 1:] == self.end).int().argmax(1) + 2  # (S,) up to the first end token
        shared = torch.minimum(common, lengths - 1)
        left = lengths - shared  # (S,)
        embeddings: list[Tensor] = []
        order: list[Tensor] = []
        for rows in _batches(left, *(ON_GPU if left.is_cuda else ELSEWHERE)):
            last = left[rows] - 1  # (batch,) the end token, among those that are read
            columns = shared[rows].unsqueeze(1) + torch.arange(int(last.max()) + 1, device=sentences.device)
            tokens = sentences[rows.unsqueeze(1), columns.clamp_max(sentences.shape[1] - 1)]  # (batch, L)
            prefix = _SharedPrefix(past, group[rows], shared[rows])
            embeddings.append(self.head(self._states(tokens, last, prefix)[0]))
            order.append(rows)
        return torch.cat(embeddings)[torch.cat(order).argsort()]

    def _states(
        self, tokens: Tensor, last: Tensor, prefix: "_SharedPrefix | None" = None
    ) -> tuple[Tensor, KeysAndValues]:
        """Run the transformer.

        Args:
            tokens: (rows, L) token ids.
            last: (rows,) the position in each row whose state is wanted.
            prefix: keys and values of tokens before these; None: there are none.

        Returns:
            (rows, W) last hidden states at `last`, and the keys and values of all tokens in each layer.
        """
        rows, length = tokens.shape
        positions = torch.arange(length, device=tokens.device)
        masked = positions > positions.unsqueeze(1)  # (L, L) True: not attended to
        x = self.token_embedding(tokens).to(self.positions.dtype)  # (rows, L, W)
        if prefix is not None:
            positions = (positions + prefix.lengths.unsqueeze(1)).clamp_max(self.context - 1)
        x = x + self.positions[positions]
        keys_and_values = []
        for number, layer in enumerate(self.layers):
            # Queries, keys and values, (rows, H, L, D) each.
            states = F.linear(layer.norm1(x), layer.weight, layer.bias)  # (rows, L, 3 * W)
            heads: Tensor = states.view(rows, length, 3 * self.heads, -1).transpose(1, 2)
            query, key, value = heads.chunk(3, dim=1)
            keys_and_values.append((key, value))
            if layer is self.layers[-1]:  # only the state at `last` is needed
                each = torch.arange(rows, device=tokens.device)
                x, query = x[each, last].unsqueeze(1), query[each, :, last].unsqueeze(2)
                masked = masked[last, None, None]
            # Attention over the prefix and the tokens.
            query = query * query.shape[-1] ** -0.5
            scores = (query @ key.transpose(-1, -2)).masked_fill(masked, -math.inf)  # (rows, H, L, L)
            if prefix is not None:
                scores = torch.cat((prefix.scores(query, number), scores), dim=-1)  # (rows, H, L, K + L)
            weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
            attended = weights[..., -length:] @ value
            if prefix is not None:
                attended = attended + prefix.values(weights[..., :-length], number)
            x = x + layer.out(attended.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.norm2(x))
        return x[:, 0], keys_and_values


def _batches(left: Tensor, most: int, fewest: int) -> Iterator[Tensor]:
    """Rows of sentences that are read together: (S,) tokens left to read -> row numbers, the shortest first.

    Sentences of equal length make batches of at most `most` tokens; if they have fewer than `fewest` in total, they
    wait for longer ones.
    """
    waiting = left.new_empty(0)
    for length in torch.unique(left).tolist():
        waiting = torch.cat((waiting, (left == length).nonzero().flatten()))
        if len(waiting) * length >= fewest:
            yield from torch.split(waiting, max(1, most // length))
            waiting = waiting[:0]
    if len(waiting):
        yield waiting


class _SharedPrefix:
    """Attention of sentences to beginnings that they share.

    Sentences with the same beginning stand next to each other in one row of a grid, so that a batched product needs no
    copies of keys and values.

    Args:
        past: keys and values of all beginnings in each layer, (M, H, K, D) each.
        group: (rows,) the beginning of each sentence.
        lengths: (rows,) how many tokens of it belong to the sentence.
    """

    def __init__(self, past: KeysAndValues, group: Tensor, lengths: Tensor) -> None:
        self._past, self.lengths = past, lengths
        # The beginnings that occur, G of them, and the cell of each sentence in a grid of G rows.
        self._beginnings, row, sizes = torch.unique(group, return_inverse=True, return_counts=True)
        first = sizes.cumsum(0) - sizes  # (G,) where the sentences of a row start, in the order of rows
        rank = torch.empty_like(group)
        rank[row.argsort(stable=True)] = torch.arange(len(group), device=group.device)
        self._columns = int(sizes.max())
        self._cells = row * self._columns + rank - first[row]  # (rows,)
        positions = torch.arange(past[0][0].shape[2], device=group.device)
        self._masked = (positions >= lengths.unsqueeze(1))[:, None, None]  # (rows, 1, 1, K)

    def scores(self, query: Tensor, layer: int) -> Tensor:
        """(rows, H, L, D) queries -> (rows, H, L, K) attention scores."""
        keys = self._past[layer][0][self._beginnings]
        return self._multiply(query, keys.transpose(-1, -2)).masked_fill(self._masked, -math.inf)

    def values(self, weights: Tensor, layer: int) -> Tensor:
        """(rows, H, L, K) attention weights -> (rows, H, L, D) weighted sums of values."""
        return self._multiply(weights, self._past[layer][1][self._beginnings])

    def _multiply(self, left: Tensor, right: Tensor) -> Tensor:
        """(rows, H, L, n) of sentences times (G, H, n, m) of their beginnings -> (rows, H, L, m)."""
        _, heads, length, n = left.shape
        # Into the grid, (G, H, columns, L, n): one product for each beginning.
        grid = left.new_zeros(len(right) * self._columns, heads, length, n)
        grid[self._cells] = left
        grid = grid.view(len(right), self._columns, heads, length, n).transpose(1, 2)
        product = (grid.flatten(2, 3) @ right).view(*grid.shape[:-1], right.shape[-1])
        # And out of it again.
        return product.transpose(1, 2).flatten(0, 1)[self._cells]
