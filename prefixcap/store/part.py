"""One HDF5 file of a feature store: its columns, written at once, read whole or through a memory map."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from prefixcap.errors import InputError
from prefixcap.files import write_whole
from prefixcap.store.format import AGAIN, FORMAT, FORMAT_VERSION, ImageRecord, Skipped, require_format

TEXT = h5py.string_dtype("utf-8")
IDS = ("images/id", "skipped/id")  # whole numbers or strings
STRINGS = ("images/file", "images/domain", "skipped/file", "skipped/reason")
SPLIT = "images/split"  # names when read, numbers (an HDF5 enumeration) in the file
# Positions in another column, and which: where the rows of several pieces become one column, they shift.
POINTERS = {"captions/text_end": "captions/text", "captions/image": "images/id"}
HASHED_ROWS = 4096

Array = NDArray[Any]


class UnreadableError(InputError):
    """A file is missing, truncated or of another format."""


class Columns(dict[str, Array | list[str] | list[int]]):
    """The columns of one piece, in memory: the same names as in a file."""

    @classmethod
    def of(cls, images: Sequence[ImageRecord], features: dict[str, Array], skipped: Sequence[Skipped]) -> "Columns":
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
            "captions/image": np.repeat(np.arange(len(images)), counts),
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

    Raises (any method):
        UnreadableError: the file is missing or damaged.
        InputError: it is of another format or version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapped: dict[str, Array] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Part, (self.path,)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        with self._opened() as file:
            return {
                name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in file.attrs.items()
            }

    @cached_property
    def _layout(self) -> dict[str, tuple[int | None, Any, tuple[int, ...]]]:
        """Of each column: its offset in the file (None: it is empty), dtype and shape."""
        with self._opened() as file:
            return {
                f"{group}/{name}": (column.id.get_offset(), column.dtype, column.shape)
                for group in sorted(file)
                for name, column in file[group].items()
            }

    @property
    def names(self) -> list[str]:
        """The columns."""
        return list(self._layout)

    def length(self, name: str) -> int:
        """How many rows a column has."""
        return self._layout[name][2][0]

    def has_strings(self, name: str) -> bool:
        """Whether a column holds strings."""
        return bool(self._layout[name][1].kind == "O")

    def __getitem__(self, name: str) -> Any:
        """A column, read whole: an array, or a list of strings, or of whole numbers if they are ids."""
        with self._opened() as file:
            return self._read(file, name)

    def load(self) -> Columns:
        """All columns, read whole."""
        with self._opened() as file:
            return Columns({name: self._read(file, name) for name in self.names})

    def _read(self, file: Any, name: str) -> Any:
        values = file[name][()]
        if name == SPLIT:
            return np.array(self.split_names)[values].tolist()
        if values.dtype.kind == "O":
            return [text.decode() for text in values]
        return values.tolist() if name in IDS else values

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.asarray(np.memmap(self.path, np.uint8, "r"))

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
        return [name for name, (_, dtype, _) in self._layout.items() if dtype.kind == "f"]

    def row_of(self, name: str) -> tuple[tuple[int, ...], Any]:
        """The shape of one row of a column, and its dtype."""
        _, dtype, shape = self._layout[name]
        return shape[1:], dtype

    @property
    def split_names(self) -> list[str]:
        """The names of the splits, by their number in the file."""
        names: dict[str, int] = h5py.check_enum_dtype(self._layout[SPLIT][1])
        return sorted(names, key=lambda name: names[name])

    def texts(self, rows: NDArray[np.int64]) -> list[str]:
        """The captions at `rows`."""
        ends, text = self.mapped("captions/text_end"), self.mapped("captions/text")
        starts = np.where(rows > 0, ends[rows - 1], 0)
        return [text[a:b].tobytes().decode() for a, b in zip(starts.tolist(), ends[rows].tolist(), strict=True)]

    def skipped(self) -> list[Skipped]:
        columns = self["skipped/id"], self["skipped/file"], self["skipped/reason"]
        return [Skipped(*row) for row in zip(*columns, strict=True)]

    def digest(self) -> str:
        """The hash of all columns as they are now; the attribute `digest` is that of when they were written."""
        with self._opened() as file:
            return _digest(file)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The HDF5 file. What HDF5 raises on a damaged one, also later, becomes an UnreadableError."""
        try:
            with h5py.File(self.path, "r") as file:
                require_format(self.path, file.attrs.get("format"), int(file.attrs.get("format_version", 0)))
                yield file
        except (OSError, KeyError, RuntimeError) as error:
            reason = "is missing" if not self.path.exists() else "is damaged or no HDF5 file"
            raise UnreadableError(f"{self.path} {reason}; {AGAIN} to mend it") from error


def write_part(path: Path, attributes: dict[str, Any], pieces: Sequence[Columns | Part]) -> None:
    """Write the rows of `pieces`, one piece after the other, to one file, whole or not at all.

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
        file.attrs.update(attributes, format=FORMAT, format_version=FORMAT_VERSION, digest=_digest(file))
        file.flush()
        content = file.id.get_file_image()
    with write_whole(path) as temporary:
        temporary.write_bytes(content)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    for group in sorted(file):
        for name, column in sorted(file[group].items()):
            digest.update(f"{group}/{name} {column.shape} {column.dtype.kind}{column.dtype.itemsize}\n".encode())
            if column.dtype.kind == "O":
                digest.update(json.dumps([text.decode() for text in column[()]]).encode())
            else:
                for row in range(0, len(column), HASHED_ROWS):
                    digest.update(column[row : row + HASHED_ROWS].tobytes())
    return digest.hexdigest()
