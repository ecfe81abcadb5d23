"""Scores of captions against the captions that people wrote for the same images.

The numbers are those of the COCO caption tools: captions go through the same tokenizer
(`prefixcap.metrics.ptb`) and the same scorers (pycocoevalcap). BLEU (Papineni et al., 2002), METEOR
(Denkowski and Lavie, 2014) and ROUGE-L (Lin, 2004) lie between 0 and 1. CIDEr (the CIDEr-D of Vedantam et
al., 2015) has no upper bound. Papers usually print all of them times 100.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from prefixcap.errors import InputError
from prefixcap.metrics.ptb import tokenize

ImageId: TypeAlias = int | str
# `Any` stands for ImageId: the key type of a Mapping is invariant, so that a dict[str, str] is no
# Mapping[int | str, str].
Captions: TypeAlias = Mapping[Any, str]
References: TypeAlias = Mapping[Any, Sequence[str]]

METRICS = ("BLEU", "METEOR", "ROUGE-L", "CIDEr")

_SCORE_NAMES = {
    "BLEU": ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"),
    "METEOR": ("METEOR",),
    "ROUGE-L": ("ROUGE-L",),
    "CIDEr": ("CIDEr",),
}


@dataclass(frozen=True)
class Scores:
    """Scores by name: BLEU-1, BLEU-2, BLEU-3, BLEU-4, METEOR, ROUGE-L and CIDEr, as far as asked for.

    ROUGE-L and CIDEr of a corpus are the means over its images. BLEU and METEOR are not: they pool the
    counts of all images first.
    """

    corpus: dict[str, float] = field(default_factory=dict)
    per_image: dict[str, dict[ImageId, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Metrics that could not be computed: why, and what to do about it, in one line each."""


def score_captions(captions: Captions, references: References, metrics: Sequence[str] = METRICS) -> Scores:
    """Scores one caption per image against the references of that image.

    METEOR is a Java program. Without Java it goes into `missing`, and the other metrics are computed. An
    empty caption scores 0.

    Raises InputError if an image has a caption or references only, a list of references is empty, a
    caption is no string, there is nothing to score, or a metric is unknown.
    """
    _check_metrics(metrics)
    _check_captions(captions, references)
    return _score([_tokenized(captions, references)], metrics)


def score_humans(references: References, metrics: Sequence[str] = METRICS) -> Scores | None:
    """Scores people as if they were a captioner: each reference against the others of its image.

    Fold i takes the i-th caption of every image that has one, and at least one other. A corpus score is
    the mean over the folds, weighted by their numbers of images, so that every caption counts the same:
    five folds of equal weight where each image has five captions, while the few images that have a sixth
    or seventh hardly count more. The score of an image is the mean over its captions. Note that people are
    compared with one reference less than a captioner is.

    None if no image has two references. Raises InputError as `score_captions` does.
    """
    _check_metrics(metrics)
    _check_references(references)
    tokenized = {image: [tokenize(text) for text in texts] for image, texts in references.items() if len(texts) > 1}
    folds = []
    for i in range(max(map(len, tokenized.values()), default=0)):
        images = {image: texts for image, texts in tokenized.items() if len(texts) > i}
        folds.append(
            _Fold(
                {image: [texts[i]] for image, texts in images.items()},
                {image: texts[:i] + texts[i + 1 :] for image, texts in images.items()},
            )
        )
    return _score(folds, metrics) if folds else None


def cider(captions: Captions, references: References) -> float:
    """CIDEr of the corpus, for validation while training. Needs no Java; raises as `score_captions` does.

    The weights of the words come from the references given here, so numbers from a part of a data set
    compare with each other, not with those of the whole.
    """
    return score_captions(captions, references, ["CIDEr"]).corpus["CIDEr"]


# ---- scoring -----------------------------------------------------------------------------------------


class _Fold(NamedTuple):
    """Tokenized captions, in the form that pycocoevalcap takes; both have the same images in one order."""

    captions: dict[ImageId, list[str]]  # one caption each
    references: dict[ImageId, list[str]]


class _Result(NamedTuple):
    corpus: float
    per_image: Sequence[float]  # in the order of the fold's images


class _MetricUnavailable(Exception):
    pass


def _tokenized(captions: Captions, references: References) -> _Fold:
    return _Fold(
        {image: [tokenize(captions[image])] for image in references},
        {image: [tokenize(text) for text in texts] for image, texts in references.items()},
    )


def _score(folds: Sequence[_Fold], metrics: Sequence[str]) -> Scores:
    scores = Scores()
    for metric in metrics:
        try:
            results = _run(metric, folds)
        except _MetricUnavailable as reason:
            scores.missing[metric] = str(reason)
            continue
        for index, name in enumerate(_SCORE_NAMES[metric]):
            of_folds = [result[index] for result in results]
            images = sum(len(fold.captions) for fold in folds)
            total = sum(result.corpus * len(fold.captions) for fold, result in zip(folds, of_folds, strict=True))
            scores.corpus[name] = float(total / images)
            of_images: dict[ImageId, list[float]] = {}
            for fold, result in zip(folds, of_folds, strict=True):
                for image, value in zip(fold.captions, result.per_image, strict=True):
                    of_images.setdefault(image, []).append(float(value))
            scores.per_image[name] = {image: sum(values) / len(values) for image, values in of_images.items()}
    return scores


def _run(metric: str, folds: Sequence[_Fold]) -> list[list[_Result]]:
    """For each fold one result per score name of the metric."""
    if metric == "BLEU":
        return [_bleu(fold) for fold in folds]
    if metric == "METEOR":
        return _meteor(folds)
    if metric == "ROUGE-L":
        return [[_rouge_l(fold)] for fold in folds]
    return [[_cider(fold)] for fold in folds]


def _bleu(fold: _Fold) -> list[_Result]:
    from pycocoevalcap.bleu.bleu import Bleu

    corpus, per_image = Bleu(4).compute_score(fold.references, fold.captions, verbose=0)
    return [_Result(*result) for result in zip(corpus, per_image, strict=True)]


def _rouge_l(fold: _Fold) -> _Result:
    from pycocoevalcap.rouge.rouge import Rouge

    return _Result(*Rouge().compute_score(fold.references, fold.captions))


def _cider(fold: _Fold) -> _Result:
    from pycocoevalcap.cider.cider import Cider

    if not any(text for texts in fold.references.values() for text in texts):
        return _Result(0.0, [0.0] * len(fold.captions))  # no document frequencies: the scorer would fail
    return _Result(*Cider().compute_score(fold.references, fold.captions))


def _meteor(folds: Sequence[_Fold]) -> list[list[_Result]]:
    from pycocoevalcap.meteor.meteor import Meteor

    if shutil.which("java") is None:
        raise _MetricUnavailable(
            "METEOR needs Java (any version from 8): install a JRE, e.g. default-jre-headless, and score again"
        )
    scorer = Meteor()  # starts one Java process
    try:
        return [
            [_Result(*scorer.compute_score(_without_bars(fold.references), _without_bars(fold.captions)))]
            for fold in folds
        ]
    except (OSError, ValueError) as error:  # a broken pipe, or no number where the score should be
        raise _MetricUnavailable(
            f"METEOR's Java program failed ({_end(scorer)}): check that `java -version` works, and score again"
        ) from error
    finally:
        _end(scorer)


def _without_bars(texts: dict[ImageId, list[str]]) -> dict[ImageId, list[str]]:
    """Tokens may hold "|||" inside a tag (<!a|||b>), which would separate captions for METEOR."""
    return {image: [text.replace("|||", "") for text in captions] for image, captions in texts.items()}


def _end(scorer: Any) -> str:
    """Ends the Java process, if it has not been, and returns the last line of what it complained about.

    The scorer would end it when it is collected, but waits for its lock there, which it still holds after
    an error.
    """
    if scorer.lock.locked():
        scorer.lock.release()
    process = scorer.meteor_p
    with suppress(OSError):
        process.stdin.close()
    process.kill()
    process.wait()
    lines = [] if process.stderr.closed else process.stderr.read().decode(errors="replace").splitlines()
    process.stdout.close()
    process.stderr.close()
    return lines[-1] if lines else f"exit status {process.returncode}"


# ---- checks ------------------------------------------------------------------------------------------


def _check_metrics(metrics: Sequence[str]) -> None:
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise InputError(f"unknown metric {', '.join(map(repr, unknown))}: choose from {', '.join(METRICS)}")


def _check_captions(captions: Captions, references: References) -> None:
    _check_references(references)
    if not references and not captions:
        raise InputError("there are no captions to score")
    _refuse([i for i in captions if i not in references], "images with a caption but no references")
    _refuse([i for i in references if i not in captions], "images with references but no caption")
    _refuse([i for i, text in captions.items() if not isinstance(text, str)], "captions that are no strings")


def _check_references(references: References) -> None:
    _refuse(
        [i for i, texts in references.items() if isinstance(texts, str)],
        "images with a string where a list of references belongs",
    )
    _refuse([i for i, texts in references.items() if not texts], "images with an empty list of references")
    _refuse(
        [i for i, texts in references.items() if not all(isinstance(text, str) for text in texts)],
        "images with a reference that is no string",
    )


def _refuse(images: Sequence[ImageId], problem: str) -> None:
    if images:
        named = ", ".join(map(repr, images[:5])) + (", ..." if len(images) > 5 else "")
        raise InputError(f"{problem} ({len(images)}): {named}")
