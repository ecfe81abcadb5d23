"""What the writer and the reader of a feature store agree on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefixcap.errors import InputError

FORMAT = "prefixcap feature store"
FORMAT_VERSION = 3
AGAIN = "run the command that made it (`python -m data_prep.embed ...`, or `import_features`) again"


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


def require_format(path: Path, name: object, version: int) -> None:
    """Raise InputError if `path` is of something else than a feature store, or of another version of it."""
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
