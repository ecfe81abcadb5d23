"""Shards of a data set on object storage (s3://…, gs://…, https://…), fetched when they are read, kept nowhere."""

import hashlib
import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from data_prep.readers.inputs import SPLITS
from data_prep.records import Held, Sample, Skipped
from prefixcap.errors import InputError, first_line
from prefixcap.store.remote import fetch, open_storage

if TYPE_CHECKING:
    from data_prep.readers.img2dataset import DownloadedShard

MOST_BYTES = 2**40  # of a shard whose size the storage does not tell


@dataclass(frozen=True)
class RemoteShard:
    """A tar or a parquet file on object storage.

    Attributes:
        root: the URL that `shard.file` is relative to.
        shard: reads it where it has been fetched to.
        num_bytes: its size; None: the storage does not tell.
    """

    root: str
    shard: "DownloadedShard"
    num_bytes: int | None

    @property
    def size(self) -> None:
        """How many images it has is not known before it is fetched."""

    def fingerprint(self) -> str:
        shard = self.shard
        split = shard.split or [shard.val_share, shard.test_share, shard.seed]
        content = [shard.file, self.num_bytes, shard.keys_differ, split]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def read(self) -> tuple[list[Sample], list[Skipped]]:
        """Its images, held in memory, and what had to be left out. Raises InputError if it cannot be fetched."""
        with TemporaryDirectory(prefix="prefixcap-") as folder:
            most = MOST_BYTES if self.num_bytes is None else self.num_bytes
            fetch(f"{self.root}/{self.shard.file}", Path(folder) / self.shard.file, most, Path.exists, progress=False)
            samples, skipped = replace(self.shard, root=Path(folder)).read()
            return [Sample(sample.record, _held(sample)) for sample in samples], skipped


def _held(sample: Sample) -> Held:
    content = sample.read()
    return Held(b"", "cannot be read") if content is None else Held(content)


def list_shards(root: str) -> dict[str, tuple[str, int | None]]:
    """The tars and parquet files below a URL and in its folders of splits, by their names without suffix: the name of
    the file and its size.

    Raises:
        InputError: it cannot be listed.
    """
    filesystem, path = open_storage(root)
    try:
        found = sorted(_files(filesystem, path), key=lambda file: (not file[0].endswith(".tar"), file[0]))
    except Exception as error:  # each kind of storage raises what it likes
        raise InputError(
            f"cannot list {root}: {first_line(error)}; check the address, and that you may list it"
        ) from error
    shards: dict[str, tuple[str, int | None]] = {}
    for file, size in found:  # tars first: a parquet file of the same name only describes one
        shards.setdefault(posixpath.splitext(file)[0], (file, size))
    return shards


def _files(filesystem: Any, path: str, folder: str = "") -> Iterator[tuple[str, int | None]]:
    for entry in filesystem.ls(posixpath.join(path, folder), detail=True):
        name = posixpath.basename(entry["name"].rstrip("/"))
        if entry["type"] == "directory":
            if not folder and name.casefold() in SPLITS:
                yield from _files(filesystem, path, name)
        elif name.endswith((".tar", ".parquet")):
            yield posixpath.join(folder, name), entry["size"]
