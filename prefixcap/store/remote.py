"""Files of a store that lies on object storage, fetched once and kept on the local disk."""

import hashlib
import shutil
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from prefixcap.errors import InputError
from prefixcap.files import user_cache, write_whole


def is_remote(store: str | Path) -> bool:
    """True for a URL (s3://bucket/store, gs://…, https://…), False for a path."""
    return "://" in str(store)


def cache_folder(url: str) -> Path:
    """Where the files of a remote store are kept: below $PREFIXCAP_CACHE, else ~/.cache/prefixcap."""
    url = url.rstrip("/")
    return user_cache() / "stores" / hashlib.sha256(url.encode()).hexdigest()[:16] / url.rpartition("/")[2]


def fetch(url: str, file: Path) -> None:
    """Copy a remote file to a local one, whole or not at all.

    Raises:
        InputError: it cannot be read, the package for such URLs is not installed, or the disk is full.
    """
    import fsspec

    try:
        filesystem, path = fsspec.url_to_fs(url)
        size = filesystem.size(path)
        with (
            filesystem.open(path, "rb") as source,
            write_whole(file) as temporary,
            temporary.open("wb") as target,
            tqdm.wrapattr(source, "read", total=size, desc=f"fetching {file.name}", disable=size < 2**20) as reader,
        ):
            shutil.copyfileobj(reader, target, 2**20)
    except InputError:
        raise
    except Exception as error:  # each kind of storage raises what it likes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot fetch {url}: {reason}; check the address, and that you may read it") from error


def lock(folder: Path) -> FileLock:
    """Held by the one process that fetches, while others of the same machine wait for what it gets."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock")
