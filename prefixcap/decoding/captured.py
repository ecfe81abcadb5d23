"""Searches whose steps are CUDA graphs: on a GPU, most of an eager step is the launching of its kernels.

All tensors of a step stay where they are and keep their sizes: those of the search (`prefixcap.decoding.search`), and
the keys and values (`prefixcap.decoding.cache.SlotCache`). There is a graph for each size that the batch shrinks to as
searches end, and for each length that attention reads. The host only learns how many searches still run, and that a
step late, so that it never holds up the GPU.

The graphs are kept with the language model until it decodes with another decoder, other options or another length of
the prefix, or its weights have moved. Weights that change in place, as in training, are read as they are. The first
batch of its kind is decoded eagerly, so that a single one takes no time for graphs and leaves no memory behind.

Padded prefixes (`prefixcap.decoding.padded`) are of one kind whatever their length: they are padded to the longest so
far, and the graphs are made anew where one is longer. They are read eagerly, and only the tokens after them in graphs,
as transformers asks the host about their padding.

Shapes: I images, P length of the prefix, E its width, B searches, W rows of each, M most tokens of a caption, L
positions that attention reads, V vocabulary.
"""

import copy
import itertools
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from prefixcap.decoding.cache import KeyValueCache, SlotCache
from prefixcap.decoding.padded import PaddedPrefix
from prefixcap.decoding.search import Search, run_eagerly
from prefixcap.language import LanguageModel
from prefixcap.language.checks import capture_problem
from prefixcap.utils.async_values import AsyncValue
from prefixcap.utils.cuda_graphs import CudaGraphs

_POSITIONS = 16  # attention reads a multiple of so many
_ROWS = 128  # smaller batches are no faster: the GPU has too little to do


class Recorder(Protocol):
    """Captures what functions without arguments do."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """What does the same again, to the same tensors. Nothing is done yet."""


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaGraphs}
"""What captures on a type of device. Elsewhere all searches are eager."""


def run(language_model: LanguageModel, prefix: Tensor | PaddedPrefix, search: Search) -> None:
    """Carry a search to its end, in CUDA graphs where there was a batch of its kind before.

    Arguments as of `run_eagerly`. Warns if the language model cannot be captured; `LanguageModel.cuda_graphs` says
    whether to try.
    """
    recorder = RECORDERS.get(prefix.device.type)
    if recorder is None or not search.capturable or not _is_capturable(language_model):
        return run_eagerly(language_model, prefix, search)
    key = _key(language_model, prefix, search)
    kept = _KEPT.get(language_model)
    if kept is None or kept.key != key:
        _KEPT[language_model] = _Kept(key)
        return run_eagerly(language_model, prefix, search)
    if not kept.lock.acquire(blocking=False):  # another thread is using it
        return run_eagerly(language_model, prefix, search)
    try:
        if kept.program is None or not kept.program.has_room_for(prefix):
            kept.program = None  # gives its memory back first
            kept.program = Program(prefix, search, recorder(prefix.device))
        kept.program.run(language_model, prefix, search)
    finally:
        kept.lock.release()


class Program:
    """The tensors and graphs of all batches that are searched alike.

    Args:
        prefix: (I, P, E) of the largest batch; P is rounded up if it is padded.
        search: of it.
        recorder: captures the steps.
    """

    def __init__(self, prefix: Tensor | PaddedPrefix, search: Search, recorder: Recorder) -> None:
        is_padded, (images, length, dim) = isinstance(prefix, PaddedPrefix), prefix.shape
        length = _round_up(length) if is_padded else length
        self.prefix = torch.zeros(images, length, dim, dtype=prefix.dtype, device=prefix.device)
        self._padding = torch.zeros(images, dtype=torch.long, device=prefix.device) if is_padded else None  # (I,)
        memory = None if isinstance(prefix, Tensor) else prefix.memory
        self._memory = None if memory is None else memory.clone()  # of I images
        self.search = copy.copy(search)
        vars(self.search).update({name: value.clone() for name, value in search.state().items()})
        count, width = len(search.images), search.width
        self._searches_of_image = count // len(prefix)
        self._sizes = [count]  # B of each graph, descending
        while self._sizes[-1] > 1 and self._sizes[-1] * width > _ROWS:
            self._sizes.append(-(-self._sizes[-1] // 2))
        # How many positions in front of each search's rows are padding. (B,)
        self._search_padding = (
            self._padding.repeat_interleave(self._searches_of_image) if self._padding is not None else None
        )
        positions = _round_up(length + search.limits.max_tokens)
        # The slot of the keys and values that each row reads at each position. (B, W, L)
        self._slots = torch.zeros(count, width, positions, dtype=torch.long, device=prefix.device)
        self._cache: SlotCache | None = None
        self._recorder: Recorder | None = recorder
        self._graphs: dict[Hashable, Callable[[], None] | None] = {}

    def has_room_for(self, prefix: Tensor | PaddedPrefix) -> bool:
        """Whether a prefix of this kind has at most as many images as at first, and no more positions."""
        return len(prefix) <= len(self.prefix) and prefix.shape[1] <= self.prefix.shape[1]

    def run(self, language_model: LanguageModel, prefix: Tensor | PaddedPrefix, search: Search) -> None:
        """As `run_eagerly`, for a prefix that there is room for."""
        own, count = self.search, len(search.images)
        # Begin with the state of the search; what is left of the batch has ended.
        self._place(prefix)
        own.running.zero_()
        own.images.copy_(torch.arange(len(own.images), device=prefix.device))
        for name, value in search.state().items():
            vars(own.first(count))[name].copy_(value)
        size = self._size(count)
        begin = partial(self._begin, language_model, size)
        if self._padding is None:
            self._do(language_model, ("begin", size), begin)
        else:
            _without_cast_cache(self.prefix.device, begin)
        running = AsyncValue(own.running.sum())
        for length in range(1, search.limits.max_tokens):
            positions = _round_up(self.prefix.shape[1] + length)
            self._do(language_model, (size, positions), partial(self._step, language_model, size, positions))
            # How many ran before this step: the GPU goes on while the host reads that.
            before, running = running, AsyncValue(own.running.sum())
            left = before.get()
            if not left:
                break
            if (smaller := self._size(left)) < size:
                order = own.first(size).sort()
                self._slots[:size] = self._slots[order]
                if self._search_padding is not None:
                    self._search_padding[:size] = self._search_padding[order]
                size = smaller
        for name, value in search.state().items():
            value.copy_(own.in_order(vars(own)[name])[:count] if value.ndim else vars(own)[name])

    def _place(self, prefix: Tensor | PaddedPrefix) -> None:
        """Copy a prefix to where the graphs read it."""
        if isinstance(prefix, Tensor):
            self.prefix[: len(prefix)] = prefix
            return
        more = self.prefix.shape[1] - prefix.shape[1]
        self.prefix[: len(prefix), :more] = 0
        self.prefix[: len(prefix), more:] = prefix.embeddings
        assert self._padding is not None and self._search_padding is not None
        self._padding[: len(prefix)] = prefix.padding + more
        self._search_padding.copy_(self._padding.repeat_interleave(self._searches_of_image))
        if self._memory is not None and prefix.memory is not None:
            self._memory.copy_(prefix.memory)

    def _size(self, count: int) -> int:
        """The smallest B that holds so many searches."""
        return min(size for size in self._sizes if size >= count)

    def _begin(self, language_model: LanguageModel, size: int) -> None:
        """Read the prefixes, and choose the first tokens of `size` searches."""
        image = torch.arange(size, device=self.prefix.device) // self._searches_of_image  # (B,)
        images, length = -(-size // self._searches_of_image), self.prefix.shape[1]
        cache = KeyValueCache(length)
        prefix: Tensor | PaddedPrefix = self.prefix[:images]
        if self._padding is not None:
            memory = None if self._memory is None else self._memory.select(torch.arange(images, device=image.device))
            prefix = PaddedPrefix(self.prefix[:images], self._padding[:images], memory)
        logits = language_model.step(prefix, cache)  # (I, V)
        if self._cache is None:
            self._cache = SlotCache(cache, length * len(self.prefix) + self.search.tokens.numel())
        self._cache.fill(cache)
        # The prefixes take the first slots: all images at the first position, all at the second, and so on.
        position = torch.arange(length, device=image.device)  # (P,)
        self._slots[:size] = image.view(-1, 1, 1)  # masked, but nothing of another image, which might be NaN
        self._slots[:size, :, :length] = (position * images + image.unsqueeze(1)).unsqueeze(1)
        self.search.first(size).advance(logits[image])

    def _step(self, language_model: LanguageModel, size: int, positions: int) -> None:
        """Read the newest tokens of `size` searches, and choose the next ones."""
        assert self._cache is not None
        search, slots = self.search.first(size), self._slots[:size]
        newest = search.newest()  # (B, W)
        # The newest tokens take the slots behind those before, a row's at its own place.
        position = self.prefix.shape[1] + search.length - 1  # ()
        rows = torch.arange(newest.numel(), device=newest.device)  # (B * W,)
        first = self.prefix.shape[:2].numel() + (search.length - 1) * self._slots.shape[:2].numel()
        slots.index_copy_(2, position.view(1), (first + rows).view(size, -1, 1))
        self._cache.place(first + rows, slots[..., :positions].flatten(0, 1))
        is_read = torch.arange(positions, device=newest.device) <= position  # (L,)
        embeddings = language_model.embed(newest.view(-1, 1))  # (B * W, 1, dim)
        padding = None
        if self._search_padding is not None:
            padding = self._search_padding[:size].unsqueeze(1).expand_as(newest).flatten()  # (B * W,)
        if self._memory is not None:
            image = search.images // self._searches_of_image  # (B,) that each search is for
            self._cache.memory = self._memory.select(image.unsqueeze(1).expand_as(newest).flatten())
        logits = language_model.step_at(embeddings, self._cache, position, is_read, padding)  # (B * W, V)
        parents = search.advance(logits)  # (B, W)
        # Each row takes over the slot numbers of the row that it extends: keys and values are not moved.
        slots.copy_(slots.gather(1, parents.unsqueeze(-1).expand_as(slots)))

    def _do(self, language_model: LanguageModel, key: Hashable, function: Callable[[], None]) -> None:
        """Call a function the first time, which also prepares the GPU; capture it the second, and replay from then."""
        if self._recorder is not None and self._graphs.get(key, function) is None:
            try:
                self._graphs[key] = self._recorder.capture(partial(_without_cast_cache, self.prefix.device, function))
            except RuntimeError as error:
                warnings.warn(_eager(language_model, " ".join(str(error).split())[:200]), stacklevel=2)
                language_model.cuda_graphs, self._recorder = False, None
        replay = self._graphs.setdefault(key, None)
        _without_cast_cache(self.prefix.device, function) if replay is None else replay()


@dataclass
class _Kept:
    """What is kept with a language model: what its last batch had to be alike in, and the graphs if there were two."""

    key: Hashable
    program: Program | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


_KEPT: WeakKeyDictionary[LanguageModel, _Kept] = WeakKeyDictionary()


def _key(language_model: LanguageModel, prefix: Tensor | PaddedPrefix, search: Search) -> Hashable:
    """What batches must have in common to be decoded by the same graphs."""
    options = [(name, value) for name, value in vars(search).items() if not isinstance(value, Tensor)]
    shapes = [value.shape[1:] for value in search.state().values()]
    weights = [(weight.data_ptr(), weight.dtype) for weight in _tensors(language_model)]
    autocast = torch.is_autocast_enabled(prefix.device.type), torch.get_autocast_dtype(prefix.device.type)
    per_image = len(search.images) // len(prefix)
    shape: Hashable = prefix.shape[1:]
    if not isinstance(prefix, Tensor):
        shape = "padded", *prefix.shape[2:], None if prefix.memory is None else prefix.memory.kind()
    return type(search), *options, *shapes, *weights, autocast, per_image, shape, prefix.dtype


def _tensors(language_model: LanguageModel) -> Iterator[Tensor]:
    return itertools.chain(language_model.parameters(), language_model.buffers())


def _is_capturable(language_model: LanguageModel) -> bool:
    """Whether to try; warns if the language model is the reason not to."""
    if not language_model.cuda_graphs or language_model.training:  # in training mode, dropout is drawn anew
        return False
    if (problem := capture_problem(language_model)) is not None:
        warnings.warn(_eager(language_model, problem), stacklevel=3)
        language_model.cuda_graphs = False
    return problem is None


def _eager(language_model: LanguageModel, reason: str) -> str:
    return f"language model '{language_model.name}' decodes without CUDA graphs: {reason}"


def _without_cast_cache(device: torch.device, function: Callable[[], None]) -> None:
    """Call a function whose weights are cast anew, if autocast casts: copies kept from outside would be gone later."""
    enabled, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
    with torch.autocast(device.type, dtype, enabled, cache_enabled=False):
        function()


def _round_up(length: int) -> int:
    return -(-length // _POSITIONS) * _POSITIONS
