"""How fast one process writes a feature store: what bounds embedding on a large cluster, where one process writes all.

Times of the processor for a piece of 1,000 images, with an embedding of 512 numbers and a caption each, to unpack it as
it comes from a worker, to write it, and to join it into a part; and how many images a second that is, over the 997 that
a GPU was measured to embed (docs/use/gpus.md). Waiting for the disk is not counted.
"""

import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from prefixcap.features import EncoderIdentity
from prefixcap.store import ImageRecord, StoreWriter, join

PIECES, IMAGES, DIM = 20, 1000, 512
GPU = 997  # images a second
CAPTION = "a photograph of something, with as many words as captions on the web have"


def seconds(work: Callable[[], object]) -> float:
    """Of the processor, for each piece."""
    start = time.process_time()
    work()
    return (time.process_time() - start) / PIECES


def main() -> None:
    random = np.random.default_rng(0)
    pieces = [
        (
            [
                ImageRecord(f"{shard:05d}{row:04d}", f"{shard:05d}.tar/{row:04d}.jpg", "train", (f"{CAPTION}, {row}",))
                for row in range(IMAGES)
            ],
            random.normal(size=(IMAGES, DIM)).astype(np.float16),
        )
        for shard in range(PIECES)
    ]
    sent = [pickle.dumps(piece, 5) for piece in pieces]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        writer = StoreWriter(store, EncoderIdentity("random", "0" * 64, "none", DIM), "random", store, "job", PIECES)

        def write() -> None:
            for shard, (records, embeddings) in enumerate(pieces):
                writer.write_piece(shard, 0, 1, records, {"images/embedding": embeddings}, [])

        unpacking = seconds(lambda: [pickle.loads(piece) for piece in sent])
        writing, joining = seconds(write), seconds(lambda: join(store))
        size = sum(file.stat().st_size for file in store.iterdir()) / PIECES / IMAGES
    rate = IMAGES / (unpacking + writing)
    print(f"a piece of {IMAGES:,} images, {size:,.0f} bytes each: unpacked in {unpacking * 1e3:.1f} ms", end="")
    print(f", written in {writing * 1e3:.1f} ms, joined in {joining * 1e3:.1f} ms")
    print(f"one process writes {rate:,.0f} images/s, as many as {rate / GPU:.0f} GPUs embed")


if __name__ == "__main__":
    main()
