"""How well metrics of captions agree with people: with their ratings of captions, or with which of two they prefer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prefixcap.errors import InputError
from prefixcap.evaluation.judgements import CROWD, EXPERT, Judgements
from prefixcap.evaluation.kendall import PairCounts
from prefixcap.evaluation.pascal50s import CATEGORIES, Preferences
from prefixcap.evaluation.report import table
from prefixcap.metrics import MetricInputs, Scores, check_metrics, score_captions
from prefixcap.metrics.metric import NO_INPUTS, Statistics, mean
from prefixcap.metrics.ngrams import Integers
from prefixcap.metrics.registry import REFERENCE_METRICS, select_metrics
from prefixcap.metrics.significance import confidence_interval

Rows = dict[str, dict[str, float]]
Intervals = dict[str, dict[str, tuple[float, float]]]

TAU_B, TAU_C, MEAN = "tau-b", "tau-c", "mean"
_MOST_IMAGES = 5000  # of which the pairs are counted for intervals: 400 MB


@dataclass(frozen=True)
class _Published:
    """Figures of a paper for a complete data set."""

    measure: str
    judgements: int
    figures: Mapping[str, float]


# Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", Tables 1 and 2.
PUBLISHED = {
    EXPERT: _Published(
        TAU_C,
        16_992,
        {"BLEU-1": 0.323, "BLEU-4": 0.308, "METEOR": 0.418, "ROUGE-L": 0.323, "CIDEr": 0.439, "SPICE": 0.449},
    ),
    CROWD: _Published(
        TAU_B,
        47_830,
        {"BLEU-1": 0.179, "BLEU-4": 0.169, "METEOR": 0.222, "ROUGE-L": 0.199, "CIDEr": 0.246, "SPICE": 0.244},
    ),
}


@dataclass(frozen=True)
class Agreement:
    """How well metrics agree with people.

    Attributes:
        name: of the data set.
        images: how many there are.
        captions: how many judged captions, or pairs of captions.
        judgements: how many judgements of these.
        rows: by measure or category, and then by score: Kendall's tau-b and tau-c; of preferences, the accuracy in each
            category and their mean.
        intervals: likewise, the 95% confidence intervals by bootstrap over images.
        published: figures of Hessel et al. (2021) for the same data, by score; empty where there are none.
        published_measure: the row that these compare with.
        notes: what else a reader should know, one line each.
    """

    name: str
    images: int
    captions: int
    judgements: int
    rows: Rows
    intervals: Intervals
    published: Mapping[str, float] = field(default_factory=dict)
    published_measure: str = ""
    notes: Sequence[str] = ()

    def table(self) -> str:
        """As text."""
        kind = "captions" if TAU_B in self.rows else "pairs of captions"
        heading = f"{self.name}: {self.captions:,} {kind} of {self.images:,} images, {self.judgements:,} judgements"
        rows = dict(self.rows)
        if self.published:
            rows[f"published {self.published_measure}"] = dict(self.published)
        return "\n".join([heading, table(rows, self.intervals), *self.notes])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        described: dict[str, Any] = {
            "name": self.name,
            "images": self.images,
            "captions": self.captions,
            "judgements": self.judgements,
        }
        described |= {"agreement": self.rows, "intervals": self.intervals}
        if self.published:
            described["published"] = {self.published_measure: dict(self.published)}
        return described | {"notes": list(self.notes)}


def rating_agreement(
    judged: Judgements, metrics: Sequence[str] = REFERENCE_METRICS, inputs: MetricInputs = NO_INPUTS
) -> Agreement:
    """Kendall's tau-b and tau-c of metrics with people's ratings.

    Each judged caption is scored as if it was the caption of an image of its own, so that CIDEr's weights of words
    count an image as often as captions of it were judged. Each person's rating is a judgement of its own.

    Args:
        judged: as `prefixcap.evaluation.judgements.read_judgements` gives it.
        metrics: names in `prefixcap.metrics.METRICS`.
        inputs: what some metrics need besides; embeddings are of the image of each judged caption.

    Returns:
        Rows "tau-b" and "tau-c". Metrics that cannot be computed on this machine are in the notes.

    Raises:
        InputError: a metric is unknown, scores no single captions, or lacks what it needs.

    Examples:
        >>> references = {"a.jpg": ["a dog runs", "a wet dog"], "b.jpg": ["a cat asleep", "the cat sleeps"]}
        >>> captions = ["a dog runs fast", "a bird", "the cat sleeps", "a dog"]
        >>> ratings = np.array([[4.0, 4.0], [1.0, 2.0], [4.0, 3.0], [1.0, 1.0]])
        >>> images = ["a.jpg", "a.jpg", "b.jpg", "b.jpg"]
        >>> measured = rating_agreement(Judgements("four", images, captions, ratings, references), ["ROUGE-L"])
        >>> round(measured.rows["tau-c"]["ROUGE-L"], 3)
        0.656
    """
    _check_scores(metrics, inputs)
    scores = score_captions(
        dict(enumerate(judged.captions)),
        {number: judged.references[image] for number, image in enumerate(judged.images)},
        metrics,
        inputs,
    )
    people = judged.ratings.shape[1]
    names, numbers = np.unique(np.array(judged.images), return_inverse=True)
    images = np.repeat(numbers, people)
    notes = [*judged.notes, *_missing(scores)]
    rows: Rows = {TAU_B: {}, TAU_C: {}}
    intervals: Intervals = {TAU_B: {}, TAU_C: {}}
    constant = []
    for name, per_caption in scores.per_image.items():
        values = np.repeat([per_caption[number] for number in range(len(judged.captions))], people)
        taus, bounds = _taus(values, judged.ratings.ravel(), images)
        if not np.isfinite(taus).all():
            constant.append(name)
            continue
        for row, tau, (low, high) in zip((TAU_B, TAU_C), taus, bounds, strict=True):
            rows[row][name] = float(tau)
            if math.isfinite(low + high):
                intervals[row][name] = (float(low), float(high))
    if constant:
        notes.append(f"all captions have the same score, which agrees with nothing: {', '.join(constant)}")
    if len(names) > _MOST_IMAGES:
        notes.append(f"no confidence intervals for more than {_MOST_IMAGES:,} images")
    elif intervals[TAU_B]:
        notes.append("95% confidence intervals (±: half of one) by bootstrap over images")
    known = PUBLISHED.get(judged.name)
    compared = known is not None and known.judgements == judged.ratings.size
    if compared:
        notes.append("published: Hessel et al. 2021")
    return Agreement(
        judged.name,
        len(names),
        len(judged.captions),
        judged.ratings.size,
        rows,
        intervals,
        known.figures if known and compared else {},
        known.measure if known and compared else "",
        notes,
    )


def preference_accuracy(
    preferred: Preferences,
    metrics: Sequence[str] = REFERENCE_METRICS,
    references: int = 5,
    draws: int = 5,
    seed: int = 0,
) -> Agreement:
    """The share of pairs of captions of which a metric gives the higher score to the one that more people prefer.

    As in Hessel et al. (2021), a metric sees five of the references, drawn at random, and the accuracy is the mean over
    five draws. A pair to which the metric gives the same score twice, or on which as many people prefer either, counts
    as half: what breaking ties at random comes to.

    Args:
        preferred: as `prefixcap.evaluation.pascal50s.read_pascal50s` gives it.
        metrics: names in `prefixcap.metrics.METRICS`, that need nothing but captions and references.
        references: how many of those of a pair a metric sees, at most.
        draws: how many draws of references.
        seed: of the draws.

    Returns:
        Rows "HC", "HI", "HM", "MM" and "mean", as far as there are such pairs.

    Raises:
        InputError: as `rating_agreement`; `references` or `draws` is less than one.
    """
    if references < 1 or draws < 1:
        raise InputError(f"{draws} draws of {references} references: give one or more")
    _check_scores(metrics, NO_INPUTS)
    generator = np.random.default_rng(seed)
    pairs = len(preferred.captions)
    votes = np.sign(preferred.votes[:, 0] - preferred.votes[:, 1])  # (pairs,) 1: the first caption is preferred
    right: dict[str, Statistics] = {}  # by score, (pairs,) sums over draws
    scores = Scores()
    for _ in range(draws):
        shown = [_draw(texts, references, generator) for texts in preferred.references]
        scores = score_captions(
            {2 * pair + place: text for pair, two in enumerate(preferred.captions) for place, text in enumerate(two)},
            {2 * pair + place: texts for pair, texts in enumerate(shown) for place in range(2)},
            metrics,
        )
        for name, per_caption in scores.per_image.items():
            differences = [per_caption[2 * pair] - per_caption[2 * pair + 1] for pair in range(pairs)]
            agrees = (1 + np.sign(differences) * votes) / 2  # 0.5 where either ties
            right[name] = right.get(name, np.zeros(pairs)) + agrees / draws
    names, images = np.unique(np.array(preferred.images), return_inverse=True)
    rows: Rows = {}
    intervals: Intervals = {}
    present = [name for name in CATEGORIES if name in preferred.categories]
    categories = np.array(preferred.categories)
    for name, values in right.items():
        # (images, categories, 2) sums and numbers of pairs
        sums = np.zeros((len(names), len(present), 2))
        for place, category in enumerate(present):
            members = categories == category
            np.add.at(sums[:, place, 0], images[members], values[members])
            np.add.at(sums[:, place, 1], images[members], 1)
        accuracies = _accuracies(sums.sum(0))
        bounds = confidence_interval(_accuracies, sums) if len(names) > 1 else np.full((len(accuracies), 2), np.nan)
        for row, accuracy, (low, high) in zip([*present, MEAN], accuracies, bounds, strict=True):
            rows.setdefault(row, {})[name] = float(accuracy)
            if math.isfinite(low + high):
                intervals.setdefault(row, {})[name] = (float(low), float(high))
    notes = _missing(scores)
    notes.append(f"{references} references, the mean over {draws} draws; ties count as half")
    if intervals:
        notes.append("95% confidence intervals (±: half of one) by bootstrap over images")
    return Agreement(preferred.name, len(names), pairs, int(preferred.votes.sum()), rows, intervals, notes=notes)


def _taus(values: Statistics, ratings: Statistics, images: Integers) -> tuple[Statistics, Statistics]:
    """(2,) tau-b and tau-c, and (2, 2) their intervals, NaN where there are none."""
    count = int(images.max()) + 1
    few = 1 < count <= _MOST_IMAGES
    pairs = PairCounts(values, ratings, images if few else np.zeros_like(images))

    def taus(counts: Statistics) -> Statistics:
        return np.stack((pairs.tau_b(counts), pairs.tau_c(counts)), axis=-1)

    all_images = np.ones(count if few else 1)
    # The statistics of an image are which image it is: their sums tell how often a sample has each.
    bounds = confidence_interval(taus, np.eye(count)) if few else np.full((2, 2), np.nan)
    return taus(all_images), bounds


def _accuracies(sums: Statistics) -> Statistics:
    """(…, categories, 2) sums and numbers -> (…, categories + 1), the last of which is the mean."""
    with np.errstate(invalid="ignore"):
        accuracies = mean(sums)[..., 0]
    return np.concatenate((accuracies, accuracies.mean(-1, keepdims=True)), axis=-1)


def _draw(texts: Sequence[str], most: int, generator: np.random.Generator) -> list[str]:
    if len(texts) <= most:
        return list(texts)
    return [texts[row] for row in sorted(generator.choice(len(texts), most, replace=False))]


def _check_scores(metrics: Sequence[str], inputs: MetricInputs) -> None:
    """Refuse metrics that are unknown, or have no score of a single caption."""
    check_metrics(metrics, [name for name, value in vars(inputs).items() if value is not None])
    selected = select_metrics(metrics).items()
    if without := [name for name, metric in selected if not metric.scores and not metric.values_of_images]:
        raise InputError(f"{', '.join(without)}: no score of a single caption that could agree with people; leave out")


def _missing(scores: Scores) -> list[str]:
    return [f"{name} is missing: {reason}" for name, reason in scores.missing.items()]
