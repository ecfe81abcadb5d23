"""Random batches from a feature store, beside the same from one flat NumPy memory map.

Writes a store of random embeddings with `StoreWriter` (a million of 512 dimensions, 1 GB, unless told otherwise) and
the same rows as one `.npy`, into a temporary folder; both are read once, so that they lie in the page cache.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import in_own_process, memory
from tqdm import trange

from prefixcap.features import EncoderIdentity
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join

SHARD = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=2000, help="in each of five turns")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="read-store-") as folder:
        store, flat = Path(folder) / "store", Path(folder) / "flat.npy"
        write(store, flat, arguments.rows, arguments.dim)
        in_own_process(compare, store, flat, arguments.batch, arguments.batches)


def write(store: Path, flat: Path, rows: int, dim: int) -> None:
    """The same random rows as a store with a caption for each, and as one file."""
    generator = np.random.default_rng(0)
    whole = np.lib.format.open_memmap(flat, "w+", np.float16, (rows, dim))
    shards = rows // SHARD
    writer = StoreWriter(store, EncoderIdentity("random", "0" * 64, "none", dim), "random", store, "benchmark", shards)
    for shard in trange(shards, desc="writing", unit=" shards"):
        first = shard * SHARD
        embeddings = generator.standard_normal((SHARD, dim), np.float32).astype(np.float16)
        whole[first : first + SHARD] = embeddings
        images = [ImageRecord(n, f"{n}.jpg", "train", (f"caption {n}",)) for n in range(first, first + SHARD)]
        writer.write_piece(shard, 0, 1, images, {"images/embedding": embeddings}, [])
    start = time.perf_counter()
    join(store)
    print(f"joined {shards} pieces in {time.perf_counter() - start:.1f} s")


def compare(store: Path, flat: Path, batch: int, batches: int) -> None:
    """Print batches a second of both, in turns, and how much memory grew that is not the page cache's."""
    baseline = np.load(flat, mmap_mode="r", allow_pickle=False)
    before = memory("RssAnon")
    split = FeatureStore(store).split("train")
    generator = np.random.default_rng(1)
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "flat memory map": lambda rows: baseline[rows],
        "feature store": lambda rows: split.embeddings[rows],
    }
    every = np.arange(len(split.embeddings))
    for part in np.array_split(every, 1000):
        assert np.array_equal(ways["flat memory map"](part), ways["feature store"](part))
    best = dict.fromkeys(ways, 0.0)
    for _ in range(5):
        for name, read in ways.items():
            order = [generator.integers(0, len(every), batch) for _ in range(batches)]
            start = time.perf_counter()
            for rows in order:
                read(rows)
            best[name] = max(best[name], batches / (time.perf_counter() - start))
    for name, speed in best.items():
        print(f"{name:16} {speed:9,.0f} batches of {batch} a second")
    print(f"ratio            {best['feature store'] / best['flat memory map']:9.2f}   (at least 0.8)")
    print(f"memory growth    {(memory('RssAnon') - before) / 1e6:9,.0f} MB without the page cache   (under 200)")


if __name__ == "__main__":
    main()
