"""Files of a store that lies on object storage, fetched once and kept on the local disk."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from prefixcap.errors import InputError
from prefixcap.utils.files import atomic_write, temporary_path, user_cache

# Some of fsspec's: others wrap a second address or read local files, which no store needs.
PROTOCOLS = ("https", "http", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "hdfs", "sftp", "ssh", "memory")
BLOCK = 2**20


def is_remote(store: str | Path) -> bool:
    """True for a URL (s3://bucket/store, gs://…, https://…), False for a path."""
    return "://" in str(store)


def cache_folder(url: str) -> Path:
    """Where the files of a remote store are kept: below $PREFIXCAP_CACHE, else ~/.cache/prefixcap."""
    url = url.rstrip("/")
    name = re.sub(r"[^\w.-]+", "-", url.rpartition("/")[2]).strip("-.")[:60] or "store"  # no name such as ".."
    return user_cache() / "stores" / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def open_storage(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises:
        InputError: it is of none of `PROTOCOLS`, or the package for it is not installed.
    """
    import fsspec

    protocol = url.partition("://")[0].lower()
    if protocol not in PROTOCOLS:
        raise InputError(f"cannot fetch {url}: remote files have a URL of {', '.join(PROTOCOLS)}, not {protocol}")
    try:
        filesystem, path = fsspec.url_to_fs(url)
    except Exception as error:  # also what is wrong with the credentials
        raise _cannot_fetch(url, error) from error
    return filesystem, path


def fetch(url: str, file: Path, most: int, check: Callable[[Path], object], progress: bool = True) -> None:
    """Copy a remote file to a local one, atomically.

    Args:
        url: of one of `PROTOCOLS`.
        file: appears under its name once it is complete and `check` accepts it.
        most: bytes that it may have; no more are read.
        check: is called with the path of what was fetched. Raises InputError to refuse it.
        progress: show a bar for a large file.

    Raises:
        InputError: it cannot be read, is larger than `most` or refused, the address is of another protocol or the
            package for it is not installed, or the disk is full.
    """
    filesystem, path = open_storage(url)
    try:
        size = filesystem.size(path) or 0  # some servers do not tell
        quiet = size < BLOCK or not progress
        bar = tqdm(total=size, desc=f"fetching {file.name}", unit="B", unit_scale=True, disable=quiet)
        with filesystem.open(path, "rb") as source, atomic_write(file) as temporary, bar:
            with temporary.open("wb") as target:
                left = most
                while block := source.read(min(BLOCK, left + 1)):
                    left -= len(block)
                    if left < 0:
                        raise InputError(f"{temporary} is larger than the {most:,} bytes that it may have")
                    target.write(block)
                    bar.update(len(block))
            check(temporary)
    except InputError as error:
        raise InputError(str(error).replace(str(temporary_path(file)), url)) from error
    except Exception as error:  # each kind of storage raises what it likes
        raise _cannot_fetch(url, error) from error


def _cannot_fetch(url: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"cannot fetch {url}: {reason}; check the address, and that you may read it")


def remove_leftovers(folder: Path) -> None:
    """Remove what runs that were killed while fetching have left; call it under the folder's `lock`."""
    for file in folder.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def lock(folder: Path) -> FileLock:
    """Held by the process that fetches, while others on the same machine wait for the result."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ".lock"
    if file.is_symlink():  # opening it would empty the file that it leads to
        raise InputError(f"{file} is a link: delete it")
    return FileLock(file)
