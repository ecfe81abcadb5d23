"""The dictionary of metrics by name, and what is checked before any of them is computed."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from prefixcap.errors import InputError
from prefixcap.metrics.bleu import Bleu
from prefixcap.metrics.chair import Chair
from prefixcap.metrics.cider import Cider
from prefixcap.metrics.entities import EntityMentions
from prefixcap.metrics.meteor import Meteor
from prefixcap.metrics.metric import Metric, Statistics
from prefixcap.metrics.rouge import RougeL
from prefixcap.metrics.set_diversity import MutualBleu, SetDiversity
from prefixcap.metrics.spice import Spice
from prefixcap.metrics.spider import Spider
from prefixcap.metrics.torch_based import (
    BertScore,
    CaptionDiversity,
    CaptionPerplexity,
    ClipScore,
    PacScore,
    RefClipScore,
    SentenceSimilarity,
)

METRICS: dict[str, Metric] = {
    "BLEU": Bleu(),
    "METEOR": Meteor(),
    "ROUGE-L": RougeL(),
    "CIDEr": Cider(),
    "SPICE": Spice(),
    "SPIDEr": Spider(),
    "CHAIR": Chair(),
    "entities": EntityMentions(),
    "CLIPScore": ClipScore(),
    "RefCLIPScore": RefClipScore(),
    "PAC-S": PacScore(),
    "RefPAC-S": PacScore(with_references=True),
    "diversity": CaptionDiversity(),
    "perplexity": CaptionPerplexity(),
    "set-diversity": SetDiversity(),
    "mBLEU-4": MutualBleu(),
    "BERTScore": BertScore(),
    "BERTScore-idf": BertScore(idf=True),
    "sentence-similarity": SentenceSimilarity(),
}
"""All metrics: what `metrics=[...]` and `evaluate` know."""

REFERENCE_METRICS = tuple(name for name, metric in METRICS.items() if not metric.needs and not metric.combines)
"""Those that need nothing but captions and references, and do not combine others."""

REMEDIES = {
    "embeddings": "the images' embeddings: give embeddings=",
    "encoder": "the encoder that made the images' embeddings: give encoder=",
    "language_model": "a language model: give language_model=",
    "candidates": "several captions of each image: give candidates=",
    "text_encoder": "an encoder of texts: give text_encoder=",
    "vocabulary": "the names to look for: give vocabulary=",
}
"""What a metric may need besides captions and references, and how to give it in Python."""


def check_metrics(
    metrics: Sequence[str], given: Collection[str] = tuple(REMEDIES), remedies: Mapping[str, str] = REMEDIES
) -> None:
    """Refuse names that are not in `METRICS`, and metrics that need what is not given.

    Args:
        metrics: names of metrics.
        given: the fields of `MetricInputs` that are at hand.
        remedies: for each field that a metric cannot do without, what it is and how to give it.

    Raises:
        InputError: names the metrics, and what to do.
    """
    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise InputError(f"unknown metric {', '.join(map(repr, unknown))}: choose from {', '.join(METRICS)}")
    for name, metric in select_metrics(metrics).items():
        if missing := [need for need in metric.needs if need in remedies and need not in given]:
            raise InputError(f"{name} needs {remedies[missing[0]]}")


def select_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """The named metrics and those that they bring: first those of captions and references, in the order of the names.

    The others follow in the order of `METRICS`.
    """
    chosen = {name: _metric(name) for name in names}
    chosen |= {name: _metric(name) for metric in list(chosen.values()) for name in metric.brings}
    first = {name: metric for name, metric in chosen.items() if not metric.needs}
    return first | {name: chosen[name] for name in METRICS if name in chosen}


def needed_inputs(names: Iterable[str]) -> set[str]:
    """The fields of `MetricInputs` that the named metrics ask for."""
    return {need for metric in select_metrics(names).values() for need in metric.needs}


def lower_is_better(scores: Iterable[str]) -> list[str]:
    """Of the names of scores those of which less is better.

    Examples:
        >>> lower_is_better(["CIDEr", "CHAIRi"])
        ['CHAIRi']
    """
    lower = {name for metric in METRICS for name in _metric(metric).scores if not _metric(metric).higher_is_better}
    return [name for name in scores if name in lower]


class _Scorer(Metric):
    """A scorer written before `Metric` was there: any object with name, scores, statistics and score."""

    def __init__(self, scorer: Metric) -> None:
        self.name, self.scores = scorer.name, scorer.scores
        self.statistics, self._score = scorer.statistics, scorer.score

    def score(self, totals: Statistics) -> Statistics:
        return self._score(totals)


def _metric(name: str) -> Metric:
    metric = METRICS[name]
    return metric if isinstance(metric, Metric) else _Scorer(metric)
