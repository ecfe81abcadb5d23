"""What all searches for captions share: their state, in tensors of fixed sizes, and the loop over tokens.

A search changes its state in place and never asks the host, so that a step can be captured in a CUDA graph
(`prefixcap.decoding.captured`). Where nothing is captured, what has ended leaves the batch at each step.

Shapes: B images (or captions that are searched for separately) in the batch, W rows of each that the language model
reads, R of these rows that it still has to read, V vocabulary, T tokens generated so far, M most tokens of a caption.
"""

import copy
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from prefixcap.decoding.cache import KeyValueCache
from prefixcap.decoding.padded import PaddedPrefix
from prefixcap.decoding.rules import GenerationLimits
from prefixcap.language import LanguageModel


class Search(ABC):
    """The state of B searches.

    All tensors among the attributes belong to the state and have B as their first dimension, except for `length`. All
    other attributes are options: searches with equal ones do the same work.

    Args:
        images: B.
        rows: the sizes of W, e.g. (groups, beams).
        limits: limits of a caption.
        end: the token that ends a caption, and fills `tokens`.
        device: of the state.

    Attributes:
        length: () T.
        images: (B,) the numbers that the searches began with.
        running: (B,) bool, those that have not ended. The state of the others stays as it is.
        tokens: (B, *rows, M)
        width: W
        capturable: whether `advance` runs without waiting for values on the host.
    """

    def __init__(
        self, images: int, rows: tuple[int, ...], limits: GenerationLimits, end: int, device: torch.device
    ) -> None:
        self.width, self.limits, self.end, self.capturable = math.prod(rows), limits, end, True
        self.length = torch.zeros((), dtype=torch.long, device=device)
        self.images = torch.arange(images, device=device)
        self.running = torch.ones(images, dtype=torch.bool, device=device)
        self.tokens = torch.full((images, *rows, limits.max_tokens), end, device=device)

    @abstractmethod
    def advance(self, logits: Tensor) -> Tensor:
        """Extend the captions by one token.

        Args:
            logits: (B * W, V) of the next token of each row; or (B, V) of the first, which all rows of an image share.

        Returns:
            (B, W) which of an image's rows each one extends.
        """

    def unread(self) -> Tensor:
        """(B, W) bool, the rows that the language model has to read to go on."""
        return self.running.unsqueeze(1).expand(-1, self.width)

    def newest(self) -> Tensor:
        """(B, W) the newest tokens."""
        return self.tokens.flatten(1, -2).index_select(2, (self.length - 1).view(1)).squeeze(2)

    def is_last(self) -> Tensor:
        """() bool, whether the captions are as long as they may become."""
        return self.length == self.limits.max_tokens

    def allowed(self, scores: Tensor) -> Tensor:
        """(B * W or B, V) scores of the next token, -inf where the limits rule it out."""
        tokens = self.tokens.flatten(1, -2)[:, : len(scores) // len(self.tokens)]
        return self.limits.apply(tokens.flatten(0, 1), scores, self.end, self.length)

    def first(self, count: int) -> "Search":
        """The first searches of the batch; to change their state changes that of this one."""
        view = copy.copy(self)
        vars(view).update({name: value[:count] for name, value in self.state().items() if value.ndim})
        return view

    def state(self) -> dict[str, Tensor]:
        """The tensors among the attributes."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def sort(self) -> Tensor:
        """Move the searches that are running to the front -> (B,) where each one was before."""
        order = (~self.running).long().argsort(stable=True)
        for value in self.state().values():
            if value.ndim:
                value.copy_(value[order])
        return order

    def in_order(self, value: Tensor) -> Tensor:
        """A tensor of the state in the order in which the searches began."""
        return value[self.images.argsort()]


def write(target: Tensor, where: Tensor, value: Tensor) -> None:
    """Change (B, …) state in place to (B, …) values, where (B,) is true."""
    target.copy_(torch.where(where.view(-1, *[1] * (target.ndim - 1)), value, target))


def run_eagerly(language_model: LanguageModel, prefix: Tensor | PaddedPrefix, search: Search) -> None:
    """Carry a search to its end; what has ended leaves the batch at each step.

    Args:
        language_model: the model to decode with.
        prefix: (batch, length, dim) embeddings that the captions continue.
        search: at its beginning; of batch images, or several times as many, those of an image next to each other.
    """
    cache = KeyValueCache(prefix.shape[1] + search.limits.max_tokens)
    logits = language_model.step(prefix, cache)  # (batch, V)
    images = search.images // (len(search.images) // len(prefix))  # (B,) the row of the prefix that each continues
    search.advance(logits if len(images) == len(prefix) else logits[images])
    rows = images.unsqueeze(1).expand(-1, search.width)  # (B, W) the row of the cache that each row continues
    while count := int(search.running.sum()):
        # Searches that have ended leave the batch.
        if count < len(rows):
            rows = rows[search.sort()[:count]]
            search = search.first(count)
        # The language model reads the newest tokens.
        unread = search.unread().flatten().nonzero().squeeze(1)  # (R,)
        cache.select(rows.flatten()[unread])
        logits = language_model.step(language_model.embed(search.newest().flatten()[unread]).unsqueeze(1), cache)
        # The row of the cache that each row is now; any, if it had nothing to read.
        row_of = torch.zeros(rows.numel(), dtype=torch.long, device=rows.device)
        row_of.index_copy_(0, unread, torch.arange(len(unread), device=rows.device))
        parents = search.advance(logits if len(unread) == len(row_of) else logits[row_of])
        rows = row_of.view(rows.shape).gather(1, parents)
