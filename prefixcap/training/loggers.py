"""Trackers of experiments: TensorBoard, Weights & Biases, trackio and MLflow, by Lightning's loggers."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from prefixcap.training.samples import Sample


class TrackioLogger(Logger):
    """Logs to trackio: https://huggingface.co/docs/trackio.

    Args:
        project: of the run.
        name: of the run.
        resume: "never" begins a new run, "allow" goes on with the last one of that name, if there is one.
        options: of `trackio.init`, e.g. `space_id`; without them all stays on this machine.

    Raises:
        ModuleNotFoundError: trackio is not installed.
    """

    def __init__(self, project: str, name: str, resume: str = "never", **options: Any) -> None:
        import trackio  # here, because nobody else needs it

        super().__init__()
        self._trackio: Any = trackio
        self._run: Any = None
        self._options = {"project": project, "name": name, "resume": resume, "embed": False, **options}

    @property
    def name(self) -> str:
        """The project."""
        return str(self._options["project"])

    @property
    def version(self) -> str:
        """The name of the run."""
        return str(self._options["name"])

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `trackio.Run`, which begins when it is first asked for."""
        if self._run is None:
            self._run = self._trackio.init(**self._options)
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        # They are written with the first metrics.
        self.experiment.config.update(params if isinstance(params, dict) else vars(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None, caption: list[str]) -> None:
        """Log images with captions, as `WandbLogger.log_image` does."""
        shown = [self._trackio.Image(image, text) for image, text in zip(images, caption, strict=True)]
        self.experiment.log({f"{key}/{number}": image for number, image in enumerate(shown, 1)}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            self._trackio.finish()
            self._run = None


class Trackers(Callback):
    """Tells each tracker the configuration, and keeps in checkpoints which of its runs this is, so that training goes
    on there when it is resumed (`going_on`).

    Args:
        config: plain values by name, of any depth.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self._runs: dict[str, str] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        of_trackers = [logger for logger in trainer.loggers if not isinstance(logger, CSVLogger)]
        for logger in of_trackers:
            if not (trainer.ckpt_path and isinstance(logger, MLFlowLogger)):  # which refuses other values than before
                logger.log_hyperparams(self.config)
        self._runs = {type(logger).__name__: str(logger.version) for logger in of_trackers}

    def state_dict(self) -> dict[str, str]:
        return self._runs


def going_on(kind: str, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Options by which a logger goes on with the run that a checkpoint is of.

    Args:
        kind: name of the logger's class.
        checkpoint: its content; one that knows of no run of this tracker lets it begin a new one.
    """
    run = checkpoint.get("callbacks", {}).get("Trackers", {}).get(kind)
    options: dict[str, dict[str, Any]] = {
        "TensorBoardLogger": {"purge_step": checkpoint["global_step"]},  # what was logged later is not shown
        "WandbLogger": {"id": run, "resume": "allow"},
        "MLFlowLogger": {"run_id": run},
        "TrackioLogger": {"name": run, "resume": "allow"},
    }
    return options.get(kind, {}) if run else {}


def knows_its_run(logger: Logger) -> bool:
    """False if training is to go on with a run that the store of MLflow does not have, e.g. on another machine."""
    if not isinstance(logger, MLFlowLogger):
        return True
    from mlflow.exceptions import MlflowException

    try:
        return logger.run_id is not None  # it asks the store
    except MlflowException:
        return False


def log_samples(loggers: Sequence[Logger], samples: Sequence[Sample], page: str, step: int) -> None:
    """Show captions with their images in each tracker, as it can: MLflow, which has no captions of images, a page."""
    shown = [of for of in samples if of.picture is not None]
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for of in shown:
                logger.experiment.add_image(f"samples/{of.image_id}", np.asarray(of.picture), step, dataformats="HWC")
                logger.experiment.add_text(f"samples/{of.image_id}", of.caption, step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, page, f"samples/step-{step:07d}.html")
        elif isinstance(logger, WandbLogger | TrackioLogger) and shown:
            logger.log_image("samples", [of.picture for of in shown], step, caption=[of.caption for of in shown])


def finish(loggers: Sequence[Logger]) -> None:
    """End the run of Weights & Biases: until the process ends it would be that of a sweep's next training, too."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish()
