"""No NaN in the weights: steps whose loss or gradient is no finite number are left out, and told."""

import warnings
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from prefixcap.data import CaptionData
from prefixcap.errors import InputError, listed
from prefixcap.packing import Batch
from prefixcap.training.async_values import Arriving
from prefixcap.training.distributed import all_reduce_max, local_shard

MOST_SKIPPED = 100  # steps in a row without a finite loss, after which there is nothing left to hope for


@dataclass
class _Step:
    """A step of the optimizer.

    Attributes:
        number: counted from 1.
        captions: rows of its captions in the training split; of several processes, those of this one.
        images: rows of their images.
        found: (2,) 1 where what was found is no finite number: the loss in this process; a loss or a gradient in any.
    """

    number: int
    captions: list[int]
    images: list[int]
    found: Arriving


class FiniteLoss(Callback):
    """Keeps a loss or a gradient that is NaN or infinite from the weights: the optimizer leaves out such a step.

    The optimizer must be one that leaves out a step where its `found_inf` is 1, as AdamW with `fused=True`. Nothing
    waits for a GPU: the loss is looked at a step later, or before a checkpoint is written. Gradients that overflow in
    training with precision=16-mixed are left to its scaler.

    Args:
        choice: "stop" stops training, "skip" warns and goes on, unless it happens `MOST_SKIPPED` times in a row.

    Raises:
        InputError: training stops, and the step, its captions and their images are named; or there is no such choice.
    """

    def __init__(self, choice: str = "stop") -> None:
        if choice not in ("stop", "skip"):
            raise InputError(f"nonfinite_loss is stop or skip, not {choice!r}")
        self.skip = choice == "skip"
        self._skipped = 0
        self._captions: list[int] = []
        self._images: list[int] = []
        self._bad: Tensor | None = None
        self._waiting: _Step | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.skip and isinstance(trainer.strategy, DeepSpeedStrategy):
            raise InputError("DeepSpeed's optimizer cannot leave out a step: set nonfinite_loss=stop")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._captions += batch.caption_rows
        self._images += batch.image_rows

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        bad = ~loss.detach().isfinite()
        self._bad = bad if self._bad is None else self._bad | bad

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        assert self._bad is not None
        loss_bad, found = self._bad.float(), self._bad.float()
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            weights = (weight for group in optimizer.param_groups for weight in group["params"])
            norm = get_total_norm([local_shard(weight.grad) for weight in weights if weight.grad is not None])
            found = torch.maximum(found, (~norm.isfinite()).to(found))
        found = all_reduce_max(found)  # all processes leave out the same steps
        optimizer.found_inf = found  # type: ignore[attr-defined]
        self._look(trainer)
        arriving = Arriving(torch.stack((loss_bad, found)))
        self._waiting = _Step(trainer.global_step + 1, self._captions, self._images, arriving)
        self._captions, self._images, self._bad = [], [], None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._look(trainer)

    def _look(self, trainer: L.Trainer) -> None:
        """Stop or warn if the step that waits was left out."""
        step, self._waiting = self._waiting, None
        if step is None:
            return
        loss_bad, found = step.found.get()
        self._skipped = self._skipped + 1 if found else 0
        if not found:
            return
        what = "the loss" if loss_bad else "the gradient" if trainer.world_size == 1 else "the loss of another process"
        culprits = _culprits(step, trainer.datamodule)  # type: ignore[attr-defined]
        problem = f"{what} is NaN or infinite in step {step.number}: {culprits}"
        if not self.skip:
            raise InputError(
                f"{problem}. Repair them, lower optimizer.learning_rate, or leave such steps out with "
                "nonfinite_loss=skip; the weights in checkpoints are finite"
            )
        if self._skipped == MOST_SKIPPED:
            raise InputError(
                f"{problem}: the last of {MOST_SKIPPED} such steps in a row. Go on from a checkpoint with a lower "
                "optimizer.learning_rate"
            )
        warnings.warn(f"{problem}; the step is left out", stacklevel=2)


def _culprits(step: _Step, data: CaptionData) -> str:
    """The captions of a step, and the images whose features are no finite numbers, or else all of its images."""
    split, images = data.train_split, np.unique(step.images)
    features = split.feature(data.features)[images].astype(np.float32).reshape(len(images), -1)
    bad = images[~np.isfinite(features).all(axis=1)]
    ids = [repr(split.ids[image]) for image in (bad if len(bad) else images)]
    named = f"captions {', '.join(map(str, sorted(step.captions)))} of split '{split.name}'"
    return (
        f"{named}; the embedding of {listed('image', ids)} is, too" if len(bad) else f"{named}, {listed('image', ids)}"
    )
