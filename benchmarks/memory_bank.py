"""Projection of 5,000 embeddings onto 500,000 captions of 512 dimensions, over one float32 matrix product: at most 1.3.

The product is that of the same embeddings and captions, ready in float32, in chunks that are thrown away. The
projection finds the captions in float16 on the disk, as in a store. They take turns; the median of the turns counts.

Captions are drawn so that cosines are as among COCO's captions under the sentence encoder all-MiniLM-L6-v2: their
standard deviation 0.12, the nearest caption's 0.8, and half a percent of the captions near enough to count. Embeddings
are such captions, too. With a gap, as between CLIP's images and texts, they lie aside of all captions, which shrinks
every cosine to a third; then most captions count, and the projection needs its second matrix product in full.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.textonly.memory import MemoryBank

DIM, CHUNK = 512, 1024
TOPICS, ALIKE = 100, 50  # captions of one scene
GAP = 8**0.5  # beside embeddings of length 1: their length becomes 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=500_000)
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--nearest", action="store_true", help="also the search for the nearest caption")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    topics, scenes = spread(TOPICS, generator), spread(options.captions // ALIKE, generator)
    scenes = 0.5**0.5 * topics[torch.arange(len(scenes)) % TOPICS] + 0.25**0.5 * scenes
    queries = captions_of(scenes, options.queries, generator)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "captions.npy"
        array = np.lib.format.open_memmap(path, "w+", np.float16, (options.captions, DIM))
        for start in range(0, options.captions, 10_000):
            rows = array[start : start + 10_000]
            rows[:] = captions_of(scenes, len(rows), generator).numpy()
        array.flush()
        bank = MemoryBank(np.load(path, mmap_mode="r", allow_pickle=False), [""] * options.captions)
        memories = F.normalize(torch.from_numpy(array).float())
        aside = queries.clone()
        aside[:, -1] = GAP
        calls: dict[str, Callable[[], object]] = {
            "one product": lambda: product(queries, memories),
            "projection": lambda: bank.project(queries),
            "projection, gap": lambda: bank.project(aside),
        }
        if options.nearest:
            calls["nearest"] = lambda: bank.nearest(queries)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(options.turns):
            for name, call in calls.items():
                start_time = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start_time)
    for name, seconds in times.items():
        print(f"{name:16} {median(seconds):7.2f} s   {median(seconds) / median(times['one product']):5.2f}")


def spread(count: int, generator: torch.Generator) -> Tensor:
    """(count, dim) of length 1, most of it in the first dimensions, none in the last, which is the gap's."""
    lengths = torch.arange(1, DIM + 1) ** -0.4
    lengths[-1] = 0
    return F.normalize(torch.randn(count, DIM, generator=generator) * lengths)


def captions_of(scenes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, dim) of length 1: captions of scenes drawn at random; cosines are 0.75 in a scene, 0.5 in a topic."""
    chosen = scenes[torch.randint(len(scenes), (count,), generator=generator)]
    return F.normalize(chosen + 0.25**0.5 * spread(count, generator))


def product(queries: Tensor, memories: Tensor) -> None:
    """The cosines, in chunks that are thrown away."""
    cosines = torch.empty(len(queries), CHUNK)
    for chunk in memories.split(CHUNK):
        torch.mm(queries, chunk.T, out=cosines[:, : len(chunk)])


if __name__ == "__main__":
    main()
