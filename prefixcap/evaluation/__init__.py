"""Scores of a captioner's captions, or of captions made elsewhere: tables, files, a page; which of two is better."""

from prefixcap.evaluation.evaluation import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
