"""COCO: caption annotations in COCO's own JSON, splits from Karpathy's `dataset_coco.json`.

The annotations give the captions, the split file says which image is in which split and where it lies.
Karpathy's "restval" (the rest of val2014) counts as "train", as in every paper that uses these splits.
Without a split file, as for nocaps, the annotations are one split.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.readers.inputs import (
    check_shares,
    clean_caption,
    draw_split,
    image_id_of,
    karpathy_split,
    object_list,
    relative_file,
    text_of,
    value_of,
)
from data_prep.records import Dataset, ImageRecord, Skipped, of_files
from prefixcap.errors import InputError
from prefixcap.files import read_json


def read_coco(
    root: str | Path,
    annotations: str = "captions_*.json",
    split_file: str | None = "dataset_coco.json",
    images: str = "",
    split: str = "val",
    val_share: float = 0.0,
    test_share: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Read COCO captions, with the Karpathy split, as one split, or with splits that are drawn.

    Args:
        root: the folder that holds the image folders (`train2014`, `val2014`).
        annotations: pattern of the annotation files, looked for in `root` and in `root/annotations`.
        split_file: in the form of Karpathy's `dataset_coco.json`; relative to `root`, or absolute. None: all
            images of the annotations are one split.
        images: without a split file, the folder below `root` that the annotations' file names are relative to.
        split: without a split file, the name of the split.
        val_share: share of the images, 0.0 to 1.0, that is drawn for "val", whatever split they are in.
        test_share: likewise for "test"; what is left is then "train". Both 0.0: nothing is drawn.
        seed: of the draw. The split of an image depends on its id and the seed alone.

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
    entries: dict[int | str, tuple[Path, dict[str, Any]]] = {}
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
    listed = (
        _placed_by_annotations(root, images, split, entries) if split_file is None else _placed_by(root, split_file)
    )
    for image_id, file_name, split_name in listed:
        placed.add(image_id)
        if image_id not in entries:
            skipped.append(Skipped(image_id, file_name, "image is not in the annotations"))
        elif image_id not in captions:
            skipped.append(Skipped(image_id, file_name, "image without caption"))
        else:
            domain = str(entries[image_id][1].get("domain", ""))
            if val_share or test_share:
                split_name = draw_split(str(image_id), val_share, test_share, seed)
            records.append(ImageRecord(image_id, file_name, split_name, tuple(captions[image_id]), domain))
    skipped += [
        Skipped(image_id, "", "image is not in the split file") for image_id in entries if image_id not in placed
    ]
    found_in = ", ".join(map(str, files))
    if not records:
        whose = "" if split_file is None else f" of {root / split_file}"
        raise InputError(f"no image{whose} has a caption in {found_in}")
    if len({type(record.id) for record in records}) > 1:
        where = found_in if split_file is None else root / split_file
        raise InputError(f"{where}: some image ids are numbers and some are strings; make them all one kind")
    return of_files(records, skipped, root, f"COCO captions in {root}")


def _placed_by(root: Path, split_file: str) -> Iterator[tuple[int | str, str, str]]:
    """(id, file, split) of each image of a split file."""
    path = root / split_file
    seen: set[int | str] = set()
    for image in object_list(path, read_json(path), "images"):
        image_id = image_id_of(path, image, "cocoid")
        if image_id in seen:
            raise InputError(f"{path}: the image id {image_id} comes twice")
        seen.add(image_id)
        name = f"{text_of(path, image, 'filepath')}/{text_of(path, image, 'filename')}"
        yield image_id, relative_file(root, name, str(path)), karpathy_split(text_of(path, image, "split"))


def _placed_by_annotations(
    root: Path, images: str, split: str, entries: dict[int | str, tuple[Path, dict[str, Any]]]
) -> Iterator[tuple[int | str, str, str]]:
    """(id, file, split) of each image of the annotations, whose file names are relative to `root/images`."""
    for image_id, (path, image) in entries.items():
        name = str(Path(images) / text_of(path, image, "file_name"))
        yield image_id, relative_file(root, name, str(path)), split
