"""Kendall's tau of all images and of samples of them, against scipy and against resampling in a plain loop."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from prefixcap.evaluation.kendall import PairCounts
from prefixcap.metrics.significance import confidence_interval

IMAGES = 25


def judged(seed: int, scores: int, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, judgements that agree with them somewhat, and the images of both, of unequal numbers."""
    generator = np.random.default_rng(seed)
    images = np.concatenate((np.arange(IMAGES), generator.integers(IMAGES // 2, size=275)))
    values = generator.integers(scores, size=len(images)) / scores
    levels_of = np.clip(np.round(levels * (values + generator.normal(0, 0.4, len(images)))), 1, levels)
    return values, levels_of, images


@pytest.mark.parametrize(("scores", "levels"), [(1000, 4), (7, 5), (3, 12), (1000, 1000)])
def test_tau_of_all_images_and_of_samples_is_that_of_scipy(scores: int, levels: int) -> None:
    values, ratings, images = judged(scores, scores, levels)
    pairs = PairCounts(values, ratings, images)
    generator = np.random.default_rng(0)
    counts = np.stack(
        [np.ones(IMAGES), *(np.bincount(generator.integers(IMAGES, size=IMAGES), minlength=IMAGES) for _ in range(5))]
    )
    for row, tau_b, tau_c in zip(counts.astype(int), pairs.tau_b(counts), pairs.tau_c(counts), strict=True):
        members = [np.repeat(np.flatnonzero(images == image), row[image]) for image in range(IMAGES)]
        drawn = np.concatenate(members)
        assert tau_b == pytest.approx(kendalltau(values[drawn], ratings[drawn], variant="b").statistic, abs=1e-12)
        classes = min(len(set(values[drawn])), len(set(ratings[drawn])))  # scipy counts those of the sample
        scaled = tau_c * (1 - 1 / pairs.classes) / (1 - 1 / classes)
        assert scaled == pytest.approx(kendalltau(values[drawn], ratings[drawn], variant="c").statistic, abs=1e-12)


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    values, ratings, images = judged(1, 50, 4)
    pairs = PairCounts(values, ratings, images)
    generator = np.random.default_rng(7)
    members = [np.flatnonzero(images == image) for image in range(IMAGES)]
    taus = []
    for _ in range(1000):
        drawn = np.concatenate([members[image] for image in generator.integers(IMAGES, size=IMAGES)])
        taus.append(kendalltau(values[drawn], ratings[drawn]).statistic)
    [interval] = confidence_interval(lambda counts: pairs.tau_b(counts)[..., None], np.eye(IMAGES))
    assert interval == pytest.approx(np.quantile(taus, [0.025, 0.975]), abs=0.15 * np.ptp(interval))


def test_what_ties_throughout_has_no_tau_b() -> None:
    same, ratings, images = np.ones(4), np.array([1.0, 2, 3, 4]), np.arange(4)
    assert np.isnan(PairCounts(same, ratings, images).tau_b(np.ones(4)))
    assert np.isnan(PairCounts(same, ratings, images).tau_c(np.ones(4)))
