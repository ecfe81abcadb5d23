"""Training: with cross-entropy, or for a score; and what keeps a run safe, averages weights, shares it out."""

from prefixcap.training.cross_entropy import CaptionTraining, linear_warmup_and_decay, trainable_parameters

__all__ = ["CaptionTraining", "linear_warmup_and_decay", "trainable_parameters"]
