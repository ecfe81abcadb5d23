"""What readers share: captions, paths, splits and entries as they come from others, checked."""

import csv
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefixcap.errors import InputError
from prefixcap.files import read_text

INT64 = range(-(2**63), 2**63)


def clean_caption(caption: object) -> str:
    """A caption on one line, its whitespace folded to single spaces; bytes are read as UTF-8.

    Raises:
        ValueError: it is no text, or nothing is left; the message is the reason to list it as skipped.
    """
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
    if "\0" in file or normal.is_absolute() or normal.parts[:1] in ((), ("..",)):
        raise InputError(f"{where}: the image {file!r} is not inside {root}; give paths relative to that folder")
    return normal.as_posix()


def check_shares(val_share: float, test_share: float) -> None:
    """Raise InputError if these are no shares of a data set."""
    shares = (val_share, test_share)
    if not all(isinstance(share, int | float) and share >= 0 for share in shares) or sum(shares) > 1:
        raise InputError(
            f"val_share {val_share} and test_share {test_share} must be numbers from 0 on, together at most 1"
        )


def draw_split(image_id: str, val_share: float, test_share: float, seed: int) -> str:
    """The split of an image, from a hash: it stays the same when other images come or go."""
    number = int(hashlib.sha256(f"{seed}:{image_id}".encode()).hexdigest()[:16], 16) / 16**16
    if number < test_share:
        return "test"
    return "val" if number < test_share + val_share else "train"


def karpathy_split(name: str) -> str:
    """The split that one of Karpathy's files names: "restval" counts as "train", as in every paper that uses them."""
    return "train" if name == "restval" else name


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


def image_id_of(file: Path, entry: dict[str, Any], key: str) -> int | str:
    """The image id under `key`, as a store can hold it. Raises InputError naming `file`."""
    value = value_of(file, entry, key)
    if isinstance(value, str) or (type(value) is int and value in INT64):
        return value
    raise InputError(f"{file}: {key!r} must be a whole number of 64 bits or a string, not {value!r}")


def table_rows(path: Path, needed: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, row) for each row of a `.csv` or `.tsv` file with a header; in a `.tsv` file quotes are ordinary.

    Raises:
        InputError: the file cannot be read, lacks a needed column or has a row of another length than the header.
    """
    text = io.StringIO(read_text(path), newline="")
    if path.suffix.lower() == ".csv":
        rows = csv.DictReader(text, strict=True)
    else:
        rows = csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        columns = list(rows.fieldnames or [])
        require_columns(path, columns, needed)
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if None in row or None in row.values():
                raise InputError(
                    f"{where}: the row has not {len(columns)} fields as the header has; is a quote missing?"
                )
            yield where, row
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: {error}") from error


def require_columns(where: object, found: list[str], needed: list[str]) -> None:
    """Raise InputError, naming the place, if a needed column is not among those found."""
    for column in needed:
        if column not in found:
            raise InputError(f"{where} has no column {column!r}; it has {', '.join(found) or 'none'}")
