"""The part of METEOR's table of paraphrases that given captions and references can use.

The table has five million pairs of phrases, and reading them takes METEOR's Java program longer than scoring some
thousand captions. A pair can only match where one of its phrases stands in a caption and the other in a reference, so
that a table without the others gives the same scores.
"""

import gzip
import io
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np

from prefixcap.metrics.cache import cached
from prefixcap.metrics.java import tools_folder

_LONGEST = 7  # words of the table's longest phrase
_PLAIN = b"abcdefghijklmnopqrstuvwxyz0123456789 \n"
_RUN = re.compile(r"[^\W_]+")


@contextmanager
def paraphrases_of(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Iterator[Path]:
    """A file for METEOR's option `-a`, removed afterwards.

    The pairs that have a phrase of the references are kept from one call to the next (`prefixcap.metrics.cache`).
    """

    def of_references() -> dict[str, np.ndarray]:
        with gzip.open(tools_folder("meteor") / "data" / "paraphrase-en.gz") as table:
            # GzipFile's own lines take Python code each.
            lines = io.BufferedReader(table, 1 << 20)
            kept = _with_phrases_of(chain.from_iterable(references), lines)
        return {"table": np.frombuffer(kept, np.uint8)}

    table = cached("paraphrases", [list(texts) for texts in references], of_references)["table"].tobytes()
    with tempfile.TemporaryDirectory(prefix="paraphrases-") as folder:
        file = Path(folder) / "paraphrase-en.gz"
        with gzip.open(file, "wb", compresslevel=1) as stream:
            stream.write(_with_phrases_of(captions, table.splitlines(keepends=True)))
        yield file


def _with_phrases_of(texts: Iterable[str], table: Iterable[bytes]) -> bytes:
    """The pairs of a table of which a phrase stands in one of the texts.

    The program splits words at punctuation before it looks for phrases. Pairs with anything but letters and digits are
    kept, whatever the texts are.
    """
    phrases = _phrases(texts)
    lines = iter(table)
    return b"".join(
        probability + first + second
        for probability, first, second in zip(lines, lines, lines, strict=True)
        if first in phrases or second in phrases or (first + second).translate(None, _PLAIN)
    )


def _phrases(texts: Iterable[str]) -> set[bytes]:
    """Lines of the table that stand in a text: with its words as they are, or split at signs, or without the signs."""
    phrases: set[str] = set()
    for text in texts:
        words = text.split()
        forms = [words]
        if not all(map(str.isalnum, words)):
            forms += [_RUN.findall(text), [joined for word in words if (joined := "".join(_RUN.findall(word)))]]
        for form in forms:
            for length in range(1, _LONGEST + 1):
                phrases.update(map(" ".join, zip(*(form[start:] for start in range(length)), strict=False)))
    return {f"{phrase}\n".encode("utf-8", "surrogatepass") for phrase in phrases}
