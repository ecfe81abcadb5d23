"""Images for an encoder on a GPU: processes decode them, and the GPU resizes them, which is half of a CPU's work on a
small JPEG. The pixels are those of the encoder's `preprocess`, unless the GPU decodes as well.
"""

import itertools
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from data_prep.jpeg import decode_jpegs, ordinary_jpeg
from data_prep.loading import PixelReader, Pixels, read_each, unchanged
from data_prep.records import Sample
from data_prep.resizing import is_resizable, resize_and_crop
from prefixcap.encoders.protocol import ImageGeometry
from prefixcap.errors import OptionError

CHUNK = 8  # images that a process reads at a time: few, so that all processes work on the first batch
AHEAD = 4  # chunks that each process reads ahead
SHARED_MEMORY = Path("/dev/shm")  # of Linux, where a container has 64 MB unless told otherwise
ROOM = CHUNK * 640 * 480 * 3  # bytes for the images of a chunk; what has no room is resized where it is read


@dataclass(frozen=True)
class Chunk:
    """What a process has read; the images lie in a slot of the shared memory, one after the other.

    Attributes:
        slot: its number.
        shapes: by position in the chunk, (height, width, 3) of each image, or (bytes,) of a JPEG file.
        reasons: by position, why each of the others cannot be read.
    """

    slot: int
    shapes: dict[int, tuple[int, ...]]
    reasons: dict[int, str]


class SharedSlots:
    """Memory that processes share, in slots that are used again and again; a GPU copies from it by itself.

    Args:
        count: of the slots.
        size: of a slot, in bytes.
        device: that slots are copied to.

    Attributes:
        memory: (count, size) uint8.

    Raises:
        InputError: there is not so much shared memory.
    """

    def __init__(self, count: int, size: int, device: torch.device) -> None:
        require_shared_memory(count * size)
        storage = torch.UntypedStorage._new_shared(count * size)
        self.memory = torch.empty(0, dtype=torch.uint8).set_(storage).view(count, size)
        self.device = device
        if device.type == "cuda":
            runtime: Any = torch.cuda.cudart()
            torch.cuda.check_error(runtime.cudaHostRegister(self.memory.data_ptr(), self.memory.nbytes, 0))
            self._stream = torch.cuda.Stream(device)
            self._copied = [torch.cuda.Event() for _ in range(count)]

    def wait(self, slot: int) -> None:
        """Wait until a slot can be written to."""
        if self.device.type == "cuda":
            self._copied[slot].synchronize()

    def copy(self, slot: int, size: int) -> Tensor:
        """The first bytes of a slot on the device; a GPU copies them while it works on earlier images."""
        source = self.memory[slot, :size]
        if self.device.type != "cuda":
            return source.clone()
        with torch.cuda.stream(self._stream):
            copy = source.to(self.device, non_blocking=True)
            self._copied[slot].record()
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)  # what the GPU is given from now on waits for the copy
        copy.record_stream(current)
        return copy

    def close(self) -> None:
        """End the GPU's access; there are no copies after that."""
        if self.device.type == "cuda":
            self._stream.synchronize()
            runtime: Any = torch.cuda.cudart()
            torch.cuda.check_error(runtime.cudaHostUnregister(self.memory.data_ptr()))


def require_shared_memory(size: int) -> None:
    """Raise InputError unless so many bytes are free: whoever writes to more is killed without a word."""
    if SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < size:
        raise OptionError(
            f"the processes that read images need {size / 1e6:,.0f} MB of shared memory, and {SHARED_MEMORY} has "
            f"{free / 1e6:,.0f} MB free (docker run --shm-size=1g gives a container more)", num_workers=0,
        )  # fmt: skip


class DeviceReader(PixelReader):
    """A `PixelReader` whose processes leave resizing to the device, and with `decode`, also most JPEG files.

    Args:
        preprocess: of the encoder.
        scaled_size: as in `PixelReader`.
        geometry: of the encoder, for which `resizing.is_supported`.
        decode: let the device decode JPEG files (a GPU: by nvJPEG), except for unusual ones.
    """

    def __init__(
        self,
        preprocess: Callable[[Image.Image], Tensor],
        scaled_size: int | None,
        geometry: ImageGeometry,
        decode: bool = False,
    ) -> None:
        super().__init__(preprocess, scaled_size)
        self.geometry, self.decode = geometry, decode
        self._resized_bytes = preprocess(Image.new("RGB", (8, 8))).numel()

    def in_processes(self, batches: Iterable[list[Sample]], num_workers: int, device: torch.device) -> Iterator[Pixels]:
        chunks_of_batches: deque[int] = deque()  # of the batches that are being read
        # A slot for each chunk that is read ahead, and for the current one; a few more, so as not to wait for copies.
        with closing(SharedSlots(num_workers * AHEAD + 4, ROOM + CHUNK * self._resized_bytes, device)) as slots:
            self._memory = slots.memory  # the processes inherit it

            def tasks() -> Iterator[Any]:
                numbers = itertools.cycle(range(len(slots.memory)))
                for batch in batches:
                    chunks = [batch[start : start + CHUNK] for start in range(0, max(1, len(batch)), CHUNK)]
                    chunks_of_batches.append(len(chunks))
                    for chunk, slot in zip(chunks, numbers, strict=False):
                        slots.wait(slot)
                        yield slot, chunk

            loader: DataLoader[Any] = DataLoader(
                self,
                batch_sampler=tasks(),  # what `__getitems__` takes in place of indices
                num_workers=num_workers,
                prefetch_factor=AHEAD,
                collate_fn=unchanged,
            )
            loaded = ((chunk, self._images(chunk, slots)) for chunk in loader)
            for first in loaded:
                yield self._batch([first, *itertools.islice(loaded, chunks_of_batches.popleft() - 1)], device)

    def __getitems__(self, task: tuple[int, list[Sample]]) -> Chunk:
        """Read a chunk into its slot, in a process."""
        slot, samples = task
        images, reasons = read_each(samples, self._read)
        memory, start, room = self._memory[slot].numpy(), 0, ROOM
        for position, image in images.items():
            if image.size > self._resized_bytes + room:
                images[position] = image = self._preprocessed(Image.fromarray(image))
            room -= max(0, image.size - self._resized_bytes)
            memory[start : start + image.size] = image.reshape(-1)
            start += image.size
        return Chunk(slot, {position: image.shape for position, image in images.items()}, reasons)

    def _read(self, sample: Sample) -> NDArray[np.uint8]:
        """(height, width, 3), or (bytes,) of a JPEG file."""
        if self.decode and (file := ordinary_jpeg(sample, self.geometry)):
            return np.frombuffer(file, np.uint8)
        image = sample.open(self.scaled_size)
        resizable = is_resizable(image.height, image.width, self.geometry)
        return np.asarray(image) if resizable else self._preprocessed(image)

    def _preprocessed(self, image: Image.Image) -> NDArray[np.uint8]:
        """(height, width, 3), of the encoder's size: the device leaves it as it is."""
        return self.preprocess(image).permute(1, 2, 0).numpy()

    def _images(self, chunk: Chunk, slots: SharedSlots) -> list[Tensor]:
        """Each image on the device, (height, width, 3); or (bytes,) of a JPEG file on the CPU."""
        lengths = [math.prod(shape) for shape in chunk.shapes.values()]
        copies = slots.copy(chunk.slot, sum(lengths)).split(lengths)
        files = slots.memory[chunk.slot, : sum(lengths)].split(lengths)
        return [
            copy.view(shape) if len(shape) == 3 else file.clone()
            for copy, file, shape in zip(copies, files, chunk.shapes.values(), strict=True)
        ]

    def _batch(self, chunks: list[tuple[Chunk, list[Tensor]]], device: torch.device) -> Pixels:
        """The chunks of a batch, resized together."""
        images: dict[int, Tensor] = {}
        reasons: dict[int, str] = {}
        for number, (chunk, own) in enumerate(chunks):
            images |= {CHUNK * number + position: image for position, image in zip(chunk.shapes, own, strict=True)}
            reasons |= {CHUNK * number + position: reason for position, reason in chunk.reasons.items()}
        files = {position: image for position, image in images.items() if image.ndim == 1}
        for position, decoded in zip(files, decode_jpegs(list(files.values()), device), strict=True):
            if isinstance(decoded, str):
                reasons[position] = decoded
                del images[position]
            else:
                images[position] = decoded
        pixels = resize_and_crop(list(images.values()), self.geometry) if images else torch.empty(0)
        return Pixels(list(images), pixels, reasons)
