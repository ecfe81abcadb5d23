"""What every scorer of captions against references has: statistics of images, and scores of their sums."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class MetricUnavailable(Exception):
    """A metric cannot be computed on this machine; the message says why, and what to do about it, in one line."""


class Scorer(Protocol):
    """A metric whose score of a corpus follows from sums over its images.

    So scores of the corpus, of one image, of a part and of a bootstrap sample come from the same array.

    Attributes:
        name: as `metrics=[...]` names it.
        scores: what it gives, e.g. BLEU-1 to BLEU-4.
    """

    name: str
    scores: tuple[str, ...]

    def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """(images, k) of tokenized captions, one an image, and the tokenized references of each image.

        Raises:
            MetricUnavailable: it cannot be computed on this machine.
        """
        ...

    def score(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., k) sums of statistics over images -> (..., len(scores))."""
        ...


def mean_of(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """(images,) values -> (images, 2) statistics of their mean."""
    column = np.asarray(values, np.float64)
    return np.stack((column, np.ones_like(column)), axis=-1)


def mean(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 2) sums of `mean_of` -> (..., 1)."""
    return totals[..., :1] / totals[..., 1:]
