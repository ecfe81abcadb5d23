"""The text transformer of a CLIP, read in pieces.

It is causal: what it makes of a token depends on nothing that follows. So sentences that begin alike share the keys and
values of their beginning, and only what differs, with the end token, is read for each.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        tokenize: a text -> its tokens, without these two.
    """

    layers: Sequence[TextLayer]
    heads: int
    words: nn.Embedding
    positions: Tensor
    head: Callable[[Tensor], Tensor]
    start: int
    end: int
    tokenize: Callable[[str], list[int]]

    def sentence(self, tokens: Sequence[int]) -> list[int]:
        """Tokens of a text -> with start and end; cut to fit the context, and at an end token, where a CLIP looks."""
        kept = list(tokens[: len(self.positions) - 2])
        return [self.start, *kept[: kept.index(self.end) if self.end in kept else None], self.end]

    @torch.no_grad()
    def encode(
        self, sentences: Sequence[Sequence[int]], beginnings: Sequence[Sequence[int]] = (), of: Sequence[int] = ()
    ) -> Tensor:
        """Embeddings of sentences, not normalised.

        Args:
            sentences: tokens of each, as `sentence` gives them.
            beginnings: start token and further tokens of texts, of which each is read once.
            of: for each sentence the place of a beginning; as much of that is taken as the sentence begins with.

        Returns:
            (sentences, dim)
        """
        past = self._read(beginnings) if beginnings else None
        shared = [_common(row, beginnings[place]) for row, place in zip(sentences, of, strict=True)] if past else []
        alike: dict[int, list[int]] = defaultdict(list)  # sentences by how much of them is left to read
        for place, row in enumerate(sentences):
            alike[len(row) - (shared[place] if past else 0)].append(place)
        device = self.positions.device
        embeddings: list[Tensor] = []
        order: list[int] = []
        for length, places in alike.items():
            for start in range(0, len(places), AT_ONCE):
                part = places[start : start + AT_ONCE]
                tokens = torch.tensor([list(sentences[place][-length:]) for place in part], device=device)
                if past:
                    rows = torch.tensor([of[place] for place in part], device=device)
                    read = torch.tensor([shared[place] for place in part], device=device)
                    taken = [(keys[rows], values[rows]) for keys, values in past]
                    embeddings.append(self.head(self._last_states(tokens, taken, read)))
                else:
                    embeddings.append(self.head(self._last_states(tokens)))
                order += part
        back = torch.tensor(order, device=device).argsort()
        return torch.cat(embeddings)[back]

    def _last_states(
        self, tokens: Tensor, past: list[tuple[Tensor, Tensor]] | None = None, read: Tensor | None = None
    ) -> Tensor:
        """(rows, length) tokens, after `read` of the past in each row -> (rows, width) at the last one."""
        return self._states(tokens, past, read)[0]

    def _read(self, beginnings: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values in each layer, (beginnings, heads, longest, width of a head)."""
        longest = max(map(len, beginnings))
        padded = [[*row, *[self.end] * (longest - len(row))] for row in beginnings]  # no token sees what follows it
        return self._states(torch.tensor(padded, device=self.positions.device))[1]

    def _states(
        self, tokens: Tensor, past: list[tuple[Tensor, Tensor]] | None = None, read: Tensor | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The states of the last tokens, and the keys and values of all."""
        rows, length = tokens.shape
        places = torch.arange(length, device=tokens.device)
        visible = (places <= places.unsqueeze(1)).expand(rows, 1, -1, -1)  # (rows, 1, length, length)
        if past is not None and read is not None:
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
            if past is not None:
                key, value = (torch.cat(pair, dim=2) for pair in zip(past[number], (key, value), strict=True))
            if layer is self.layers[-1]:  # nobody reads what the others become
                x, query, visible = x[:, -1:], query[:, :, -1:], visible[:, :, -1:]
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
            x = x + layer.out(attended.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.norm2(x))
        return x[:, -1], made


def _common(row: Sequence[int], beginning: Sequence[int]) -> int:
    """How many tokens two sentences begin with alike; one less than a sentence has, as its last must be read."""
    limit = min(len(row) - 1, len(beginning))
    return next((place for place in range(limit) if row[place] != beginning[place]), limit)
