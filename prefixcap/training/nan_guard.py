"""No NaN in the weights: steps whose loss or gradient is NaN or infinite are left out, and reported."""

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
from prefixcap.training.distributed import all_reduce_max, local_shard
from prefixcap.utils.async_values import AsyncValue

MOST_SKIPPED = 100  # steps in a row after which training stops


@dataclass
class _Step:
    """A step of the optimizer.

    Attributes:
        number: counted from 1.
        captions: rows of this process's captions in the training split.
        images: rows of their images.
        nonfinite: (2,) 1.0 if NaN or infinite: the loss of this process; a loss or a gradient of any process.
    """

    number: int
    captions: list[int]
    images: list[int]
    nonfinite: AsyncValue


class FiniteLoss(Callback):
    """Leaves out each step of the optimizer whose loss or gradient is NaN or infinite, and says which captions it had.

    The optimizer must skip a step if its `found_inf` is 1, as AdamW does with `fused=True`. Nothing waits for a GPU:
    the loss is read one step later, or before a checkpoint is written. With precision=16-mixed, gradients that overflow
    are left to the gradient scaler.

    Args:
        nonfinite_loss: "stop" stops training; "skip" warns and continues, until there are `MOST_SKIPPED` such steps in
            a row.

    Raises:
        InputError: training stops (the step, its captions and their images are named); or there is no such choice.
    """

    def __init__(self, nonfinite_loss: str = "stop") -> None:
        if nonfinite_loss not in ("stop", "skip"):
            raise InputError(f"nonfinite_loss must be stop or skip, not {nonfinite_loss!r}")
        self.skip = nonfinite_loss == "skip"
        self._skipped = 0
        self._captions: list[int] = []
        self._images: list[int] = []
        self._loss: Tensor | None = None  # the sum over the batches of the step
        self._pending: _Step | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.skip and isinstance(trainer.strategy, DeepSpeedStrategy):
            raise InputError("DeepSpeed's optimizer cannot leave out a step: set nonfinite_loss=stop")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._captions += batch.caption_rows
        self._images += batch.image_rows

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        assert self._loss is not None
        norm = torch.zeros_like(self._loss)
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            weights = (weight for group in optimizer.param_groups for weight in group["params"])
            norm = get_total_norm([local_shard(weight.grad) for weight in weights if weight.grad is not None])
        loss_nonfinite, step_nonfinite = nonfinite(self._loss, norm)
        step_nonfinite = all_reduce_max(step_nonfinite)  # all processes leave out the same steps
        optimizer.found_inf = step_nonfinite  # type: ignore[attr-defined]
        self._loss = None
        self.watch(trainer, torch.stack((loss_nonfinite, step_nonfinite)))

    def watch(self, trainer: L.Trainer, nonfinite: Tensor) -> None:
        """Report on the step before this one, and keep (2,) of `nonfinite` to report on this one later."""
        self._report(trainer)
        self._pending = _Step(trainer.global_step + 1, self._captions, self._images, AsyncValue(nonfinite))
        self._captions, self._images = [], []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._report(trainer)

    def _report(self, trainer: L.Trainer) -> None:
        """Stop or warn if the last step was left out."""
        step, self._pending = self._pending, None
        if step is None:
            return
        loss_nonfinite, step_nonfinite = step.nonfinite.get()
        self._skipped = self._skipped + 1 if step_nonfinite else 0
        if not step_nonfinite:
            return
        other = "the gradient" if trainer.world_size == 1 else "the loss of another process"
        captions = _describe_captions(step, trainer.datamodule)  # type: ignore[attr-defined]
        problem = f"{'the loss' if loss_nonfinite else other} is NaN or infinite in step {step.number}: {captions}"
        if not self.skip:
            raise InputError(
                f"{problem}. Repair them, lower learning_rate, or leave such steps out with "
                "nonfinite_loss=skip; the weights in checkpoints are finite"
            )
        if self._skipped == MOST_SKIPPED:
            raise InputError(
                f"{problem}: the last of {MOST_SKIPPED} such steps in a row. Continue from a checkpoint with a lower "
                "learning_rate"
            )
        warnings.warn(f"{problem}; the step is left out", stacklevel=2)


def nonfinite(loss: Tensor, norm: Tensor) -> Tensor:
    """What is NaN or infinite in a step, without waiting for a GPU.

    Args:
        loss: () of the step.
        norm: () of its gradient.

    Returns:
        (2,) float32, 1.0 if NaN or infinite: the loss; the loss or the gradient.

    Examples:
        >>> nonfinite(torch.tensor(2.0), torch.tensor(torch.inf))
        tensor([0., 1.])
    """
    return (~torch.stack((loss, loss + norm)).isfinite()).float()


def _describe_captions(step: _Step, data: CaptionData) -> str:
    """The captions of a step, and the images whose features are NaN or infinite, or else all of its images."""
    split, images = data.train_split, np.unique(step.images)
    features = split.feature(data.features)[images].astype(np.float32).reshape(len(images), -1)
    nonfinite = images[~np.isfinite(features).all(axis=1)]
    ids = [repr(split.ids[image]) for image in (nonfinite if len(nonfinite) else images)]
    named = f"captions {', '.join(map(str, sorted(step.captions)))} of split '{split.name}'"
    return (
        f"{named}; the embedding of {listed('image', ids)} is, too"
        if len(nonfinite)
        else f"{named}, {listed('image', ids)}"
    )
