"""What every entry of `prefixcap.metrics.METRICS` is, and the types that metrics share.

Shapes: n images; k statistics of an image; s scores of a metric; f folds; d the width of an embedding.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefixcap import renamed

if TYPE_CHECKING:
    from torch import Tensor

    from prefixcap.encoders import Encoder
    from prefixcap.language import LanguageModel
    from prefixcap.metrics.text_encoder import TextEncoder
    from prefixcap.vocabulary import Vocabulary

ImageId: TypeAlias = int | str
# `Any` stands for ImageId: the key type of a Mapping is invariant, so a dict[str, str] is no Mapping[int | str, str].
Captions: TypeAlias = Mapping[Any, str]
"""One caption for each image."""
References: TypeAlias = Mapping[Any, Sequence[str]]
"""The human captions of each image, one or more."""
ObjectsOfImages: TypeAlias = Sequence[Collection[str] | None]
"""COCO's categories of the objects in each image; None where they are not known."""
Statistics: TypeAlias = NDArray[np.float64]
Score: TypeAlias = Callable[[Statistics], Statistics]
"""From (..., k) sums of statistics over images to (..., s) scores."""


class MetricUnavailable(Exception):
    """A metric cannot be computed on this machine; the message says why, and what to do about it, in one line."""


@dataclass(frozen=True)
class MetricInputs:
    """What metrics can ask for, by the names of these fields, besides captions and references.

    Attributes:
        embeddings: (n, d) of the images, in the order of the references.
        encoder: the one that made `embeddings`; it embeds texts, too.
        language_model: for metrics that score captions under a language model.
        training_captions: what the captioner was trained on; metrics have to work without them (None), too.
        objects: (n) COCO's categories of the objects in each image, in the order of the references, or None where they
            are not known; metrics have to work without them (None), too.
        candidates: (n) captions of each image, two or more, in the order of the references: for the diversity of sets.
        text_encoder: for metrics that compare the meanings of texts, see `prefixcap.metrics.text_encoder`.
        vocabulary: of the entities that are counted in captions and references.
        tokenizer: which of `prefixcap.metrics.tokenizers.TOKENIZERS` splits captions and references into words.
        shared: what metrics of the same images compute once and use together, by a name of their own.
    """

    embeddings: "Tensor | None" = None
    encoder: "Encoder | None" = None
    language_model: "LanguageModel | None" = None
    training_captions: Sequence[str] | None = None
    objects: ObjectsOfImages | None = None
    candidates: Sequence[Sequence[str]] | None = None
    text_encoder: "TextEncoder | None" = None
    vocabulary: "Vocabulary | None" = None
    tokenizer: str = "ptb"
    shared: dict[str, Any] = field(default_factory=dict)

    def select(self, rows: Sequence[int]) -> "MetricInputs":
        """The inputs for some of the images, given by their rows; nothing is shared yet."""
        embeddings = None if self.embeddings is None else self.embeddings[list(rows)]
        objects = None if self.objects is None else [self.objects[row] for row in rows]
        candidates = None if self.candidates is None else [self.candidates[row] for row in rows]
        return replace(self, embeddings=embeddings, objects=objects, candidates=candidates, shared={})

    def needed_by(self, metric: "Metric") -> dict[str, Any]:
        """The keyword arguments of a metric's `statistics` or `figures`."""
        return {need: getattr(self, need) for need in metric.needs}


NO_INPUTS = MetricInputs()


class Metric:
    """A metric of captions: subclass it, and add an instance to `METRICS` under its name.

    A metric has `scores` and `statistics`, or, where no image has a score by itself, `figures`. The sum of the
    statistics of images determines the scores of these images, so that the scores of a corpus, of one image, of a
    domain and of a bootstrap sample all come from one array. The table, the intervals, the human row, the report,
    `per_image.csv` and `compare` follow from it. Figures that sums determine are given as statistics, too: they get
    intervals and are compared; others, such as the number of different words, are only shown.

    Attributes:
        name: what `metrics=[...]` calls it.
        scores: the names of its scores, e.g. BLEU-1 to BLEU-4. Empty: `figures` is called instead of `statistics`.
        needs: fields of `MetricInputs`. `statistics` and `figures` get them as keyword arguments. People are scored
            by the metrics that need nothing but captions, references, `objects` and `vocabulary`.
        tokenized: True: texts come as the tokenizer of the COCO caption tools leaves them, in lower case, without
            punctuation, words separated by spaces, or as another does that `MetricInputs.tokenizer` names. False: as
            they were written.
        brings: metrics that are computed with this one, without being asked for.
        values_of_images: the figures that are given as statistics have a value for each image, which is shown.
        combines: metrics from whose statistics those of this one come, instead of from captions; it brings them, and
            is missing where one of them is. `combine` is called instead of `statistics`.
        uses_all_images: the statistics of an image depend on which other images are scored with it, as CIDEr's do.
        runs_java: the metric waits for a Java program: the others are computed meanwhile.
        english_only: a note says so where captions or references are in a script without spaces.
        higher_is_better: False: less is better; a note says so, there is no ratio to people's score, and the best
            images of the page are those of the lowest scores.
        statistics: called with n captions and the references of each of the n images; returns (n, k), float64. Raises
            MetricUnavailable if the metric cannot be computed on this machine.
        figures: called likewise; returns figures of all captions together, by name: the number, or (n, k) statistics,
            of whose sum `score` gives the number as the only score.
        combine: called with the (n, k) statistics of each of the metrics that `combines` names; returns (n, k).

    Examples:
        >>> class Words(Metric):
        ...     name, scores = "words", ("words",)
        ...     def statistics(self, captions, references):
        ...         return mean_of([len(caption.split()) for caption in captions])
        >>> statistics = Words().statistics(["a dog", "a cat sleeps"], [["the dog"], ["one cat"]])
        >>> statistics
        array([[2., 1.],
               [3., 1.]])
        >>> Words().score(statistics.sum(axis=0))
        array([2.5])
    """

    name: str
    scores: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    tokenized: bool = True
    brings: tuple[str, ...] = ()
    values_of_images: bool = False
    combines: tuple[str, ...] = ()
    uses_all_images: bool = False
    runs_java: bool = False
    english_only: bool = False
    higher_is_better: bool = True
    statistics: Callable[..., Statistics]
    figures: Callable[..., Mapping[str, float | Statistics]]
    combine: Callable[..., Statistics]

    def score(self, totals: Statistics) -> Statistics:
        """(..., k) sums of statistics over images -> (..., s). Of this class: the mean over images, see `mean_of`."""
        return mean(totals)

    def notes(self, inputs: MetricInputs) -> Iterable[str]:
        """What limits the meaning of scores that are computed with these inputs, one line each. Here: nothing."""
        return ()


def figure_values(metric: Metric, figures: Mapping[str, float | Statistics]) -> dict[str, float]:
    """The numbers of what a metric's `figures` returned."""
    return {
        name: float(metric.score(value.sum(axis=0))[0]) if isinstance(value, np.ndarray) else float(value)
        for name, value in figures.items()
    }


def figure_name(metric: str, figure: str) -> str:
    """What tables beside those of other metrics call a metric's figure."""
    return f"{metric} {figure}"


def figure_statistics(figures: Mapping[str, float | Statistics]) -> dict[str, Statistics]:
    """Of what a metric's `figures` returned, the (n, k) statistics of those that sums determine."""
    return {name: value for name, value in figures.items() if isinstance(value, np.ndarray)}


def add_combined(
    metrics: Mapping[str, Metric], statistics: dict[str, list[Statistics]], missing: dict[str, str]
) -> None:
    """Add those metrics that combine others: their statistics, fold by fold, or why they are missing.

    Args:
        metrics: all that are computed, by name.
        statistics: (n, k) of each fold, of those metrics that were computed.
        missing: why others were not.
    """
    for name, metric in metrics.items():
        if metric.combines:
            if reasons := [missing[part] for part in metric.combines if part in missing]:
                missing[name] = reasons[0]
            else:
                folds = zip(*(statistics[part] for part in metric.combines), strict=True)
                statistics[name] = [metric.combine(*parts) for parts in folds]


def mean_of(values: Sequence[float] | Statistics) -> Statistics:
    """(n,) values of images -> (n, 2) statistics of their mean."""
    column = np.asarray(values, np.float64)
    return np.stack((column, np.ones_like(column)), axis=-1)


def mean(totals: Statistics) -> Statistics:
    """(..., 2) sums of `mean_of` -> (..., 1) means."""
    return totals[..., :1] / totals[..., 1:]


def over_folds(score: Score) -> Score:
    """The mean of the scores of folds, weighted by their numbers of images.

    Args:
        score: a metric's, from (..., k) to (..., s).

    Returns:
        A function from (..., f, k + 1) sums over images to (..., s). The last of the k + 1 columns is how many
        images the fold has.
    """

    def fold_mean(totals: Statistics) -> Statistics:
        sizes = totals[..., -1:]
        with np.errstate(invalid="ignore"):  # a sample of the bootstrap may have no image of a small fold
            scores = np.where(sizes > 0, score(totals[..., :-1]), 0)
        weighted: Statistics = (scores * sizes).sum(axis=-2) / sizes.sum(axis=-2)
        return weighted

    return fold_mean


__getattr__ = renamed.attributes(__name__)
