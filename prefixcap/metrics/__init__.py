"""Caption metrics: BLEU, METEOR, ROUGE-L, CIDEr and SPICE as the COCO caption tools compute them, and others.

`METRICS` is the dictionary of all.
"""

from prefixcap import renamed
from prefixcap.metrics.captions import (
    cider,
    cider_tells_nothing,
    score_captions,
    score_humans,
    score_parts,
)
from prefixcap.metrics.compatible import CaptionScorer, compute
from prefixcap.metrics.metric import ImageId, Metric, MetricInputs, MetricUnavailable, mean_of, over_folds
from prefixcap.metrics.registry import METRICS, check_metrics
from prefixcap.metrics.scores import Scores

__all__ = [
    "METRICS",
    "CaptionScorer",
    "ImageId",
    "Metric",
    "MetricInputs",
    "MetricUnavailable",
    "Scores",
    "check_metrics",
    "cider",
    "cider_tells_nothing",
    "compute",
    "mean_of",
    "over_folds",
    "score_captions",
    "score_humans",
    "score_parts",
]

__getattr__ = renamed.attributes(__name__)
