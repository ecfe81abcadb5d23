"""Captions and references in the JSON files that others write."""

from pathlib import Path
from typing import Any

from prefixcap.errors import InputError
from prefixcap.files import read_json

ImageId = int | str


def read_captions(path: str | Path) -> dict[ImageId, str]:
    """Captions of images from a JSON file.

    Either the COCO results format, `[{"image_id": …, "caption": …}, …]`, or entries with `prediction` and
    `image_name`, as MAGIC publishes its results.

    Raises:
        InputError: there is no such file, it has another form, or an image has two captions.
    """
    captions: dict[ImageId, str] = {}
    for number, entry in enumerate(_entries(path)):
        if "prediction" in entry and "image_name" in entry:
            image_id, caption = entry["image_name"], entry["prediction"]
        elif "caption" in entry and "image_id" in entry:
            image_id, caption = entry["image_id"], entry["caption"]
        else:
            raise InputError(
                f"{path}: entry {number} has neither 'image_id' and 'caption' (COCO results) nor 'image_name' and "
                "'prediction': give captions in one of these forms"
            )
        if image_id in captions:
            raise InputError(
                f"{path}: image {image_id!r} has two captions (entry {number} is the second): give one each"
            )
        captions[image_id] = caption
    return captions


def read_references(path: str | Path) -> dict[ImageId, list[str]]:
    """References of images from a JSON file.

    Either COCO annotations (an object with `annotations`), a Karpathy split file (an object with `images` that have
    `sentences`), or entries with `image_name` and `captions`.

    Raises:
        InputError: there is no such file, it has another form, or an image comes twice where it should come once.
    """
    content = read_json(Path(path))
    references: dict[ImageId, list[str]] = {}
    try:
        if isinstance(content, dict) and "annotations" in content:
            for annotation in content["annotations"]:
                references.setdefault(annotation["image_id"], []).append(annotation["caption"])
        else:
            if isinstance(content, dict):
                images = [
                    (image.get("cocoid", image["filename"]), [sentence["raw"] for sentence in image["sentences"]])
                    for image in content["images"]
                ]
            else:
                images = [(entry["image_name"], list(entry["captions"])) for entry in content]
            for number, (image_id, texts) in enumerate(images):
                if image_id in references:
                    raise InputError(f"{path}: image {image_id!r} comes twice (entry {number} is the second)")
                references[image_id] = texts
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} holds no references (no key {error}): give COCO annotations, a Karpathy split file, or a list of "
            "entries with 'image_name' and 'captions'"
        ) from error
    return references


def _entries(path: str | Path) -> list[dict[str, Any]]:
    content = read_json(Path(path))
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise InputError(f"{path} is not a list of captions: give COCO results, [{{'image_id': …, 'caption': …}}, …]")
    return content
