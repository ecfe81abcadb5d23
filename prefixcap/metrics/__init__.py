"""Caption metrics: BLEU-1 to 4, METEOR, ROUGE-L, CIDEr and SPICE as the COCO caption tools compute them."""

from prefixcap.metrics.captions import (
    METRICS,
    SCORERS,
    Scores,
    cider,
    score_captions,
    score_humans,
    score_parts,
)

__all__ = ["METRICS", "SCORERS", "Scores", "cider", "score_captions", "score_humans", "score_parts"]
