"""Samples -> pixels, batch by batch; and work on several batches at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_prep.records import Sample
from prefixcap.errors import InputError

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Pixels:
    """The images of a batch of samples, as far as they can be read.

    Attributes:
        positions: in the batch, of the images that can be read.
        images: (positions, 3, height, width) uint8.
        reasons: by position, why each of the others cannot be read.
    """

    positions: list[int]
    images: Tensor
    reasons: dict[int, str]

    def pin_memory(self) -> "Pixels":
        """The same in pinned memory; `DataLoader` calls it."""
        return Pixels(self.positions, self.images.pin_memory(), self.reasons)


class PixelReader(Dataset[Any]):
    """Reads the images of samples, a batch at a time.

    Args:
        preprocess: of the encoder: an image to (3, height, width) uint8.
        scaled_size: decode JPEG images at the smallest scale with so many pixels on both sides; None: at full size.
    """

    def __init__(self, preprocess: Callable[[Image.Image], Tensor], scaled_size: int | None = None) -> None:
        self.preprocess, self.scaled_size = preprocess, scaled_size

    def read(self, samples: list[Sample]) -> Pixels:
        """Read one batch."""
        results, reasons = read_each(samples, self.read_one)
        stacked = torch.from_numpy(np.stack(list(results.values()))) if results else torch.empty(0)
        return Pixels(list(results), stacked, reasons)

    def read_one(self, sample: Sample) -> NDArray[np.uint8]:
        """(3, height, width) of one image."""
        return self.preprocess(sample.open(self.scaled_size)).numpy()

    def __getitems__(self, samples: Any) -> Any:
        """Read one batch, as `DataLoader` asks for it."""
        return self.read(samples)

    def in_processes(self, batches: Iterable[list[Sample]], num_workers: int, device: torch.device) -> Iterable[Pixels]:
        """The pixels of each batch, read ahead by so many processes, for an encoder on `device`."""
        return DataLoader(
            self,
            batch_sampler=batches,  # lists of samples, which `__getitems__` takes in place of their indices
            num_workers=num_workers,
            collate_fn=unchanged,
            pin_memory=device.type == "cuda",
        )


def read_each(samples: list[Sample], read: Callable[[Sample], T]) -> tuple[dict[int, T], dict[int, str]]:
    """By position, `read(sample)`; and why each of the others cannot be read."""
    results: dict[int, T] = {}
    reasons: dict[int, str] = {}
    for position, sample in enumerate(samples):
        try:
            results[position] = read(sample)
        except InputError as error:
            reasons[position] = str(error).removeprefix(f"{sample.where}: ")
    return results, reasons


def unchanged(batch: Any) -> Any:
    """The batch as it is: `DataLoader` pickles this function."""
    return batch


def in_threads(work: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """`work(item)` for each item, in order: as many at a time as torch has threads, each on a single thread.

    That is faster than one item after the other on all threads, which would wait for each other after every operation,
    and the results do not depend on the number of threads.
    """
    threads = torch.get_num_threads()
    waiting: deque[Future[U]] = deque()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the pool's setting would also apply to threads that are started later
