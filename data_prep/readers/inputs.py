"""What readers share: checks of captions, paths, splits and entries."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

from prefixcap.errors import InputError

INT64 = range(-(2**63), 2**63)
NOTHING = {"nan", "none", "null", "n/a", "na", "<na>", "#n/a", "#na"}  # how programs write a cell that holds nothing

SPLITS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),  # "restval": the rest of COCO's val2014, in every paper
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def clean_caption(caption: object) -> str:
    """A caption on one line, its whitespace folded to single spaces; bytes are read as UTF-8.

    Raises:
        ValueError: it is no text, or nothing is left, or one of `NOTHING`, as pandas writes `nan`; the message is the
            reason to list it as skipped.
    """
    if isinstance(caption, float) and math.isnan(caption):
        raise ValueError("empty caption")
    if isinstance(caption, bytes):
        try:
            caption = caption.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("caption is not valid UTF-8") from None
    if not isinstance(caption, str):
        raise ValueError("caption is not text")
    folded = " ".join(caption.replace("\0", " ").split())
    if not folded:
        raise ValueError("empty caption")
    if folded.casefold() in NOTHING:
        raise ValueError(f"empty caption ({folded})")
    if not folded.isprintable():
        try:
            folded.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("caption is not valid Unicode") from None
    return folded


def relative_file(root: Path, file: str, where: str) -> str:
    """A file's path relative to `root`, with forward slashes and without "." and ".." parts.

    Links inside `root` may lead elsewhere: they are the user's own.

    Raises:
        InputError: the path leaves `root`; the message begins with `where`.
    """
    normal = Path(os.path.normpath(file))
    if not is_storable(file) or normal.is_absolute() or normal.parts[:1] in ((), ("..",)):
        raise InputError(f"{where}: the image {file!r} is not inside {root}; give paths relative to that folder")
    return normal.as_posix()


def is_storable(value: object) -> TypeGuard[str]:
    """Whether it is a string that a store can hold: without null characters and lone surrogates."""
    return isinstance(value, str) and "\0" not in value and value.encode(errors="ignore").decode() == value


def check_shares(val_share: float, test_share: float) -> None:
    """Raise InputError unless these are shares of a data set."""
    shares = (val_share, test_share)
    if not all(isinstance(share, int | float) and share >= 0 for share in shares) or sum(shares) > 1:
        raise InputError(
            f"val_share {val_share} and test_share {test_share} must be numbers from 0 on, together at most 1"
        )


def draw_split(image_id: str, val_share: float, test_share: float, seed: int) -> str:
    """The split of an image, from a hash: it does not change when images are added or removed."""
    number = _drawn_number(image_id, seed)
    if number < test_share:
        return "test"
    return "val" if number < test_share + val_share else "train"


def draw_splits(ids: Iterable[str], val_share: float, test_share: float, seed: int) -> dict[str, str]:
    """The split of each image, as `draw_split` draws it; but no split with a share is empty if there are enough images.

    An empty split gets the image whose number is closest to its own.

    Examples:
        >>> sorted(draw_splits(["a", "b", "c"], val_share=0.1, test_share=0.1, seed=0).values())
        ['test', 'train', 'val']
    """
    splits = {image_id: draw_split(image_id, val_share, test_share, seed) for image_id in ids}
    numbers = {"train": 1.0, "val": test_share, "test": 0.0}  # at or near those of the split's images
    shares = {"train": 1 - val_share - test_share, "val": val_share, "test": test_share}
    wanted = [name for name, share in shares.items() if share > 1e-9]
    for split in wanted if len(splits) >= len(wanted) else []:
        counts = Counter(splits.values())
        if not counts[split]:
            spare = [image_id for image_id, own in splits.items() if counts[own] > 1]
            closest = min(spare, key=lambda image_id: abs(_drawn_number(image_id, seed) - numbers[split]))
            splits[closest] = split
    return splits


def _drawn_number(image_id: str, seed: int) -> float:
    """From 0 to 1."""
    return int(hashlib.sha256(f"{seed}:{image_id}".encode()).hexdigest()[:16], 16) / 16**16


def split_name(name: str) -> str:
    """ "train", "val" or "test" for the usual spellings of it, in any case; another name as it is."""
    return SPLITS.get(name.strip().casefold(), name.strip())


def object_list(file: Path, content: Any, key: str) -> Iterator[dict[str, Any]]:
    """The objects of the list under `key` in a JSON object. Raises InputError naming `file`."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{file} has no list {key!r}; is it the right file?")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"{file}: entry {position} of {key!r} is no object")
        yield entry


def value_of(file: Path, entry: dict[str, Any], key: str) -> Any:
    """The value under `key`. Raises InputError naming `file`."""
    if key not in entry:
        raise InputError(f"{file}: an entry lacks the key {key!r}; it has {', '.join(entry) or 'none'}")
    return entry[key]


def text_of(file: Path, entry: dict[str, Any], key: str) -> str:
    """The string under `key`. Raises InputError naming `file`."""
    value = value_of(file, entry, key)
    if not isinstance(value, str):
        raise InputError(f"{file}: {key!r} must be a string, not {value!r}")
    return value


def split_of(file: Path, entry: dict[str, Any]) -> str:
    """The split that an entry names, see `split_name`. Raises InputError naming `file`."""
    name = split_name(text_of(file, entry, "split"))
    if not name or not is_storable(name):
        raise InputError(f"{file}: 'split' must be a name, not {entry['split']!r}")
    return name


def image_id_of(file: Path, entry: dict[str, Any], key: str) -> int | str:
    """The image id under `key`, as a store can hold it. Raises InputError naming `file`."""
    value = value_of(file, entry, key)
    if is_storable(value) or (type(value) is int and value in INT64):
        return value
    raise InputError(f"{file}: {key!r} must be a 64-bit integer or a string, not {value!r}")
