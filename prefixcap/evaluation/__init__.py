"""Scores of a captioner's captions, or of captions made elsewhere: tables, files, a page; which of two is better."""

from prefixcap.evaluation.evaluation import OTHER_METRICS, Evaluation, evaluate

__all__ = ["OTHER_METRICS", "Evaluation", "evaluate"]
