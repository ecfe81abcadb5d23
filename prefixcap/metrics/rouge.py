"""ROUGE-L (Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3).

As the COCO caption tools compute it: precision and recall are each the best over the references, and recall weighs
more (β = 1.2).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefixcap.metrics.scorer import mean, mean_of

_BETA = 1.2


class RougeL:
    """ROUGE-L: how long a sequence of words a caption has in common with a reference, whatever stands between them."""

    name = "ROUGE-L"
    scores: tuple[str, ...] = ("ROUGE-L",)

    def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """(images, 2); see `prefixcap.metrics.scorer.Scorer`."""
        return mean_of([_rouge_l(caption, texts) for caption, texts in zip(captions, references, strict=True)])

    def score(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 2) -> (..., 1): the mean over images."""
        return mean(totals)


def _rouge_l(caption: str, references: Sequence[str]) -> float:
    """Equations 2 to 4 of the paper. As in the tools, a caption without words counts as one empty word."""
    words = caption.split(" ")
    places: dict[str, int] = {}  # for each word a number, whose bits are the places where the word stands
    for place, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << place
    precision = recall = 0.0
    for reference in references:
        reference_words = reference.split(" ")
        common = _common(reference_words, places, len(words))
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(reference_words))
    if precision == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(words: Sequence[str], places: dict[str, int], length: int) -> int:
    """Length of the longest common subsequence of `words` and a text of `length` words, all its columns at once.

    Hyyrö, "Bit-Parallel LCS-length Computation Revisited", 2004: a bit of `row` is 0 where the row of the table of
    lengths rises by 1.
    """
    row = full = (1 << length) - 1
    for word in words:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & full
    return length - row.bit_count()
