"""Tests of several systems, against plain loops, scipy, exhaustive enumeration, and what they promise."""

import doctest
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

import prefixcap.metrics.pairwise as module
from prefixcap.errors import InputError
from prefixcap.metrics import significance
from prefixcap.metrics.metric import mean, mean_of
from prefixcap.metrics.pairwise import TESTS, Test, compare_systems, effect_size, groups_of_equals, holm, influence
from prefixcap.metrics.significance import confidence_interval, draw_counts, paired_test
from tests.metrics.test_significance import Array, captioner, precision_and_length


def systems(seed: int, images: int, *skills: float) -> list[list[Array]]:
    """One run each of captioners of these skills, of the same images."""
    generator = np.random.default_rng(seed)
    return [[captioner(generator, images, skill)] for skill in skills]


def test_holm_is_that_of_the_definition_and_keeps_the_error_of_the_family() -> None:
    """p is significant if all smaller ones are and it is at most alpha over the number of those not smaller."""
    generator = np.random.default_rng(0)
    p_values = np.round(generator.uniform(size=(9, 200)) ** 3, 2)  # with ties
    corrected = holm(p_values)
    for column, corrected_column in zip(p_values.T, corrected.T, strict=True):
        rejected = corrected_column <= 0.05
        expected, ordered = np.zeros(9, bool), np.argsort(column, kind="stable")
        for step, row in enumerate(ordered):
            if column[row] * (9 - step) > 0.05:
                break
            expected[row] = True
        assert (rejected == expected).all()
    assert (corrected >= p_values).all() and (corrected <= 1).all()
    assert (corrected <= np.minimum(1, 9 * p_values) + 1e-12).all()  # never more than Bonferroni's
    assert holm(np.array([0.2])) == [0.2] and holm(np.empty((0, 3))).shape == (0, 3)
    wrong = (holm(generator.uniform(size=(10, 4000))) < 0.05).any(axis=0).mean()
    assert 0.038 <= wrong <= 0.062  # 0.05 is expected, with a standard deviation of 0.0034


def test_each_pair_is_tested_as_if_alone() -> None:
    several = systems(1, 60, 0.7, 0.6, 0.62)
    found = compare_systems(precision_and_length, several, samples=400)
    assert found.pairs == ((0, 1), (0, 2), (1, 2))
    for row, (a, b) in enumerate(found.pairs):
        alone = paired_test(precision_and_length, several[a][0], several[b][0], samples=400)
        assert found.difference[row] == pytest.approx(alone.difference)
        assert found.difference_interval[row] == pytest.approx(alone.interval)
        assert found.p_value[row] == pytest.approx(alone.p_value)
    for number, [run] in enumerate(several):
        expected = confidence_interval(precision_and_length, run, samples=400)
        assert found.intervals[number] == pytest.approx(expected)
        assert found.scores[number] == pytest.approx(precision_and_length(run.sum(0)))
    assert found.corrected_p_value == pytest.approx(holm(found.p_value))
    alone_with_intervals = compare_systems(precision_and_length, several[:1], samples=400)
    assert alone_with_intervals.difference.shape == (0, 2)
    assert alone_with_intervals.intervals == pytest.approx(found.intervals[:1])


def test_randomization_of_a_mean_is_the_test_of_signs_of_scipy() -> None:
    """Whose distribution of 10 images is that of all 1,024 exchanges; the p-value has one sample more."""
    generator = np.random.default_rng(2)
    a, b = generator.normal(0.5, 1, 10), generator.normal(0, 1, 10)
    exact = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    found = compare_systems(mean, [[mean_of(a)], [mean_of(b)]], "randomization", samples=40_000)
    assert 0.05 < exact.pvalue < 0.9
    assert found.p_value[0, 0] == pytest.approx(exact.pvalue, abs=0.01)


def test_randomization_of_a_score_of_sums_is_that_of_all_exchanges() -> None:
    a, b = captioner(np.random.default_rng(3), 9, 0.7), captioner(np.random.default_rng(4), 9, 0.5)
    observed = np.abs(precision_and_length(a.sum(0)) - precision_and_length(b.sum(0)))
    as_large = []
    for exchanged in itertools.product([False, True], repeat=9):
        where = np.array(exchanged)[:, None]
        first, second = np.where(where, b, a), np.where(where, a, b)
        difference = precision_and_length(first.sum(0)) - precision_and_length(second.sum(0))
        as_large.append(np.abs(difference) >= observed - 1e-12)
    found = compare_systems(precision_and_length, [[a], [b]], "randomization", samples=40_000)
    assert found.p_value[0] == pytest.approx(np.mean(as_large, axis=0), abs=0.01)


@pytest.mark.parametrize("test", TESTS)
def test_systems_as_good_as_each_other_seldom_differ(test: Test) -> None:
    """Five per cent of 300 pairs are 15, with a standard deviation of 3.8."""
    wrong = sum(
        compare_systems(precision_and_length, systems(seed, 80, 0.6, 0.6), test, 400, seed=seed).p_value[0, 0] < 0.05
        for seed in range(300)
    )
    assert 5 <= wrong <= 27


@pytest.mark.parametrize("test", TESTS)
def test_among_six_equals_and_a_better_one_only_the_better_one_is_found(test: Test) -> None:
    wrong, power = 0, []
    for seed in range(40):
        several = systems(seed, 150, *[0.6] * 6, 0.7)
        found = compare_systems(precision_and_length, several, test, 2000, seed=seed)
        corrected = found.corrected_p_value[:, 0]
        assert (corrected >= found.p_value[:, 0]).all()
        equals = np.array([6 not in pair for pair in found.pairs])
        wrong += (corrected[equals] < 0.05).any()
        power.append((corrected[~equals] < 0.05).mean())
    assert wrong <= 6  # 2 are expected at most
    assert np.mean(power) > 0.9


def test_runs_are_drawn_as_well_as_images() -> None:
    """Against a plain loop that draws the same images and as many runs, and widens their spread."""
    generator = np.random.default_rng(6)
    runs = [captioner(generator, 50, skill) for skill in (0.55, 0.6, 0.68)]
    other = captioner(generator, 50, 0.6)
    found = compare_systems(precision_and_length, [runs, [other]], samples=4000)
    scores = []
    for counts in draw_counts(50, 4000, 0):
        for row in counts:
            each = np.array([precision_and_length(row @ run) for run in runs])
            drawn = each[generator.integers(3, size=3)].mean(axis=0)
            scores.append(each.mean(axis=0) + (3 / 2) ** 0.5 * (drawn - each.mean(axis=0)))
    expected = np.quantile(scores, (0.025, 0.975), axis=0).T
    assert found.intervals[0] == pytest.approx(expected, abs=0.006)
    mean_of_runs = np.mean([precision_and_length(run.sum(0)) for run in runs], axis=0)
    assert found.scores[0] == pytest.approx(mean_of_runs)
    images_only = [np.mean([precision_and_length(row @ run) for run in runs], axis=0)[0] for row in counts]
    low, high = np.quantile(images_only, (0.025, 0.975))
    assert found.intervals[0, 0, 1] - found.intervals[0, 0, 0] > 1.2 * (high - low)


def test_the_deviation_of_drawn_runs_is_that_of_their_mean() -> None:
    """Of runs that differ on all images alike: the standard error of the mean of r runs is s / sqrt(r)."""
    for number in (2, 3, 5):
        runs = [mean_of(np.full(20, value)) for value in np.random.default_rng(number).normal(0, 1, number)]
        values = [run[0, 0] for run in runs]
        sampled = module._bootstrap(mean, [runs], 20_000, 0)[:, 0, 0]
        assert sampled.std() == pytest.approx(np.std(values, ddof=1) / number**0.5, rel=0.03)
        assert sampled.mean() == pytest.approx(np.mean(values), abs=0.03 * np.std(values))


@pytest.mark.parametrize("runs", [3, 10])
def test_seeds_alone_seldom_make_a_difference_once_runs_are_drawn(runs: int) -> None:
    """Systems whose runs differ in skill by seed only. Images alone call that a difference most of the time."""
    drawn = images_only = 0
    for seed in range(150):
        generator = np.random.default_rng(seed)
        several = [[captioner(generator, 200, skill) for skill in generator.normal(0.6, 0.04, runs)] for _ in range(2)]
        drawn += compare_systems(precision_and_length, several, samples=400, seed=seed).p_value[0, 0] < 0.05
        a, b = (np.stack(runs, axis=1) for runs in several)  # (images, runs, k), of which no run is drawn

        def over_runs(totals: Array) -> Array:
            return precision_and_length(totals).mean(axis=-2)

        images_only += paired_test(over_runs, a, b, samples=400, seed=seed).p_value[0] < 0.05
    assert drawn / 150 <= 0.12  # 0.05 is expected of very many runs, and more of few: docs/use/evaluation.md
    assert images_only / 150 >= 0.45


def test_effect_size_of_a_mean_is_that_of_cohen() -> None:
    values = np.random.default_rng(7).normal((1, 0.8), 0.5, (200, 2))
    found = compare_systems(mean, [[mean_of(column)] for column in values.T], samples=50)
    differences = values[:, 0] - values[:, 1]
    assert found.effect_size[0, 0] == pytest.approx(differences.mean() / differences.std(ddof=1))


def test_effect_size_of_a_score_of_sums_does_not_grow_with_images_and_agrees_with_the_bootstrap() -> None:
    small, large = (compare_systems(precision_and_length, systems(8, n, 0.7, 0.6), samples=2000) for n in (400, 4000))
    assert small.effect_size[0, 0] == pytest.approx(large.effect_size[0, 0], rel=0.25)
    low, high = large.difference_interval[0].T
    deviation = (high - low) / (2 * 1.96) * 4000**0.5
    assert large.effect_size[0] == pytest.approx(large.difference[0] / deviation, rel=0.06)
    run = captioner(np.random.default_rng(9), 30, 0.6)
    left_out = [precision_and_length(np.delete(run, row, 0).sum(0)) for row in range(30)]
    pseudo_values = 30 * precision_and_length(run.sum(0)) - 29 * np.array(left_out)
    assert influence(precision_and_length, [run]) == pytest.approx(pseudo_values)


def test_systems_that_say_the_same_or_differ_everywhere_alike() -> None:
    one = captioner(np.random.default_rng(10), 40, 0.6)
    for test in TESTS:
        same = compare_systems(precision_and_length, [[one], [one.copy()]], test, 200)
        assert same.p_value.tolist() == [[1, 1]] and same.effect_size.tolist() == [[0, 0]]
    values = np.random.default_rng(11).normal(size=30)
    shifted = compare_systems(mean, [[mean_of(values + 0.1)], [mean_of(values)]], samples=200)
    assert shifted.effect_size[0, 0] == np.inf
    assert effect_size(np.array([0.1]), np.full((5, 1), 0.1)) == [np.inf]


def test_scores_that_are_not_a_number_in_samples_are_no_evidence() -> None:
    """The first image alone has what the score divides by."""
    a, b = np.array([[3.0, 2], [1, 0], [1, 0]]), np.array([[1.0, 2], [1, 0], [1, 0]])

    def ratio(totals: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return totals[..., :1] / totals[..., 1:]

    with np.errstate(invalid="ignore"):
        assert compare_systems(ratio, [[a], [b]], samples=500).p_value[0, 0] > 0.4


def test_groups_are_the_largest_without_a_significant_pair() -> None:
    generator = np.random.default_rng(12)
    for _ in range(50):
        pairs = list(itertools.combinations(range(7), 2))
        different = [pair for pair in pairs if generator.random() < 0.4]
        subsets = [s for size in range(1, 8) for s in itertools.combinations(range(7), size)]
        equal = [set(s) for s in subsets if not any(set(pair) <= set(s) for pair in different)]
        largest = {tuple(sorted(s)) for s in equal if not any(s < other for other in equal)}
        assert set(groups_of_equals(7, different)) == largest
    assert groups_of_equals(3, []) == [(0, 1, 2)]


def test_results_are_the_same_in_any_number_of_parts_and_for_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(13)
    several = [[captioner(generator, 100, 0.6) for _ in range(2)] for _ in range(2)]
    single = [runs[:1] for runs in several]

    def results(seed: int = 0) -> NDArray[np.float64]:
        drawn = compare_systems(precision_and_length, several, samples=60, seed=seed)
        exchanged = compare_systems(precision_and_length, single, "randomization", samples=60, seed=seed)
        return np.concatenate([drawn.difference_interval.ravel(), drawn.p_value[0], exchanged.p_value[0]])

    whole = results()
    monkeypatch.setattr(significance, "_DRAWN_AT_ONCE", 700)
    assert results() == pytest.approx(whole, abs=1e-12)
    assert (results(seed=1) != whole).any()


ONE, TWO = mean_of([1.0, 2.0, 3.0]), mean_of([1.0, 2.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare_systems(mean, [[ONE], [ONE]], "t-test"), "unknown test 't-test': choose from bootstrap"),  # type: ignore[arg-type]
        (
            lambda: compare_systems(mean, [ONE, ONE]),
            "statistics of a system are not in a list: give a list of its runs",
        ),
        (lambda: compare_systems(mean, []), "there is no system to test, or one without runs"),
        (lambda: compare_systems(mean, [[ONE], []]), "there is no system to test, or one without runs"),
        (lambda: compare_systems(mean, [[ONE], [ONE, TWO]]), "a paired test of 2, 3 images: give all systems' statis"),
        (lambda: compare_systems(mean, [[ONE], [ONE]] * 2, samples=0), "0 bootstrap samples are too few"),
        (
            lambda: compare_systems(mean, [[ONE, ONE], [ONE]], "randomization"),
            "randomization exchanges the captions of images, not runs: give one run a system, or test by bootstrap",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_examples() -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted > 0 and failed == 0
