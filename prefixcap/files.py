"""Files that are written whole or not at all, and text files that are read with a clear word when they are not."""

import csv
import errno
import io
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from prefixcap.errors import InputError

Row = TypeVar("Row")

_REASONS: dict[int | None, str] = {
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EROFS: "the disk can only be read",
    errno.ENOTDIR: "a file stands where its folder belongs",
    errno.EEXIST: "a file stands where its folder belongs",
    errno.EISDIR: "a folder stands there",
    errno.ENAMETOOLONG: "the name is too long",
}


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` in one step, on failure it is removed.

    A reader therefore sees the old file or the new one, never a half of either.

    Raises:
        InputError: the disk is full, or the folder cannot be made or written to; what stood at `path` before is
            untouched.
    """
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        reason = "no space left on the disk" if no_space(error) else _REASONS.get(error.errno)
        if reason is None:
            raise
        raise InputError(f"cannot write {path}: {reason}; mend that and run the same command again") from error


@contextmanager
def write_folder_whole(path: Path) -> Iterator[Path]:
    """Yield the path of a folder to make beside `path`; on success it takes its place, on failure it is removed.

    Raises:
        InputError: as `write_whole`.
    """
    temporary = temporary_path(path)
    try:
        try:
            yield temporary
            replace_folder(path, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except Exception as error:
        reason = "no space left on the disk" if no_space(error) else _REASONS.get(getattr(error, "errno", None))
        if reason is None:
            raise
        raise InputError(f"cannot write {path}: {reason}; mend that and run the same command again") from error


def replace_folder(path: Path, by: Path) -> None:
    """Let a folder take the place of `path`. What stood there is kept as `.<name>.old` until it has."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    by.rename(path)
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Let a power failure from now on keep the names in a folder, too; elsewhere than on POSIX there is no way."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def user_cache() -> Path:
    """The folder for what can be fetched or made again: $PREFIXCAP_CACHE, else ~/.cache/prefixcap."""
    return Path(os.environ.get("PREFIXCAP_CACHE", "~/.cache/prefixcap")).expanduser()


def temporary_path(path: Path) -> Path:
    """Where this process writes what is to become `path`: no other process, on no other machine, uses that name."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")


def write_text_whole(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all. Raises InputError as `write_whole` does."""
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file (a byte order mark is dropped). Raises InputError naming the file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); convert it to UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises InputError naming the file and the place."""
    return parse_json(read_text(path), path)


def parse_json(text: str | bytes, source: object) -> Any:
    """The value of a JSON text that somebody else wrote.

    Args:
        text: JSON; bytes are UTF-8, with or without a byte order mark.
        source: where it comes from, for the message.

    Raises:
        InputError: it is not JSON, is nested too deeply, has an integer of more than 4,300 digits, or escapes that are
            no characters.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a surrogate pair could be read, but never written again
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(f"{source} is not JSON: {error.msg} in line {error.lineno}") from error
    except RecursionError as error:
        raise InputError(f"{source} is not usable JSON: it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not JSON in UTF-8 (byte {error.start}); convert it to UTF-8") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{source} is not usable JSON: it escapes half of a surrogate pair") from error
    except ValueError as error:  # of `int`
        raise InputError(f"{source} is not usable JSON: an integer in it has too many digits") from error
    return value


def read_table(file: Path, kind: type[Row]) -> list[Row]:
    """The rows of a CSV file that `write_table` wrote. Raises InputError if it holds something else."""
    rows = csv.DictReader(io.StringIO(read_text(file)))
    try:
        return [kind(**{field.name: field.type(row[field.name]) for field in fields(kind)}) for row in rows]  # type: ignore[operator, arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is not a table that this command wrote: move it away") from error


def write_table(file: Path, rows: Sequence[Any]) -> None:
    """Write instances of one dataclass, at least one, as CSV, whole or not at all. Raises as `write_whole`."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(rows[0])], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in rows)
    write_text_whole(file, text.getvalue())


class Journal:
    """Results by id, kept as they come, so that long work can be killed and goes on where it was.

    The first line of the file says what the work is; each other one is `[id, result]` in JSON. A line that a kill cut
    short is dropped.

    Args:
        file: `.jsonl`; need not be there.
        job: all that a result depends on, in JSON values.

    Attributes:
        found: results so far, by id.

    Raises:
        InputError: the file holds results of another job, or cannot be read or written.
    """

    def __init__(self, file: Path, job: dict[str, Any]) -> None:
        self.file, self.found = file, dict[Any, Any]()
        head = json.dumps({"job": job}, sort_keys=True)
        lines = read_text(file).split("\n")[:-1] if file.exists() else []
        if lines and lines[0] != head:
            raise InputError(f"{file} holds results with other settings: name another folder with out=, or remove it")
        for line in lines[1:]:
            key, result = json.loads(line)
            self.found[key] = result
        write_text_whole(file, "\n".join([head, *lines[1:], ""]))

    def add(self, results: Mapping[Any, Any]) -> None:
        """Keep results, by id: on the disk when this returns."""
        self.found |= results
        with self.file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps([key, result]) + "\n" for key, result in results.items())
            file.flush()
            os.fsync(file.fileno())


def no_space(error: BaseException) -> bool:
    """True if `error` means a full disk, quota or file size limit (torch wraps them in errors of its own)."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return "No space left on device" in str(error)
