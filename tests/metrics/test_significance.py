"""Confidence intervals and paired tests, against exhaustive enumeration, a plain loop and what they promise."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prefixcap.errors import InputError
from prefixcap.metrics import significance
from prefixcap.metrics.metric import mean, mean_of
from prefixcap.metrics.significance import confidence_interval, paired_test

Array = NDArray[np.float64]


def precision_and_length(totals: Array) -> Array:
    """Two scores of BLEU's kind: a precision with a brevity penalty, from (right, words, reference words); a ratio."""
    right, words, expected = np.moveaxis(totals, -1, 0)
    return np.stack([right / words * np.minimum(1, np.exp(1 - expected / words)), words / expected], axis=-1)


def captioner(generator: np.random.Generator, images: int, skill: float) -> Array:
    words = generator.integers(5, 16, images)
    return np.stack([generator.binomial(words, skill), words, generator.integers(6, 14, images)], -1).astype(float)


def every_sample(score: Callable[[Array], Array], statistics: Array) -> Array:
    """The scores of all images ** images samples that there are."""
    images = len(statistics)
    drawn = np.array(list(itertools.product(range(images), repeat=images)))
    return score(statistics[drawn].sum(1))


def test_interval_and_p_value_are_those_of_all_possible_samples() -> None:
    generator = np.random.default_rng(3)
    weights = generator.uniform(0.5, 1.5, (6, 1))  # without them, many samples would have the very same score
    a, b = captioner(generator, 6, 0.75) * weights, captioner(generator, 6, 0.6) * weights
    scores = [every_sample(precision_and_length, statistics) for statistics in (a, b)]
    expected = np.quantile(scores[0], [0.05, 0.95], axis=0).T

    assert confidence_interval(precision_and_length, a, samples=50_000, level=0.9) == pytest.approx(expected, abs=0.004)

    differences = scores[0] - scores[1]
    test = paired_test(precision_and_length, a, b, samples=50_000, level=0.9)
    assert test.difference == pytest.approx(precision_and_length(a.sum(0)) - precision_and_length(b.sum(0)))
    assert test.interval == pytest.approx(np.quantile(differences, [0.05, 0.95], axis=0).T, abs=0.008)
    lost = np.minimum((differences <= 0).mean(0), (differences >= 0).mean(0))
    assert test.p_value == pytest.approx(np.minimum(1, 2 * lost), abs=0.01)


def test_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).gamma(2, size=2000)
    error = values.std() / len(values) ** 0.5
    low, high = confidence_interval(mean, mean_of(values), samples=4000)[0]
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """80 intervals of 90 % at skill 0.6 of captions of equal lengths: each holds the truth with probability 0.9."""
    held = 0
    for seed in range(80):
        right = np.random.default_rng(seed).binomial(10, 0.6, 200)
        statistics = np.stack([right, np.full(200, 10), np.full(200, 10)], -1).astype(float)
        low, high = confidence_interval(precision_and_length, statistics, samples=500, level=0.9, seed=seed)[0]
        held += low <= 0.6 <= high
    assert 65 <= held <= 79  # 72 are expected, with a standard deviation of 2.7


def test_captioners_as_good_as_each_other_seldom_seem_different() -> None:
    found = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        a, b = captioner(generator, 100, 0.6), captioner(generator, 100, 0.6)
        found += paired_test(precision_and_length, a, b, samples=300, seed=seed).p_value[0] < 0.1
    assert 2 <= found <= 20  # 10 are expected, with a standard deviation of 3


def test_a_captioner_does_not_differ_from_itself() -> None:
    statistics = captioner(np.random.default_rng(2), 50, 0.6)
    test = paired_test(precision_and_length, statistics, statistics.copy())
    assert test.difference.tolist() == [0, 0] and test.p_value.tolist() == [1, 1]
    assert test.interval.tolist() == [[0, 0], [0, 0]]


def test_a_clear_difference_is_found_and_turns_with_the_order() -> None:
    generator = np.random.default_rng(3)
    good, bad = captioner(generator, 500, 0.7), captioner(generator, 500, 0.6)
    test, turned = paired_test(precision_and_length, good, bad), paired_test(precision_and_length, bad, good)
    assert test.difference[0] > 0.05 and test.p_value[0] == pytest.approx(2 / 1001)
    assert 0 < test.interval[0, 0] < test.difference[0] < test.interval[0, 1]
    assert turned.difference == pytest.approx(-test.difference)
    assert turned.interval == pytest.approx(-test.interval[:, ::-1])
    assert turned.p_value == pytest.approx(test.p_value)


def test_pairing_finds_what_separate_intervals_hide() -> None:
    """The second captioner is a little worse on every image, and images differ much more than captioners do."""
    values = np.random.default_rng(4).normal(1, 0.5, 300)
    a, b = mean_of(values), mean_of(values - 0.01)
    assert confidence_interval(mean, a)[0, 0] < confidence_interval(mean, b)[0, 1]  # they overlap
    assert paired_test(mean, a, b).p_value[0] < 0.01


def test_samples_are_the_same_in_any_number_of_parts_and_for_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = captioner(np.random.default_rng(5), 100, 0.6)
    whole = confidence_interval(precision_and_length, statistics, samples=50)
    monkeypatch.setattr(significance, "_DRAWN_AT_ONCE", 700)
    assert confidence_interval(precision_and_length, statistics, samples=50) == pytest.approx(whole, abs=1e-12)
    assert (confidence_interval(precision_and_length, statistics, samples=50, seed=1) != whole).any()


STATISTICS = np.ones((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: paired_test(mean, STATISTICS, STATISTICS[:2]),
            "a paired test of 3 against 2 images: give both captioners' statistics of the same images, "
            "in the same order",
        ),
        (lambda: paired_test(mean, STATISTICS[:0], STATISTICS[:0]), "there are no images to resample"),
        (lambda: confidence_interval(mean, STATISTICS[:0]), "there are no images to resample"),
        (
            lambda: confidence_interval(mean, STATISTICS[:1]),
            "one image cannot tell how sure a score is: give statistics of two or more",
        ),
        (lambda: confidence_interval(mean, STATISTICS, 0), "0 bootstrap samples are too few: give 1,000 or more"),
        (
            lambda: confidence_interval(mean, STATISTICS, level=95),
            "a confidence level of 95 is not between 0 and 1: give 0.95, for example",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value) == message


def test_captions_of_several_seeds_are_resampled_together() -> None:
    """The score of a captioner is the mean over its seeds; images are drawn, seeds are not."""
    generator = np.random.default_rng(5)
    a, b = (np.stack([captioner(generator, 40, skill) for _ in range(3)], axis=1) for skill in (0.7, 0.6))

    def over_seeds(totals: Array) -> Array:
        return precision_and_length(totals).mean(axis=-2)

    test = paired_test(over_seeds, a, b, samples=300)
    drawn = np.concatenate(list(significance.draw_counts(40, 300, 0)))
    differences = [
        np.mean([precision_and_length(counts @ a[:, seed]) for seed in range(3)], axis=0)
        - np.mean([precision_and_length(counts @ b[:, seed]) for seed in range(3)], axis=0)
        for counts in drawn
    ]
    assert test.interval == pytest.approx(np.quantile(differences, [0.025, 0.975], axis=0).T)
