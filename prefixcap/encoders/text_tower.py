"""The text transformer of a CLIP, read in pieces.

It is causal: what it makes of a token depends on nothing that follows. So sentences that begin alike share the keys and
values of their beginning, and only what differs, with the end token, is read for each.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

Past = Sequence[tuple[Tensor, Tensor]]  # keys and values in each layer

# Tokens in a batch. At most: more take no less time each, but more memory. At least, or sentences of which more is left
# to read join, and padding is read: on a GPU a small batch takes as long as a larger one.
ON_GPU, ELSEWHERE = (1 << 15, 1 << 12), (1 << 11, 1)
TOKENIZED_AT_ONCE = 2048  # texts: lists of more are so many objects that Python begins to look for garbage among all


@dataclass(frozen=True)
class TextLayer:
    """One block: x + out(attention(norm1(x))), and to that mlp(norm2(…)) of it.

    Attributes:
        weight: (3 · width, width) makes queries, keys and values, in this order; bias: (3 · width,).
    """

    norm1: nn.Module
    weight: Tensor
    bias: Tensor
    out: nn.Module
    norm2: nn.Module
    mlp: nn.Module


@dataclass(frozen=True)
class TextTower:
    """A text transformer and its tokenizer.

    Attributes:
        layers: from the first to the last.
        heads: of attention, in each.
        words: embeds a token.
        positions: (context, width) what is added to it by its place.
        head: (…, width) last hidden states of end tokens -> (…, dim) embeddings.
        start, end: the tokens that every sentence begins and ends with.
        tokenize: texts -> the tokens of each, without these two.
    """

    layers: Sequence[TextLayer]
    heads: int
    words: nn.Embedding
    positions: Tensor
    head: Callable[[Tensor], Tensor]
    start: int
    end: int
    tokenize: Callable[[Sequence[str]], list[list[int]]]

    @cached_property
    def context(self) -> int:
        """Tokens that a sentence can have."""
        return len(self.positions)

    def sentences(self, texts: Sequence[str], *parts: Sequence[int]) -> Tensor:
        """Sentences that begin with the start token, cut to fit the context and at the first end token, where a CLIP
        looks.

        Args:
            texts: each a sentence, if there are no parts.
            parts: what sentences consist of, as places in `texts`: the first part of each, the second of each, and so
                on. Each text is tokenized by itself.

        Returns:
            (sentences, longest) tokens, on the tower's device; what follows the end token means nothing.
        """
        tokens, lengths = self._tokenized(texts)
        columns = np.arange(lengths.max(initial=0))
        of_texts = np.full((len(texts), len(columns)), self.end)
        of_texts[columns < lengths[:, None]] = tokens
        chosen = [np.asarray(part, np.int64) for part in parts or [range(len(texts))]]
        found = np.full((len(chosen[0]), len(chosen) * len(columns) + 2), self.end)
        found[:, 0] = self.start
        at = np.ones(len(found), np.int64)
        for places in chosen:
            rows, column = np.nonzero(columns < lengths[places][:, None])
            found[rows, at[rows] + column] = of_texts[places[rows], column]
            at += lengths[places]
        found = found[:, : min(self.context, at.max(initial=1) + 1)]
        found[:, -1] = self.end
        return torch.from_numpy(found).to(self.positions.device)

    def _tokenized(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens of all texts, one behind the other, and how many each has."""
        tokens, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start in range(0, len(texts), TOKENIZED_AT_ONCE):
            part = self.tokenize(texts[start : start + TOKENIZED_AT_ONCE])
            lengths.append(np.fromiter(map(len, part), np.int64, len(part)))
            tokens.append(np.fromiter(chain.from_iterable(part), np.int64))
        return np.concatenate(tokens), np.concatenate(lengths)

    @torch.no_grad()
    def encode(self, sentences: Tensor, beginnings: Tensor | None = None, of: Sequence[int] = ()) -> Tensor:
        """Embeddings of sentences, not normalised.

        Args:
            sentences: (n, longest) tokens, see `sentences`.
            beginnings: (m, longest) likewise, of which each is read once.
            of: for each sentence the place of a beginning; as much of that is taken as the sentence begins with.

        Returns:
            (n, dim)
        """
        if beginnings is None:
            beginnings, of = sentences[:1, :1], [0] * len(sentences)  # the start token
        rows = torch.tensor(of, dtype=torch.long, device=sentences.device)
        # Also of end tokens behind the first, which no token sees.
        past = self._states(beginnings, torch.zeros_like(beginnings[:, 0]))[1]
        width = min(sentences.shape[1], beginnings.shape[1])
        common = (sentences[:, :width] == beginnings[rows, :width]).long().cumprod(1).sum(1)
        lengths = (sentences[:, 1:] == self.end).int().argmax(1) + 2
        read = torch.minimum(common, lengths - 1)  # the last token must be read
        left = lengths - read
        embeddings: list[Tensor] = []
        order: list[Tensor] = []
        for places in _batches(left, *(ON_GPU if left.is_cuda else ELSEWHERE)):
            last = left[places] - 1
            columns = read[places].unsqueeze(1) + torch.arange(int(last.max()) + 1, device=sentences.device)
            tokens = sentences[places.unsqueeze(1), columns.clamp_max(sentences.shape[1] - 1)]
            begun = _Begun(past, rows[places], read[places])
            embeddings.append(self.head(self._states(tokens, last, begun)[0]))
            order.append(places)
        return torch.cat(embeddings)[torch.cat(order).argsort()]

    def _states(self, tokens: Tensor, last: Tensor, begun: "_Begun | None" = None) -> tuple[Tensor, Past]:
        """(rows, length) tokens and the place of the last one in each row -> its state, (rows, width), and the keys and
        values of all in each layer, (rows, heads, length, width of a head)."""
        rows, length = tokens.shape
        places = torch.arange(length, device=tokens.device)
        unseen = places > places.unsqueeze(1)  # (length, length)
        x = self.words(tokens).to(self.positions.dtype)
        if begun is not None:
            places = (places + begun.read.unsqueeze(1)).clamp_max(self.context - 1)
        x = x + self.positions[places]
        made = []
        for number, layer in enumerate(self.layers):
            states = F.linear(layer.norm1(x), layer.weight, layer.bias)
            heads: Tensor = states.view(rows, length, 3 * self.heads, -1).transpose(1, 2)
            query, key, value = heads.chunk(3, dim=1)
            made.append((key, value))
            if layer is self.layers[-1]:  # nobody reads what the others become
                each = torch.arange(rows, device=tokens.device)
                x, query = x[each, last].unsqueeze(1), query[each, :, last].unsqueeze(2)
                unseen = unseen[last, None, None]
            query = query * query.shape[-1] ** -0.5
            scores = (query @ key.transpose(-1, -2)).masked_fill(unseen, -math.inf)
            if begun is not None:
                scores = torch.cat((begun.scores(query, number), scores), dim=-1)
            weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
            attended = weights[..., -length:] @ value
            if begun is not None:
                attended = attended + begun.values(weights[..., :-length], number)
            x = x + layer.out(attended.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.norm2(x))
        return x[:, 0], made


def _batches(left: Tensor, most: int, least: int) -> Iterator[Tensor]:
    """Places of sentences that are read together, by how many of their tokens are left to read."""
    waiting = left.new_empty(0)
    for length in torch.unique(left).tolist():
        waiting = torch.cat((waiting, (left == length).nonzero().flatten()))
        if len(waiting) * length >= least:
            yield from torch.split(waiting, max(1, most // length))
            waiting = waiting[:0]
    if len(waiting):
        yield waiting


class _Begun:
    """Beginnings of sentences. Those that begin alike stand together in a grid, so that no key or value is copied.

    Args:
        past: keys and values of all beginnings in each layer, (beginnings, heads, longest, width of a head).
        of: (rows,) which of them each sentence has.
        read: (rows,) how many of its tokens.
    """

    def __init__(self, past: Past, of: Tensor, read: Tensor) -> None:
        self._past, self.read = past, read
        self._beginnings, group, sizes = torch.unique(of, return_inverse=True, return_counts=True)
        first = sizes.cumsum(0) - sizes
        within = torch.empty_like(of)
        within[group.argsort(stable=True)] = torch.arange(len(of), device=of.device)
        self._columns = int(sizes.max())
        self._cells = group * self._columns + within - first[group]
        places = torch.arange(past[0][0].shape[2], device=of.device)
        self._unseen = (places >= read.unsqueeze(1))[:, None, None]  # (rows, 1, 1, longest)

    def scores(self, query: Tensor, layer: int) -> Tensor:
        """(rows, heads, length, width of a head) -> (rows, heads, length, longest)"""
        keys = self._past[layer][0][self._beginnings]
        return self._multiplied(query, keys.transpose(-1, -2)).masked_fill(self._unseen, -math.inf)

    def values(self, weights: Tensor, layer: int) -> Tensor:
        """(rows, heads, length, longest) -> (rows, heads, length, width of a head)"""
        return self._multiplied(weights, self._past[layer][1][self._beginnings])

    def _multiplied(self, of_rows: Tensor, of_beginnings: Tensor) -> Tensor:
        """(rows, heads, length, n) and (beginnings, heads, n, m) -> (rows, heads, length, m)"""
        _, heads, length, n = of_rows.shape
        grid = of_rows.new_zeros(len(of_beginnings) * self._columns, heads, length, n)
        grid[self._cells] = of_rows
        grid = grid.view(len(of_beginnings), self._columns, heads, length, n).transpose(1, 2)
        product = (grid.flatten(2, 3) @ of_beginnings).view(*grid.shape[:-1], of_beginnings.shape[-1])
        return product.transpose(1, 2).flatten(0, 1)[self._cells]
