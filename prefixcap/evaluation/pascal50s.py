"""Reads Pascal-50S (Vedantam et al. 2015): which of two captions people find nearer to references of an image.

1,000 images, four pairs of captions each, one of each category: two correct captions by people (HC), two by people of
which one is of another image (HI), one by people and one by a program (HM), two by programs (MM). For each pair, 48
people said which of the two is more like one reference, another for each of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefixcap.errors import InputError
from prefixcap.evaluation.matlab import read_matlab
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
    """Read `pair_pascal.mat` and `consensus_pascal.mat` as they are published.

    Args:
        path: the folder of the two files, the one that contains it, or one of the files.

    Raises:
        InputError: a file is missing or holds something else.
    """
    folder = pascal50s_folder(path)
    if folder is None:
        raise InputError(f"there is no {PAIRS} in {path}: name the folder of Pascal-50S")
    pairs, votes = read_matlab(folder / PAIRS), read_matlab(folder / VOTES)
    rows = list(_records(folder / PAIRS, pairs, "new_input", 3))
    categories = pairs.get("category")
    if not isinstance(categories, list) or len(categories) != len(rows) or not set(categories) <= {1, 2, 3, 4}:
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
        "Pascal-50S", images, captions, references, counts, [CATEGORIES[int(number) - 1] for number in categories]
    )


def _records(file: Path, content: dict[str, Any], name: str, width: int) -> Iterator[list[Any]]:
    """The fields of each of an array of structures, or the cells of each of an array of cells."""
    rows = content.get(name)
    if not isinstance(rows, list):
        raise InputError(f"{file} has no variable {name!r}; is it a file of Pascal-50S?")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != width:
            raise InputError(f"{file}: entry {number} of {name!r} has not {width} fields; is it a file of Pascal-50S?")
        yield row


def _bare(value: Any) -> Any:
    """What is in cells of one element, however deep."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def _text(file: Path, entry: int, value: Any) -> str:
    text = _bare(value)
    if not isinstance(text, str):
        raise InputError(f"{file}: entry {entry} has something else where a text belongs")
    return " ".join(text.split())
