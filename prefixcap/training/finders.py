"""A learning rate and a batch size to begin with, for this model, data and machine."""

import csv
import io
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.tuner.tuning import Tuner

from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.training.module import CaptionTraining
from prefixcap.utils.files import atomic_write_text

WINDOW = 10  # steps over which a fall of the loss is measured; so many are left out at both ends


def find_learning_rate(trainer: L.Trainer, training: CaptionTraining, data: CaptionData, table: Path) -> float:
    """The learning rate at which the loss falls fastest: the learning rate range test (Smith 2017, section 3.3).

    Lightning's `Tuner` takes 100 steps, in which the learning rate rises exponentially from 1e-8 to 1. Chosen is where
    the smoothed loss falls most over `WINDOW` steps. Lightning's own suggestion divides the fall over one step by the
    difference of the two rates, which favours small ones.

    Args:
        trainer: not to be used for anything else afterwards.
        training: the module to train; its weights are restored.
        data: the batches.
        table: CSV file to write: the smoothed loss at each learning rate.

    Raises:
        InputError: the loss is NaN or infinite, or diverges at once.
    """
    trainer.fit_loop.max_epochs = 100  # enough for the steps, however few batches an epoch has
    result = Tuner(trainer).lr_find(training, datamodule=data, update_attr=False)
    assert result is not None  # None is for fast_dev_run
    losses = np.array(result.results["loss"])
    rates = np.array(result.results["lr"][: len(losses)])
    falls = losses[WINDOW:-WINDOW] - losses[2 * WINDOW :]
    if not np.isfinite(falls).any():
        raise InputError(
            f"no learning rate found: the loss diverges or is NaN within {len(losses)} steps that hardly change the "
            "weights; check the embeddings, and the trainer's precision"
        )
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["learning_rate", "loss"])
    rows.writerows(zip(rates, losses, strict=True))
    atomic_write_text(table, text.getvalue())
    steepest = int(np.where(np.isfinite(falls), falls, -np.inf).argmax())
    return float(rates[WINDOW + steepest + WINDOW // 2])


def find_batch_size(trainer: L.Trainer, training: CaptionTraining, data: CaptionData) -> int:
    """The largest batch size, in captions, that fits in memory, less 5%; at most 8192 or about all of the data.

    Lightning's `Tuner` doubles it until memory runs out, then bisects, with three steps of training each. Only a GPU
    reports that its memory is full; on a CPU the system may end the process instead.
    """
    batch_size = Tuner(trainer).scale_batch_size(training, datamodule=data, mode="binsearch")
    assert batch_size is not None
    return batch_size
