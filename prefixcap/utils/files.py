"""Files that are written atomically, and text files whose errors are one clear line."""

import atexit
import csv
import errno
import io
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

from prefixcap.errors import InputError

Row = TypeVar("Row")
T = TypeVar("T")

_REASONS: dict[int | None, str] = {
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EROFS: "the disk can only be read",
    errno.ENOTDIR: "a file stands where its folder belongs",
    errno.EEXIST: "a file stands where its folder belongs",
    errno.EISDIR: "a folder stands there",
    errno.ENAMETOOLONG: "the name is too long",
}

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SPACE = "No space left on device"  # in the words of libraries that keep no number
_WEEK = 7 * 24 * 3600.0
_next_look: dict[Path, float] = {}  # when to look for leftovers in a folder again


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` in one step, on failure it is removed.

    A reader therefore sees the old file or the new one, never half of either. The new file has the mode that `open`
    gives a new file. What a killed process left behind while writing the same file is removed.

    Raises:
        InputError: the disk is full, or the folder cannot be created or written to; what was at `path` before is
            untouched.
    """
    temporary = temporary_path(path)
    with one_line_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            _set_mode(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


@contextmanager
def atomic_write_folder(path: Path) -> Iterator[Path]:
    """Yield the path of a folder to create beside `path`; on success it replaces `path`, on failure it is removed.

    Raises:
        InputError: as `atomic_write`.
    """
    temporary = temporary_path(path)
    with one_line_errors(path):
        _remove_leftovers(path)
        try:
            yield temporary
            for file in filter(Path.is_file, temporary.rglob("*")):
                _set_mode(file)
            replace_folder(path, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn what keeps `path` from being written into an InputError, whichever library was writing."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = "no space left on the disk" if no_space(error) else _REASONS.get(getattr(error, "errno", None))
        if reason is None:
            raise
        raise InputError(f"cannot write {path}: {reason}; fix that and run the same command again") from error


def _set_mode(file: Path) -> None:
    """Give a file the mode that `open` gives: some libraries write through a file that only its owner can read."""
    if not file.is_symlink():
        file.chmod(0o666 & ~_umask())


def _umask() -> int:
    try:  # without setting it, which other threads would notice
        return int(re.findall(r"^Umask:\s*(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)[0], 8)
    except (OSError, IndexError):
        mask = os.umask(0o022)
        os.umask(mask)
        return mask


def replace_folder(path: Path, by: Path) -> None:
    """Put a folder in the place of `path`. What was there is kept as `.<name>.old` until that is done."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    by.rename(path)
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure from now on; only POSIX has a way to."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def user_cache() -> Path:
    """The folder for what can be fetched or computed again: $PREFIXCAP_CACHE, else ~/.cache/prefixcap.

    In a container the user may have no home folder: then it is a temporary one, removed when this process ends, and one
    line on stderr says so.

    Raises:
        InputError: there is no place for temporary files either.
    """
    return _own_cache() or _temporary_cache()


def require_user_cache() -> None:
    """Refuse to cache something where nothing can be kept.

    Raises:
        InputError: the user has no home folder, and $PREFIXCAP_CACHE names no other.
    """
    if _own_cache() is None:
        raise InputError("there is no home folder to keep files in: set PREFIXCAP_CACHE=FOLDER")


def _own_cache() -> Path | None:
    try:
        return Path(os.environ.get("PREFIXCAP_CACHE") or "~/.cache/prefixcap").expanduser()
    except RuntimeError:  # neither $HOME nor the list of users has a home
        return None


@cache
def _temporary_cache() -> Path:
    try:
        folder = tempfile.mkdtemp(prefix="prefixcap-")
    except OSError as error:
        raise InputError(f"no home folder, and no temporary one ({error}): set PREFIXCAP_CACHE=FOLDER") from error
    print("no home folder: nothing is kept for the next time; set PREFIXCAP_CACHE=FOLDER to keep it", file=sys.stderr)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def temporary_path(path: Path) -> Path:
    """Where this process writes what will become `path`: no other process on any machine uses that name."""
    return path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.tmp")


@cache
def _machine() -> str:
    """This machine, or the container on it within which process ids are unique."""
    try:
        return f"{platform.node()}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return platform.node()


def _remove_leftovers(path: Path) -> None:
    """Remove what dead processes left behind while writing `path`.

    Which processes another machine runs cannot be known: there, what has not changed for a week counts as left behind.
    """
    folder, now = path.parent, time.monotonic()
    if now < _next_look.get(folder, now) or not folder.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(?P<machine>.+)\.(?P<process>\d+)\.tmp")
    with suppress(OSError):  # a folder may be writable but not readable, and another process may remove them first
        for leftover in folder.iterdir():
            match = pattern.fullmatch(leftover.name)
            if match is not None and _is_left_behind(leftover, match["machine"], int(match["process"])):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    # A folder of very many files is not read anew for each of them.
    _next_look[folder] = time.monotonic() + 10 * (time.monotonic() - now)


def _is_left_behind(temporary: Path, machine: str, process: int) -> bool:
    if machine != _machine() or os.name != "posix":
        return time.time() - temporary.lstat().st_mtime > _WEEK
    try:
        os.kill(process, 0)  # which sends nothing
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's, or not a process id
        return False
    return False


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, atomically. Raises InputError as `atomic_write` does."""
    with atomic_write(path) as temporary:
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
    """The content of a JSON file, see `parse_json`. Raises InputError naming the file and the place."""
    return parse_json(read_text(path), path)


def parse_json(text: str | bytes, source: object) -> Any:
    """The value of a JSON text from an untrusted source.

    Args:
        text: JSON; bytes are UTF-8, with or without a byte order mark. Half a surrogate pair in an escape passes:
            code that writes such a text out has to check.
        source: where it comes from, for the message.

    Raises:
        InputError: it is not JSON, is nested too deeply, or has an integer of more than 4,300 digits.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{source} is not JSON: {error.msg} in line {error.lineno}") from error
    except RecursionError as error:
        raise InputError(f"{source} is not usable JSON: it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not JSON in UTF-8 (byte {error.start}); convert it to UTF-8") from error
    except ValueError as error:  # of `int`
        raise InputError(f"{source} is not usable JSON: an integer in it has too many digits") from error


def read_table(file: Path, kind: type[Row]) -> list[Row]:
    """The rows of a CSV file that `write_table` wrote. Raises InputError if it holds something else."""
    rows = csv.DictReader(io.StringIO(read_text(file)))
    try:
        return [kind(**{field.name: field.type(from_cell(row[field.name])) for field in fields(kind)}) for row in rows]  # type: ignore[operator, arg-type]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{file} is not a table that this command wrote: move it away") from error


def write_table(file: Path, rows: Sequence[Any]) -> None:
    """Write instances of one dataclass, at least one, as CSV, atomically. Raises as `atomic_write`."""
    text = io.StringIO()
    table = table_writer(text)
    table.writerow([field.name for field in fields(rows[0])])
    table.writerows(map(as_cell, asdict(row).values()) for row in rows)
    atomic_write_text(file, text.getvalue())


# Spreadsheets run a cell that begins with one of these as a formula (OWASP, "CSV Injection"), wide forms included.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def table_writer(text: IO[str]) -> Any:
    """A CSV writer that quotes text cells, so that no spreadsheet splits them at other delimiters.

    Pass texts from untrusted sources through `as_cell`.
    """
    return csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)


def as_cell(value: T) -> T | str:
    """A value as a cell of a table: a text that a spreadsheet would run as a formula gets a single quote before it.

    Examples:
        >>> as_cell("=1+1"), as_cell("a dog"), as_cell(-0.3)
        ("'=1+1", 'a dog', -0.3)
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def from_cell(text: str) -> str:
    """The text that `as_cell` turned into a cell."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


class Journal:
    """Results by id, kept as they arrive, so that long work can be killed and resumed.

    The first line of the file describes the work; each other line is `[id, result]` in JSON. A line that was cut short
    is dropped.

    Args:
        file: `.jsonl`; need not exist.
        job: everything that a result depends on, in JSON values.
        anew: drop results of another job, and begin anew.

    Attributes:
        results: so far, by id.

    Raises:
        InputError: the file holds results of another job, unless `anew`, or cannot be read or written.
    """

    def __init__(self, file: Path, job: dict[str, Any], anew: bool = False) -> None:
        self.file, self.results = file, dict[Any, Any]()
        self._head = json.dumps({"job": job}, sort_keys=True)
        lines = read_text(file).split("\n")[:-1] if file.exists() else []
        if lines and lines[0] != self._head:
            if not anew:
                raise InputError(
                    f"{file} holds results with other settings: name another folder with out=, or remove it"
                )
            lines = []
        self._begun = bool(lines)
        for line in lines[1:]:
            key, result = json.loads(line)
            self.results[key] = result
        if lines:
            atomic_write_text(file, "\n".join([*lines, ""]))

    def add(self, results: Mapping[Any, Any]) -> None:
        """Add results, by id: they are on the disk when this returns. The first ones make the file and its folder.
        Raises InputError as `atomic_write`."""
        if not self._begun:
            atomic_write_text(self.file, self._head + "\n")
            self._begun = True
        self.results |= results
        with one_line_errors(self.file), self.file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps([key, result]) + "\n" for key, result in results.items())
            file.flush()
            os.fsync(file.fileno())


def no_space(error: BaseException) -> bool:
    """Whether `error` means a full disk, quota or file size limit, or was caused by one that does."""
    cause: BaseException | None = error
    while cause is not None:
        number = re.search(r"\(os error (\d+)\)", str(cause))  # of libraries in Rust
        if (int(number[1]) if number else getattr(cause, "errno", None)) in _FULL or _NO_SPACE in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
