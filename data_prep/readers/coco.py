"""COCO: caption annotations in COCO's own JSON, splits from Karpathy's `dataset_coco.json`.

The annotations give the captions, the split file says which image is in which split and where it lies.
Karpathy's "restval" (the rest of val2014) counts as "train", as in every paper that uses these splits.
Without a split file the annotations are COCO's own splits, by the names of their files, or, as for nocaps, one.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from data_prep.readers.inputs import (
    check_shares,
    clean_caption,
    draw_splits,
    image_id_of,
    object_list,
    relative_file,
    split_name,
    split_of,
    text_of,
    value_of,
)
from data_prep.records import Dataset, ImageRecord, Skipped, dataset_from_files
from prefixcap.errors import InputError
from prefixcap.utils.files import read_json

Entries = dict[
    int | str, tuple[Path, dict[str, Any]]
]  # by image id: the annotation file, and what it says of the image


def read_coco(
    root: str | Path,
    annotations: str = "captions_*.json",
    split_file: str | None = "dataset_coco.json",
    images: str = "",
    split: str | None = None,
    val_share: float = 0.0,
    test_share: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Read COCO captions, with the Karpathy split, COCO's own, as one split, or with splits that are drawn.

    Args:
        root: the folder that holds the image folders (`train2014`, `val2014`), or their folder `images`.
        annotations: pattern of the annotation files, looked for in `root` and in `root/annotations`.
        split_file: in the format of Karpathy's `dataset_coco.json`; relative to `root`, or absolute. That is for COCO
            2014; COCO 2017 has the same images in other folders, and takes its splits from it. None: no split file.
        images: the folder below `root` that the annotations' file names are relative to; "": the one in the name of
            an annotation file (`train2017` of `captions_train2017.json`) if it exists, else `root`.
        split: without a split file, of all images. None: the one in the name of an annotation file, or else "val".
        val_share: share of the images, 0.0 to 1.0, that is drawn for "val", whatever split they are in.
        test_share: likewise for "test"; the rest is then "train". Both 0.0: nothing is drawn.
        seed: of the draw. The split of an image depends only on its id and the seed.

    Returns:
        The images that are in both, in the order of the split file; without one, those of the annotations, in
        their order. Captions and images that cannot be used are in `skipped`. An image entry's `domain`, if
        there is one, is kept.

    Raises:
        InputError: a file is missing, is not JSON or lacks a key; two images have the same id; a path leaves
            `root`; no image is left; the shares are none. The message names the file.
    """
    root = Path(root)
    check_shares(val_share, test_share)
    files = sorted(root.glob(annotations)) or sorted((root / "annotations").glob(annotations))
    if not files:
        raise InputError(f"no file {annotations} in {root} or {root / 'annotations'}; set data.root to COCO's folder")
    entries: Entries = {}
    captions: dict[int | str, list[str]] = {}
    skipped: list[Skipped] = []
    for file in files:
        content = read_json(file)
        for image in object_list(file, content, "images"):
            image_id = image_id_of(file, image, "id")
            if image_id in entries:
                raise InputError(
                    f"{file}: the image id {image_id} comes twice (in {', '.join(map(str, files))}); "
                    "choose the files with data.reader.annotations=PATTERN"
                )
            entries[image_id] = file, image
        for annotation in object_list(file, content, "annotations"):
            image_id = image_id_of(file, annotation, "image_id")
            caption = value_of(file, annotation, "caption")
            try:
                caption = clean_caption(caption)
            except ValueError as error:
                skipped.append(Skipped(image_id, file.name, str(error)))
                continue
            captions.setdefault(image_id, []).append(caption)
    for image_id, texts in captions.items():
        if image_id not in entries:
            skipped += [Skipped(image_id, "", "caption of an image that the annotations do not list") for _ in texts]

    records: list[ImageRecord] = []
    placed: set[int | str] = set()
    places = _Places(root, images, split)
    listed = (
        ((image_id, *places.own(*entry)) for image_id, entry in entries.items())
        if split_file is None
        else places.by_split_file(split_file, entries)
    )
    for image_id, file_name, own_split in listed:
        placed.add(image_id)
        if image_id not in entries:
            skipped.append(Skipped(image_id, file_name, "image is not in the annotations"))
        elif image_id not in captions:
            skipped.append(Skipped(image_id, file_name, "image without caption"))
        else:
            domain = str(entries[image_id][1].get("domain", ""))
            records.append(ImageRecord(image_id, file_name, own_split, tuple(captions[image_id]), domain))
    if val_share or test_share:
        drawn = draw_splits((str(record.id) for record in records), val_share, test_share, seed)
        records = [replace(record, split=drawn[str(record.id)]) for record in records]
    skipped += [
        Skipped(image_id, "", "image is not in the split file") for image_id in entries if image_id not in placed
    ]
    sources = ", ".join(map(str, files))
    if not records:
        whose = "" if split_file is None else f" of {root / split_file}"
        raise InputError(f"no image{whose} has a caption in {sources}")
    if len({type(record.id) for record in records}) > 1:
        where = sources if split_file is None else root / split_file
        raise InputError(f"{where}: some image ids are numbers and some are strings; make them all one kind")
    return dataset_from_files(records, skipped, root, f"COCO captions in {root}")


class _Places:
    """The files and splits of images, see `read_coco`."""

    def __init__(self, root: Path, images: str, split: str | None) -> None:
        self.root, self.images, self.split = root, images, split
        self._folder = cache(self._look_for)

    def own(self, path: Path, image: dict[str, Any]) -> tuple[str, str]:
        """The file and the split of an image according to its annotation file."""
        called = re.search(r"(train|val|test)\d*", path.name)
        folder = self.images or ((called and self._folder(called[0])) or "")
        name = str(Path(folder) / text_of(path, image, "file_name"))
        split = self.split or (called[1] if called else "val")
        return relative_file(self.root, name, str(path)), split_name(split)

    def by_split_file(self, split_file: str, entries: Entries) -> Iterator[tuple[int | str, str, str]]:
        """(id, file, split) of each image of a split file; if its folder does not exist, the annotations' file."""
        path = self.root / split_file
        if not path.exists():
            raise InputError(
                f"cannot read {path}: No such file or directory; put Karpathy's there, or give "
                "data.reader.split_file=null to have the splits of the annotations"
            )
        seen: set[int | str] = set()
        for image in object_list(path, read_json(path), "images"):
            image_id = image_id_of(path, image, "cocoid")
            if image_id in seen:
                raise InputError(f"{path}: the image id {image_id} comes twice")
            seen.add(image_id)
            folder, name = text_of(path, image, "filepath"), text_of(path, image, "filename")
            there = self._folder(folder)
            file = relative_file(self.root, f"{there or folder}/{name}", str(path))
            if there is None and "file_name" in (entry := entries.get(image_id, (path, {})))[1]:
                file, _ = self.own(*entry)
            yield image_id, file, split_of(path, image)

    def _look_for(self, name: str) -> str | None:
        """The path below the root of a folder of images; None: it does not exist."""
        try:
            return next((path for path in (name, f"images/{name}") if (self.root / path).is_dir()), None)
        except OSError:  # it is too long for a name
            return None
