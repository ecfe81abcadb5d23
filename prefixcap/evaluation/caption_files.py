"""Reads captions and references from the files of other tools, and from those of `prefixcap caption`."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from prefixcap.errors import InputError, listed
from prefixcap.metrics import ImageId
from prefixcap.utils.files import from_cell, parse_json, read_json, read_text
from prefixcap.utils.image_ids import by_image

_FORMS = (
    "give COCO annotations, a Karpathy split file, an object {id: [captions]}, or a list of entries with 'image_name' "
    "and 'captions'"
)


def read_captions(path: str | Path) -> dict[ImageId, str]:
    """Captions of images from a file, as `read_candidates` reads it; of several captions the first, which is the best.

    Raises:
        InputError: as `read_candidates`.
    """
    return {image: captions[0] for image, captions in read_candidates(path).items()}


def read_candidates(path: str | Path) -> dict[ImageId, list[str]]:
    """Captions of images from a file, the best of each image first.

    The ending of the file's name says what it holds: `.jsonl`, `.csv`, and `.txt` or `.tsv` are as `prefixcap caption`
    writes them with `--format jsonl`, `csv` and `text`. Any other file is read as JSON: the COCO results format,
    `[{"image_id": …, "caption": …}, …]`, entries with `prediction` and `image_name`, as MAGIC publishes its results,
    entries with `image` and `captions`, as `--format json` writes them, or an object, `{id: caption}` or `{id:
    [captions]}`, where a caption may be `{"caption": …}`, as pycocoevalcap has them. Half a surrogate pair becomes
    U+FFFD.

    Raises:
        InputError: there is no such file, its form is another, or an image occurs twice.
    """
    path = Path(path)
    entries = {".jsonl": _jsonl_entries, ".csv": _csv_entries, ".txt": _text_entries, ".tsv": _text_entries}.get(
        path.suffix.lower(), _json_entries
    )
    captions: dict[ImageId, list[str]] = {}
    for number, name, texts in entries(path):
        image_id = _image_id(path, number, name)
        if image_id in captions:
            raise InputError(
                f"{path}: image {image_id!r} has two captions (entry {number} is the second): give one each"
            )
        if not isinstance(texts, list) or not texts:
            raise InputError(f"{path}: the captions of image {image_id!r} are {_shown(texts)}: give a list of texts")
        captions[image_id] = [_text(path, image_id, text) for text in texts]
    return captions


SIMILARITY = re.compile(r"-?[01]\.\d\d( \(low: [^\t]*\))?")
"""The third column of a line of text that `prefixcap caption` wrote."""

_Entry = tuple[int, Any, Any]  # its number, the id of its image, and the captions


def read_prompts(file: str | Path, images: Sequence[ImageId]) -> list[str]:
    """The prompts in a file, one for each image.

    Args:
        file: {id: text}, or what else `captions=` reads.
        images: ids, in the order of the prompts.

    Raises:
        InputError: the file cannot be read, or has no prompt for an image.
    """
    given = {image: texts[0] for image, texts in read_candidates(file).items()}
    own = by_image(given, images)
    if missing := [repr(image) for image in images if image not in own]:
        raise InputError(f"{file} has no prompt for {listed('image', missing)}: give each one, if need be an empty one")
    return [own[image] for image in images]


def _json_entries(path: Path) -> Iterator[_Entry]:
    content = read_json(path)
    if isinstance(content, dict) and not _OF_OTHER_OBJECTS & content.keys():
        return _by_id(content)
    return (_entry(path, number, entry) for number, entry in _objects(path, content, "captions"))


_OF_OTHER_OBJECTS = {"annotations", "images", "caption", "captions", "prediction"}
"""Names that no image has: an object with one of these is not `{id: caption}`."""


def _by_id(content: dict[str, Any]) -> Iterator[_Entry]:
    """Of an object with a caption, or a list of captions, for each image."""
    for number, (image, given) in enumerate(content.items()):
        captions = given if isinstance(given, list) else [given]
        yield number, image, [text.get("caption") if isinstance(text, dict) else text for text in captions]


def _jsonl_entries(path: Path) -> Iterator[_Entry]:
    lines = [line for line in read_text(path).split("\n") if line.strip()]
    values = [parse_json(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    return (_entry(path, number, entry) for number, entry in _objects(path, values, "captions"))


def _entry(path: Path, number: int, entry: dict[str, Any]) -> _Entry:
    for name, captions in (("image_name", "prediction"), ("image_id", "caption"), ("image", "captions")):
        if name in entry and captions in entry:
            return number, entry[name], entry[captions] if captions == "captions" else [entry[captions]]
    raise InputError(
        f"{path}: entry {number} has neither 'image_id' and 'caption' (COCO results) nor 'image_name' and "
        "'prediction' nor 'image' and 'captions' (prefixcap caption): give captions in one of these forms"
    )


def _csv_entries(path: Path) -> Iterator[_Entry]:
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        columns = rows.fieldnames or []
        if not {"image", "caption"} <= set(columns):
            raise InputError(f"{path} has the columns {', '.join(columns) or 'none'}: give it image and caption")
        pairs = [(row["image"], row["caption"]) for row in rows]
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: {error}") from error
    short = [number for number, pair in enumerate(pairs) if None in pair]
    if short:
        raise InputError(f"{path}: row {short[0]} lacks an image or a caption")
    return _group((from_cell(image), from_cell(caption)) for image, caption in pairs)


def _text_entries(path: Path) -> Iterator[_Entry]:
    lines = [line for line in read_text(path).split("\n") if line]
    for number, line in enumerate(lines, 1):
        if "\t" not in line:
            raise InputError(f"{path}, line {number} has no tab: give IMAGE<tab>CAPTION in each line")
    escapes = {"\\t": "\t", "\\n": "\n", "\\r": "\r"}
    cells = (line.rsplit("\t", 1) for line in lines)
    pairs = (
        (before if "\t" in before and SIMILARITY.fullmatch(last) else line).split("\t", 1)
        for line, (before, last) in zip(lines, cells, strict=True)
    )
    return _group((re.sub(r"\\[tnr]", lambda sign: escapes[sign[0]], image), text) for image, text in pairs)


def _group(pairs: Iterable[tuple[str, str]]) -> Iterator[_Entry]:
    """Group (image, caption) pairs: the captions of an image follow each other, the best first."""
    for number, (image, group) in enumerate(groupby(pairs, itemgetter(0))):
        yield number, image, [caption for _, caption in group]


def read_references(path: str | Path, split: str | None = None) -> dict[ImageId, list[str]]:
    """References of images from a JSON file.

    Either COCO annotations (an object with `annotations`), a Karpathy split file (an object with `images` that have
    `sentences`; their ids are `cocoid`, or `filename` where there is none), an object `{id: [captions]}`, where a
    caption may be `{"caption": …}`, or entries with `image_name` and `captions`. Half a surrogate pair becomes U+FFFD.

    Args:
        path: of the file.
        split: of a Karpathy split file, the images of this split only ("restval" counts as "train"); None: all. Other
            files have no splits.

    Raises:
        InputError: there is no such file, its form is another, it has no such split, or an image occurs twice where it
            should occur once.
    """
    content = read_json(Path(path))
    references: dict[ImageId, list[str]] = {}
    if isinstance(content, dict) and "annotations" in content:
        for number, annotation in _objects(path, content["annotations"], "annotations"):
            image_id = _image_id(path, number, annotation.get("image_id"))
            references.setdefault(image_id, []).append(_text(path, image_id, annotation.get("caption")))
        return _in_order_of(content.get("images"), references)
    if isinstance(content, dict) and "images" in content:
        images = _karpathy_entries(path, content["images"], split)
    elif isinstance(content, dict) and content and all(isinstance(texts, list) for texts in content.values()):
        images = _by_id(content)
    elif isinstance(content, list):
        images = _list_entries(path, content)
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


def _in_order_of(images: Any, references: dict[ImageId, list[str]]) -> dict[ImageId, list[str]]:
    """References in the order of COCO's list of images, if there is one: so the COCO tools read captions."""
    listed = [image.get("id") for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    known = [image for image in listed if isinstance(image, int | str) and image in references]
    return {image: references[image] for image in dict.fromkeys([*known, *references])}


def _list_entries(path: str | Path, entries: list[Any]) -> Iterator[tuple[int, Any, Any]]:
    """Number, id and references of each image."""
    for number, entry in _objects(path, entries, "images"):
        if "image_name" not in entry or "captions" not in entry:
            raise InputError(f"{path} holds no references (entry {number}): {_FORMS}")
        yield number, entry["image_name"], entry["captions"]


def _karpathy_entries(path: str | Path, images: Any, split: str | None) -> Iterator[tuple[int, Any, Any]]:
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
        raise InputError(f"{where}: {what} are not a list, but {_shown(values)}; is it the right file?")
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise InputError(f"{where}: entry {number} of the {what} is not an object, but {_shown(value)}")
        yield number, value


def _image_id(path: str | Path, number: int, image_id: Any) -> ImageId:
    if isinstance(image_id, bool) or not isinstance(image_id, int | str):
        raise InputError(f"{path}: the image id of entry {number} is {_shown(image_id)}: give a number or a text")
    return _written(image_id) if isinstance(image_id, str) else image_id


def _text(path: str | Path, image_id: ImageId, text: Any) -> str:
    if not isinstance(text, str):
        raise InputError(f"{path}: a caption of image {image_id!r} is {_shown(text)}: give a text")
    return _written(text)


def _written(text: str) -> str:
    """Half a surrogate pair cannot be written to any file in UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _shown(value: Any) -> str:
    """A wrong value as a message shows it."""
    return "missing" if value is None else f"{value!r:.40}"
