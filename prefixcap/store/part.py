"""One HDF5 file of a feature store: its columns, written at once, read into memory or through a memory map."""

import codecs
import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from prefixcap.errors import InputError
from prefixcap.store.format import (
    FORMAT,
    FORMAT_VERSION,
    MOST_SHARDS,
    RERUN_HINT,
    Digest,
    ImageRecord,
    PartEntry,
    Shards,
    Skipped,
    require_format,
)
from prefixcap.store.heap import read_strings
from prefixcap.store.layout import IDS, SPLIT, STRINGS, LayoutError, Place, read_layout
from prefixcap.utils.files import atomic_write, parse_json
from prefixcap.utils.validation import validate

TEXT = h5py.string_dtype("utf-8")
# Positions in another column, and which: where the rows of several pieces become one column, they shift.
POINTERS = {"captions/text_end": "captions/text", "captions/image": "images/id"}
HASHED_ROWS = 4096
TEXT_BLOCK = 2**20

Array = NDArray[Any]


class Attributes(BaseModel):
    """What a file says of itself, beside its format; `shards` is of parts alone."""

    encoder: str
    encoder_digest: str
    preprocessing: str
    dim: Annotated[int, Field(gt=0)]
    made_with: str
    source: str
    image_root: str
    job: str
    shards_in_all: Annotated[int, Field(ge=0, le=MOST_SHARDS)]
    digest: Digest
    shards: Shards | None = None


class UnreadableError(InputError):
    """A file is missing, truncated or of another format."""


class Columns(dict[str, Array | list[str] | list[int]]):
    """The columns of one piece, in memory: the same names as in a file."""

    @classmethod
    def from_records(
        cls, images: Sequence[ImageRecord], features: dict[str, Array], skipped: Sequence[Skipped]
    ) -> "Columns":
        """The columns of N images and C captions.

        Args:
            images: N records.
            features: by the name of the column: N rows each of "images/...", C of "captions/...".
            skipped: what was left out.
        """
        counts = np.array([len(image.captions) for image in images], np.int64)
        texts = [caption.encode() for image in images for caption in image.captions]
        columns: dict[str, Any] = {
            "images/id": [image.id for image in images],
            "images/file": [image.file for image in images],
            "images/domain": [image.domain for image in images],
            SPLIT: [image.split for image in images],
            "captions/text": np.frombuffer(b"".join(texts), np.uint8),
            "captions/text_end": np.cumsum([len(text) for text in texts], dtype=np.int64),
            "captions/image": np.repeat(np.arange(len(images), dtype=np.int64), counts),
            "skipped/id": [skip.id for skip in skipped],
            "skipped/file": [skip.file for skip in skipped],
            "skipped/reason": [skip.reason for skip in skipped],
        }
        for name, rows in features.items():
            wanted = columns["images/id" if name.startswith("images/") else "captions/image"]
            if rows.dtype not in (np.float16, np.float32):
                raise ValueError(f"{name} is {rows.dtype}, neither float16 nor float32")
            if len(rows) != len(wanted):
                raise ValueError(f"{len(rows)} rows of {name}, but {len(wanted)} are wanted")
        return cls(columns | features)

    @property
    def names(self) -> list[str]:
        return list(self)

    def length(self, name: str) -> int:
        return len(self[name])

    def has_strings(self, name: str) -> bool:
        return name in STRINGS or (name in IDS and any(isinstance(value, str) for value in self[name]))

    @property
    def split_names(self) -> list[str]:
        return list(dict.fromkeys(map(str, self[SPLIT])))

    def load(self) -> "Columns":
        return self


class Part:
    """One file, opened for reading. It may be pickled, and used after a fork: no HDF5 file stays open.

    Args:
        path: of the file.
        entry: what the store's index says about it, if it is part of a finished store.

    Raises (any method):
        UnreadableError: the file is missing or damaged, or is not laid out as `write_part` does it.
        InputError: it is of another format or version.
    """

    def __init__(self, path: Path, entry: PartEntry | None = None) -> None:
        self.path, self.entry = path, entry
        self._mapped: dict[str, Array] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Part, (self.path, self.entry)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        with self._opened() as file:
            given = {name: _attribute(file, name) for name in Attributes.model_fields if name in file.attrs}
        try:
            attributes = validate(Attributes, given, self.path, f"{RERUN_HINT} to repair it").model_dump(
                exclude_unset=True
            )
            made_with = parse_json(attributes["made_with"], f"{self.path}: made_with")
            validate(dict[str, str | int | bool], made_with, f"{self.path}: made_with", f"{RERUN_HINT} to repair it")
        except InputError as error:
            raise UnreadableError(str(error)) from error
        return attributes

    @cached_property
    def _layout(self) -> dict[str, Place]:
        with self._opened() as file:
            layout = read_layout(file, self.path.stat().st_size)
            if self.entry is not None:
                _require_as_indexed(layout, self.entry)
        return layout

    @property
    def names(self) -> list[str]:
        """The columns."""
        return list(self._layout)

    def length(self, name: str) -> int:
        """How many rows a column has."""
        return self._layout[name].shape[0]

    def has_strings(self, name: str) -> bool:
        """Whether a column holds strings."""
        return bool(self._layout[name].dtype.kind == "O")

    def __getitem__(self, name: str) -> Any:
        """A column, read into memory: an array, a list of strings, or a list of integers for ids."""
        if self.has_strings(name):
            return self._strings(name)
        values = self.mapped(name)
        if name != SPLIT:
            return values.tolist() if name in IDS else values.copy()
        self._require(bool((values < len(self.split_names)).all()), "has an image in a split without a name")
        return np.array(self.split_names, object)[values].tolist()

    def load(self) -> Columns:
        """All columns, read into memory. Also raises UnreadableError if the rows do not agree."""
        for problem in self.problems():
            raise UnreadableError(f"{self.path}: {problem}: delete it and {RERUN_HINT}")
        return Columns({name: self[name] for name in self.names})

    def _strings(self, name: str) -> list[str]:
        place = self._layout[name]
        try:
            return [] if place.offset is None else read_strings(self._bytes, place.offset, place.shape[0])
        except (ValueError, struct.error) as error:
            raise UnreadableError(f"{self.path} has damaged strings in {name}; {RERUN_HINT} to repair it") from error

    def _require(self, holds: bool, problem: str) -> None:
        if not holds:
            raise UnreadableError(f"{self.path} {problem}; {RERUN_HINT} to repair it")

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.asarray(np.memmap(self.path, np.uint8, "r"))

    def hold(self) -> None:
        """Map the file now: it can then be read even after an edit of the store has removed it."""
        _ = self._bytes

    def mapped(self, name: str) -> Array:
        """A column of numbers, mapped from the disk: what is not used is not read."""
        if name not in self._mapped:
            offset, dtype, shape = self._layout[name]
            if offset is None:
                self._mapped[name] = np.empty(shape, dtype)
            else:
                size = math.prod(shape) * dtype.itemsize
                self._mapped[name] = self._bytes[offset : offset + size].view(dtype).reshape(shape)
        return self._mapped[name]

    @property
    def features(self) -> list[str]:
        """The columns that hold features."""
        return [name for name, place in self._layout.items() if place.dtype.kind == "f"]

    def row_of(self, name: str) -> tuple[tuple[int, ...], Any]:
        """The shape of one row of a column, and its dtype."""
        _, dtype, shape = self._layout[name]
        return shape[1:], dtype

    @property
    def split_names(self) -> list[str]:
        """The names of the splits, by their number in the file."""
        return _split_names(self._layout)

    def texts(self, rows: NDArray[np.int64]) -> list[str]:
        """The captions at `rows`."""
        ends, text = self.mapped("captions/text_end"), self.mapped("captions/text")
        starts, ends = np.where(rows > 0, ends[rows - 1], 0), ends[rows]
        within = (starts >= 0) & (starts <= ends) & (ends <= len(text))
        if self.entry is not None:
            within &= ends - starts <= self.entry.longest_caption
        self._require(bool(within.all()), "has captions whose ends do not fit their text")
        try:
            return [text[a:b].tobytes().decode() for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        except UnicodeDecodeError as error:
            raise UnreadableError(f"{self.path} has captions that are not UTF-8; {RERUN_HINT} to repair it") from error

    def images_of(self, captions: Any) -> NDArray[np.int64]:
        """The rows of the images of some captions, or of all within a slice."""
        images: NDArray[np.int64] = self.mapped("captions/image")[captions]
        within = (images >= 0) & (images < self.length("images/id"))
        self._require(bool(within.all()), "has captions that point to images that are not there")
        return images

    def problems(self) -> Iterator[str]:
        """What is inconsistent in the rows; every column that points into another is read."""
        images, captions = self.length("images/id"), self.length("captions/image")
        pointers, ends, text = (self.mapped(f"captions/{name}") for name in ("image", "text_end", "text"))
        if captions and not (pointers.min() >= 0 and pointers.max() < images and (np.diff(pointers) >= 0).all()):
            yield "captions point to images that are not there, or not in order"
        lengths = np.diff(ends, prepend=0)
        if (lengths < 0).any() or ends[-1:].sum() != len(text):
            yield "the ends of the captions do not fit their text"
        elif not _is_utf8(text, ends):
            yield "captions are not UTF-8"
        if images and self.mapped(SPLIT).max() >= len(self.split_names):
            yield "an image is in a split without a name"

    def skipped(self) -> list[Skipped]:
        columns = self["skipped/id"], self["skipped/file"], self["skipped/reason"]
        return [Skipped(*row) for row in zip(*columns, strict=True)]

    def digest(self) -> str:
        """The hash of all columns as they are now; the attribute `digest` is that of when they were written."""
        return _digest({name: self[name] if self.has_strings(name) else self.mapped(name) for name in self.names})

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The HDF5 file. What HDF5 raises for a damaged one, also later, becomes an UnreadableError."""
        try:
            with h5py.File(self.path, "r") as file:
                if self.entry is None:  # else the index has said so
                    require_format(self.path, _attribute(file, "format"), _attribute(file, "format_version"))
                yield file
        except InputError:
            raise
        except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
            damage = str(error) if isinstance(error, LayoutError) else "is damaged or no HDF5 file"
            reason = damage if self.path.exists() else "is missing"
            raise UnreadableError(f"{self.path} {reason}; {RERUN_HINT} to repair it") from error


def _attribute(file: Any, name: str) -> Any:
    """A string, a number, or a list of two; None: the file has no such attribute, or one of another kind."""
    if name not in file.attrs:
        return None
    kind = file.attrs.get_id(name)
    if kind.shape not in ((), (2,)):  # before it is read: there may be any number
        return None
    value = file.attrs[name]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _split_names(layout: dict[str, Place]) -> list[str]:
    names: dict[str, int] = h5py.check_enum_dtype(layout[SPLIT].dtype)
    return sorted(names, key=lambda name: names[name])


def _require_as_indexed(layout: dict[str, Place], entry: PartEntry) -> None:
    """Raise LayoutError if a part has other rows or splits than the index says."""
    rows = {"images": entry.images, "captions": entry.captions, "skipped": entry.skipped}
    for name, column in (("images", "images/id"), ("captions", "captions/image"), ("skipped", "skipped/id")):
        if layout[column].shape[0] != rows[name]:
            raise LayoutError(f"has {layout[column].shape[0]} {name}, but the index says {rows[name]}")
    if unknown := entry.splits.keys() - set(_split_names(layout)):
        raise LayoutError(f"has no split {min(unknown)!r}, but the index says so")


def _is_utf8(text: NDArray[np.uint8], ends: NDArray[np.int64]) -> bool:
    """Whether captions, one after the other, are UTF-8 each by itself."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(text), TEXT_BLOCK):
            decoder.decode(text[start : start + TEXT_BLOCK].tobytes())
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return not (text[ends[ends < len(text)]] & 0xC0 == 0x80).any()  # none begins within a character


def write_part(path: Path, attributes: dict[str, Any], pieces: Sequence[Columns | Part]) -> None:
    """Write the rows of `pieces`, one piece after the other, to one file, atomically.

    The attribute `digest` becomes a hash of all columns, whatever the layout of the file.

    Raises:
        InputError: the disk is full or the folder cannot be written to.
    """
    # Built in memory and then written at once: HDF5 cannot close a file properly when the disk is full.
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        codes = {
            name: code for code, name in enumerate(dict.fromkeys(n for piece in pieces for n in piece.split_names))
        }
        first = pieces[0].load()
        columns = {}
        for name in pieces[0].names:
            shape: tuple[int, ...] = (sum(piece.length(name) for piece in pieces),)
            if any(piece.has_strings(name) for piece in pieces):
                dtype = TEXT
            elif name in IDS:
                dtype = np.int64
            elif name == SPLIT:
                dtype = h5py.enum_dtype(codes or {"none": 0}, np.uint16)
            else:
                shape, dtype = (*shape, *first[name].shape[1:]), first[name].dtype  # type: ignore[union-attr]
            columns[name] = file.create_dataset(name, shape, dtype)
        rows = dict.fromkeys(columns, 0)
        for piece in pieces:
            starts = rows.copy()
            for name, values in piece.load().items():
                rows[name] += len(values)
                if name == SPLIT:
                    values = [codes[str(split)] for split in values]
                elif columns[name].dtype.kind == "O":
                    values = [str(value) for value in values]  # ids of the other kind among them
                elif name in POINTERS:
                    values = np.asarray(values) + starts[POINTERS[name]]
                if len(values):
                    columns[name][starts[name] : rows[name]] = values
        written = {name: list(rows.asstr()[()]) if rows.dtype.kind == "O" else rows for name, rows in columns.items()}
        file.attrs.update(attributes, format=FORMAT, format_version=FORMAT_VERSION, digest=_digest(written))
        file.flush()
        content = file.id.get_file_image()
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _digest(columns: Mapping[str, Array | list[str]]) -> str:
    """SHA-256 (hex) of columns, by name."""
    digest = hashlib.sha256()
    for name, column in sorted(columns.items()):
        if isinstance(column, list):
            digest.update(f"{name} {(len(column),)} O8\n{json.dumps(column)}".encode())
        else:
            digest.update(f"{name} {column.shape} {column.dtype.kind}{column.dtype.itemsize}\n".encode())
            for row in range(0, len(column), HASHED_ROWS):
                digest.update(column[row : row + HASHED_ROWS].tobytes())
    return digest.hexdigest()
