"""Metrics of training steps, for the loggers and the progress bar, without waiting for a GPU."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from prefixcap.packing import Batch
from prefixcap.utils.async_values import AsyncValue


class MetricsLog(Callback):
    """Shows what `training_step` returns beside the loss, and logs it every `log_every_n_steps` steps of the trainer.

    It is shown one step later, when it has arrived from the GPU, or before a checkpoint is written. Lightning's own
    `log(…, prog_bar=True)` waits for the GPU in every step.
    """

    def __init__(self) -> None:
        self._step = 0
        self._pending: tuple[int, int, dict[str, AsyncValue]] | None = None  # step, epoch, values

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # the gradients of a step are still being summed
        self._step = trainer.global_step
        self._write(trainer)
        values = {name: AsyncValue(value) for name, value in outputs.items() if name != "loss"}
        self._pending = self._step, trainer.current_epoch, values

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if self._pending is None:
            return
        (step, epoch, pending), self._pending = self._pending, None
        values = {name: value.get() for name, value in pending.items()}
        trainer.progress_bar_metrics.update(values)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        for logger in trainer.loggers if every and step % every == 0 else ():
            logger.log_metrics({**values, "epoch": epoch}, step=step - 1)  # Lightning counts from 0
            logger.save()
