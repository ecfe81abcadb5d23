"""Files that are written whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefixcap.errors import InputError


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` in one step, on failure it is removed.

    A reader therefore sees the old file or the new one, never a half of either.

    Raises:
        InputError: the disk is full or the folder cannot be written to; what stood at `path` before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if not no_space(error) and not isinstance(error, PermissionError):
            raise
        reason = "no space left on the disk" if no_space(error) else "no permission to write there"
        raise InputError(f"cannot write {path}: {reason}; mend that and run the same command again") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text_whole(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all. Raises InputError as `write_whole` does."""
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def no_space(error: BaseException) -> bool:
    """True if `error` means a full disk or an exhausted quota (h5py and torch wrap it in errors of their own)."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "errno = 28" in str(error)
