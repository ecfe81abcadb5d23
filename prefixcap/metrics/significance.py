"""Confidence intervals of corpus scores, and tests of whether two captioners differ, by bootstrap over images.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 15; for corpus scores of text, and for
two systems on the same test set, Koehn, Statistical Significance Tests for Machine Translation Evaluation (2004). A
sample draws as many images as there are, with replacement. Its score comes from the sums of the drawn images'
statistics (`prefixcap.metrics.Metric`), so metrics that pool counts, as BLEU does, are resampled as well as means.

CIDEr's document frequencies are part of its statistics: they stay those of the complete test set in every sample,
as if they were part of the metric. The images are resampled, not the words of the references.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from prefixcap.errors import InputError
from prefixcap.metrics.metric import Score, Statistics

_DRAWN_AT_ONCE = 1_000_000  # images in the samples that are in memory together: some 30 MB


class PairedTest(NamedTuple):
    """How two captioners differ, for each score of a metric.

    Attributes:
        difference: (scores,) the first captioner's score minus the second's.
        interval: (scores, 2) confidence interval of the difference, low and high.
        p_value: (scores,) two-sided: how likely so clear a difference were if neither was better.
    """

    difference: Statistics
    interval: Statistics
    p_value: Statistics


def confidence_interval(
    score: Score, statistics: Statistics, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> Statistics:
    """The percentile interval of a corpus score.

    Args:
        score: a scorer's: (..., k) sums over images -> (..., scores).
        statistics: (images, k) of that scorer; or (images, …), of which the score takes the sums.
        samples: how many to draw.
        level: of confidence, between 0 and 1.
        seed: of the draw; the same images are drawn for every metric.

    Returns:
        (scores, 2), low and high.

    Raises:
        InputError: there are fewer than two images, which cannot differ, or no samples, or `level` is not between 0 and
            1.
    """
    check_resampling(len(statistics), samples, level)
    counts = draw_counts(len(statistics), samples, seed)
    return percentiles(np.concatenate([score(np.tensordot(part, statistics, 1)) for part in counts]), level)


def paired_test(
    score: Score,
    statistics_a: Statistics,
    statistics_b: Statistics,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedTest:
    """Compare two captioners on the same images by the paired bootstrap: each sample draws the same images for both.

    The p-value is twice the share of samples in which the difference is gone or turned, so that it agrees with the
    interval: it is below 1 - level where the interval leaves out 0. One sample more counts as gone, so that no p-value
    is 0: the smallest is 2 / (samples + 1).

    Args:
        score: of the one scorer that made both statistics.
        statistics_a: (images, k) of the first captioner; or (images, …), of which the score takes the sums.
        statistics_b: likewise of the second, for the same images in the same order.
        samples: how many to draw.
        level: of confidence, between 0 and 1.
        seed: of the draw.

    Raises:
        InputError: the captioners have different numbers of images, and as `confidence_interval` does.
    """
    if len(statistics_a) != len(statistics_b):
        raise InputError(
            f"a paired test of {len(statistics_a)} against {len(statistics_b)} images: give both captioners' "
            "statistics of the same images, in the same order"
        )
    check_resampling(len(statistics_a), samples, level)
    counts = draw_counts(len(statistics_a), samples, seed)
    differences = np.concatenate(
        [score(np.tensordot(part, statistics_a, 1)) - score(np.tensordot(part, statistics_b, 1)) for part in counts]
    )
    return PairedTest(
        difference=score(statistics_a.sum(axis=0)) - score(statistics_b.sum(axis=0)),
        interval=percentiles(differences, level),
        p_value=bootstrap_p_value(differences),
    )


def bootstrap_p_value(differences: Statistics) -> Statistics:
    """(samples, s) differences in samples -> (s,) two-sided p-values, see `paired_test`.

    Samples in which a difference is not a number count against it.
    """
    kept = np.maximum((differences > 0).sum(axis=0), (differences < 0).sum(axis=0))
    p_values: Statistics = np.minimum(1.0, 2 * (len(differences) - kept + 1) / (len(differences) + 1))
    return p_values


def draw_counts(images: int, samples: int, seed: int, width: int = 1) -> Iterator[Statistics]:
    """How often each image is drawn: parts of (some samples, images), until there are enough samples.

    Args:
        images: how many there are.
        samples: how many to draw in all.
        seed: of the draw.
        width: how many numbers the caller keeps of a sample; parts are smaller where that is more than `images`.
    """
    generator = np.random.default_rng(seed)
    step = samples_at_once(images, width)
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        drawn = generator.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)


def percentiles(scores: Statistics, level: float) -> Statistics:
    """(samples, …) scores -> (…, 2) low and high of the interval with this level of confidence."""
    return np.stack([np.quantile(scores, share, axis=0) for share in ((1 - level) / 2, (1 + level) / 2)], axis=-1)


def samples_at_once(images: int, width: int = 1) -> int:
    """How many samples are drawn together, so that memory is bounded; `width` as in `draw_counts`."""
    return max(1, _DRAWN_AT_ONCE // max(images, width))


def check_resampling(images: int, samples: int, level: float) -> None:
    """Refuse what cannot be resampled. Raises InputError as `confidence_interval` does."""
    if not images:
        raise InputError("there are no images to resample")
    if images == 1:
        raise InputError("one image cannot tell how sure a score is: give statistics of two or more")
    if samples < 1:
        raise InputError(f"{samples} bootstrap samples are too few: give 1,000 or more")
    if not 0 < level < 1:
        raise InputError(f"a confidence level of {level} is not between 0 and 1: give 0.95, for example")
