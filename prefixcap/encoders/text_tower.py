"""The text transformer of a CLIP, read in pieces.

It is causal: what it makes of a token depends on nothing that follows. So sentences that begin alike share the keys and
values of their beginning, and only what differs, with the end token, is read for each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Past = Sequence[tuple[Tensor, Tensor]]  # keys and values in each layer

AT_ONCE = 1024  # sentences in a batch: more take no less time each, but more memory


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

    def sentences(self, tokens: Sequence[Sequence[int]], *parts: Sequence[int]) -> Tensor:
        """Sentences that begin with the start token, cut to fit the context and at the first end token, where a CLIP
        looks.

        Args:
            tokens: of texts, as `tokenize` gives them.
            parts: the texts that sentences consist of, as places in `tokens`: the first of each sentence, the second of
                each, and so on. By default each text is a sentence.

        Returns:
            (sentences, longest), on the tower's device; what follows the end token means nothing.
        """
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        columns = np.arange(lengths.max(initial=0))
        texts = np.full((len(tokens), len(columns)), self.end)
        texts[columns < lengths[:, None]] = np.fromiter(chain.from_iterable(tokens), np.int64, lengths.sum())
        chosen = [np.asarray(part, np.int64) for part in parts or [range(len(tokens))]]
        found = np.full((len(chosen[0]), len(chosen) * len(columns) + 2), self.end)
        found[:, 0] = self.start
        at = np.ones(len(found), np.int64)
        for places in chosen:
            rows, column = np.nonzero(columns < lengths[places][:, None])
            found[rows, at[rows] + column] = texts[places[rows], column]
            at += lengths[places]
        found = found[:, : min(self.context, at.max(initial=1) + 1)]
        found[:, -1] = self.end
        return torch.from_numpy(found).to(self.positions.device)

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
        lengths = (sentences[:, 1:] == self.end).int().argmax(1) + 2
        past: Past = ()
        read = torch.zeros_like(lengths)
        rows = torch.tensor(of, dtype=torch.long, device=sentences.device)
        if beginnings is not None:
            past = self._states(beginnings)[1]  # of end tokens behind the first as well, which no token sees
            width = min(sentences.shape[1], beginnings.shape[1])
            common = (sentences[:, :width] == beginnings[rows, :width]).long().cumprod(1).sum(1)
            read = torch.minimum(common, lengths - 1)  # the last token must be read
        left = lengths - read
        embeddings: list[Tensor] = []
        order: list[Tensor] = []
        for length in torch.unique(left).tolist():  # sentences of which as much is left to read
            for places in (left == length).nonzero().flatten().split(AT_ONCE):
                columns = read[places].unsqueeze(1) + torch.arange(length, device=sentences.device)
                taken = [(keys[rows[places]], values[rows[places]]) for keys, values in past]
                states = self._states(sentences[places.unsqueeze(1), columns], taken, read[places])[0]
                embeddings.append(self.head(states))
                order.append(places)
        return torch.cat(embeddings)[torch.cat(order).argsort()]

    def _states(self, tokens: Tensor, past: Past = (), read: Tensor | None = None) -> tuple[Tensor, Past]:
        """(rows, length) tokens, after `read` of the past in each row -> (rows, width) at the last one, and the keys
        and values of all in each layer, (rows, heads, length, width of a head)."""
        rows, length = tokens.shape
        places = torch.arange(length, device=tokens.device)
        visible = (places <= places.unsqueeze(1)).expand(rows, 1, -1, -1)  # (rows, 1, length, length)
        if past and read is not None:
            before = torch.arange(past[0][0].shape[2], device=tokens.device) < read.unsqueeze(1)
            visible = torch.cat((before[:, None, None].expand(-1, -1, length, -1), visible), dim=-1)
            places = places + read.unsqueeze(1)
        x = self.words(tokens).to(self.positions.dtype) + self.positions[places]
        made = []
        for number, layer in enumerate(self.layers):
            states = F.linear(layer.norm1(x), layer.weight, layer.bias)
            heads: Tensor = states.view(rows, length, 3 * self.heads, -1).transpose(1, 2)
            query, key, value = heads.chunk(3, dim=1)
            made.append((key, value))
            if past:
                key, value = (torch.cat(pair, dim=2) for pair in zip(past[number], (key, value), strict=True))
            if layer is self.layers[-1]:  # nobody reads what the others become
                x, query, visible = x[:, -1:], query[:, :, -1:], visible[:, :, -1:]
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
            x = x + layer.out(attended.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.norm2(x))
        return x[:, -1], made
