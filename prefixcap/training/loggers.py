"""Experiment trackers: TensorBoard, Weights & Biases, trackio and MLflow, by Lightning's loggers."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only


class TrackioLogger(Logger):
    """Logs to trackio: https://huggingface.co/docs/trackio.

    Args:
        project: the run's project.
        name: the run's name.
        resume: "never" begins a new run; "allow" continues the last one of that name, if there is one.
        options: other arguments of `trackio.init`, e.g. `space_id`; by default everything stays on this machine.

    Raises:
        ModuleNotFoundError: trackio is not installed.
    """

    def __init__(self, project: str, name: str, resume: str = "never", **options: Any) -> None:
        import trackio  # an optional dependency

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
        """The `trackio.Run`, which begins at the first access."""
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
    """Logs the configuration to each tracker, and keeps the tracker's run in checkpoints, so that training that is
    resumed is logged to the same run (`resume_options`).

    Args:
        config: the configuration: nested dictionaries of plain values.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self._runs: dict[str, str] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trackers = [logger for logger in trainer.loggers if not isinstance(logger, CSVLogger)]
        for logger in trackers:
            if not (trainer.ckpt_path and isinstance(logger, MLFlowLogger)):  # MLflow refuses other values than before
                logger.log_hyperparams(self.config)
        self._runs = {type(logger).__name__: str(logger.version) for logger in trackers}

    def state_dict(self) -> dict[str, str]:
        return self._runs


def resume_options(kind: str, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Options with which a logger continues the run of a checkpoint; none if the checkpoint has no run of this tracker.

    Args:
        kind: name of the logger's class.
        checkpoint: content of the checkpoint.
    """
    run = checkpoint.get("callbacks", {}).get("Trackers", {}).get(kind)
    options: dict[str, dict[str, Any]] = {
        "TensorBoardLogger": {"purge_step": checkpoint["global_step"]},  # what was logged after this step is hidden
        "WandbLogger": {"id": run, "resume": "allow"},
        "MLFlowLogger": {"run_id": run},
        "TrackioLogger": {"name": run, "resume": "allow"},
    }
    return options.get(kind, {}) if run else {}


def run_exists(logger: Logger) -> bool:
    """False if the logger is to continue a run that MLflow's store does not have, e.g. on another machine."""
    if not isinstance(logger, MLFlowLogger):
        return True
    from mlflow.exceptions import MlflowException

    try:
        return logger.run_id is not None  # it queries the store
    except MlflowException:
        return False


def finish(loggers: Sequence[Logger]) -> None:
    """End the run of Weights & Biases: otherwise a sweep would log its next training to the same run."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish()
