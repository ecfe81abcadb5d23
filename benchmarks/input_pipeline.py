"""A model of the input pipeline on 64 GPUs: where it breaks first, for each size of data and kind of storage.

Each GPU has worker processes that read captions' embeddings and tokens at random from the store, which is mapped into
memory, and pack them into batches, a few ahead; a step begins when all GPUs have their batch, as gradients are summed.
Measured on this machine: the time of a caption in a worker when all is in the page cache; and the bytes that are read
when its embedding is not, for the kernel reads far around a page that is missing. Assumed: the machines, and STORAGE.
The model is checked against two real processes that read, pack and step together; a pause stands for the step, and one
for slow storage.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_command import write_store
from gpu_training import TINY
from numpy.typing import NDArray
from train_steps import coco_captions, random_captioner

from prefixcap.data import CaptionData
from prefixcap.packing import Batch
from prefixcap.store import FeatureStore

MACHINES, GPUS, MEMORY = 8, 8, 1e12  # bytes of the page cache of a machine
IMAGE_BYTES, CAPTION_BYTES = 1024, 26 + 8 + 8  # an embedding of 512 numbers; 13 tokens, where they end, and which image
DATA = {  # captions and images
    "COCO": (0.57e6, 0.113e6),
    "CC3M": (3.3e6, 3.3e6),
    "CC12M": (12.4e6, 12.4e6),
    "LAION-400M": (413e6, 413e6),
    "LAION-2B": (2.3e9, 2.3e9),
}
STEPS = {40: 0.0063, 1280: 0.072}  # seconds of a captured step of ClipCap (a) by captions (docs/use/gpus.md)
WORKERS, AHEAD = 8, 2  # processes for each GPU, and batches that each makes ahead
COLD, PAUSE = 200, 0.05  # rows; seconds
TIMED = 100  # batches that are timed, of images with five captions each


@dataclass(frozen=True)
class Storage:
    """Attributes:
    first: bytes a second, of all machines together, at which the store is read for the first time.
    latency: seconds of one read.
    rate: bytes a second that each machine reads then.
    """

    first: float
    latency: float
    rate: float


STORAGE = {
    "local NVMe, 6 GB/s": Storage(MACHINES * 6e9, 1e-4, 6e9),
    "NFS, 2 GB/s in all": Storage(2e9, 1e-3, 2e9 / MACHINES),
    "object storage, 10 GB/s in all, kept on NVMe": Storage(10e9, 1e-4, 6e9),
}


@dataclass(frozen=True)
class Costs:
    """Of a caption in a worker.

    Attributes:
        cached: seconds, if all is in the page cache.
        read_bytes: that are read if its embedding is not.
    """

    cached: float
    read_bytes: float


MEASURED = Costs(5e-6, 126e3)  # on two cores; the table of docs/use/gpus.md


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="in the store that is measured")
    parser.add_argument("--batch", type=int, default=320, help="captions of a batch that is measured")
    parser.add_argument("--folder", type=Path, help="for the store, on the disk to measure")
    arguments = parser.parse_args()
    if 5 * arguments.images < TIMED * arguments.batch:
        fewest = TIMED * arguments.batch // 5
        parser.error(f"{TIMED} batches of {arguments.batch} captions are timed: --images must be at least {fewest}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="input-pipeline-", dir=arguments.folder) as folder:
        store, size = Path(folder) / "store", arguments.batch
        write_store(store, coco_captions(), arguments.images, 40)
        costs = measure(store, size)
        print(
            f"a caption: {1e6 * costs.cached:.1f} us from the page cache; {costs.read_bytes / 1e3:.0f} kB from a disk"
        )
        cost = check(store, size, 0.0, ranks=1)
        for step in (0.5 * cost, 2 * cost):
            took, model = check(store, size, step, ranks=2), simulate(np.full((2, 100), cost), 1, AHEAD, step)
            print(f"two processes, steps of {1e3 * step:.0f} ms: {1e3 * took:.0f} ms, {1e3 * model:.0f} by the model")
    print("\n" + table(costs))


def table(costs: Costs) -> str:
    """For each data set and storage: an epoch, the first read, and how long GPUs wait in later epochs, in Markdown."""
    lines = ["| data, bytes | an epoch | storage | first read | waiting later, 40 a step | 1,280 |"]
    lines.append("|---|---:|---|---:|---:|---:|")
    for data, (captions, images) in DATA.items():
        size = images * IMAGE_BYTES + captions * CAPTION_BYTES
        epoch = captions / 40 / MACHINES / GPUS * STEPS[40]
        for name, storage in STORAGE.items():
            first = MACHINES * size / storage.first
            waits = [f"{abs(waiting(costs, storage, max(0.0, 1 - MEMORY / size), batch)):.0%}" for batch in STEPS]
            begin = f"| {data}, {size / 1e9:,.1f} GB | {epoch:,.0f} s | {name}"
            lines.append(f"{begin} | {first:,.0f} s | {' | '.join(waits)} |")
    return "\n".join(lines)


def waiting(costs: Costs, storage: Storage, missing: float, batch: int, steps: int = 300) -> float:
    """The share of the time in which GPUs wait for batches, if this share of the store is not in the page cache."""
    reading = missing * batch * storage.latency
    shared = missing * batch * costs.read_bytes * GPUS * WORKERS / storage.rate  # by all workers of a machine
    mean = batch * costs.cached + max(reading, shared)
    jitter = np.random.default_rng(0).lognormal(-0.02, 0.2, (MACHINES * GPUS, steps))  # 20%, with the mean 1
    return 1 - STEPS[batch] / simulate(mean * jitter, WORKERS, AHEAD, STEPS[batch])


def simulate(cost: NDArray[np.float64], workers: int, ahead: int, step: float) -> float:
    """Seconds a step when G GPUs step together.

    Args:
        cost: (G, S) seconds in which a worker of each GPU makes each batch.
        workers: processes of each GPU, which make batches in turn.
        ahead: batches that each has finished at most.
        step: seconds of a step, once all batches are there.

    Examples:
        >>> round(simulate(np.full((2, 100), 0.5), workers=1, ahead=2, step=1.0), 2)  # the GPUs are busy
        1.0
        >>> round(simulate(np.full((2, 100), 3.0), workers=2, ahead=2, step=1.0), 2)  # a batch every 3 / 2 seconds
        1.5
    """
    gpus, steps = cost.shape
    made = np.zeros((gpus, steps))  # when each batch is ready
    done = np.zeros(steps)  # when each step has ended
    for number in range(steps):
        begin = made[:, number - workers] if number >= workers else np.zeros(gpus)
        if number >= workers * ahead:  # room for it: an earlier batch has been taken
            begin = np.maximum(begin, done[number - workers * ahead] - step)
        made[:, number] = begin + cost[:, number]
        done[number] = max(made[:, number].max(), done[number - 1] if number else 0.0) + step
    half = steps // 2  # without the start
    took: float = (done[-1] - done[half - 1]) / (steps - half)
    return took


def batches(store: Path, size: int, workers: int, pause: float = 0.0) -> Iterator[Batch]:
    """Training batches of a store, of captions with an image each; with a pause in each, as if storage were slow."""
    data = CaptionData(store, random_captioner("frozen", TINY), size, workers, max_caption_tokens=13)
    loader = data.train_dataloader()
    made: Any = loader.dataset
    make_batch = made.__getitems__

    def slowed(items: list[int]) -> Batch:
        time.sleep(pause)
        batch: Batch = make_batch(items)
        return batch

    made.__getitems__ = slowed
    return iter(loader)


def measure(store: Path, size: int) -> Costs:
    """What a caption costs on this machine, in one process."""
    for file in store.glob("*.h5"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    embeddings = FeatureStore(store).split("train").embeddings
    before = bytes_read()
    for row in np.random.default_rng(0).integers(0, len(embeddings), COLD).tolist():
        embeddings[row : row + 1].sum()
    read = (bytes_read() - before) / COLD
    embeddings[:].sum()  # now all is in the page cache
    drawn, seconds = batches(store, size, 0), []
    for _ in range(TIMED):
        start = time.perf_counter()
        next(drawn)
        seconds.append(time.perf_counter() - start)
    return Costs(float(np.median(seconds[20:])) / size, read)


def bytes_read() -> int:
    """By this process from disks, so far (Linux)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def check(store: Path, size: int, step: float, ranks: int) -> float:
    """Seconds a step of real processes with a worker each, whose storage is slow, and a pause in place of the step."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(ranks), context.Queue()
    processes = [context.Process(target=_rank, args=(store, size, step, barrier, results)) for _ in range(ranks)]
    for process in processes:
        process.start()
    took: float = max(results.get() for _ in processes)
    for process in processes:
        process.join()
    return took


def _rank(store: Path, size: int, step: float, barrier: Barrier, results: Any) -> None:
    drawn, steps = batches(store, size, 1, PAUSE), 40
    for number in range(2 * steps):
        if number == steps:
            start = time.perf_counter()
        next(drawn)
        time.sleep(step)
        barrier.wait()
    results.put((time.perf_counter() - start) / steps)


if __name__ == "__main__":
    main()
