"""What the training commands share: the trainer, and what they report when stopped or out of memory."""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from prefixcap.checkpoints.files import read_training
from prefixcap.commands.common.run_folder import keep_metrics
from prefixcap.errors import InputError
from prefixcap.training.checkpoints import AtomicCheckpointIO, RandomState, Stopped, report_damage
from prefixcap.training.curves import Curves
from prefixcap.training.loggers import Trackers, finish, resume_options, run_exists
from prefixcap.training.min_steps import ReachMinSteps
from prefixcap.utils.hardware import gpu_name, out_of_memory
from prefixcap.utils.plotting import require_matplotlib

rank_zero_print = rank_zero_only(print)  # only the first of several processes prints

# What Lightning says of every run: of another product, of hardware that is named anyway, of its own steps.
_NO_NEWS = (
    "GPU available",
    "TPU available",
    "Using bfloat16",
    "💡 Tip",
    "Loading `train_dataloader`",
    "`Trainer.fit` stopped",
)


def open_loggers(config: DictConfig, checkpoint: str | None) -> list[Logger]:
    """The loggers of a run, or of one that continues from `checkpoint`. Raises InputError if a package is missing."""
    before = read_training(Path(checkpoint)) if checkpoint else None
    loggers = []
    for name, options in config.logger.items():
        if before is None:
            logger = _open(name, options)
        else:
            logger = _open(name, options, **resume_options(options["_target_"].rpartition(".")[2], before))
            if not run_exists(logger):
                logger = _open(name, options)
            if isinstance(logger, CSVLogger):
                rank_zero_only(keep_metrics)(logger, before["global_step"])
        loggers.append(logger)
    return loggers


def _open(name: str, options: DictConfig, /, **more: Any) -> Logger:
    try:
        logger: Logger = instantiate(options, **more)
    except InstantiationException as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        missing = f"logger={name} needs a package that is not installed"
        raise InputError(f'{missing}: pip install "prefixcap[{name}]"') from error
    return logger


def make_trainer(config: DictConfig, loggers: Sequence[Logger], callbacks: Sequence[Callback]) -> L.Trainer:
    """The trainer of a run, with the callbacks that every run has besides its own."""
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    more = [ReachMinSteps(), RandomState(), LearningRateMonitor("step"), Trackers(plain)]
    try:
        require_matplotlib()
        more.append(Curves(Path(config.run_dir)))
    except InputError as error:
        rank_zero_print(f"no curves.png: {error}")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    warnings.filterwarnings("ignore", ".*smaller than the logging interval")  # steps are counted across epochs
    warnings.filterwarnings("ignore", ".*LeafSpec")  # a warning of torch about lightning
    warnings.filterwarnings("ignore", ".*dataloader is not resumable")  # it asks the trainer where to start
    warnings.filterwarnings("ignore", ".*Previous log files in this directory")  # keep_metrics rewrites them
    trainer: L.Trainer = instantiate(
        config.trainer,
        callbacks=[*callbacks, *more],
        plugins=[AtomicCheckpointIO()],
        logger=loggers,
        default_root_dir=config.run_dir,
    )
    return trainer


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NO_NEWS)


def used_device(trainer: L.Trainer) -> str:
    """What a trainer trains on, for people."""
    device = trainer.strategy.root_device.type
    name = (gpu_name() if device == "cuda" else None) or device.upper()
    return name if trainer.world_size == 1 else f"{trainer.world_size} times {name}"


def fit(
    trainer: L.Trainer,
    training: L.LightningModule,
    data: L.LightningDataModule,
    checkpoint: str | None,
    how_to_continue: str,
    memory_saving: Sequence[str],
) -> None:
    """Train, from `checkpoint` on if there is one.

    Args:
        trainer, training, data: the arguments of `Trainer.fit`.
        checkpoint: a checkpoint of `LastCheckpoint`; None: train from the start.
        how_to_continue: how to continue the run, printed when it is stopped.
        memory_saving: options that save memory, the best first, for the message when memory runs out.

    Raises:
        InputError: memory ran out.
        Stopped: a signal stopped the run.
    """
    if checkpoint:
        report_damage(trainer, checkpoint)
    try:
        trainer.fit(training, data, ckpt_path=checkpoint, weights_only=True)
    except Stopped as stopped:
        rank_zero_print(
            f"{stopped.signal.name} stopped training after step {stopped.step}: {how_to_continue}", file=sys.stderr
        )
        raise
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        remedies = ", or ".join(memory_saving) or "a smaller lm.name"
        raise InputError(f"out of memory ({reason}): try {remedies}") from error
    finally:
        finish(trainer.loggers)


def half_batch(config: DictConfig) -> list[str]:
    """Options for the same steps from batches of half the size; none if the batch size is 1."""
    if config.batch_size == 1:
        return []
    half, steps = config.batch_size // 2, 2 * config.trainer.get("accumulate_grad_batches", 1)
    return [f"batch_size={half} (it is {config.batch_size}) with trainer.accumulate_grad_batches={steps}"]
