"""What to try first: a learning rate and a batch size for this model, data and machine."""

import csv
import io
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.tuner.tuning import Tuner

from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.training.cross_entropy import CaptionTraining
from prefixcap.utils.files import atomic_write_text

WINDOW = 10  # steps over which a fall of the loss is measured, and that pass before the first


def find_learning_rate(trainer: L.Trainer, training: CaptionTraining, data: CaptionData, table: Path) -> float:
    """The learning rate at which the loss falls fastest, in 100 steps in which it rises from 1e-8 to 1, without the
    schedule (the learning rate range test of Smith 2017, section 3.3).

    It is where the smoothed loss falls most over `WINDOW` steps, which are as many equal factors of the rate.
    Lightning's own suggestion is the fall of one step over the difference of its two rates, which favours small rates.

    Args:
        trainer: trains nothing else afterwards.
        training: what is to be trained; its weights are put back.
        data: which batches.
        table: CSV file to write: the smoothed loss at each learning rate.

    Raises:
        InputError: the loss is nowhere a finite number, or diverges at once.
    """
    trainer.fit_loop.max_epochs = 100  # enough for the steps, however few batches an epoch has
    found = Tuner(trainer).lr_find(training, datamodule=data, update_attr=False)
    assert found is not None  # it is for fast_dev_run alone
    losses = np.array(found.results["loss"])
    rates = np.array(found.results["lr"][: len(losses)])
    falls = losses[WINDOW:-WINDOW] - losses[2 * WINDOW :]
    if not np.isfinite(falls).any():
        raise InputError(
            f"no learning rate is to be found: the loss diverges or is NaN within {len(losses)} steps that hardly "
            "change the weights; look at the embeddings, and at trainer.precision"
        )
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["learning_rate", "loss"])
    rows.writerows(zip(rates, losses, strict=True))
    atomic_write_text(table, text.getvalue())
    steepest = int(np.where(np.isfinite(falls), falls, -np.inf).argmax())
    return float(rates[WINDOW + steepest + WINDOW // 2])


def find_batch_size(trainer: L.Trainer, training: CaptionTraining, data: CaptionData) -> int:
    """The most captions a step for which memory suffices, less 5%, and at most 8192 or about all of the data: doubled
    until memory runs out, then narrowed down, with three steps of training each.

    Only a GPU says that its memory is too small; on a CPU the system may end the process instead.
    """
    found = Tuner(trainer).scale_batch_size(training, datamodule=data, mode="binsearch")
    assert found is not None
    return found
