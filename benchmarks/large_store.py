"""Opening a store of 100 million captions and drawing the first shuffled batch (under 10 s and 1 GB).

The store is made for this, in a temporary folder: 20 million images in 20 parts, five captions each. Embeddings and the
letters of the captions are holes in the files, so that it takes 2 GB of disk, not 25.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from measure import in_own_process, memory
from tqdm import trange

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.features import EncoderIdentity
from prefixcap.language import load_language_model
from prefixcap.store import ImageRecord, StoreWriter, join

ENCODER = EncoderIdentity("random", "0" * 64, "none", 512)
CAPTIONS, LETTERS = 5, 50  # of an image, of a caption


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000_000)
    parser.add_argument("--part", type=int, default=1_000_000, help="images in a part")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="large-store-") as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        write(small, large, arguments.images, arguments.part)
        for store in (small, large):
            in_own_process(first_batch, store)


def write(small: Path, large: Path, images: int, part: int) -> None:
    """A small store as `StoreWriter` writes it, and a large one in the same format."""
    writer = StoreWriter(small, ENCODER, "random", small, "benchmark", 1)
    records = [
        ImageRecord(number, f"{number}.jpg", split, ("x" * LETTERS,) * CAPTIONS)
        for number, split in enumerate(["train", "val"] * 500)
    ]
    writer.write_piece(0, 0, 1, records, {"images/embedding": np.zeros((1000, 512), np.float16)}, [])
    join(small)
    index = json.loads((small / "index.json").read_text())
    large.mkdir()
    parts = images // part
    entries = []
    for number in trange(parts, desc="writing", unit=" parts"):
        counts = {"train": {"images": part, "captions": CAPTIONS * part}}
        if number == parts - 1:  # some for validation, among the others
            counts = {
                "train": {"images": part - 100, "captions": CAPTIONS * (part - 100)},
                "val": {"images": 100, "captions": 500},
            }
        file = large / f"part-{number:05d}.h5"
        write_part(small / "part-00000.h5", file, part, number * part, counts)
        entries.append(
            index["parts"][0]
            | {"file": file.name, "bytes": file.stat().st_size, "shards": [number, number + 1]}
            | {"images": part, "captions": CAPTIONS * part, "splits": counts}
        )
    totals = {"train": {"images": images - 100, "captions": CAPTIONS * (images - 100)}}
    totals["val"] = {"images": 100, "captions": 500}
    index |= {"images": images, "captions": CAPTIONS * images, "splits": totals, "parts": entries}
    (large / "index.json").write_text(json.dumps(index))


def write_part(like: Path, file: Path, images: int, first: int, counts: dict[str, dict[str, int]]) -> None:
    """A part with the columns and attributes of the part `like`, mostly holes."""
    rows = {"images": images, "captions": CAPTIONS * images, "skipped": 0}
    sparse = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    sparse.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    strings = sparse.copy()
    sparse.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(like) as model, h5py.File(file, "w") as part:
        part.attrs.update(model.attrs)
        for group in model:
            part.create_group(group)
            for name, column in model[group].items():
                length = rows[group] * (LETTERS if name == "text" else 1)
                space = h5py.h5s.create_simple((length, *column.shape[1:]))
                plan = strings if column.dtype.kind == "O" else sparse
                h5py.h5d.create(part[group].id, name.encode(), column.id.get_type(), space, dcpl=plan)
        part["images/id"][:] = np.arange(first, first + images)
        train, val = (h5py.check_enum_dtype(part["images/split"].dtype)[name] for name in ("train", "val"))
        part["images/split"][:] = train
        if "val" in counts:
            part["images/split"][-100:] = val
        part["captions/image"][:] = np.repeat(np.arange(images), CAPTIONS)
        part["captions/text_end"][:] = np.arange(1, CAPTIONS * images + 1) * LETTERS


def first_batch(store: Path) -> None:
    """Open a store as training does and draw a shuffled batch; print how long it took and the memory it took."""
    captioner = Captioner(load_language_model("demo"), ENCODER, {"name": "mlp", "prefix_length": 4})
    before = memory("RssAnon"), memory("VmHWM")
    start = time.perf_counter()
    data = CaptionData(store, captioner, batch_size=256, keep_tokens=False)
    batch = next(iter(data.train_dataloader()))
    took = time.perf_counter() - start
    assert batch.embeddings.shape == (256, ENCODER.dim)
    images = len(data.train_split.embeddings) + len(data.val_split.embeddings)
    captions = len(data.train_split.captions) + len(data.val_split.captions)
    rows = batch.image_rows
    print(
        f"{images:>11,} images, {captions:>11,} captions: first batch of 256 after {took:5.2f} s, from rows up to "
        f"{max(rows) - min(rows):,} apart; memory {(memory('RssAnon') - before[0]) / 1e6:,.0f} MB, "
        f"{(memory('VmHWM') - before[1]) / 1e6:,.0f} MB with mapped pages"
    )


if __name__ == "__main__":
    main()
