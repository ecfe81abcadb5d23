"""Scores of captions against the captions that people wrote for the same images.

The numbers are those of the COCO caption tools (pycocoevalcap), with their tokenizer, which reads captions in the order
of their mapping, and references in the order of theirs, as one text each (`prefixcap.metrics.ptb`). BLEU, METEOR,
ROUGE-L and SPICE lie between 0 and 1. CIDEr (CIDEr-D) has no upper bound. Papers usually print all of them times 100.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefixcap.errors import InputError, listed
from prefixcap.metrics.bleu import Bleu
from prefixcap.metrics.cache import cached
from prefixcap.metrics.cider import Cider, tells_nothing
from prefixcap.metrics.java import JavaPrograms
from prefixcap.metrics.meteor import Meteor
from prefixcap.metrics.ngrams import ReferenceTexts
from prefixcap.metrics.ptb import tokenize_corpus
from prefixcap.metrics.references import WORTH_A_FILE, tokenized_references
from prefixcap.metrics.rouge import RougeL
from prefixcap.metrics.scorer import MetricUnavailable, Scorer
from prefixcap.metrics.scripts import has_unspaced
from prefixcap.metrics.significance import Score
from prefixcap.metrics.spice import Spice

ImageId: TypeAlias = int | str
# `Any` stands for ImageId: the key type of a Mapping is invariant, so that a dict[str, str] is no
# Mapping[int | str, str].
Captions: TypeAlias = Mapping[Any, str]
References: TypeAlias = Mapping[Any, Sequence[str]]
Statistics: TypeAlias = NDArray[np.float64]

_SCORERS: tuple[Scorer, ...] = (Bleu(), Meteor(), RougeL(), Cider(), Spice())
SCORERS = {scorer.name: scorer for scorer in _SCORERS}

_IN_JAVA = {"METEOR", "SPICE"}  # they wait for other processes, which take some seconds to start
_FEW = 100  # images: of so few, CIDEr's weights of words are chance
_OF_ALL_IMAGES = {"CIDEr"}  # the statistics of an image depend on which others it is scored with


@dataclass(frozen=True)
class Scores:
    """Scores by name: BLEU-1, BLEU-2, BLEU-3, BLEU-4, METEOR, ROUGE-L, CIDEr and SPICE, as far as asked for.

    ROUGE-L, CIDEr and SPICE of a corpus are the means over its images. BLEU and METEOR are not: they pool the counts of
    all images first.

    Attributes:
        corpus: the scores of all images together.
        per_image: the scores of each image by itself, in the order of the references.
        missing: metrics that could not be computed: why, and what to do about it, in one line each.
        empty: images whose caption has no word.
        notes: what else is to be said of the scores, one line each.
        statistics: of each metric, in the order of the references. Of captions (images, k): `SCORERS[metric].score`
            of their sum is the corpus score. Of people (images, folds, k + 1): `over_folds` of that is.
    """

    corpus: dict[str, float] = field(default_factory=dict)
    per_image: dict[str, dict[ImageId, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    empty: tuple[ImageId, ...] = ()
    notes: tuple[str, ...] = ()
    statistics: dict[str, Statistics] = field(default_factory=dict)


def score_captions(captions: Captions, references: References, metrics: Sequence[str] = tuple(SCORERS)) -> Scores:
    """Scores one caption per image against the references of that image.

    A metric that cannot be computed on this machine (METEOR and SPICE are Java programs) goes into `missing`, and the
    others are computed. An image whose caption has no word goes into `empty`.

    Raises InputError if an image has a caption or references only, a list of references is empty, a caption is no
    string, there is nothing to score, or a metric is unknown.
    """
    check_metrics(metrics)
    _check_captions(captions, references)
    whole = _tokenized(captions, references)
    statistics, missing = _run(metrics, lambda scorer: _statistics(scorer, [whole]))
    return _scores_of_corpus(whole, statistics, missing)


def score_parts(
    captions: Captions,
    references: References,
    parts: Mapping[str, Collection[ImageId]],
    metrics: Sequence[str] = tuple(SCORERS),
) -> dict[str, Scores]:
    """Scores of parts of a data set, such as the in-, near- and out-of-domain images of nocaps, and "overall" of all.

    Each part gets the scores that the COCO tools give to it alone: CIDEr weighs words by the references of that part.
    For a human row, give the references of a part to `score_humans`.

    Args:
        captions: one per image, of all parts.
        references: of the same images.
        parts: the images of each part, by its name; parts may overlap.
        metrics: as for `score_captions`.

    Raises:
        InputError: as `score_captions` does, or a part is empty or has images that have no references.
    """
    check_metrics(metrics)
    _check_captions(captions, references)
    for name, members in parts.items():
        if not members:
            raise InputError(f"part {name!r} has no images: leave it out, or name its images")
        unknown = [image for image in members if image not in references]
        _refuse(unknown, f"images of part {name!r} without references", "leave them out of the part")
    whole = _tokenized(captions, references)
    statistics, missing = _run(metrics, lambda scorer: _statistics(scorer, [whole]))
    scores = {}
    for name, members in parts.items():
        chosen = set(members)
        part = _tokenized(
            {image: text for image, text in captions.items() if image in chosen},
            {image: texts for image, texts in references.items() if image in chosen},
        )
        of_part = {
            metric: [_statistics_of_part(SCORERS[metric], part, whole, of_whole)]
            for metric, (of_whole,) in statistics.items()
        }
        scores[name] = _scores_of_corpus(part, of_part, missing)
    return scores | {"overall": _scores_of_corpus(whole, statistics, missing)}


def _statistics_of_part(scorer: Scorer, part: "_Fold", whole: "_Fold", of_whole: Statistics) -> Statistics:
    """(images of the part, k); what the images have in common with the whole is not computed again."""
    if scorer.name in _OF_ALL_IMAGES:
        return scorer.statistics(part.captions, part.references)
    rows = {image: row for row, image in enumerate(whole.images)}
    own = [rows[image] for image in part.images]
    statistics = of_whole[own]
    # Where other texts follow, the tokenizer may read the end of a text otherwise.
    other = [
        place
        for place, row in enumerate(own)
        if part.captions[place] != whole.captions[row] or part.references[place] != whole.references[row]
    ]
    if other:
        statistics[other] = scorer.statistics(
            [part.captions[place] for place in other], [part.references[place] for place in other]
        )
    return statistics


def score_humans(references: References, metrics: Sequence[str] = tuple(SCORERS)) -> Scores | None:
    """Scores people as if they were a captioner: each reference against the others of its image.

    Fold i takes the i-th caption of every image that has one, and at least one other. A corpus score is
    the mean over the folds, weighted by their numbers of images, so that every caption counts the same:
    five folds of equal weight where each image has five captions, while the few images that have a sixth
    or seventh hardly count more. The score of an image is the mean over its captions. Note that people are
    compared with one reference less than a captioner is.

    What depends on the references alone is computed once: see `prefixcap.metrics.cache`.

    None if no image has two references. Raises InputError as `score_captions` does.
    """
    check_metrics(metrics)
    _check_references(references)
    compared = {image: texts for image, texts in references.items() if len(texts) > 1}
    tokenized = tokenized_references(list(compared.values()))
    folds = []
    for i in range(max(map(len, tokenized), default=0)):
        of_fold = [(image, texts) for image, texts in zip(compared, tokenized, strict=True) if len(texts) > i]
        folds.append(
            _Fold(
                [image for image, _ in of_fold],
                [texts[i] for _, texts in of_fold],
                ReferenceTexts([*texts[:i], *texts[i + 1 :]] for _, texts in of_fold),
            )
        )
    if not folds:
        return None

    def statistics_of_folds(scorer: Scorer) -> list[Statistics]:
        def make() -> dict[str, Statistics]:
            return {f"fold{i}": array for i, array in enumerate(_statistics(scorer, folds))}

        few = sum(map(len, tokenized)) < WORTH_A_FILE
        return list((make() if few else cached(f"humans-{scorer.name}", tokenized, make)).values())

    return _scores(folds, *_run(metrics, statistics_of_folds))


def cider_tells_nothing(references: References) -> bool:
    """Whether CIDEr against these references is 0 whatever the captions are, see `prefixcap.metrics.cider`."""
    return tells_nothing(tokenized_references(list(references.values())).grams, len(references))


def cider(captions: Captions, references: References) -> float:
    """CIDEr of the corpus, for validation while training. Needs no Java; raises as `score_captions` does.

    The weights of the words come from the references given here, so numbers from a part of a data set
    compare with each other, not with those of the whole.
    """
    return score_captions(captions, references, ["CIDEr"]).corpus["CIDEr"]


# ---- scoring -----------------------------------------------------------------------------------------


class _Fold(NamedTuple):
    """Images with a tokenized caption and tokenized references each."""

    images: list[ImageId]
    captions: list[str]
    references: ReferenceTexts


def _tokenized(captions: Captions, references: References) -> _Fold:
    tokenized = dict(zip(captions, tokenize_corpus(captions.values()), strict=True))
    texts = tokenized_references(list(references.values()))
    return _Fold(list(references), [tokenized[image] for image in references], texts)


def _run(
    metrics: Sequence[str], statistics: Callable[[Scorer], list[Statistics]]
) -> tuple[dict[str, list[Statistics]], dict[str, str]]:
    """The statistics of each metric, and why there are none. Python computes while Java programs run."""
    found, missing = {}, {}
    programs = JavaPrograms()
    with ThreadPoolExecutor(len(_IN_JAVA), initializer=programs.adopt) as threads, programs:
        started = {metric: threads.submit(statistics, SCORERS[metric]) for metric in metrics if metric in _IN_JAVA}
        ready = {metric: statistics(SCORERS[metric]) for metric in metrics if metric not in _IN_JAVA}
        for metric in metrics:
            try:
                found[metric] = started[metric].result() if metric in started else ready[metric]
            except MetricUnavailable as reason:
                missing[metric] = str(reason)
    return found, missing


def _statistics(scorer: Scorer, folds: Sequence[_Fold]) -> list[Statistics]:
    """(images, k) for each fold."""
    if scorer.name not in _IN_JAVA:
        return [scorer.statistics(fold.captions, fold.references) for fold in folds]
    captions = list(chain.from_iterable(fold.captions for fold in folds))
    references = list(chain.from_iterable(fold.references for fold in folds))
    return np.split(scorer.statistics(captions, references), np.cumsum([len(fold.images) for fold in folds])[:-1])


def _scores_of_corpus(fold: _Fold, statistics: dict[str, list[Statistics]], missing: dict[str, str]) -> Scores:
    empty = tuple(image for image, caption in zip(fold.images, fold.captions, strict=True) if not caption)
    of_metrics = {metric: array for metric, (array,) in statistics.items()}
    scores = _scores([fold], statistics, missing)
    return replace(scores, empty=empty, notes=tuple(_notes(fold, statistics)), statistics=of_metrics)


def _notes(fold: _Fold, metrics: Collection[str]) -> Iterator[str]:
    """Why some scores of a corpus say less than they seem to."""
    count = len(fold.images)
    if bare := [repr(image) for image, texts in zip(fold.images, fold.references, strict=True) if not any(texts)]:
        yield f"references have no word: {listed('image', bare)}"
    if "CIDEr" in metrics and tells_nothing(fold.references.grams, count):
        yield (
            f"CIDEr is 0 whatever the captions say: no word of the references is rarer than another in "
            f"{'one image' if count == 1 else f'these {count:,} images'}, and it weighs words by that"
        )
    elif "CIDEr" in metrics and count < _FEW:
        yield f"CIDEr weighs words by the references of these {count} images: it compares with no score of others"
    if any(map(has_unspaced, chain(fold.captions, chain.from_iterable(fold.references)))):
        english = [metric for metric in ("METEOR", "SPICE") if metric in metrics]
        limit = f"; {' and '.join(english)} know{'s' * (len(english) == 1)} English only" if english else ""
        yield f"scripts without spaces are scored character by character, not word by word{limit}"


def over_folds(score: Score) -> Score:
    """The mean of the scores of folds, weighted by their numbers of images.

    Returns:
        A function from (..., folds, k + 1) sums over images to (..., scores). The last of the k + 1 columns is how many
        images the fold has.
    """

    def mean_of_folds(totals: Statistics) -> Statistics:
        sizes = totals[..., -1:]
        with np.errstate(invalid="ignore"):  # a sample of the bootstrap may have no image of a small fold
            of_folds = np.where(sizes > 0, score(totals[..., :-1]), 0)
        mean: Statistics = (of_folds * sizes).sum(axis=-2) / sizes.sum(axis=-2)
        return mean

    return mean_of_folds


def _scores(folds: Sequence[_Fold], statistics: dict[str, list[Statistics]], missing: dict[str, str]) -> Scores:
    """Means over folds; the first has all images."""
    scores = Scores(missing=dict(missing))
    images = folds[0].images
    numbers = {image: number for number, image in enumerate(images)}
    rows = [np.array([numbers[image] for image in fold.images]) for fold in folds]
    of_captions = np.concatenate(rows)
    for metric, of_folds in statistics.items():
        scorer = SCORERS[metric]
        of_images = np.zeros((len(images), len(folds), of_folds[0].shape[1] + 1))
        for fold, (own, array) in enumerate(zip(rows, of_folds, strict=True)):
            of_images[own, fold] = np.insert(array, array.shape[1], 1, axis=1)
        scores.statistics[metric] = of_images
        corpus = over_folds(scorer.score)(of_images.sum(axis=0))
        per_caption = np.concatenate([scorer.score(array) for array in of_folds])
        for name, score, column in zip(scorer.scores, corpus, per_caption.T, strict=True):
            scores.corpus[name] = float(score)
            per_image = np.bincount(of_captions, column) / np.bincount(of_captions)
            scores.per_image[name] = dict(zip(images, per_image.tolist(), strict=True))
    return scores


# ---- checks ------------------------------------------------------------------------------------------


def check_metrics(metrics: Sequence[str], others: Sequence[str] = ()) -> None:
    """Refuse names of metrics that are neither in `SCORERS` nor among `others`."""
    known = (*SCORERS, *others)
    if unknown := [metric for metric in metrics if metric not in known]:
        raise InputError(f"unknown metric {', '.join(map(repr, unknown))}: choose from {', '.join(known)}")


def _check_captions(captions: Captions, references: References) -> None:
    _check_references(references)
    if not references and not captions:
        raise InputError("there are no captions to score")
    _check_kind_of_ids(captions, references)
    _refuse(
        [i for i in captions if i not in references],
        "images with a caption but no references",
        "leave these captions out",
    )
    _refuse([i for i in references if i not in captions], "images with references but no caption", "caption these, too")
    _refuse(
        [i for i, text in captions.items() if not isinstance(text, str)],
        "captions that are no strings",
        "give one each",
    )


def _check_kind_of_ids(captions: Captions, references: References) -> None:
    """Tell 1 from "1", which look alike in a list of ids."""
    alike = {str(image): image for image in references}
    for image in captions:
        if image not in references and str(image) in alike:
            raise InputError(
                f"the captions have an image {image!r}, the references an image {alike[str(image)]!r}: write ids as "
                "numbers in both or as texts in both"
            )


def _check_references(references: References) -> None:
    _refuse(
        [i for i, texts in references.items() if isinstance(texts, str)],
        "images with a string where a list of references belongs",
        "put it into a list",
    )
    _refuse(
        [i for i, texts in references.items() if not texts], "images with an empty list of references", "leave them out"
    )
    _refuse(
        [i for i, texts in references.items() if not all(isinstance(text, str) for text in texts)],
        "images with a reference that is no string",
        "mend these references",
    )


def _refuse(images: Sequence[ImageId], problem: str, remedy: str) -> None:
    if images:
        named = ", ".join(map(repr, images[:5])) + (", ..." if len(images) > 5 else "")
        raise InputError(f"{problem} ({len(images)}): {named}; {remedy}")
