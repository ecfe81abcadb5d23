"""Caption metrics: BLEU-1 to 4, METEOR, ROUGE-L, CIDEr and SPICE as the COCO caption tools compute them."""

from prefixcap.metrics.captions import (
    SCORERS,
    ImageId,
    Scores,
    check_metrics,
    cider,
    cider_tells_nothing,
    over_folds,
    score_captions,
    score_humans,
    score_parts,
)

__all__ = [
    "SCORERS",
    "ImageId",
    "Scores",
    "check_metrics",
    "cider",
    "cider_tells_nothing",
    "over_folds",
    "score_captions",
    "score_humans",
    "score_parts",
]
