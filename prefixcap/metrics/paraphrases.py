"""The part of METEOR's table of paraphrases that given captions and references can use.

The table has five million pairs of phrases, and reading them takes METEOR's Java program longer than scoring some
thousand captions. A pair can only match where one of its phrases occurs in a caption and the other in a reference, so
that a table without the other pairs gives the same scores. Those of the references are chosen here, and kept; of these
METEOR's program chooses those of the captions (`assets/MeteorStatistics.java`).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np

from prefixcap.metrics.cache import cached
from prefixcap.metrics.java import ASSETS, run_java, temporary_folder, tools_folder

_RUN = re.compile(r"[^\W_]+")


@contextmanager
def paraphrases_of(references: Sequence[Sequence[str]]) -> Iterator[Path]:
    """A file with the pairs that have a phrase of the references; its folder is removed afterwards.

    Those of the same texts, whatever their order and their images, are kept from one call to the next
    (`prefixcap.metrics.cache`): for few texts, too, the entire table is read, which takes seconds.

    Raises:
        MetricUnavailable: there is no Java, it cannot read the table, or there is no room for temporary files.
    """
    texts = sorted(set(chain.from_iterable(references)))
    with temporary_folder("METEOR") as folder:
        table = folder / "paraphrases"

        def search() -> dict[str, np.ndarray]:
            full_table = tools_folder("meteor") / "data" / "paraphrase-en.gz"
            options = ["-XX:+UseSerialGC", "-cp", str(ASSETS), "Paraphrases", str(full_table), str(table)]
            run_java("METEOR", options, forms(texts))
            return {"table": np.fromfile(table, np.uint8)}

        pairs = cached("paraphrases", texts, search, folder="paraphrases")
        if not table.exists():
            table.write_bytes(pairs["table"].tobytes())
        yield table


def forms(texts: Iterable[str]) -> str:
    """Texts as METEOR may read them, a line each: with their words as they are, or split at signs, or without these."""
    return "".join(f"{form}\n" for text in texts for form in _forms(text) if form)


def _forms(text: str) -> list[str]:
    words = text.split()
    if all(map(str.isalnum, words)):
        return [" ".join(words)]
    without_signs = ("".join(_RUN.findall(word)) for word in words)
    return [" ".join(words), " ".join(_RUN.findall(text)), " ".join(filter(None, without_signs))]
