"""What readers share: captions and paths as they come from others, checked."""

import os
from pathlib import Path

from prefixcap.errors import InputError


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
