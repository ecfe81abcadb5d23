"""What every reader of a data set gives: the same records, whatever the files looked like."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from prefixcap.images import decode_image, open_image
from prefixcap.store import ImageRecord, Skipped

__all__ = ["Dataset", "FileShard", "ImageRecord", "Sample", "Shard", "Skipped", "TarMember", "of_files"]


@dataclass(frozen=True)
class TarMember:
    """Where a file lies inside a tar archive: its first byte, and how many there are."""

    tar: Path
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Sample:
    """An image, what is known about it, and where its file is."""

    record: ImageRecord
    where: Path | TarMember

    def open(self) -> Image.Image:
        """The image, decoded. Raises InputError as `open_image` and `decode_image` do."""
        if isinstance(self.where, Path):
            return open_image(self.where)
        with self.where.tar.open("rb") as tar:
            tar.seek(self.where.offset)
            return decode_image(io.BytesIO(tar.read(self.where.size)))


class Shard(Protocol):
    """A share of a data set, small enough to be listed in memory."""

    @property
    def size(self) -> int | None:
        """How many images it has; None if that is not known before it is read."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever what `read` gives might."""
        ...

    def read(self) -> tuple[list[Sample], list[Skipped]]:
        """Its images, in the order in which they are stored, and what had to be left out."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Images with captions, ready to be embedded.

    Attributes:
        shards: the images.
        skipped: what the reader left out, with reasons.
        image_root: the folder that `ImageRecord.file` is relative to.
        source: what was read, as the store's attributes say it.
    """

    shards: Sequence[Shard]
    skipped: list[Skipped]
    image_root: Path
    source: str


@dataclass(frozen=True)
class FileShard:
    """Images that are files below a folder."""

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
        return [Sample(record, self.root / record.file) for record in self.records], []


def of_files(
    records: list[ImageRecord], skipped: list[Skipped], image_root: Path, source: str, shard_size: int = 1000
) -> Dataset:
    """A data set of image files, all of them listed in memory."""
    shards = [
        FileShard(records[first : first + shard_size], image_root) for first in range(0, len(records), shard_size)
    ]
    return Dataset(shards, skipped, image_root, source)
