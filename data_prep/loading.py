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


class PixelReader(Dataset[Pixels]):
    """Reads the images of samples, a batch at a time.

    Args:
        preprocess: of the encoder: an image to (3, height, width) uint8.
        scaled_size: decode JPEG images at the smallest scale with so many pixels on both sides; None: at full size.
    """

    def __init__(self, preprocess: Callable[[Image.Image], Tensor], scaled_size: int | None = None) -> None:
        self.preprocess, self.scaled_size = preprocess, scaled_size

    def read(self, samples: list[Sample]) -> Pixels:
        """Read one batch."""
        results = [self._pixels(sample) for sample in samples]
        pixels = {position: image for position, image in enumerate(results) if not isinstance(image, str)}
        reasons = {position: reason for position, reason in enumerate(results) if isinstance(reason, str)}
        stacked = torch.from_numpy(np.stack(list(pixels.values()))) if pixels else torch.empty(0)
        return Pixels(list(pixels), stacked, reasons)

    __getitems__ = read  # as `DataLoader` asks for a batch

    def _pixels(self, sample: Sample) -> NDArray[np.uint8] | str:
        """(3, height, width), or why the image cannot be read."""
        try:
            return self.preprocess(sample.open(self.scaled_size)).numpy()
        except InputError as error:
            return str(error).removeprefix(f"{sample.where}: ")

    def in_processes(self, batches: Iterable[list[Sample]], num_workers: int, pin_memory: bool) -> Iterable[Pixels]:
        """The pixels of each batch, read ahead by so many processes."""
        return DataLoader(
            self,
            batch_sampler=batches,  # lists of samples, which `__getitems__` takes in place of their indices
            num_workers=num_workers,
            collate_fn=_unchanged,
            pin_memory=pin_memory,
        )


def _unchanged(batch: Any) -> Any:
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
