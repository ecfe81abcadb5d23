"""Which image a name stands for: COCO's number, a file name, or a path."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from prefixcap.errors import InputError
from prefixcap.utils.images import IMAGE_SUFFIXES

T = TypeVar("T")

_NUMBER = re.compile(r"0|-?[1-9]\d{0,17}|\d{12}")  # COCO's files have twelve digits
_COCO_FILE = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})\.\w+")


def image_id(image: str) -> int | str:
    """The id of an image in COCO results: its number if the file is named as COCO names them, else the file's name.

    Args:
        image: a path or a URL.

    Examples:
        >>> image_id("val2014/COCO_val2014_000000391895.jpg"), image_id("val2017/000000391895.jpg")
        (391895, 391895)
        >>> image_id("photos/1000092795.jpg")
        '1000092795.jpg'
    """
    name = PurePath(unquote(urlsplit(image).path) if "://" in image else image).name or image
    number = _COCO_FILE.fullmatch(name)
    return int(number[1]) if number else name


def number_or_name(image: int | str) -> int | str:
    """What the id, the digits and COCO's file of an image have in common: the number, or else the file's name.

    Examples:
        >>> number_or_name(42), number_or_name("42"), number_or_name("val2014/COCO_val2014_000000000042.jpg")
        (42, 42, 42)
        >>> number_or_name("photos/dog.jpg")
        'dog.jpg'
    """
    named = image_id(image) if isinstance(image, str) else image
    return int(named) if isinstance(named, str) and named.isascii() and named.isdigit() else named


def by_image(
    captions: Mapping[int | str, T], images: Iterable[int | str], files: Mapping[Any, Any] | None = None
) -> dict[int | str, T]:
    """Captions by image id, where they are given by other names of the same images.

    A path names the image whose id it ends in, whose file it is, or whose number is in COCO's name of the file; a
    number and its digits as text name the same image. A name of none of the images is kept.

    Args:
        captions: by id, path or URL.
        images: the ids.
        files: of the images, as far as they are known.

    Raises:
        InputError: a name could mean several images, or two names mean one.

    Examples:
        >>> by_image({"photos/COCO_val2014_000000391895.jpg": "a man", "dog.png": "a dog"}, [391895, "pets/dog.png"])
        {391895: 'a man', 'pets/dog.png': 'a dog'}
    """
    owners: dict[int | str, dict[int | str, None]] = {}
    ids = dict.fromkeys(images)
    for image in ids:
        file = (files or {}).get(image)
        for name in (*_names(image), *(_names(str(file)) if file is not None else ())):
            owners.setdefault(name, {})[image] = None
    by_id: dict[int | str, T] = {}
    named: dict[int | str, int | str] = {}
    for given, caption in captions.items():
        image = given if given in ids else _owner(given, owners)
        if image in by_id:
            raise InputError(f"{named[image]!r} and {given!r} are both captions of image {image!r}: give one each")
        by_id[image], named[image] = caption, given
    return by_id


def _owner(given: int | str, owners: Mapping[int | str, Iterable[int | str]]) -> int | str:
    known = next((list(owners[name]) for name in _names(given) if name in owners), [given])
    if len(known) > 1:
        raise InputError(
            f"the caption of {given!r} may be of image {known[0]!r} or {known[1]!r}: name it as one of these"
        )
    return known[0]


def _names(image: int | str) -> Iterator[int | str]:
    """Other names of an image, the most exact first."""
    yield image
    if isinstance(image, int):
        return
    if _NUMBER.fullmatch(image):
        yield int(image)
    parts = PurePath(image).parts
    yield from ("/".join(parts[start:]) for start in range(1, len(parts)))
    last = image_id(image)
    yield last
    if isinstance(last, str) and PurePath(last).suffix.lower() in IMAGE_SUFFIXES:
        yield PurePath(last).stem
