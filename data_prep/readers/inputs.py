"""What readers share: text files, captions and paths as they come from others, checked."""

import json
import os
from pathlib import Path
from typing import Any

from prefixcap.errors import InputError


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
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error.msg} in line {error.lineno}") from error


def clean_caption(caption: object) -> str:
    """A caption on one line, its whitespace folded to single spaces.

    Raises:
        ValueError: it is no text, or nothing is left; the message is the reason to list it as skipped.
    """
    if not isinstance(caption, str):
        raise ValueError("caption is not text")
    folded = " ".join(caption.replace("\0", " ").split())
    if not folded:
        raise ValueError("empty caption")
    if not folded.isprintable():
        try:
            folded.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("caption is not valid Unicode") from None
    return folded


def relative_file(root: Path, file: str, where: str) -> str:
    """A file's path relative to `root`, with forward slashes and without "." and ".." parts.

    Links inside `root` may lead elsewhere: they are the user's own.

    Raises:
        InputError: the path leaves `root`; the message begins with `where`.
    """
    normal = Path(os.path.normpath(file))
    if "\0" in file or normal.is_absolute() or normal.parts[:1] in ((), ("..",)):
        raise InputError(f"{where}: the image {file!r} is not inside {root}; give paths relative to that folder")
    return normal.as_posix()
