"""Reads Pascal-50S (Vedantam et al. 2015): which of two captions people find nearer to references of an image.

1,000 images, four pairs of captions each, one of each category: two correct captions by people (HC), two by people of
which one is of another image (HI), one by people and one by a program (HM), two by programs (MM). For each pair, 48
people said which of the two is more like one reference, another for each of them.
"""

import importlib
import importlib.util
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefixcap.errors import InputError
from prefixcap.metrics.ngrams import Integers

PAIRS, VOTES = "pair_pascal.mat", "consensus_pascal.mat"
CATEGORIES = ("HC", "HI", "HM", "MM")  # numbered from 1 on in the file
_PUBLISHED_IN = "pyCIDErConsensus"  # the folder in the published archive


@dataclass(frozen=True)
class Preferences:
    """Pairs of captions of images, and how many people prefer which.

    Attributes:
        name: of the data set.
        images: (n,) the image of each pair.
        captions: (n,) the two captions.
        references: (n,) those that people saw.
        votes: (n, 2) for the first caption and for the second.
        categories: (n,) one of `CATEGORIES` each.
    """

    name: str
    images: Sequence[str]
    captions: Sequence[tuple[str, str]]
    references: Sequence[Sequence[str]]
    votes: Integers
    categories: Sequence[str]


def pascal50s_folder(path: str | Path) -> Path | None:
    """The folder of Pascal-50S's two files, if `path` is it, contains it, or is one of the files; else None."""
    path = Path(path)
    folder = path.parent if path.name in (PAIRS, VOTES) else path
    return next((each for each in (folder, folder / _PUBLISHED_IN) if (each / PAIRS).is_file()), None)


def read_pascal50s(path: str | Path) -> Preferences:
    """Read `pair_pascal.mat` and `consensus_pascal.mat` as they are published. Needs scipy.

    Args:
        path: the folder of the two files, the one that contains it, or one of the files.

    Raises:
        InputError: a file is missing or holds something else, or scipy is not installed.
    """
    folder = pascal50s_folder(path)
    if folder is None:
        raise InputError(f"there is no {PAIRS} in {path}: name the folder of Pascal-50S")
    pairs, votes = _load(folder / PAIRS), _load(folder / VOTES)
    rows = list(_records(folder / PAIRS, pairs, "new_input", 3))
    categories = [int(number) for number in _numbers(folder / PAIRS, pairs, "category")]
    if len(categories) != len(rows) or not all(1 <= number <= len(CATEGORIES) for number in categories):
        raise InputError(f"{folder / PAIRS}: 'category' is not one number from 1 to 4 for each of {len(rows):,} pairs")
    triplets = list(_records(folder / VOTES, votes, "triplets", 4))
    if not rows or len(triplets) % len(rows) or not triplets:
        raise InputError(
            f"{folder / VOTES} has {len(triplets):,} votes, {folder / PAIRS} {len(rows):,} pairs: each pair needs as "
            "many votes as any other"
        )
    captions: list[tuple[str, str]] = []
    references: list[list[str]] = []
    counts = np.zeros((len(rows), 2), np.int64)
    each = len(triplets) // len(rows)
    for pair, (_, first, second) in enumerate(rows):
        two = (_text(folder / PAIRS, pair, first), _text(folder / PAIRS, pair, second))
        captions.append(two)
        references.append([])
        for vote in range(pair * each, (pair + 1) * each):
            reference, one, other, answer = triplets[vote]
            seen = (_text(folder / VOTES, vote, one), _text(folder / VOTES, vote, other))
            if sorted(seen) != sorted(two):
                raise InputError(f"{folder / VOTES}: vote {vote} is on other captions than pair {pair} of {PAIRS}")
            preferred = seen[0] if _bare(answer) == 1 else seen[1]
            references[-1].append(_text(folder / VOTES, vote, reference))
            counts[pair, int(preferred != two[0])] += 1
    images = [_text(folder / PAIRS, pair, row[0]) for pair, row in enumerate(rows)]
    return Preferences(
        "Pascal-50S", images, captions, references, counts, [CATEGORIES[number - 1] for number in categories]
    )


def _load(file: Path) -> dict[str, Any]:
    """The variables of a file of MATLAB; reading one runs no code."""
    if importlib.util.find_spec("scipy") is None:
        raise InputError(f'{file} is a file of MATLAB, which needs scipy to be read: pip install "prefixcap[matlab]"')
    io = importlib.import_module("scipy.io")
    damaged = importlib.import_module("scipy.io.matlab").MatReadError
    try:
        content: dict[str, Any] = io.loadmat(file)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    except NotImplementedError as error:
        raise InputError(f"{file} is a file of MATLAB 7.3 or newer: save it with -v7") from error
    except (damaged, ValueError, TypeError, KeyError, IndexError, MemoryError, OverflowError, zlib.error) as error:
        raise InputError(f"{file} cannot be read as a file of MATLAB ({error!s:.80}); is it damaged?") from error
    return content


def _records(file: Path, content: dict[str, Any], name: str, width: int) -> Iterator[list[Any]]:
    """The fields of each of an array of structures, or the cells of each of an array of cells."""
    rows = content.get(name)
    if not isinstance(rows, np.ndarray):
        raise InputError(f"{file} has no variable {name!r}; is it a file of Pascal-50S?")
    for number, row in enumerate(rows.ravel()):
        fields = list(row.item()) if isinstance(row, np.void) else list(np.asarray(row, object).ravel())
        if len(fields) != width:
            raise InputError(f"{file}: entry {number} of {name!r} has {len(fields)} fields where {width} belong")
        yield fields


def _numbers(file: Path, content: dict[str, Any], name: str) -> list[float]:
    values = content.get(name)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
        raise InputError(f"{file} has no numbers {name!r}; is it a file of Pascal-50S?")
    return [float(value) for value in values.ravel()]


def _bare(value: Any) -> Any:
    """What is in arrays of one element, however deep."""
    while isinstance(value, np.ndarray) and value.size == 1:
        value = value.ravel()[0]
    return value


def _text(file: Path, entry: int, value: Any) -> str:
    text = _bare(value)
    if not isinstance(text, str):
        raise InputError(f"{file}: entry {entry} has something else where a text belongs")
    return " ".join(str(text).split())
