"""Runs on few images: enough epochs to learn from them."""

import math

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from prefixcap.training.checkpoints import LastCheckpoint


class ReachMinSteps(Callback):
    """Multiplies `max_epochs` if they have fewer than `min_steps` steps: Lightning by itself stops after `max_epochs`.

    `check_val_every_n_epoch` and the epochs from one `last.ckpt` to the next are multiplied, too, so that validations
    and checkpoints stay as many as they were.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.min_steps or trainer.max_epochs in (None, -1) or trainer.max_steps != -1:
            return
        factor = math.ceil(trainer.min_steps / trainer.estimated_stepping_batches)
        if factor > 1:
            trainer.fit_loop.max_epochs = epochs = factor * trainer.max_epochs
            if trainer.check_val_every_n_epoch is not None:
                trainer.check_val_every_n_epoch *= factor
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, LastCheckpoint):
                    callback.every_n_epochs *= factor
            rank_zero_only(print)(
                f"{epochs:,} epochs: {epochs // factor} are fewer steps than min_steps={trainer.min_steps}"
            )
