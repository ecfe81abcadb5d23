"""Caption metrics: BLEU-1 to 4, METEOR, ROUGE-L and CIDEr as the COCO caption tools compute them."""

from prefixcap.metrics.captions import METRICS, Scores, cider, score_captions, score_humans

__all__ = ["METRICS", "Scores", "cider", "score_captions", "score_humans"]
