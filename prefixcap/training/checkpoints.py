"""What keeps a run safe: atomic checkpoints, random states kept with them, stops that lose nothing."""

import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.plugins import TorchCheckpointIO

from prefixcap.errors import InputError
from prefixcap.packing import Batch
from prefixcap.training.distributed import all_gather_objects, all_reduce_max
from prefixcap.utils.async_values import AsyncValue
from prefixcap.utils.files import atomic_write
from prefixcap.utils.hardware import out_of_memory


def best_and_last(
    folder: Path, every_n_steps: int | None = None, monitor: str = "val_cider"
) -> tuple[ModelCheckpoint, "LastCheckpoint"]:
    """Callbacks that keep `best.ckpt` and `last.ckpt`.

    Args:
        folder: of the checkpoints.
        every_n_steps: see `LastCheckpoint`.
        monitor: the metric that `best.ckpt` is chosen by: lowest if "val_loss", otherwise highest.
    """
    mode = "min" if monitor == "val_loss" else "max"
    best = ModelCheckpoint(folder, "best", monitor=monitor, mode=mode, enable_version_counter=False)
    return best, LastCheckpoint(folder / "last.ckpt", every_n_steps)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: an interrupted write leaves the file as it was.

    Lightning writes to the system's temporary folder and, if that is on another disk, copies from there: a copy can be
    interrupted.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to a local path. Raises InputError as `atomic_write` does."""
        with atomic_write(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


class RandomState(Callback):
    """Keeps the states of torch's, NumPy's and Python's random generators in checkpoints, for each process.

    A resumed run then draws the numbers that it would have drawn without the interruption, unless it has another number
    of processes. Lightning does not keep them.
    """

    def __init__(self) -> None:
        self._saved: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # what Lightning seeds
        state = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "numpy": (kind, keys.tolist(), *rest),  # type: ignore[union-attr]
            "python": random.getstate(),
        }
        return {"processes": all_gather_objects(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = list(state_dict["processes"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(self._saved) == trainer.world_size:
            self._restore(self._saved[trainer.global_rank])
        self._saved = []

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            torch.set_rng_state(state["torch"])
            if state["cuda"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(state["cuda"])
            np.random.set_state(state["numpy"])  # noqa: NPY002
            version, numbers, following = state["python"]
            random.setstate((version, tuple(numbers), following))
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the random state in the checkpoint is damaged ({error}): resume from another one"
            ) from error


def report_damage(trainer: L.Trainer, checkpoint: str | Path) -> None:
    """Raise an InputError if `checkpoint` cannot be resumed from. Lightning does not check what is in a checkpoint."""
    connector = trainer._checkpoint_connector
    for name in ("_restore_modules_and_callbacks", "restore_training_state"):
        setattr(connector, name, _with_damage_reported(getattr(connector, name), checkpoint))


def _with_damage_reported(restore: Callable[..., None], checkpoint: str | Path) -> Callable[..., None]:
    def restore_or_report(*arguments: Any) -> None:
        try:
            restore(*arguments)
        except InputError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise InputError(
                f"training cannot continue from {checkpoint} ({reason}): it is damaged, or another run's"
            ) from error

    return restore_or_report


class Stopped(SystemExit):
    """A signal asked training to stop, and `last.ckpt` holds all steps so far.

    Attributes:
        signal: the signal.
        step: the number of steps.
        checkpoint: path of `last.ckpt`.
    """

    def __init__(self, received: signal.Signals, step: int, checkpoint: Path) -> None:
        super().__init__(128 + received)
        self.signal, self.step, self.checkpoint = received, step, checkpoint


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` at the end of every epoch, and when training is to stop.

    On SIGTERM, Ctrl-C and, in a SLURM job, SIGUSR1, the current step is completed, the checkpoint written and `Stopped`
    raised. SLURM sends SIGUSR1 before a job's time is over (`#SBATCH --signal=USR1@90`); it is then asked to start the
    job again. Lightning's own handlers save in the middle of a step, from where a run does not continue exactly. A
    second signal ends the process at once.

    Args:
        path: of the checkpoint.
        every_n_steps: also write within an epoch, each time after this many steps; None: only at its end.

    Attributes:
        every_n_epochs: epochs from one checkpoint to the next; more than 1 where epochs are very short.
    """

    def __init__(self, path: Path, every_n_steps: int | None = None) -> None:
        self.path, self.every_n_steps, self.every_n_epochs = path, every_n_steps, 1
        self._received: signal.Signals | None = None
        self._signal_of_any: AsyncValue | None = None  # with several processes: the signal that any of them received
        self._validating = False  # while the checkpoint of a run that is stopped in validation is written
        self._step = self._saved_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = self._saved_step = trainer.global_step
        _begin_next_epoch(trainer)
        slurm = [signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else []
        for number in (signal.SIGTERM, signal.SIGINT, *slurm):
            signal.signal(number, self._on_signal)  # Lightning restores those from before when training ends

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._received = signal.Signals(number)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # the gradients of a step are still being summed, and are in no checkpoint
        self._step = trainer.global_step
        loop = trainer.fit_loop.epoch_loop
        if trainer.is_last_batch or loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
            return  # Lightning would resume after the validation that is due now
        stop = self._stop_signal(trainer)
        if stop or (self.every_n_steps and self._step - self._saved_step >= self.every_n_steps):
            self._save(trainer)
        if stop:
            self._stop(trainer, stop)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and (stop := self._stop_signal(trainer)):
            self._validating = True
            self._save(trainer)
            self._stop(trainer, stop)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch, stop = trainer.current_epoch + 1, self._stop_signal(trainer)
        if stop or epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            self._save(trainer)
        if stop:
            self._stop(trainer, stop)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._validating:
            # Lightning would resume with the next images, without the captions of those before: begin validation anew.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            nothing = dict.fromkeys(progress["current"], 0)
            progress.update(current=nothing, total=nothing | {"ready": 1, "started": 1})

    def _stop_signal(self, trainer: L.Trainer) -> signal.Signals | None:
        """The signal to stop, if any process received one: it does not reach all of them in the same step.

        Several processes stop one step later, when the answer has arrived from the GPUs, so that nothing waits for it.
        """
        if trainer.world_size == 1:
            return self._received
        previous = self._signal_of_any
        number = torch.full((), int(self._received or 0), device=trainer.strategy.root_device)
        self._signal_of_any = AsyncValue(all_reduce_max(number))
        received = previous.get() if previous is not None else 0
        return signal.Signals(received) if received else None

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_step = trainer.global_step

    def _stop(self, trainer: L.Trainer, received: signal.Signals) -> NoReturn:
        if received == signal.SIGUSR1 and trainer.is_global_zero:
            requeue()
        raise Stopped(received, trainer.global_step, self.path)


def _begin_next_epoch(trainer: L.Trainer) -> None:
    """With max_steps, Lightning resumes an epoch that had ended, and counts it twice: begin the next one."""
    loop = trainer.fit_loop
    if loop.restarting and loop.epoch_progress.current.processed == loop.epoch_progress.current.ready:  # type: ignore[attr-defined]
        _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]
        loop.reset_restart_stage()
        loop.epoch_progress.increment_completed()


def requeue() -> None:
    """Ask SLURM to start this job again."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    subprocess.run(["scontrol", "requeue", job], check=True)
