"""Samples -> pixels, decoded ahead of the encoder: by worker processes, or by threads beside it."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_prep.records import Sample
from prefixcap.encoders import Encoder
from prefixcap.errors import InputError

T = TypeVar("T")


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


def load_pixels(
    batches: Iterable[list[Sample]], encoder: Encoder, num_workers: int, scaled_size: int | None = None
) -> Iterator[Pixels]:
    """The pixels of each batch, as the encoder wants them.

    Args:
        batches: of samples.
        encoder: whose preprocessing is applied.
        num_workers: processes that decode images; 0: threads do, beside the encoder.
        scaled_size: decode JPEG images at the smallest scale at which both sides have as many pixels; None: whole.
    """
    # Beside an encoder that takes all cores, images are decoded on all of them too: one that is busy with images would
    # make the others wait for it.
    with ThreadPoolExecutor(processors()) if not num_workers else contextlib.nullcontext() as pool:
        loader = DataLoader(
            _Images(encoder.preprocess, scaled_size, pool.map if pool else map),
            batch_sampler=batches,  # of samples themselves, not of their numbers
            num_workers=num_workers,
            collate_fn=_as_it_is,
            pin_memory=encoder.device.type == "cuda",
        )
        yield from ahead(loader)


class _Images(Dataset[Pixels]):
    """Samples -> a batch of what could be read of them."""

    def __init__(
        self, preprocess: Callable[[Image.Image], Tensor], scaled_size: int | None, each: Callable[..., Iterable[Any]]
    ) -> None:
        self.preprocess, self.scaled_size, self.each = preprocess, scaled_size, each

    def __getitems__(self, samples: list[Sample]) -> Pixels:
        read = list(self.each(self._pixels, samples))
        pixels = {place: image for place, image in enumerate(read) if not isinstance(image, str)}
        reasons = {place: reason for place, reason in enumerate(read) if isinstance(reason, str)}
        # Stacked by NumPy: torch would do it with threads that then get in the encoder's way.
        stacked = torch.from_numpy(np.stack(list(pixels.values()))) if pixels else torch.empty(0)
        return Pixels(list(pixels), stacked, reasons)

    def _pixels(self, sample: Sample) -> NDArray[np.uint8] | str:
        """(3, height, width), or why there is nothing."""
        try:
            return self.preprocess(sample.open(self.scaled_size)).numpy()
        except InputError as error:
            return str(error).removeprefix(f"{sample.where}: ")


def _as_it_is(batch: Any) -> Any:
    return batch


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items, made in a thread up to `depth` before they are asked for."""
    waiting: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None = None, last: bool = False) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put((item, error, last), timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
            put(None, last=True)
        except BaseException as error:  # raised again where the items are used
            put(None, error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = waiting.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]  # an item, as it is neither an error nor the end
    finally:
        stopped.set()
        thread.join()


def processors() -> int:
    """How many processors this process may use; a job scheduler often grants fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
