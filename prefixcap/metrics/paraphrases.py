"""The part of METEOR's table of paraphrases that given captions and references can use.

The table has five million pairs of phrases, and reading them takes METEOR's Java program longer than scoring some
thousand captions. A pair can only match where one of its phrases occurs in a caption and the other in a reference, so
that a table without the other pairs gives the same scores.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np

from prefixcap.metrics.cache import cached
from prefixcap.metrics.java import ASSETS, run_java, temporary_folder, tools_folder
from prefixcap.metrics.references import WORTH_A_FILE

_RUN = re.compile(r"[^\W_]+")


@contextmanager
def paraphrases_of(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Iterator[Path]:
    """A file for METEOR's option `-a`, removed afterwards.

    The pairs that have a phrase of many references are kept from one call to the next (`prefixcap.metrics.cache`).

    Raises:
        MetricUnavailable: there is no Java, it cannot read the table, or there is no room for temporary files.
    """
    with temporary_folder("METEOR") as folder:
        reference_table, table = folder / "references", folder / "paraphrase-en.gz"

        def search() -> dict[str, np.ndarray]:
            full_table = tools_folder("meteor") / "data" / "paraphrase-en.gz"
            _keep_phrases_of(chain.from_iterable(references), full_table, reference_table)
            return {"table": np.fromfile(reference_table, np.uint8)}

        content = [list(texts) for texts in references]
        few = sum(map(len, content)) < WORTH_A_FILE
        pairs = search() if few else cached("paraphrases", content, search)
        reference_table.write_bytes(pairs["table"].tobytes())
        _keep_phrases_of(captions, reference_table, table)
        yield table


def _keep_phrases_of(texts: Iterable[str], table: Path, kept: Path) -> None:
    """Write those pairs of a table that have a phrase which occurs in one of the texts."""
    lines = "".join(f"{form}\n" for text in texts for form in _forms(text))
    options = ["-XX:+UseSerialGC", "-cp", str(ASSETS), "Paraphrases", str(table), str(kept)]
    run_java("METEOR", options, lines)


def _forms(text: str) -> list[str]:
    """The text as METEOR may read it: with its words as they are, or split at signs, or without the signs."""
    words = text.split()
    if all(map(str.isalnum, words)):
        return [" ".join(words)]
    without_signs = ("".join(_RUN.findall(word)) for word in words)
    return [" ".join(words), " ".join(_RUN.findall(text)), " ".join(filter(None, without_signs))]
