"""Keeps what depends on the references only, so that it is not computed again for other captions of the images."""

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from prefixcap.utils.array_cache import Arrays, cached_arrays


def cached(kind: str, content: Any, make: Callable[[], Arrays], folder: str = "references") -> Arrays:
    """What `make` returns, from a file in the user's cache if it was computed before from the same content.

    What is kept, and for how long: see `cached_arrays`.

    Args:
        kind: begins the name of the file.
        content: all that the result depends on, except for the code; anything that JSON can hold.
        make: computes named arrays.
        folder: in the cache; files of one folder do not drive out those of another.
    """
    digest = hashlib.sha256(_code() + json.dumps(content).encode()).hexdigest()
    return cached_arrays(folder, f"{kind}-{digest[:32]}", make)


@cache
def _code() -> bytes:
    """A digest of this package's code, on which the results depend."""
    return digest_of(file for pattern in ("*.py", "assets/**/*.class") for file in Path(__file__).parent.glob(pattern))


def digest_of(files: Iterable[Path]) -> bytes:
    """A digest of the contents of files, which does not depend on their order."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).digest()
