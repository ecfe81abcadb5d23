"""What a photograph costs on its way to the encoder, stage by stage, and what processes add to that.

For the JPEG files of a folder, or pictures as in `embed_images.py`, which are resized to 224 pixels as for CLIP:
milliseconds of CPU time an image, in each stage; then in a plain loop and in processes with an encoder that costs
nothing, and the ratio of the two (at least 0.9); the CPU time of the parent process (at most 0.1 ms); and images a
second. "decoded": processes decode, as for a GPU that resizes; "resized": they also resize. The best of several turns.
"""

import argparse
import io
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from clip.clip import _transform
from embed_images import pictures
from PIL import Image

from data_prep.device_loading import DeviceReader, SharedSlots
from data_prep.loading import PixelReader, Pixels
from data_prep.records import ImageRecord, Sample
from prefixcap.encoders.common import to_tensor
from prefixcap.encoders.protocol import ImageGeometry
from prefixcap.features import EncoderIdentity
from prefixcap.store import StoreWriter
from prefixcap.utils.colour import to_rgb
from prefixcap.utils.images import decode_image, open_image

SIZE = 224
GEOMETRY = ImageGeometry(SIZE, "bicubic", (SIZE, SIZE), crop_rounds_down=False)
RESIZE, CROP = _transform(SIZE).transforms[:2]
BATCH = 256


def preprocess(image: Image.Image) -> torch.Tensor:
    """As CLIP's back end does."""
    return to_tensor(CROP(RESIZE(to_rgb(image))))


def measure(folder: Path, turns: int) -> None:
    """Print the table of stages."""
    files = sorted(folder.glob("*.jpg"))
    contents = [file.read_bytes() for file in files]
    images = [open_image(file) for file in files]
    resized = [CROP(RESIZE(image)) for image in images]
    tensors = [to_tensor(image) for image in resized]
    room = np.empty(max(image.width * image.height * 3 for image in images), np.uint8)

    def share(image: Image.Image) -> None:
        pixels = np.asarray(image).reshape(-1)
        room[: len(pixels)] = pixels

    stages: dict[str, tuple[Callable[[Any], object], Sequence[Any]]] = {
        "read the file": (Path.read_bytes, files),
        "decode, upright, RGB": (lambda content: decode_image(io.BytesIO(content)), contents),
        "decode at half size": (lambda content: decode_image(io.BytesIO(content), SIZE), contents),
        "resize and crop": (lambda image: CROP(RESIZE(image)), images),
        "to a tensor": (to_tensor, resized),
        "into a batch": (torch.stack, [tensors]),
        "decoded into shared memory": (share, images),
    }
    for name, (work, items) in stages.items():
        print(f"{name:28} {cpu_seconds(work, items, turns) / len(files) * 1e3:8.3f} ms")
    with tempfile.TemporaryDirectory() as store:
        identity = EncoderIdentity("benchmark", "ab" * 32, "none", dim=512)
        writer = StoreWriter(Path(store), identity, "benchmark", folder, "job", 1)
        records = [ImageRecord(number, f"{number}.jpg", "train", ("a picture",) * 5) for number in range(1000)]
        rows = {"images/embedding": np.zeros((1000, 512), np.float16)}

        def write(shard: int) -> None:
            writer.write_piece(shard, 0, 1, records, rows, [])

        print(f"{'write to the store':28} {cpu_seconds(write, [0], turns) / len(records) * 1e3:8.3f} ms")


def cpu_seconds(work: Callable[[Any], object], items: Sequence[Any], turns: int) -> float:
    """The least CPU time that `work` takes for all items."""
    seconds = []
    for _ in range(turns):
        start = time.process_time()
        for item in items:
            work(item)
        seconds.append(time.process_time() - start)
    return min(seconds)


class WithoutDevice(DeviceReader):
    """Processes decode as for a GPU, which copies and resizes at no cost of the CPU's."""

    def _batch(self, chunks: list[Any], device: torch.device) -> Pixels:
        return Pixels([position for chunk, _ in chunks for position in chunk.shapes], torch.empty(0), {})


def throughput(folder: Path, images: int, most_workers: int, turns: int) -> None:
    """Print the rates of a loop and of processes."""
    files = sorted(folder.glob("*.jpg"))
    samples = [
        Sample(ImageRecord(number, "", "train", ()), files[number % len(files)].resolve()) for number in range(images)
    ]
    batches = [samples[start : start + BATCH] for start in range(0, images, BATCH)]
    resizing, decoding = PixelReader(preprocess), WithoutDevice(preprocess, None, GEOMETRY)
    readers = (("resized", resizing, resizing.read_one), ("decoded", decoding, decoding._read))
    for name, reader, read in readers:
        loop = cpu_seconds(read, samples[:240], turns) / 240
        print(f"{name}, a loop: {loop * 1e3:.2f} ms")
        for workers in [count for count in (1, 2, 4, 8, 16) if count <= most_workers]:
            rates, parent, children = [], [], []
            for _ in range(turns):
                start, own, spent = time.perf_counter(), 0.0, used(resource.RUSAGE_CHILDREN)
                for _ in reader.in_processes(batches, workers, torch.device("cpu")):
                    own = own or used(resource.RUSAGE_SELF)  # from the first batch on: processes start only once
                rates.append(images / (time.perf_counter() - start))
                parent.append((used(resource.RUSAGE_SELF) - own) / (images - BATCH))
                children.append((used(resource.RUSAGE_CHILDREN) - spent) / images)
            print(
                f"{name}, {workers} processes: {min(children) * 1e3:.2f} ms, ratio {loop / min(children):.2f}; "
                f"parent {min(parent) * 1e3:.3f} ms; {max(rates):.0f} images a second"
            )


def used(who: int) -> float:
    """CPU seconds of this process, or of those that it has waited for."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="of .jpg files (default: pictures of the small world)")
    parser.add_argument("--images", type=int, default=2048, help="read by processes, the files again and again")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="the most processes")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="embed-stages-") as name:
        folder = arguments.folder or Path(name) / "images"
        if not arguments.folder:
            pictures(folder)
        measure(folder, arguments.turns)
        with patch.object(SharedSlots, "copy", lambda slots, slot, size: slots.memory[slot, :size]):
            throughput(folder, arguments.images, arguments.workers, arguments.turns)


if __name__ == "__main__":
    main()
