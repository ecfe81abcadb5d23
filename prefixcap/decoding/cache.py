"""Key/value caches for decoders that repeat and drop rows at every step.

Shapes: R rows (captions being decoded), H heads, N new positions, L positions in all, D width of a head, S slots.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from prefixcap.language.cross_attention import Memory


class KeyValueCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """A transformers cache in preallocated memory: adding a token copies nothing, selecting rows copies once.

    transformers' own `DynamicCache` copies all keys and values for each new token, and again when rows are selected.

    Args:
        max_length: the most positions, prefix and tokens together, that will be read.

    Attributes:
        padding: (R,) long, how many positions in front of each row are padding, which `LanguageModel.step` masks; None:
            none are.
        memory: what the layers attend to, of each row; None: nothing.
    """

    def __init__(self, max_length: int) -> None:
        super().__init__(layer_class_to_replicate=lambda: _Layer(max_length))
        self.padding: Tensor | None = None
        self.memory: Memory | None = None

    def select(self, rows: Tensor) -> None:
        """Continue with these rows, in this order: (R',) row numbers, each any number of times."""
        count = self.layers[0].keys.shape[1]
        if len(rows) != count or not torch.equal(rows, torch.arange(count, device=rows.device)):
            self.batch_select_indices(rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        if self.padding is not None:
            self.padding = self.padding[indices]
        if self.memory is not None:
            self.memory = self.memory.select(indices)


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, (max_length, R, H, D): position first, so that a new token goes behind the rest."""

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self.max_length, self.length = max_length, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the (R, H, N, D) keys and values of N new positions -> those of all positions, each (R, H, L, D)."""
        if not self.length:
            self.keys, self.values = self._allocate(key_states), self._allocate(value_states)
            self.is_initialized = True
        start, self.length = self.length, self.length + key_states.shape[2]
        for buffer, new in ((self.keys, key_states), (self.values, value_states)):
            buffer[start : self.length] = new.permute(2, 0, 1, 3)  # (N, R, H, D)
        # Views of the buffers: nothing is copied.
        keys, values = (buffer[: self.length].permute(1, 2, 0, 3) for buffer in (self.keys, self.values))
        return keys, values

    def _allocate(self, states: Tensor) -> Tensor:
        rows, heads, _, dim = states.shape
        return states.new_empty(self.max_length, rows, heads, dim)

    def get_seq_length(self, *args: Any) -> int:
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        self.keys, self.values = (self._select(buffer, indices) for buffer in (self.keys, self.values))

    def _select(self, buffer: Tensor, rows: Tensor) -> Tensor:
        selected = buffer.new_empty(self.max_length, len(rows), *buffer.shape[2:])
        torch.index_select(buffer[: self.length], 1, rows, out=selected[: self.length])
        return selected


class SlotCache(Cache):  # type: ignore[misc]
    """A transformers cache of tensors that never move or change their size, for steps that are captured.

    Keys and values of a position of a row lie in a slot. A table says which slots each row reads, so that rows are
    repeated, reordered and dropped without copying what lies there. The model reads one token of each row at a time.

    Args:
        prefix: the cache of a model that has read a batch, which says what its layers keep.
        slots: S.

    Attributes:
        memory: as of `KeyValueCache`.
    """

    def __init__(self, prefix: KeyValueCache, slots: int) -> None:
        super().__init__(layers=[_Slots(layer, slots) for layer in prefix.layers])
        self.memory: Memory | None = None

    def fill(self, prefix: KeyValueCache) -> None:
        """Put all (L, R) positions of a full cache into the first slots: all rows at the first position, and so on."""
        for layer, read in zip(self.layers, prefix.layers, strict=True):
            layer.keys[: read.keys.shape[:2].numel()] = read.keys.flatten(0, 1)
            layer.values[: read.values.shape[:2].numel()] = read.values.flatten(0, 1)

    def place(self, newest: Tensor, table: Tensor) -> None:
        """Before the model reads: (R,) the slots of the tokens that it reads, and (R, L) those that each row attends
        to."""
        for layer in self.layers:
            layer.newest, layer.table = newest, table


class _Slots(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, (S, H, D)."""

    newest: Tensor
    table: Tensor

    def __init__(self, like: _Layer, slots: int) -> None:
        super().__init__()
        self.keys = like.keys.new_zeros(slots, *like.keys.shape[2:])
        self.values = like.values.new_zeros(slots, *like.values.shape[2:])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the (R, H, 1, D) keys and values of a token of each row -> those of all positions, each (R, H, L, D)."""
        self.keys.index_copy_(0, self.newest, key_states.squeeze(2))
        self.values.index_copy_(0, self.newest, value_states.squeeze(2))
        return self._read(self.keys), self._read(self.values)

    def _read(self, slots: Tensor) -> Tensor:
        rows, length = self.table.shape
        # By an index, not index_select: CUDA then copies vectors.
        return slots[self.table.flatten()].view(rows, length, *slots.shape[1:]).transpose(1, 2)

    def get_seq_length(self, *args: Any) -> int:
        return 0  # models are told positions and mask
