"""What every reader returns: the same records, whatever the format of the files."""

import hashlib
import io
import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from prefixcap.errors import InputError
from prefixcap.store import ImageRecord, Skipped
from prefixcap.utils.images import decode_image, open_image

__all__ = [
    "Dataset",
    "FileShard",
    "Held",
    "ImageRecord",
    "ParquetCell",
    "Sample",
    "Shard",
    "Skipped",
    "TarMember",
    "dataset_from_files",
    "import_pyarrow",
    "read_column",
]

_row_group_lock = threading.Lock()


@dataclass(frozen=True)
class TarMember:
    """Where a file lies inside a tar archive: its first byte, and how many there are."""

    tar: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        with self.tar.open("rb") as tar:
            tar.seek(self.offset)
            return tar.read(self.size)


@dataclass(frozen=True)
class ParquetCell:
    """Where bytes lie inside a parquet file: the column as a path ("jpg", "image.bytes"), the row in its row group."""

    file: Path
    column: str
    row_group: int
    row: int

    def read(self) -> bytes:
        """The bytes. Raises InputError if they cannot be read or pyarrow is not installed."""
        try:
            with _row_group_lock:  # of threads that want the same row group, one reads it and the others wait
                cells = _row_group(self.file, self.column, self.row_group)
            value: bytes = cells[self.row].as_py()
        except InputError:
            raise
        except Exception as error:  # pyarrow raises anything on a damaged file
            raise InputError(f"cannot be read: {' '.join(str(error).split())}") from error
        return value


@dataclass(frozen=True)
class Held:
    """Bytes in memory; or why there are none."""

    content: bytes = field(repr=False)
    problem: str = ""

    def read(self) -> bytes:
        """The bytes. Raises InputError if there are none."""
        if self.problem:
            raise InputError(self.problem)
        return self.content


@dataclass(frozen=True)
class Sample:
    """An image: its record and where its file is; None: a sentence without an image."""

    record: ImageRecord
    where: Path | TarMember | ParquetCell | Held | None

    def open(self, scaled_size: int | None = None) -> Image.Image:
        """The image, decoded. Raises InputError as `open_image` and `decode_image` do, or if there is none."""
        if self.where is None:
            raise InputError("has no image")
        if isinstance(self.where, Path):
            return open_image(self.where, scaled_size)
        return decode_image(io.BytesIO(self.where.read()), scaled_size)

    def read(self) -> bytes | None:
        """Its file, as it is; None if it cannot be read, of which `open` tells the reason."""
        with suppress(OSError, InputError):
            if isinstance(self.where, Path):
                return self.where.read_bytes() if self.where.is_file() else None
            return self.where.read() if self.where else None
        return None


class Shard(Protocol):
    """A part of a data set that is small enough to be listed in memory."""

    @property
    def size(self) -> int | None:
        """The number of images; None if it is not known before reading."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes whenever the result of `read` may."""
        ...

    def read(self) -> tuple[list[Sample], list[Skipped]]:
        """Its images, in the order to store them, and what is left out."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Images with captions, ready to be embedded.

    Attributes:
        shards: the images.
        skipped: what the reader left out, with reasons.
        image_root: the folder or URL that `ImageRecord.file` is relative to.
        source: what was read; the store keeps it as an attribute.
        has_images: False for sentences without images.
        notes: for the user who embeds it.
    """

    shards: Sequence[Shard]
    skipped: list[Skipped]
    image_root: Path | str
    source: str
    has_images: bool = True
    notes: Sequence[str] = ()

    @property
    def unit(self) -> str:
        """The noun to count its records with."""
        return "images" if self.has_images else "sentences"


@dataclass(frozen=True)
class FileShard:
    """Images that are files below a folder, or, where a record names no file, sentences."""

    records: list[ImageRecord]
    root: Path

    @property
    def size(self) -> int:
        return len(self.records)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for record in self.records:
            columns = [record.id, record.file, record.split, record.domain, *record.captions]
            digest.update(json.dumps(columns).encode() + b"\n")
        return digest.hexdigest()

    def read(self) -> tuple[list[Sample], list[Skipped]]:
        return [Sample(record, self.root / record.file if record.file else None) for record in self.records], []


def dataset_from_files(
    records: list[ImageRecord],
    skipped: list[Skipped],
    image_root: Path,
    source: str,
    shard_size: int = 1000,
    notes: Sequence[str] = (),
) -> Dataset:
    """A data set of image files, all listed in memory.

    Args:
        records: of the images, in the order to store them.
        skipped: images and captions that are left out, with reasons.
        image_root: the folder that `ImageRecord.file` is relative to.
        source: what was read; the store keeps it as an attribute.
        shard_size: images in a shard.
        notes: for the user who embeds it.

    Examples:
        >>> records = [ImageRecord(1, "photo.jpg", "train", ("A red star.",))]
        >>> dataset = dataset_from_files(records, [], Path("."), "one photograph")
        >>> samples, skipped = dataset.shards[0].read()
        >>> samples[0].open().mode
        'RGB'
    """
    shards = [
        FileShard(records[first : first + shard_size], image_root) for first in range(0, len(records), shard_size)
    ]
    return Dataset(shards, skipped, image_root, source, notes=notes)


def import_pyarrow() -> Any:
    """The module `pyarrow`, with `pyarrow.parquet`. Raises InputError if it is not installed."""
    try:
        import pyarrow.parquet  # here, because nothing else needs it
    except ImportError as error:
        raise InputError("parquet files are read with pyarrow: pip install 'prefixcap[parquet]'") from error
    return pyarrow


def read_column(parquet: Any, row_group: int, column: str) -> Any:
    """A column of one row group of a ParquetFile; of a struct, as in "image.bytes", only that field."""
    # Without threads: the caller's threads decode, and a process may still fork.
    return parquet.read_row_group(row_group, columns=[column], use_threads=False).flatten().column(0)


@lru_cache(maxsize=2)  # two: a batch may begin in one row group and end in the next
def _row_group(file: Path, column: str, row_group: int) -> Any:
    with import_pyarrow().parquet.ParquetFile(file) as parquet:
        return read_column(parquet, row_group, column)
