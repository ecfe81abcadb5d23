"""Scores of captions against the captions that people wrote for the same images.

The numbers are those of the COCO caption tools (pycocoevalcap), with their tokenizer, which reads captions in the order
of their mapping, and references in the order of theirs, as one text each (`prefixcap.metrics.ptb`). BLEU, METEOR,
ROUGE-L and SPICE lie between 0 and 1, CIDEr (CIDEr-D) between 0 and 10. Papers usually print all of them times 100.

Shapes: n images; k statistics of an image; s scores of a metric; f folds (of people's captions).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np

from prefixcap import renamed
from prefixcap.errors import InputError, name_rows
from prefixcap.metrics.cache import cached
from prefixcap.metrics.checks import check_captions, check_inputs, check_references, refuse
from prefixcap.metrics.cider import tells_nothing
from prefixcap.metrics.java import JavaPrograms
from prefixcap.metrics.metric import (
    NO_INPUTS,
    Captions,
    ImageId,
    Metric,
    MetricInputs,
    MetricUnavailable,
    References,
    Statistics,
    add_combined,
    figure_name,
    figure_statistics,
    figure_values,
    over_folds,
)
from prefixcap.metrics.ngrams import ReferenceTexts
from prefixcap.metrics.references import WORTH_A_FILE, tokenized_references
from prefixcap.metrics.registry import REFERENCE_METRICS, check_metrics, select_metrics
from prefixcap.metrics.score_notes import score_notes
from prefixcap.metrics.scores import Scores
from prefixcap.metrics.set_diversity import sets_of_people
from prefixcap.metrics.tokenizers import TOKENIZERS

_Result = TypeVar("_Result")


def score_captions(
    captions: Captions,
    references: References,
    metrics: Sequence[str] = REFERENCE_METRICS,
    inputs: MetricInputs = NO_INPUTS,
) -> Scores:
    """Score one caption per image against the references of that image.

    A metric that cannot be computed on this machine (METEOR and SPICE are Java programs) goes into `missing`, and the
    others are computed. An image whose caption has no word goes into `empty`.

    Args:
        captions: one for each image.
        references: of the same images.
        metrics: names in `prefixcap.metrics.METRICS`.
        inputs: what some metrics need besides; embeddings are in the order of `references`.

    Raises:
        InputError: an image has a caption but no references or the reverse, a list of references is empty, a caption is
            not a string, there is nothing to score, or a metric is unknown or lacks what it needs.

    Examples:
        >>> references = {1: ["A dog runs.", "The dog is running"], 2: ["A cat asleep"]}
        >>> scores = score_captions({1: "a dog runs", 2: "a dog"}, references, ["ROUGE-L", "CIDEr"])
        >>> {name: round(score, 3) for name, score in scores.corpus.items()}
        {'ROUGE-L': 0.693, 'CIDEr': 2.093}
        >>> round(scores.per_image["ROUGE-L"][1], 3)
        1.0
    """
    return score_parts(captions, references, {}, metrics, inputs)["overall"]


def score_parts(
    captions: Captions,
    references: References,
    parts: Mapping[str, Collection[ImageId]],
    metrics: Sequence[str] = REFERENCE_METRICS,
    inputs: MetricInputs = NO_INPUTS,
) -> dict[str, Scores]:
    """Score parts of a data set, such as the in-, near- and out-of-domain images of nocaps, and "overall" all of it.

    Each part gets the scores that the COCO tools give when they see nothing else: CIDEr weighs words by the references
    of that part. `figures` are those of all images. For a human row, give the references of a part to `score_humans`.

    Args:
        captions: one for each image, of all parts.
        references: of the same images.
        parts: the images of each part, by its name; parts may overlap.
        metrics: as for `score_captions`.
        inputs: likewise.

    Raises:
        InputError: as `score_captions` does, or a part is empty or has images that have no references.
    """
    check_metrics(metrics, [name for name, value in vars(inputs).items() if value is not None])
    check_captions(captions, references)
    chosen = select_metrics(metrics)
    check_inputs(inputs, {need for metric in chosen.values() for need in metric.needs}, references)
    for name, members in parts.items():
        if not members:
            raise InputError(f"part {name!r} has no images: leave it out, or name its images")
        unknown = [image for image in members if image not in references]
        refuse(unknown, f"images of part {name!r} without references", "leave them out of the part")
    everything = _tokenized(captions, references, replace(inputs, shared={}))
    for_images = {name: metric for name, metric in chosen.items() if metric.scores and not metric.combines}
    statistics, missing = _run(for_images, lambda metric: [_statistics(metric, everything)])
    for_corpus = {name: metric for name, metric in chosen.items() if not metric.scores}
    computed, lacking = _run(for_corpus, lambda metric: _call(metric, metric.figures, everything))
    scores = {}
    for name, members in parts.items():
        chosen_images = set(members)
        rows = [row for row, image in enumerate(references) if image in chosen_images]
        part = _tokenized(
            {image: text for image, text in captions.items() if image in chosen_images},
            {everything.images[row]: everything.reference_texts[row] for row in rows},
            inputs.select(rows),
        )
        part_statistics = {
            metric: [_part_statistics(chosen[metric], part, everything, rows, array)]
            for metric, (array,) in statistics.items()
        }
        scores[name] = _corpus_scores(part, chosen, part_statistics, missing)
    overall = _corpus_scores(everything, chosen, statistics, missing | lacking)
    figures = {name: figure_values(chosen[name], values) for name, values in computed.items()}
    sums = {name: arrays for name, values in computed.items() if (arrays := figure_statistics(values))}
    per_image = overall.per_image | {
        figure_name(name, figure): dict(zip(everything.images, chosen[name].score(array)[:, 0].tolist(), strict=True))
        for name, arrays in sums.items()
        if chosen[name].values_of_images
        for figure, array in arrays.items()
    }
    return scores | {"overall": replace(overall, per_image=per_image, figures=figures, figure_statistics=sums)}


def score_humans(
    references: References, metrics: Sequence[str] = REFERENCE_METRICS, inputs: MetricInputs = NO_INPUTS
) -> Scores | None:
    """Score people as if they were a captioner: each reference against the others of its image.

    Fold i takes the i-th caption of every image that has one, and at least one other. A corpus score is the mean over
    the folds, weighted by their numbers of images, so that every caption counts the same: five folds of equal weight
    where each image has five captions, while the few images that have a sixth or seventh hardly count more. The score
    of an image is the mean over its captions. Note that people are compared with one reference less than a captioner
    is. What depends on the references only is computed once: see `prefixcap.metrics.cache`.

    Args:
        references: the captions of each image.
        metrics: names in `METRICS`; those that need more than captions, references, `objects` and `vocabulary` are
            left out.
        inputs: of the same images; only `objects`, `vocabulary`, `tokenizer` and `candidates` of them are read.
            With candidates, and at least as many references of each image, the diversity of sets is that of as many
            references: the first of each image.

    Returns:
        The scores; None if no image has two references.

    Raises:
        InputError: as `score_captions` does.
    """
    check_metrics(metrics)
    check_references(references)
    selected = select_metrics(metrics).items()
    set_metrics = {name: metric for name, metric in selected if "candidates" in metric.needs and inputs.candidates}
    check_inputs(inputs, ("candidates",) if set_metrics else (), references)
    sets = sets_of_people(list(references.values()), inputs.candidates) if set_metrics else None
    compared = {image: texts for image, texts in references.items() if len(texts) > 1}
    inputs = inputs.select([row for row, texts in enumerate(references.values()) if len(texts) > 1])
    images, written = list(compared), list(compared.values())
    tokenized = tokenized_references(written, inputs.tokenizer)
    folds = []
    for i in range(max(map(len, tokenized), default=0)):
        rows = [row for row, texts in enumerate(tokenized) if len(texts) > i]
        folds.append(
            _Fold(
                [images[row] for row in rows],
                [tokenized[row][i] for row in rows],
                ReferenceTexts(_without(tokenized[row], i) for row in rows),
                [written[row][i] for row in rows],
                [_without(written[row], i) for row in rows],
                inputs.select(rows),
            )
        )
    if not folds:
        return None

    def fold_statistics(metric: Metric) -> list[Statistics]:
        def compute() -> dict[str, Statistics]:
            return {f"fold{i}": array for i, array in enumerate(_fold_statistics(metric, folds))}

        texts = list(tokenized) if metric.tokenized else list(map(list, written))
        # A metric of somebody else's may change, and the cache would not know; nor does it know other inputs.
        own = type(metric).__module__.startswith("prefixcap.") and not metric.needs
        keep = own and sum(map(len, texts)) >= WORTH_A_FILE
        return list((cached(f"humans-{metric.name}", texts, compute) if keep else compute()).values())

    chosen = {
        name: metric for name, metric in selected if metric.scores and set(metric.needs) <= {"objects", "vocabulary"}
    }
    direct = {name: metric for name, metric in chosen.items() if not metric.combines}
    statistics, missing = _run(direct, fold_statistics)
    add_combined(chosen, statistics, missing)
    scores = _scores(folds, chosen, statistics, missing)
    if sets is not None:
        first = {image: texts[0] for image, texts in references.items()}
        everyone = _tokenized(first, references, replace(inputs, candidates=sets, shared={}))
        computed = _scores([everyone], set_metrics, {n: [_statistics(m, everyone)] for n, m in set_metrics.items()}, {})
        for name in ("corpus", "per_image", "statistics"):
            getattr(scores, name).update(getattr(computed, name))
    return scores


def cider_tells_nothing(references: References) -> bool:
    """Whether CIDEr against these references is 0 whatever the captions are, see `prefixcap.metrics.cider`."""
    return tells_nothing(tokenized_references(list(references.values())).grams, len(references))


def cider(captions: Captions, references: References) -> float:
    """CIDEr of the corpus, for validation during training. Needs no Java; raises as `score_captions` does.

    Words are weighted by the references given here: scores of a part of a data set only compare with each other.
    """
    return score_captions(captions, references, ["CIDEr"]).corpus["CIDEr"]


class _Fold(NamedTuple):
    """Images with a caption and references each: tokenized, and as they were written."""

    images: list[ImageId]
    captions: list[str]
    references: ReferenceTexts
    caption_texts: list[str]
    reference_texts: list[Sequence[str]]
    inputs: MetricInputs = NO_INPUTS


def _tokenized(captions: Captions, references: References, inputs: MetricInputs) -> _Fold:
    tokenized = dict(zip(captions, TOKENIZERS[inputs.tokenizer](captions.values()), strict=True))
    written = list(references.values())
    return _Fold(
        list(references),
        [tokenized[image] for image in references],
        tokenized_references(written, inputs.tokenizer),
        [captions[image] for image in references],
        written,
        inputs,
    )


def _without(texts: Sequence[str], i: int) -> list[str]:
    return [*texts[:i], *texts[i + 1 :]]


def _run(
    metrics: Mapping[str, Metric], compute: Callable[[Metric], _Result]
) -> tuple[dict[str, _Result], dict[str, str]]:
    """What `compute` returns for each metric, and why some have nothing. Python computes while Java programs run."""

    def attempt(metric: Metric) -> _Result | MetricUnavailable:
        try:
            return compute(metric)
        except MetricUnavailable as reason:
            return reason

    in_java = {name: metric for name, metric in metrics.items() if metric.runs_java}
    programs = JavaPrograms()
    with ThreadPoolExecutor(max(1, len(in_java)), initializer=programs.adopt) as threads, programs:
        started = {name: threads.submit(attempt, metric) for name, metric in in_java.items()}
        outcomes = {name: attempt(metric) for name, metric in metrics.items() if name not in started}
        outcomes |= {name: future.result() for name, future in started.items()}
    results, missing = {}, {}
    for name in metrics:
        outcome = outcomes[name]
        if isinstance(outcome, MetricUnavailable):
            missing[name] = str(outcome)
        else:
            results[name] = outcome
    return results, missing


def _call(metric: Metric, function: Callable[..., _Result], fold: _Fold) -> _Result:
    """Call a metric's `statistics` or `figures`; mistakes in rows name the images."""
    with name_rows(fold.images):
        return function(*_texts(metric, fold), **fold.inputs.needed_by(metric))


def _texts(metric: Metric, fold: _Fold) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    return (fold.captions, fold.references) if metric.tokenized else (fold.caption_texts, fold.reference_texts)


def _statistics(metric: Metric, fold: _Fold) -> Statistics:
    """(n, k)"""
    return _call(metric, metric.statistics, fold)


def _fold_statistics(metric: Metric, folds: Sequence[_Fold]) -> list[Statistics]:
    """(n, k) for each fold; Java starts once for all of them."""
    if not metric.runs_java:
        return [_statistics(metric, fold) for fold in folds]
    columns = zip(*(_texts(metric, fold) for fold in folds), strict=True)
    statistics = metric.statistics(*(list(chain.from_iterable(column)) for column in columns))
    return np.split(statistics, np.cumsum([len(fold.images) for fold in folds])[:-1])


def _part_statistics(
    metric: Metric, part: _Fold, everything: _Fold, rows: Sequence[int], statistics: Statistics
) -> Statistics:
    """(n of the part, k); what the images have in common with everything is not computed again.

    Args:
        metric: that is computed.
        part: some of the images.
        everything: all of them.
        rows: where those of the part are in `everything`.
        statistics: of `everything`.
    """
    if metric.uses_all_images:
        return _statistics(metric, part)
    chosen = statistics[rows]
    if not metric.tokenized:
        return chosen
    # Where other texts follow, the tokenizer may read the end of a text differently.
    changed = [
        i
        for i, row in enumerate(rows)
        if part.captions[i] != everything.captions[row] or part.references[i] != everything.references[row]
    ]
    if changed:
        texts = ([column[i] for i in changed] for column in (part.captions, part.references))
        chosen[changed] = metric.statistics(*texts, **part.inputs.select(changed).needed_by(metric))
    return chosen


def _corpus_scores(
    fold: _Fold, metrics: Mapping[str, Metric], statistics: dict[str, list[Statistics]], missing: dict[str, str]
) -> Scores:
    missing = dict(missing)
    add_combined(metrics, statistics, missing)
    empty = tuple(image for image, caption in zip(fold.images, fold.captions, strict=True) if not caption)
    scores = _scores([fold], metrics, statistics, missing)
    computed = {name: metric for name, metric in metrics.items() if name in statistics}
    notes = tuple(score_notes(fold.images, fold.captions, fold.references, fold.inputs, computed))
    return replace(scores, empty=empty, notes=notes, statistics={name: array for name, (array,) in statistics.items()})


def _scores(
    folds: Sequence[_Fold],
    metrics: Mapping[str, Metric],
    statistics: dict[str, list[Statistics]],
    missing: dict[str, str],
) -> Scores:
    """Means over folds; the first fold has all images."""
    scores = Scores(missing=dict(missing))
    images = folds[0].images
    numbers = {image: number for number, image in enumerate(images)}
    rows = [np.array([numbers[image] for image in fold.images]) for fold in folds]
    caption_image = np.concatenate(rows)  # (captions of all folds,) the image of each
    for name, arrays in statistics.items():
        metric = metrics[name]
        # (n, f, k + 1); an image that a fold lacks has zeros there
        by_image = np.zeros((len(images), len(folds), arrays[0].shape[1] + 1))
        for fold, (own, array) in enumerate(zip(rows, arrays, strict=True)):
            by_image[own, fold] = np.insert(array, array.shape[1], 1, axis=1)
        scores.statistics[name] = by_image
        corpus = over_folds(metric.score)(by_image.sum(axis=0))  # (s,)
        caption_scores = np.concatenate([metric.score(array) for array in arrays])  # (captions of all folds, s)
        for score_name, score, column in zip(metric.scores, corpus, caption_scores.T, strict=True):
            scores.corpus[score_name] = float(score)
            per_image = np.bincount(caption_image, column) / np.bincount(caption_image)
            scores.per_image[score_name] = dict(zip(images, per_image.tolist(), strict=True))
    return scores


__getattr__ = renamed.attributes(__name__)
