"""Keys and values of what a language model has read, for decoders that repeat and drop rows at every step."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class KeyValueCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """A cache of transformers in which a step copies nothing, or, where rows change, everything once.

    transformers' own copies all keys and values whenever a token is added, and again when rows are chosen.

    Args:
        room: most positions that will be read.
    """

    def __init__(self, room: int) -> None:
        super().__init__(layer_class_to_replicate=lambda: _Layer(room))

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, in this order; one may come many times or never."""
        self.batch_select_indices(rows)


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Keys and values lie in memory by position, then by row: what is added goes behind the rest."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length = room, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add (rows, heads, new, head dim) keys and values -> all of them, (rows, heads, length, head dim)."""
        if not self.length:
            self.keys, self.values = self._buffer(key_states), self._buffer(value_states)
            self.is_initialized = True
        start, self.length = self.length, self.length + key_states.shape[2]
        for buffer, new in ((self.keys, key_states), (self.values, value_states)):
            buffer[start : self.length] = new.permute(2, 0, 1, 3)
        keys, values = (buffer[: self.length].permute(1, 2, 0, 3) for buffer in (self.keys, self.values))
        return keys, values

    def _buffer(self, states: Tensor) -> Tensor:
        rows, heads, _, dim = states.shape
        return states.new_empty(self.room, rows, heads, dim)

    def get_seq_length(self, *args: Any) -> int:
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        self.keys, self.values = (self._selected(buffer, indices) for buffer in (self.keys, self.values))

    def _selected(self, buffer: Tensor, rows: Tensor) -> Tensor:
        selected = buffer.new_empty(self.room, len(rows), *buffer.shape[2:])
        torch.index_select(buffer[: self.length], 1, rows, out=selected[: self.length])
        return selected
