"""Samples -> pixels, batch by batch; and work on several batches at once."""

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
    """What could be read of a batch of samples.

    Attributes:
        places: of the images that could be read, in their batch.
        images: (places, 3, height, width) uint8.
        reasons: for each of the others, by its place.
    """

    places: list[int]
    images: Tensor
    reasons: dict[int, str]

    def pin_memory(self) -> "Pixels":
        """As `DataLoader` asks for it."""
        return Pixels(self.places, self.images.pin_memory(), self.reasons)


class PixelReader(Dataset[Pixels]):
    """Samples -> a batch of what could be read of them.

    Args:
        preprocess: of the encoder: an image to (3, height, width) uint8.
        scaled_size: decode JPEG images at the smallest scale at which both sides have as many pixels; None: whole.
    """

    def __init__(self, preprocess: Callable[[Image.Image], Tensor], scaled_size: int | None = None) -> None:
        self.preprocess, self.scaled_size = preprocess, scaled_size

    def read(self, samples: list[Sample]) -> Pixels:
        """One batch."""
        read = [self._pixels(sample) for sample in samples]
        pixels = {place: image for place, image in enumerate(read) if not isinstance(image, str)}
        reasons = {place: reason for place, reason in enumerate(read) if isinstance(reason, str)}
        stacked = torch.from_numpy(np.stack(list(pixels.values()))) if pixels else torch.empty(0)
        return Pixels(list(pixels), stacked, reasons)

    __getitems__ = read  # as `DataLoader` asks for a batch

    def _pixels(self, sample: Sample) -> NDArray[np.uint8] | str:
        """(3, height, width), or why there is nothing."""
        try:
            return self.preprocess(sample.open(self.scaled_size)).numpy()
        except InputError as error:
            return str(error).removeprefix(f"{sample.where}: ")

    def in_processes(self, batches: Iterable[list[Sample]], num_workers: int, pin_memory: bool) -> Iterable[Pixels]:
        """The pixels of each batch, read ahead by so many processes."""
        return DataLoader(
            self,
            batch_sampler=batches,  # of samples themselves, not of their numbers
            num_workers=num_workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
        )


def _as_it_is(batch: Any) -> Any:
    return batch


def in_threads(work: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """`work(item)` for each item, in their order: as many at once as torch has threads, each on one thread alone.

    That is quicker than one item after the other on all threads, which would wait for each other after every operation,
    and the results do not depend on how many there are.
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
        torch.set_num_threads(threads)  # the pool's setting was to hold for threads that are made later, too
