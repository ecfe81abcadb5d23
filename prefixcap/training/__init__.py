"""Training: what is minimized, the Lightning module, and what keeps a run safe, averages weights or shards them."""

from typing import TYPE_CHECKING

from prefixcap import renamed
from prefixcap.utils.deferred import deferred_attributes

if TYPE_CHECKING:
    from prefixcap.training.module import CaptionTraining, trainable_parameters
    from prefixcap.training.objectives import OBJECTIVES, Objective

__all__ = ["OBJECTIVES", "CaptionTraining", "Objective", "trainable_parameters"]

_modules = {"CaptionTraining": "module", "trainable_parameters": "module"}
__getattr__ = deferred_attributes(__name__, _modules | dict.fromkeys(("OBJECTIVES", "Objective"), "objectives"))


def linear_warmup_and_decay(step: int, warmup: int, total: int) -> float:
    """The factor of the learning rate at a step."""
    renamed.warn("prefixcap.training.linear_warmup_and_decay", "prefixcap.training.optimizer.linear_schedule")
    return step / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))
