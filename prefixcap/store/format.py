"""What the writer and the reader of a feature store agree on."""

import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from prefixcap.errors import InputError
from prefixcap.utils.files import parse_json
from prefixcap.utils.validation import validate

FORMAT = "prefixcap feature store"
FORMAT_VERSION = 3
PART_NAME = r"part-[0-9]{5,9}\.h5"
MOST_INDEX_BYTES = 2**24  # some 30,000 parts of a gigabyte
MOST_SHARDS = 10**7
RERUN_HINT = "run the command that made it (`prefixcap embed ...` or `prefixcap import-features ...`) again"


@dataclass(frozen=True)
class ImageRecord:
    """One image and what is known about it.

    Attributes:
        id: an integer or a string, unique in the data set; all ids of a data set have one type.
        file: relative to the image root.
        split: usually "train", "val" or "test".
        captions: the references, without line breaks.
        domain: as in nocaps ("in-domain", ...); "" if there is none.
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


Amount = Annotated[int, Field(ge=0, le=2**53)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Shards = Annotated[list[Annotated[int, Field(ge=0, le=MOST_SHARDS)]], Field(min_length=2, max_length=2)]


class SplitCounts(BaseModel):
    """The images and captions of a part, or of a store, in one split."""

    images: Amount
    captions: Amount


class EncoderFields(BaseModel):
    """The fields of an `EncoderIdentity`."""

    name: str
    digest: str
    preprocessing: str
    dim: Annotated[int, Field(gt=0, le=10**6)]


class PartEntry(SplitCounts):
    """What the index says about one part.

    Attributes:
        file: its name in the store's folder.
        bytes: its size.
        digest: of all its columns, see `Part.digest`.
        shards: from first up to end.
        longest_caption: in bytes.
        skipped: how many images and captions it lists as left out.
        splits: the counts of each split that has an image in it, by name.
    """

    file: Annotated[str, Field(pattern=f"^{PART_NAME}$")]
    bytes: Amount
    digest: Digest
    shards: Shards
    longest_caption: Amount
    skipped: Amount
    splits: dict[str, SplitCounts]


class Index(SplitCounts):
    """`index.json`. Other keys are ignored: a later version may write more."""

    encoder: EncoderFields
    source: str
    image_root: str
    job: str
    made_with: dict[str, str | int | bool]
    splits: dict[str, SplitCounts]
    parts: Annotated[list[PartEntry], Field(min_length=1)]


def require_format(path: Path, name: object, version: int) -> None:
    """Raise InputError unless `path` belongs to a feature store of the version that this program reads."""
    if name != FORMAT:
        raise InputError(f"{path} is not part of a {FORMAT}; give the path of one, or of a new folder")
    if type(version) is not int or version != FORMAT_VERSION:
        raise InputError(
            f"{path} has version {str(version)[:20]} of the store format, and this prefixcap reads {FORMAT_VERSION}; "
            "use the prefixcap that made it, or embed the images again"
        )


def read_index(store: Path) -> Index | None:
    """The index of a store, None if there is none yet.

    Raises:
        InputError: it cannot be read, belongs to something else or another version, or contradicts itself.
    """
    try:
        return index_in(store / "index.json")
    except (FileNotFoundError, NotADirectoryError):
        return None


def index_in(path: Path) -> Index:
    """The index in a file. Raises as `read_index`, and FileNotFoundError or NotADirectoryError if there is none."""
    try:
        index = parse_json(_content(path), "it")
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, InputError) as error:
        raise InputError(f"{path} cannot be read ({error}); is it of a feature store?") from error
    given = index if isinstance(index, dict) else {}
    require_format(path, given.get("format"), given.get("format_version", 0))
    checked = validate(Index, given, path, f"delete it and {RERUN_HINT}")
    _require_agreement(checked, path)
    return checked


def _content(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
        raise InputError("it is no file")
    with path.open("rb") as file:
        content = file.read(MOST_INDEX_BYTES + 1)
    if len(content) > MOST_INDEX_BYTES:
        raise InputError(f"it has more than {MOST_INDEX_BYTES:,} bytes")
    return content


def _require_agreement(index: Index, path: Path) -> None:
    """No part may come twice, and all counts must be the sums of those below them."""
    files = Counter(entry.file for entry in index.parts)
    if twice := [file for file, count in files.items() if count > 1]:
        raise InputError(f"{path} names {twice[0]} twice; delete it and {RERUN_HINT}")
    shares: dict[str, list[SplitCounts]] = {}
    for entry in index.parts:
        for name, counts in entry.splits.items():
            shares.setdefault(name, []).append(counts)
    if shares.keys() != index.splits.keys():
        odd = min(shares.keys() ^ index.splits.keys())
        raise InputError(f"{path}: split {odd!r} is not in both the parts and the totals; delete it and {RERUN_HINT}")
    stated: list[tuple[str, SplitCounts, Iterable[SplitCounts]]] = [("the parts have", index, index.parts)]
    stated += [(f"the splits of {entry.file} have", entry, entry.splits.values()) for entry in index.parts]
    stated += [(f"the parts of split {name!r} have", index.splits[name], parts) for name, parts in shares.items()]
    for what, counts, parts in stated:
        images, captions = sum(part.images for part in parts), sum(part.captions for part in parts)
        if (counts.images, counts.captions) != (images, captions):
            raise InputError(
                f"{path}: {what} {images} images and {captions} captions, but the index says {counts.images} and "
                f"{counts.captions}; delete it and {RERUN_HINT}"
            )


def find_damage(store: Path, part: PartEntry) -> str | None:
    """What is wrong with a part of a finished store, as far as its size tells; None if nothing is."""
    path = store / part.file
    if not path.is_file():
        return f"{path} is {'no file' if path.exists() else 'missing'}"
    size = path.stat().st_size
    return f"{path} has {size} of {part.bytes} bytes" if size != part.bytes else None
