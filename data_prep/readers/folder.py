"""A folder of images with a table of captions: CSV, TSV or JSON lines."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.readers.inputs import (
    check_shares,
    clean_caption,
    draw_split,
    relative_file,
    require_columns,
    table_rows,
)
from data_prep.records import Dataset, ImageRecord, Skipped, of_files
from prefixcap.errors import InputError
from prefixcap.files import read_text
from prefixcap.images import IMAGE_SUFFIXES


def read_folder(
    root: str | Path, captions: str | Path, val_share: float = 0.1, test_share: float = 0.1, seed: int = 0
) -> Dataset:
    """Read a folder of images with captions.

    Args:
        root: the folder that the image paths are relative to.
        captions: a `.csv` or `.tsv` file with the columns `image`, `caption` and, if wanted, `split`, or a
            `.jsonl` file with the same keys, where `captions` may give a list. An image may have several
            rows. In a `.tsv` file quotation marks are ordinary characters.
        val_share: share of the images, 0.0 to 1.0, that goes to "val" where no split is given.
        test_share: likewise for "test"; what is left is "train".
        seed: of the draw. The split of an image depends on its path and the seed alone.

    Returns:
        The images in the order of the file, with the relative paths as ids. Captions that are empty or no
        text, and images in the folder that have no caption, are in `skipped`.

    Raises:
        InputError: a file or folder is missing, is not UTF-8, lacks a column or has a row that cannot be
            read; a path leaves `root`; an image is given two splits; no caption is left. The message names
            the file.
    """
    root, captions = Path(root), Path(captions)
    check_shares(val_share, test_share)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; set data.root to the folder of the images")
    texts: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    skipped: list[Skipped] = []
    for where, image, caption, split in _rows(captions):
        if not isinstance(image, str) or not image:
            raise InputError(f"{where}: 'image' must be a path, not {image!r}")
        image_id = relative_file(root, image, where)
        if split is not None:
            name = split.strip() if isinstance(split, str) else ""
            if not name or splits.setdefault(image_id, name) != name:
                raise InputError(f"{where}: {image} has the split {split!r}; give each image one split, by name")
        texts.setdefault(image_id, [])
        try:
            texts[image_id].append(clean_caption(caption))
        except ValueError as error:
            skipped.append(Skipped(image_id, image_id, str(error)))
    records = [
        ImageRecord(
            image_id,
            image_id,
            splits.get(image_id) or draw_split(image_id, val_share, test_share, seed),
            (*found,),
        )
        for image_id, found in texts.items()
        if found
    ]
    if not records:
        raise InputError(f"{captions} has no caption")
    uncaptioned = [file for file in _image_files(root) if not texts.get(file)]
    skipped += [Skipped(file, file, "image without caption") for file in uncaptioned]
    return of_files(records, skipped, root, f"captions in {captions}")


def _rows(path: Path) -> Iterator[tuple[str, object, object, object]]:
    """(place, image, caption, split or None) for each caption of a file, not checked yet."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from _jsonl_rows(path)
    elif suffix in (".csv", ".tsv"):
        for where, row in table_rows(path, ["image", "caption"]):
            yield where, row["image"], row["caption"], row.get("split")
    else:
        raise InputError(f"{path} must be a .csv, .tsv or .jsonl file")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, object, object, object]]:
    # Not splitlines: that also breaks at characters that JSON allows inside a string.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where} is not JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise InputError(f"{where} is no JSON object")
        caption_key = "captions" if "captions" in row else "caption"
        require_columns(where, list(row), ["image", caption_key])
        captions = row[caption_key]
        for caption in captions if isinstance(captions, list) else [captions]:
            yield where, row["image"], caption, row.get("split")


def _image_files(root: Path) -> list[str]:
    """The image files below `root`, relative to it, sorted."""
    return sorted(
        (Path(folder) / name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root)
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES
    )
