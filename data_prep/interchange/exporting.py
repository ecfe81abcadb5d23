"""Feature store -> the files that clip-retrieval writes and reads: NumPy arrays and Parquet tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.interchange.sources import CHUNK
from data_prep.records import import_pyarrow
from prefixcap.errors import InputError
from prefixcap.features import Feature
from prefixcap.store import FeatureStore
from prefixcap.store.format import read_index
from prefixcap.store.layout import SPLIT
from prefixcap.store.part import Part
from prefixcap.utils.files import atomic_write

Rows = NDArray[np.int64]


def export_features(store: Path, folder: Path, split: str | None = None) -> tuple[int, bool]:
    """Write a store's embeddings and captions, in its order, one file of each kind for each part.

    `text_emb` is written if the store has embeddings of its captions and every image has exactly one caption.

    Args:
        store: a finished one.
        folder: a new or empty one.
        split: the one to write; None writes all.

    Returns:
        How many images were written, and whether `text_emb` was.

    Raises:
        InputError: there is no such store or split, it has no images, the folder is not empty, pyarrow is not
            installed, or the disk is full.
    """
    opened = FeatureStore(store)
    pyarrow = import_pyarrow()
    if split is not None:
        opened.split(split)
    index = read_index(store)
    assert index is not None
    entries = [entry for entry in index.parts if (entry.images if split is None else split in entry.splits)]
    parts = [Part(store / entry.file, entry) for entry in entries]
    if not parts or Feature.IMAGE not in parts[0].features:
        raise InputError(f"{store} has no embeddings of images: give a store that data_prep.embed made of images")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not empty: give a new folder, or delete that one")
    chosen = [_chosen(part, split) for part in parts]
    texts = Feature.CAPTION in parts[0].features and all(
        (np.bincount(part.mapped("captions/image"), minlength=part.length(SPLIT))[rows] == 1).all()
        for part, rows in zip(parts, chosen, strict=True)
    )
    width = len(str(len(parts) - 1))
    for number, (part, rows) in enumerate(
        zip(parts, tqdm(chosen, desc="exporting", unit=" parts", delay=1), strict=True)
    ):
        name = f"{number:0{width}d}"
        _write_array(folder / "img_emb" / f"img_emb_{name}.npy", part.mapped(Feature.IMAGE), rows)
        if texts:
            captions = np.searchsorted(part.mapped("captions/image"), rows)
            _write_array(folder / "text_emb" / f"text_emb_{name}.npy", part.mapped(Feature.CAPTION), captions)
        _write_table(folder / "metadata" / f"metadata_{name}.parquet", pyarrow, part, rows)
    return sum(map(len, chosen)), texts


def _chosen(part: Part, split: str | None) -> Rows:
    """The rows of a part's images that belong to a split."""
    if split is None:
        return np.arange(part.length(SPLIT))
    return np.flatnonzero(part.mapped(SPLIT) == part.split_names.index(split))


def _write_array(path: Path, values: NDArray[np.float16], rows: Rows) -> None:
    # Not through a memory map: where the disk is full, that ends the process without a word.
    header = {"descr": values.dtype.str, "fortran_order": False, "shape": (len(rows), *values.shape[1:])}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), CHUNK):
            file.write(values[rows[start : start + CHUNK]].tobytes())


def _write_table(path: Path, pyarrow: Any, part: Part, rows: Rows) -> None:
    text = pyarrow.string()
    schema = pyarrow.schema(
        {
            "image_path": text,
            "caption": text,
            "captions": pyarrow.list_(text),
            "key": text if part.has_strings("images/id") else pyarrow.int64(),
            "split": text,
            "domain": text,
        }
    )
    with atomic_write(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as table:
        for columns in _columns(part, rows):
            table.write_table(pyarrow.table(columns, schema))


def _columns(part: Part, rows: Rows) -> Iterator[dict[str, list[Any]]]:
    ids, files, splits, domains = (part[f"images/{name}"] for name in ("id", "file", "split", "domain"))
    images_of_captions = part.mapped("captions/image")
    for start in range(0, len(rows), CHUNK):
        own = rows[start : start + CHUNK]
        firsts, ends = (np.searchsorted(images_of_captions, own, side).tolist() for side in ("left", "right"))
        captions = [part.texts(np.arange(first, end)) for first, end in zip(firsts, ends, strict=True)]
        numbers = own.tolist()
        yield {
            "image_path": [files[row] for row in numbers],
            "caption": [texts[0] if texts else None for texts in captions],
            "captions": captions,
            "key": [ids[row] for row in numbers],
            "split": [splits[row] for row in numbers],
            "domain": [domains[row] for row in numbers],
        }
