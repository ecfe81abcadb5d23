"""Captions and references in the JSON files that others write."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefixcap.errors import InputError
from prefixcap.files import read_json
from prefixcap.metrics import ImageId

_FORMS = "give COCO annotations, a Karpathy split file, or a list of entries with 'image_name' and 'captions'"


def read_captions(path: str | Path) -> dict[ImageId, str]:
    """Captions of images from a JSON file.

    Either the COCO results format, `[{"image_id": …, "caption": …}, …]`, or entries with `prediction` and
    `image_name`, as MAGIC publishes its results. Half a surrogate pair, which is no character, becomes U+FFFD.

    Raises:
        InputError: there is no such file, it has another form, or an image has two captions.
    """
    captions: dict[ImageId, str] = {}
    for number, entry in _objects(path, read_json(Path(path)), "captions"):
        if "prediction" in entry and "image_name" in entry:
            name, caption = entry["image_name"], entry["prediction"]
        elif "caption" in entry and "image_id" in entry:
            name, caption = entry["image_id"], entry["caption"]
        else:
            raise InputError(
                f"{path}: entry {number} has neither 'image_id' and 'caption' (COCO results) nor 'image_name' and "
                "'prediction': give captions in one of these forms"
            )
        image_id = _image_id(path, number, name)
        if image_id in captions:
            raise InputError(
                f"{path}: image {image_id!r} has two captions (entry {number} is the second): give one each"
            )
        captions[image_id] = _text(path, image_id, caption)
    return captions


def read_references(path: str | Path, split: str | None = None) -> dict[ImageId, list[str]]:
    """References of images from a JSON file.

    Either COCO annotations (an object with `annotations`), a Karpathy split file (an object with `images` that have
    `sentences`; their ids are `cocoid`, or `filename` where there is none), or entries with `image_name` and
    `captions`. Half a surrogate pair becomes U+FFFD.

    Args:
        path: of the file.
        split: of a Karpathy split file, the images of this split only ("restval" counts as "train"); None: all. Other
            files have no splits.

    Raises:
        InputError: there is no such file, it has another form or no such split, or an image comes twice where it
            should come once.
    """
    content = read_json(Path(path))
    references: dict[ImageId, list[str]] = {}
    if isinstance(content, dict) and "annotations" in content:
        for number, annotation in _objects(path, content["annotations"], "annotations"):
            image_id = _image_id(path, number, annotation.get("image_id"))
            references.setdefault(image_id, []).append(_text(path, image_id, annotation.get("caption")))
        return references
    if isinstance(content, dict) and "images" in content:
        images = _of_karpathy(path, content["images"], split)
    elif isinstance(content, list):
        images = _of_entries(path, content)
    else:
        raise InputError(f"{path} holds no references: {_FORMS}")
    for number, name, texts in images:
        image_id = _image_id(path, number, name)
        if image_id in references:
            raise InputError(f"{path}: image {image_id!r} comes twice (entry {number} is the second)")
        if not isinstance(texts, list):
            raise InputError(f"{path}: the references of image {image_id!r} are {_shown(texts)}: give a list of texts")
        references[image_id] = [_text(path, image_id, text) for text in texts]
    return references


def _of_entries(path: str | Path, entries: list[Any]) -> Iterator[tuple[int, Any, Any]]:
    """Number, id and references of each image."""
    for number, entry in _objects(path, entries, "images"):
        if "image_name" not in entry or "captions" not in entry:
            raise InputError(f"{path} holds no references (entry {number}): {_FORMS}")
        yield number, entry["image_name"], entry["captions"]


def _of_karpathy(path: str | Path, images: Any, split: str | None) -> Iterator[tuple[int, Any, Any]]:
    """Number, id and references of each image of a split."""
    entries = [entry for _, entry in _objects(path, images, "images")]
    splits = ["train" if entry.get("split") == "restval" else entry.get("split") for entry in entries]
    if split is not None and split not in splits:
        there = ", ".join(sorted({str(name) for name in splits}))
        raise InputError(f"{path} has no images of split {split!r}, but of {there}: choose by split=…, null for all")
    for number, (name, entry) in enumerate(zip(splits, entries, strict=True)):
        if split in (None, name):
            where = f"{path}: image {entry.get('filename')!r}"
            sentences = [sentence.get("raw") for _, sentence in _objects(where, entry.get("sentences"), "sentences")]
            yield number, entry.get("cocoid", entry.get("filename")), sentences


def _objects(where: str | Path, values: Any, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the content of each of a list of JSON objects."""
    if not isinstance(values, list):
        raise InputError(f"{where}: no list of {what}, but {_shown(values)}; is it the right file?")
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise InputError(f"{where}: entry {number} of the {what} is no object, but {_shown(value)}")
        yield number, value


def _image_id(path: str | Path, number: int, image_id: Any) -> ImageId:
    if isinstance(image_id, bool) or not isinstance(image_id, int | str):
        raise InputError(f"{path}: the image id of entry {number} is {_shown(image_id)}: give a number or a text")
    return _whole(image_id) if isinstance(image_id, str) else image_id


def _text(path: str | Path, image_id: ImageId, text: Any) -> str:
    if not isinstance(text, str):
        raise InputError(f"{path}: a caption of image {image_id!r} is {_shown(text)}: give a text")
    return _whole(text)


def _whole(text: str) -> str:
    """Half a surrogate pair cannot be written to any file in UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _shown(value: Any) -> str:
    """A wrong value as a message shows it."""
    return "missing" if value is None else f"{value!r:.40}"
