"""What the writer and the reader of a feature store agree on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from prefixcap.errors import InputError

FORMAT = "prefixcap feature store"
FORMAT_VERSION = 1
DTYPE = "float16"
TEXT = h5py.string_dtype("utf-8")


@dataclass(frozen=True)
class ImageRecord:
    """One image and what is known about it.

    Attributes:
        id: a whole number or a string, unique in the data set; all ids of a data set are of one kind.
        file: relative to the image root.
        split: usually "train", "val" or "test".
        captions: the references, without line breaks.
        domain: as nocaps has it ("in-domain", ...), "" if there is none.
    """

    id: int | str
    file: str
    split: str
    captions: tuple[str, ...]
    domain: str = ""


@dataclass(frozen=True)
class Skipped:
    """An image or a caption that was left out, with the reason; `id` and `file` are "" where not known."""

    id: int | str
    file: str
    reason: str


class UnreadableError(InputError):
    """A part is missing, truncated or of another format."""


@contextmanager
def open_part(path: Path) -> Iterator[Any]:
    """Open one part for reading. What HDF5 raises on a damaged file, also later, becomes an InputError."""
    try:
        with h5py.File(path, "r") as file:
            require_format(path, file.attrs.get("format"), int(file.attrs.get("format_version", 0)))
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        reason = "is missing" if not path.exists() else "is damaged or no HDF5 file"
        again = "run the same `python -m data_prep.embed ...` again to mend it"
        raise UnreadableError(f"{path} {reason}; {again}") from error


def require_format(path: Path, name: object, version: int) -> None:
    if name != FORMAT:
        raise InputError(f"{path} is not part of a {FORMAT}; give the path of one, or of a new folder")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has version {version} of the store format, and this prefixcap reads {FORMAT_VERSION}; "
            "use the prefixcap that made it, or embed the images again"
        )


def read_index(store: Path) -> dict[str, Any] | None:
    """The index of a store, None if there is none yet."""
    path = store / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); is {store} a feature store?") from error
    if not isinstance(index, dict):
        index = {}
    require_format(path, index.get("format"), index.get("format_version", 0))
    return index


def damage_of(store: Path, part: dict[str, Any]) -> str | None:
    """What is wrong with a part of a finished store, as far as its size tells; None if nothing is."""
    path = store / part["file"]
    if not path.exists():
        return f"{path} is missing"
    size = path.stat().st_size
    return f"{path} has {size} of {part['bytes']} bytes" if size != part["bytes"] else None


def read_texts(dataset: Any) -> list[str]:
    return [text.decode("utf-8") for text in dataset[()]]


def read_ids(dataset: Any) -> list[int | str]:
    return dataset[()].tolist() if dataset.dtype.kind == "i" else list(read_texts(dataset))
