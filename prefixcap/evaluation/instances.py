"""Reads COCO's instances: which objects an image has."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefixcap.errors import InputError
from prefixcap.metrics import ImageId
from prefixcap.metrics.coco_objects import CATEGORIES
from prefixcap.utils.files import read_json


def read_instances(paths: str | Path | Sequence[str | Path]) -> dict[ImageId, set[str]]:
    """The categories of the objects in each image, from COCO's `instances_train2014.json`, `instances_val2014.json`, …

    They are in COCO's `annotations_trainval2014.zip`. An image that the file lists and that has no instance has the
    empty set. A file is read as a whole: that of train2014, 450 MB, takes 2 to 3 GB of memory for a moment.

    Args:
        paths: one file, or several, whose images are put together.

    Raises:
        InputError: a file cannot be read, is of another form, or has other categories than COCO's 80, such as those of
            `person_keypoints_*.json` or of LVIS.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    if not files:
        raise InputError("no file of instances is named: name one or more")
    objects: dict[ImageId, set[str]] = {}
    for file in files:
        for image, names in _read(Path(file)).items():
            objects.setdefault(image, set()).update(names)
    return objects


def _read(path: Path) -> dict[ImageId, set[str]]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise _wrong(path, f"it is a {type(content).__name__}")
    names = _category_names(path, content)
    objects: dict[ImageId, set[str]] = {}
    for number, image in _entries(path, content, "images", "image"):
        objects.setdefault(_image(path, f"image {number} has the id", image.get("id")), set())
    for number, annotation in _entries(path, content, "annotations", "annotation"):
        image_id = _image(path, f"annotation {number} has the image", annotation.get("image_id"))
        category = annotation.get("category_id")
        if not isinstance(category, int) or category not in names:
            raise _wrong(path, f"annotation {number} has the category {_shown(category)}")
        objects.setdefault(image_id, set()).add(names[category])
    if not objects:
        raise _wrong(path, "it names no image")
    return objects


def _category_names(path: Path, content: dict[str, Any]) -> dict[int, str]:
    """The names of the categories by their ids."""
    names = {}
    for _, category in _entries(path, content, "categories", "category"):
        name, key = category.get("name"), category.get("id")
        if name not in CATEGORIES or not isinstance(key, int):
            raise _wrong(path, f"it has a category {_shown(name)}, which is none of COCO's 80")
        names[key] = name
    if len(set(names.values())) < len(CATEGORIES):
        raise _wrong(path, f"its categories are {len(set(names.values()))} of COCO's 80")
    return names


def _entries(path: Path, content: dict[str, Any], name: str, one: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the content of each of a list of JSON objects."""
    values = content.get(name)
    if values is None:
        raise _wrong(path, f"its {name} are missing")
    if not isinstance(values, list):
        raise _wrong(path, f"its {name} are {_shown(values)}, not a list")
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise _wrong(path, f"{one} {number} is {_shown(value)}")
        yield number, value


def _image(path: Path, where: str, image_id: Any) -> ImageId:
    if isinstance(image_id, bool) or not isinstance(image_id, int | str):
        raise _wrong(path, f"{where} {_shown(image_id)}")
    return image_id


def _wrong(path: Path, problem: str) -> InputError:
    return InputError(f"{path} holds no instances: {problem}; give COCO's instances_*.json")


def _shown(value: Any) -> str:
    """A wrong value as a message shows it."""
    return "missing" if value is None else f"{value!r:.40}"
