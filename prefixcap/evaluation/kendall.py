"""Kendall's tau of scores and judgements, of all images or of any sample of them.

Tau-b: Kendall, "The treatment of ties in ranking problems" (1945). Tau-c: Stuart, "The estimation and comparison of
strengths of association in contingency tables" (1953). Both compare pairs of judgements: a pair is concordant if the
score and the judgement of the one are above those of the other, discordant if they disagree.

Shapes: n judgements; g images; l levels of the judgements; … samples of the images.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from prefixcap.metrics.metric import Statistics
from prefixcap.metrics.ngrams import Integers


class PairCounts:
    """Counts of pairs of judgements, by the images that they are of.

    A sample of the bootstrap draws images with all of their judgements. How many pairs are concordant in it is a
    quadratic form of how often each image is drawn, so that tau of every sample is exact and costs one product of
    matrices. Memory grows with the square of the number of images: 16 bytes for each pair of them.

    Args:
        scores: (n,) of a metric.
        judgements: (n,) on a scale of few levels.
        images: (n,) the number of the image of each, from 0 on.

    Attributes:
        concordant: (g, g) concordant less discordant pairs, one of the pair on each image; the sum of all is that of
            all pairs, each counted once.
        tied: (g, g) pairs with the same score, each counted in both orders, and each judgement with itself.
        levels: (g, l) judgements of each level.
        classes: how many different scores or different judgements there are, whichever are fewer.

    Examples:
        >>> counts = PairCounts(np.array([0.1, 0.4, 0.4, 0.8]), np.array([1, 2, 1, 4]), np.array([0, 0, 1, 1]))
        >>> counts.tau_b(np.ones(2)).round(3).item(), counts.tau_c(np.ones(2)).round(3).item()
        (0.8, 0.75)
        >>> counts.tau_b(np.array([2, 0])).round(3).item()  # of the first image, drawn twice
        1.0
    """

    def __init__(self, scores: Statistics, judgements: Statistics, images: Integers) -> None:
        size = int(images.max(initial=-1)) + 1
        scale, level = np.unique(judgements, return_inverse=True)  # (l,), (n,)
        self.concordant: Statistics = np.zeros((size, size))
        self.tied: Statistics = np.zeros((size, size))
        self.levels: Statistics = np.zeros((size, len(scale)))
        np.add.at(self.levels, (images, level), 1)
        signs = np.sign(np.subtract.outer(np.arange(len(scale)), np.arange(len(scale)))).astype(np.float64)  # (l, l)
        # (l, g) of the judgements with a lower score, by image: how many are below each level, less those above it.
        lower = np.zeros((len(scale), size))
        groups = 0
        for rows in _equal(scores):
            groups += 1
            for row in rows:
                self.concordant[images[row]] += lower[level[row]]
            for row in rows:
                lower[:, images[row]] += signs[:, level[row]]
            present, times = np.unique(images[rows], return_counts=True)
            self.tied[np.ix_(present, present)] += np.multiply.outer(times, times)
        self.classes = min(groups, len(scale))

    def tau_b(self, counts: Statistics) -> Statistics:
        """Tau-b of samples: (…, g) how often each image is drawn -> (…,), NaN where all scores or judgements tie."""
        total = self._judgements(counts)
        pairs = total * (total - 1) / 2
        tied_scores = (_quadratic(self.tied, counts) - total) / 2
        level_counts = counts @ self.levels  # (…, l)
        tied_judgements = (level_counts * (level_counts - 1)).sum(-1) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            tau: Statistics = _quadratic(self.concordant, counts) / np.sqrt(
                (pairs - tied_scores) * (pairs - tied_judgements)
            )
        return tau

    def tau_c(self, counts: Statistics) -> Statistics:
        """Tau-c likewise; `classes` are those of all images in every sample."""
        scale = self._judgements(counts) ** 2 * (self.classes - 1) / self.classes
        with np.errstate(divide="ignore", invalid="ignore"):
            tau: Statistics = 2 * _quadratic(self.concordant, counts) / scale
        return tau

    def _judgements(self, counts: Statistics) -> Statistics:
        """(…, g) -> (…,) judgements in a sample."""
        total: Statistics = counts @ self.levels.sum(1)
        return total


def _quadratic(matrix: Statistics, counts: Statistics) -> Statistics:
    """(g, g), (…, g) -> (…,)"""
    form: Statistics = ((counts @ matrix) * counts).sum(-1)
    return form


def _equal(scores: Statistics) -> Iterator[NDArray[np.intp]]:
    """Rows of equal scores together, the lowest scores first."""
    order = np.argsort(scores, kind="stable")
    return iter(np.split(order, np.flatnonzero(np.diff(scores[order])) + 1))
