"""What the training scripts share: the trainer, and how a stop or a full memory is told."""

import sys
import warnings
from collections.abc import Sequence

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from prefixcap.errors import InputError
from prefixcap.machine import out_of_memory
from prefixcap.scripts.runs import keep_metrics
from prefixcap.training.checkpoints import RandomState, Stopped, WholeCheckpoints

say = rank_zero_only(print)  # of several processes the first speaks


def make_trainer(config: DictConfig, callbacks: Sequence[Callback], checkpoint: str | None) -> L.Trainer:
    """The trainer of a run, which goes on from `checkpoint`, if there is one."""
    warnings.filterwarnings("ignore", ".*LeafSpec")  # between lightning and torch
    warnings.filterwarnings("ignore", ".*dataloader is not resumable")  # it asks the trainer where to begin
    warnings.filterwarnings("ignore", ".*Previous log files in this directory")  # keep_metrics writes them again
    trainer: L.Trainer = instantiate(
        config.trainer,
        callbacks=[*callbacks, RandomState(), LearningRateMonitor("step")],
        plugins=[WholeCheckpoints()],
        logger=[keep_metrics(logger, checkpoint) for logger in instantiate(config.logger).values()],
        default_root_dir=config.run_dir,
    )
    return trainer


def fit(
    trainer: L.Trainer,
    training: L.LightningModule,
    data: L.LightningDataModule,
    checkpoint: str | None,
    go_on: str,
    less_memory: Sequence[str],
) -> None:
    """Train, from `checkpoint` on, if there is one.

    Args:
        trainer, training, data: what Lightning needs.
        checkpoint: of `LastCheckpoint`.
        go_on: how a run that was stopped goes on, to be told when it is.
        less_memory: options that save memory, the best first, to be told when there is too little.

    Raises:
        InputError: memory ran out.
        Stopped: a signal asked for it.
    """
    try:
        trainer.fit(training, data, ckpt_path=checkpoint, weights_only=True)
    except Stopped as stopped:
        say(f"{stopped.signal.name} stopped training after step {stopped.step}: {go_on}", file=sys.stderr)
        raise
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        tried = ", or ".join(less_memory) or "a smaller lm.name"
        raise InputError(f"out of memory ({reason}): try {tried}") from error


def half_batch(config: DictConfig) -> list[str]:
    """Options for the same steps from batches of half the size; none, where a batch is one already."""
    if config.batch_size == 1:
        return []
    half, steps = config.batch_size // 2, 2 * config.trainer.get("accumulate_grad_batches", 1)
    return [f"batch_size={half} (it is {config.batch_size}) with trainer.accumulate_grad_batches={steps}"]
