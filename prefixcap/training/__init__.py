"""Training: what is minimized, the Lightning module, and what keeps a run safe, averages weights or shards them."""

from prefixcap import renamed
from prefixcap.training.module import CaptionTraining, trainable_parameters
from prefixcap.training.objectives import OBJECTIVES, Objective

__all__ = ["OBJECTIVES", "CaptionTraining", "Objective", "trainable_parameters"]


def linear_warmup_and_decay(step: int, warmup: int, total: int) -> float:
    """The factor of the learning rate at a step, as `transformers.get_linear_schedule_with_warmup` has it."""
    renamed.warn("prefixcap.training.linear_warmup_and_decay", "transformers.get_linear_schedule_with_warmup")
    return step / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))
