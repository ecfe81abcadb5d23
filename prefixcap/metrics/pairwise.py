"""Tests of which of several captioners differ: all pairs, corrected for their number, runs with other seeds included.

The p-values of a score's pairs are corrected by Holm's method (A Simple Sequentially Rejective Multiple Test
Procedure, 1979), which holds whatever the dependence between the pairs. Two tests are at hand:

- the paired bootstrap over images, see `prefixcap.metrics.significance`;
- approximate randomization (Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989; Riezler and Maxwell, On
  Some Pitfalls in Automatic Evaluation and Significance Testing for MT, 2005): the two captioners' statistics of each
  image are exchanged with probability 1/2, as could have happened if it did not matter which of them wrote a caption.

A system is a captioner with one or more runs, e.g. with different seeds. Its score is the mean of its runs' scores.
Where a system has several runs, each sample of the bootstrap draws runs as well as images.

Shapes: n images; k statistics of an image; r runs of a system; s scores of a metric.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from prefixcap.errors import InputError
from prefixcap.metrics.metric import Score, Statistics
from prefixcap.metrics.significance import (
    bootstrap_p_value,
    check_resampling,
    draw_counts,
    percentiles,
    samples_at_once,
)

Test: TypeAlias = Literal["bootstrap", "randomization"]
TESTS: tuple[Test, ...] = get_args(Test)

_ROUNDING = 1e-9  # of a difference: two that are closer are the same


class SystemsTest(NamedTuple):
    """How systems differ, for each score of a metric. Pairs are in the order of `pairs`.

    Attributes:
        scores: (systems, s).
        intervals: (systems, s, 2) confidence intervals of the scores, low and high.
        pairs: the rows (first, second) of the systems of each pair, first < second.
        difference: (pairs, s) the first system's score minus the second's.
        difference_interval: (pairs, s, 2) confidence intervals of the differences.
        effect_size: (pairs, s) see `effect_size`.
        p_value: (pairs, s) two-sided, of each pair by itself.
        corrected_p_value: (pairs, s) corrected by Holm for the number of pairs, within each score.
    """

    scores: Statistics
    intervals: Statistics
    pairs: tuple[tuple[int, int], ...]
    difference: Statistics
    difference_interval: Statistics
    effect_size: Statistics
    p_value: Statistics
    corrected_p_value: Statistics


def compare_systems(
    score: Score,
    systems: Sequence[Sequence[Statistics]],
    test: Test = "bootstrap",
    samples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> SystemsTest:
    """Compare every system with every other on the same images.

    Intervals are by bootstrap, whichever the test: each sample draws the same images for all systems. Of a system with
    r > 1 runs it also draws r runs, with replacement and apart from the other systems. How far their mean is from that
    of all runs is multiplied by sqrt(r / (r - 1)), as their variance would otherwise be r - 1 over r of what it should
    be (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Three runs still say little
    of how much seeds matter: the interval is coarse.

    Args:
        score: of the one metric that made all statistics.
        systems: of each system the statistics of its runs, one or more: (n, k) each, or (n, …), of which the score
            takes the sums; of the same images in the same order.
        test: where the p-values come from. "randomization" is for systems of one run each.
        samples: how many to draw. The smallest p-value is 2 / (samples + 1) by "bootstrap", 1 / (samples + 1) by
            "randomization".
        level: of confidence, between 0 and 1.
        seed: of the draw.

    Raises:
        InputError: there is no system, or one without runs or with none in a list; numbers of images differ; the test
            is unknown, or is "randomization" where a system has several runs; and as
            `prefixcap.metrics.significance.confidence_interval` does.

    Examples:
        >>> from prefixcap.metrics.metric import mean, mean_of
        >>> a, b = mean_of([3, 4, 5, 6, 4, 3, 5, 4]), mean_of([1, 2, 3, 3, 2, 1, 2, 3])
        >>> c = mean_of([2, 1, 3, 3, 1, 2, 3, 2])
        >>> compared = compare_systems(mean, [[a], [b], [c]])
        >>> compared.pairs
        ((0, 1), (0, 2), (1, 2))
        >>> compared.difference[:, 0].tolist()
        [2.125, 2.125, 0.0]
        >>> (compared.corrected_p_value[:, 0] < 0.05).tolist()
        [True, True, False]
    """
    _check(systems, test)
    images = len(systems[0][0])
    check_resampling(images, samples, level)
    pairs = tuple(combinations(range(len(systems)), 2))
    sampled = _bootstrap(score, systems, samples, seed)  # (samples, systems, s)
    scores = np.stack([np.mean([score(run.sum(axis=0)) for run in runs], axis=0) for runs in systems])
    shape = (len(pairs), scores.shape[1])
    first, second = np.array(pairs, int).reshape(-1, 2).T
    difference = scores[first] - scores[second]
    intervals, bootstrapped = np.empty((*shape, 2)), np.empty(shape)
    for row, (a, b) in enumerate(pairs):
        differences = sampled[:, a] - sampled[:, b]  # (samples, s)
        intervals[row], bootstrapped[row] = percentiles(differences, level), bootstrap_p_value(differences)
    if test == "bootstrap":
        p_values = bootstrapped
    else:
        p_values = _randomization(score, [runs[0] for runs in systems], pairs, difference, samples, seed)
    influences = [influence(score, runs) for runs in systems] if pairs else []
    effects = [effect_size(difference[row], influences[a] - influences[b]) for row, (a, b) in enumerate(pairs)]
    return SystemsTest(
        scores,
        percentiles(sampled, level),
        pairs,
        difference,
        intervals,
        np.array(effects).reshape(shape),
        p_values,
        holm(p_values),
    )


def holm(p_values: Statistics) -> Statistics:
    """Correct p-values for the number of tests, by Holm's step-down method.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none becomes less than one before it, nor more
    than 1. Calling everything significant that stays below 0.05 is wrong about any one test with probability 0.05 at
    most.

    Args:
        p_values: (m, …), corrected along the first axis.

    Returns:
        Of the same shape and in the same order.

    Examples:
        >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, axis=0, kind="stable")
    factors = np.arange(len(p_values), 0, -1).reshape(-1, *[1] * (p_values.ndim - 1))
    stepped = np.maximum.accumulate(np.take_along_axis(p_values, order, 0) * factors, axis=0)
    corrected = np.empty_like(p_values)
    np.put_along_axis(corrected, order, np.minimum(1.0, stepped), 0)
    return corrected


def influence(score: Score, runs: Sequence[Statistics]) -> Statistics:
    """How each image moves a score: the pseudo-values of the jackknife (Efron and Tibshirani 1993, section 11.5).

    Of a mean they are the images' own values. Of a score that pools counts, as BLEU does, they take the place of values
    that no image has by itself.

    Args:
        score: of the metric.
        runs: (n, k) statistics each; pseudo-values are means over runs.

    Returns:
        (n, s)
    """
    images = len(runs[0])
    values = []
    with np.errstate(divide="ignore", invalid="ignore"):  # without one image, there may be nothing left to score
        for run in runs:
            total = run.sum(axis=0)
            values.append(images * score(total) - (images - 1) * score(total - run))
    means: Statistics = np.mean(values, axis=0)
    return means


def effect_size(difference: Statistics, influences: Statistics) -> Statistics:
    """A difference in standard deviations over images, which does not grow with the number of images.

    Of a mean over images it is Cohen's d of paired values (d_z: the mean of the images' differences over their standard
    deviation). Of other scores, the images' values are the pseudo-values of `influence`.

    Args:
        difference: (s,) of two systems' scores.
        influences: (n, s) the first system's minus the second's, see `influence`.

    Returns:
        (s,); infinite where all images differ by the same.
    """
    deviation = influences.std(axis=0, ddof=1)
    deviation[deviation <= _ROUNDING * np.abs(difference)] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes: Statistics = np.where(difference == 0, 0.0, difference / deviation)
    return sizes


def groups_of_equals(systems: int, different: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """The largest groups in which no two systems differ significantly; a system may be in several.

    By insertion and absorption: Piepho, An Algorithm for a Letter-Based Representation of All-Pairwise Comparisons
    (2004).

    Args:
        systems: how many there are.
        different: the pairs (first, second) that differ significantly.

    Returns:
        Rows of systems, in ascending order.

    Examples:
        >>> groups_of_equals(4, [(0, 2), (0, 3), (1, 3)])
        [(0, 1), (1, 2), (2, 3)]
    """
    groups = [frozenset(range(systems))]
    for pair in different:
        split = [part for group in groups for part in _without_pair(group, pair)]
        groups = [group for group in dict.fromkeys(split) if not any(group < other for other in split)]
    return sorted(tuple(sorted(group)) for group in groups)


def _without_pair(group: frozenset[int], pair: tuple[int, int]) -> list[frozenset[int]]:
    return [group - {member} for member in pair] if group.issuperset(pair) else [group]


def _bootstrap(score: Score, systems: Sequence[Sequence[Statistics]], samples: int, seed: int) -> Statistics:
    """(samples, systems, s)"""
    images, width = len(systems[0][0]), sum(run[0].size for runs in systems for run in runs)
    # Each system draws its runs from a stream of its own, so that the images are those of any other test.
    generators = [np.random.default_rng((seed, number)) for number in range(1, len(systems) + 1)]
    parts = []
    for counts in draw_counts(images, samples, seed, width):  # (rows, n)
        columns = []
        for runs, generator in zip(systems, generators, strict=True):
            weights = _run_weights(len(runs), len(counts), generator)  # (rows, r)
            scores = np.stack([score(np.tensordot(counts, run, 1)) for run in runs], axis=1)  # (rows, r, s)
            columns.append((weights[..., None] * scores).sum(axis=1))
        parts.append(np.stack(columns, axis=1))
    return np.concatenate(parts)


def _run_weights(runs: int, samples: int, generator: np.random.Generator) -> Statistics:
    """(samples, runs) of drawn runs in their mean; each row's sum is 1."""
    if runs == 1:
        return np.ones((samples, 1))
    drawn = generator.multinomial(runs, np.full(runs, 1 / runs), size=samples)
    weights: Statistics = (1 + np.sqrt(runs / (runs - 1)) * (drawn - 1)) / runs
    return weights


def _randomization(
    score: Score,
    systems: Sequence[Statistics],
    pairs: Sequence[tuple[int, int]],
    difference: Statistics,
    samples: int,
    seed: int,
) -> Statistics:
    """(pairs, s) p-values: how often a difference is as large when images' statistics are exchanged at random."""
    images, width = len(systems[0]), sum(system[0].size for system in systems)
    totals = [system.sum(axis=0) for system in systems]
    generator, step = np.random.default_rng(seed), samples_at_once(images, width)
    needed = np.abs(difference) * (1 - _ROUNDING)
    as_large = np.zeros(difference.shape, np.int64)
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        exchanged: NDArray[np.float64] = (generator.random((rows, images)) < 0.5).astype(np.float64)
        sums = [np.tensordot(exchanged, system, 1) for system in systems]  # (rows, k) each
        for row, (a, b) in enumerate(pairs):
            moved = sums[b] - sums[a]
            found = np.abs(score(totals[a] + moved) - score(totals[b] - moved))  # (rows, s)
            as_large[row] += rows - (found < needed[row]).sum(axis=0)  # what is not a number counts as large
    p_values: Statistics = (as_large + 1) / (samples + 1)
    return p_values


def _check(systems: Sequence[Sequence[Statistics]], test: str) -> None:
    if test not in TESTS:
        raise InputError(f"unknown test {test!r}: choose from {', '.join(TESTS)}")
    if any(isinstance(runs, np.ndarray) for runs in systems):
        raise InputError("statistics of a system are not in a list: give a list of its runs, one or more")
    if not systems or not all(systems):
        raise InputError("there is no system to test, or one without runs: give statistics of one run or more for each")
    if len(images := {len(run) for runs in systems for run in runs}) > 1:
        raise InputError(
            f"a paired test of {', '.join(map(str, sorted(images)))} images: give all systems' statistics of the same "
            "images, in the same order"
        )
    if test == "randomization" and any(len(runs) > 1 for runs in systems):
        raise InputError(
            "randomization exchanges the captions of images, not runs: give one run a system, or test by bootstrap"
        )
