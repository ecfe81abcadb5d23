"""A random order of any number of items that takes no memory: a keyed permutation, computed position by position."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch.distributed
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

ROUNDS = 6
BLOCK = 65_536  # positions that are permuted together


def permuted(positions: NDArray[np.int64], size: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """The images of `positions` under a random permutation of `range(size)`.

    A Feistel network over the next even number of bits; values outside the range go through it again until they are
    inside (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).

    Args:
        positions: (N,) int64 in `range(size)`.
        size: size of the range that is permuted.
        seed: integers that choose the permutation.

    Returns:
        (N,) int64 in `range(size)`.

    Examples:
        >>> sorted(permuted(np.arange(5), 5, seed=[0]).tolist())
        [0, 1, 2, 3, 4]
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.default_rng(seed).integers(0, 2**63, ROUNDS, dtype=np.uint64)
    values = positions.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        left, right = values[outside] >> half, values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        values[outside] = (left << half) | right
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): each bit depends on all bits of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


class ShuffledSampler(DistributedSampler[int]):
    """Every item once, in an order that depends on the seed and the epoch; each process takes its own share.

    Unlike torch's samplers it builds no list of all items, and it can begin within an epoch. If the items cannot be
    shared evenly, some come twice, so that all processes take the same number of steps.

    Args:
        size: number of items.
        seed: seed of the order.
        taken: called when an epoch begins: how many items of its share of this epoch the process has had already. They
            are skipped at no cost.
    """

    def __init__(self, size: int, seed: int = 0, taken: Callable[[], int] = lambda: 0) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        world_size = torch.distributed.get_world_size() if distributed else 1
        rank = torch.distributed.get_rank() if distributed else 0
        super().__init__(range(size), world_size, rank, seed=seed)  # type: ignore[arg-type]
        self.size, self.taken = size, taken

    def __iter__(self) -> Iterator[int]:
        first = self.rank + self.taken() * self.num_replicas
        for start in range(first, self.total_size, self.num_replicas * BLOCK):
            stop = min(start + self.num_replicas * BLOCK, self.total_size)
            positions = np.arange(start, stop, self.num_replicas) % self.size
            yield from permuted(positions, self.size, (self.seed, self.epoch)).tolist()
