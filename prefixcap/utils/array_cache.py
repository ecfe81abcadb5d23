"""Arrays that were computed before, from files in the user's cache."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from prefixcap.errors import InputError
from prefixcap.utils.files import atomic_write, user_cache

Arrays: TypeAlias = Mapping[str, NDArray[Any]]

_MOST_FILES = 20


def cached_arrays(folder: str, name: str, make: Callable[[], Arrays]) -> Arrays:
    """What `make` returns, from a file in the user's cache if it was computed before.

    The newest 20 files of a folder are kept. A damaged file is written again; where no file can be written, nothing is
    kept.

    Args:
        folder: in the cache.
        name: of the file, without a suffix; it must differ wherever the result may, as a digest does.
        make: computes named arrays.
    """
    try:
        file = user_cache() / folder / f"{name}.npz"
    except InputError:  # there is no cache folder
        return make()
    arrays = _read(file)
    if arrays is None:
        arrays = make()
        with suppress(OSError, InputError):  # no room, or a folder that only others may write to
            _write(file, arrays)
    return arrays


def _read(file: Path) -> Arrays | None:
    """The arrays in a file; None if there is no such file, or it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        with suppress(OSError):
            os.utime(file)  # the newest is the one that was used last
        return arrays
    except (OSError, ValueError, EOFError, BadZipFile):
        return None


def _write(file: Path, arrays: Arrays) -> None:
    with atomic_write(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # no array is named allow_pickle
    # These may include files of a process that was killed while it was writing.
    newest_first = sorted(file.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in newest_first[_MOST_FILES:]:
        old.unlink(missing_ok=True)
