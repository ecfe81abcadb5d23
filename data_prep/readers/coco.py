"""COCO: caption annotations in COCO's own JSON, splits from Karpathy's `dataset_coco.json`.

The annotations give the captions, the split file says which image is in which split and where it lies.
Karpathy's "restval" (the rest of val2014) counts as "train", as in every paper that uses these splits.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.readers.inputs import clean_caption, relative_file
from data_prep.records import Dataset, ImageRecord, Skipped, of_files
from prefixcap.errors import InputError
from prefixcap.files import read_json

INT64 = range(-(2**63), 2**63)


def read_coco(root: str | Path, annotations: str = "captions_*.json", split_file: str = "dataset_coco.json") -> Dataset:
    """Read COCO captions with the Karpathy split.

    Args:
        root: the folder that holds the image folders (`train2014`, `val2014`).
        annotations: pattern of the annotation files, looked for in `root` and in `root/annotations`.
        split_file: in the form of Karpathy's `dataset_coco.json`; relative to `root`, or absolute.

    Returns:
        The images that are in both, in the order of the split file. Captions and images that cannot be used
        are in `skipped`. An image entry's `domain`, if there is one, is kept.

    Raises:
        InputError: a file is missing, is not JSON or lacks a key; two images have the same id; a path leaves
            `root`; no image is left. The message names the file.
    """
    root = Path(root)
    files = sorted(root.glob(annotations)) or sorted((root / "annotations").glob(annotations))
    if not files:
        raise InputError(f"no file {annotations} in {root} or {root / 'annotations'}; set data.root to COCO's folder")
    domains: dict[int | str, str] = {}
    captions: dict[int | str, list[str]] = {}
    skipped: list[Skipped] = []
    for file in files:
        content = read_json(file)
        for image in _entries(file, content, "images"):
            image_id = _image_id(file, image, "id")
            if image_id in domains:
                raise InputError(
                    f"{file}: the image id {image_id} comes twice (in {', '.join(map(str, files))}); "
                    "choose the files with data.reader.annotations=PATTERN"
                )
            domains[image_id] = str(image.get("domain", ""))
        for annotation in _entries(file, content, "annotations"):
            image_id = _image_id(file, annotation, "image_id")
            caption = _value(file, annotation, "caption")
            try:
                caption = clean_caption(caption)
            except ValueError as error:
                skipped.append(Skipped(image_id, file.name, str(error)))
                continue
            captions.setdefault(image_id, []).append(caption)
    for image_id, texts in captions.items():
        if image_id not in domains:
            skipped += [Skipped(image_id, "", "caption of an image that the annotations do not list") for _ in texts]

    records: list[ImageRecord] = []
    placed: set[int | str] = set()
    split_path = root / split_file
    for image in _entries(split_path, read_json(split_path), "images"):
        image_id = _image_id(split_path, image, "cocoid")
        if image_id in placed:
            raise InputError(f"{split_path}: the image id {image_id} comes twice")
        placed.add(image_id)
        name = f"{_text(split_path, image, 'filepath')}/{_text(split_path, image, 'filename')}"
        file_name = relative_file(root, name, str(split_path))
        split = _text(split_path, image, "split")
        if image_id not in domains:
            skipped.append(Skipped(image_id, file_name, "image is not in the annotations"))
        elif image_id not in captions:
            skipped.append(Skipped(image_id, file_name, "image without caption"))
        else:
            split = "train" if split == "restval" else split
            records.append(ImageRecord(image_id, file_name, split, tuple(captions[image_id]), domains[image_id]))
    skipped += [
        Skipped(image_id, "", "image is not in the split file") for image_id in domains if image_id not in placed
    ]
    if not records:
        raise InputError(f"no image of {split_path} has a caption in {', '.join(map(str, files))}")
    if len({type(record.id) for record in records}) > 1:
        raise InputError(f"{split_path}: some image ids are numbers and some are strings; make them all one kind")
    return of_files(records, skipped, root, f"COCO captions in {root}")


def _entries(file: Path, content: Any, key: str) -> Iterator[dict[str, Any]]:
    """The objects of the list under `key`."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{file} has no list {key!r}; is it a COCO file?")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"{file}: entry {position} of {key!r} is no object")
        yield entry


def _value(file: Path, entry: dict[str, Any], key: str) -> Any:
    if key not in entry:
        raise InputError(f"{file}: an entry lacks the key {key!r}; it has {', '.join(entry) or 'none'}")
    return entry[key]


def _text(file: Path, entry: dict[str, Any], key: str) -> str:
    value = _value(file, entry, key)
    if not isinstance(value, str):
        raise InputError(f"{file}: {key!r} must be a string, not {value!r}")
    return value


def _image_id(file: Path, entry: dict[str, Any], key: str) -> int | str:
    value = _value(file, entry, key)
    if isinstance(value, str) or (type(value) is int and value in INT64):
        return value
    raise InputError(f"{file}: {key!r} must be a whole number of 64 bits or a string, not {value!r}")
