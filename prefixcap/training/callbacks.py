"""What keeps a training run safe: checkpoints written whole, stops that lose nothing, no NaN in the weights."""

import os
import random
import signal
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from prefixcap.batches import Batch
from prefixcap.data import CaptionData
from prefixcap.errors import InputError, listed
from prefixcap.files import write_whole
from prefixcap.training.distributed import gathered, greatest_of_processes, own_share

MOST_SKIPPED = 100  # steps in a row without a finite loss, after which there is nothing left to hope for


def best_and_last(folder: Path, every_n_steps: int | None = None) -> tuple[ModelCheckpoint, "LastCheckpoint"]:
    """Callbacks that keep `best.ckpt`, by CIDEr on the validation images, and `last.ckpt`, see `LastCheckpoint`."""
    best = ModelCheckpoint(folder, "best", monitor="val_cider", mode="max", enable_version_counter=False)
    return best, LastCheckpoint(folder / "last.ckpt", every_n_steps)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, also where Lightning's own would be half written: it writes to the
    system's temporary folder, and copies from there if that is on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to a local path. Raises InputError as `write_whole` does."""
        try:
            with write_whole(Path(path)) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # torch's, in place of the one that says that the disk is full
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


class RandomState(Callback):
    """Keeps the state of torch's, NumPy's and Python's random numbers, of each process, in checkpoints: a resumed run
    draws what it would have drawn uninterrupted. With another number of processes it draws anew."""

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
        return {"processes": gathered(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict["processes"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(self._saved) == trainer.world_size:
            state = self._saved[trainer.global_rank]
            torch.set_rng_state(state["torch"])
            if state["cuda"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(state["cuda"])
            np.random.set_state(state["numpy"])  # noqa: NPY002
            version, numbers, following = state["python"]
            random.setstate((version, tuple(numbers), following))
        self._saved = []


class Stopped(SystemExit):
    """Training was asked to stop by a signal, and `last.ckpt` holds all that it did.

    Attributes:
        signal: which.
        step: the last that was taken.
        checkpoint: `last.ckpt`.
    """

    def __init__(self, received: signal.Signals, step: int, checkpoint: Path) -> None:
        super().__init__(128 + received)
        self.signal, self.step, self.checkpoint = received, step, checkpoint


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` at the end of every epoch, and when training is to stop.

    SIGTERM, Ctrl-C and, in a job of SLURM, SIGUSR1 let the step that is under way end; then the checkpoint is written
    and `Stopped` raised. After SIGUSR1, which SLURM sends before a job's time is over (`#SBATCH --signal=USR1@90`), it
    is asked to start the job again. Lightning's own handlers save in the middle of a step, from where a run does not go
    on exactly. A second signal ends the process at once.

    Args:
        path: of the checkpoint.
        every_n_steps: write within an epoch, too, after so many steps; None does not.
    """

    def __init__(self, path: Path, every_n_steps: int | None = None) -> None:
        self.path, self.every_n_steps = path, every_n_steps
        self._received: signal.Signals | None = None
        self._validating = False  # while the checkpoint of a run that is stopped there is written
        self._step = self._saved_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = self._saved_step = trainer.global_step
        _begin_next_epoch(trainer)
        of_slurm = [signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else []
        for number in (signal.SIGTERM, signal.SIGINT, *of_slurm):
            signal.signal(number, self._receive)  # Lightning restores those from before when training ends

    def _receive(self, number: int, frame: FrameType | None) -> None:
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
        told = self._told(trainer)
        if told or (self.every_n_steps and self._step - self._saved_step >= self.every_n_steps):
            self._save(trainer)
        if told:
            self._stop(trainer, told)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and (told := self._told(trainer)):
            self._validating = True
            self._save(trainer)
            self._stop(trainer, told)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)
        if told := self._told(trainer):
            self._stop(trainer, told)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._validating:
            # Lightning would go on with the images that come next, without what it knew of those before: begin anew.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            nothing = dict.fromkeys(progress["current"], 0)
            progress.update(current=nothing, total=nothing | {"ready": 1, "started": 1})

    def _told(self, trainer: L.Trainer) -> signal.Signals | None:
        """The signal to stop, in whichever process it came: it does not reach all of them in the same step."""
        if trainer.world_size == 1:
            return self._received
        number = torch.tensor(int(self._received or 0), device=trainer.strategy.root_device)
        greatest = int(greatest_of_processes(number))
        return signal.Signals(greatest) if greatest else None

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_step = trainer.global_step

    def _stop(self, trainer: L.Trainer, told: signal.Signals) -> NoReturn:
        if told == signal.SIGUSR1 and trainer.is_global_zero:
            requeue()
        raise Stopped(told, trainer.global_step, self.path)


def _begin_next_epoch(trainer: L.Trainer) -> None:
    """With max_steps, Lightning takes an epoch that ended before the checkpoint for one under way: it counts twice."""
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


@dataclass
class _Step:
    """A step of the optimizer.

    Attributes:
        number: counted from 1.
        captions: rows of its captions in the training split; of several processes, those of this one.
        images: rows of their images.
        found: (2,) 1 where what was found is no finite number: the loss in this process; a loss or a gradient in any.
        arrived: recorded when `found` has come from a GPU.
    """

    number: int
    captions: list[int]
    images: list[int]
    found: Tensor
    arrived: torch.cuda.Event | None


class FiniteLoss(Callback):
    """Keeps a loss or a gradient that is NaN or infinite from the weights: the optimizer leaves out such a step.

    The optimizer must be one that leaves out a step where its `found_inf` is 1, as AdamW with `fused=True`. On a GPU
    nothing waits for the loss: it is looked at a step later. Gradients that overflow in training with
    precision=16-mixed are left to its scaler.

    Args:
        choice: "stop" stops training, "skip" warns and goes on, unless it happens `MOST_SKIPPED` times in a row.

    Raises:
        InputError: training stops, and the step, its captions and their images are named; or there is no such choice.
    """

    def __init__(self, choice: str = "stop") -> None:
        if choice not in ("stop", "skip"):
            raise InputError(f"nonfinite_loss is stop or skip, not {choice!r}")
        self.skip = choice == "skip"
        self._skipped = 0
        self._captions: list[int] = []
        self._images: list[int] = []
        self._bad: Tensor | None = None
        self._waiting: _Step | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.skip and isinstance(trainer.strategy, DeepSpeedStrategy):
            raise InputError("DeepSpeed's optimizer cannot leave out a step: set nonfinite_loss=stop")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._captions += batch.caption_rows
        self._images += batch.image_rows

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        bad = ~loss.detach().isfinite()
        self._bad = bad if self._bad is None else self._bad | bad

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        assert self._bad is not None
        loss_bad, found = self._bad.float(), self._bad.float()
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            weights = (weight for group in optimizer.param_groups for weight in group["params"])
            norm = get_total_norm([own_share(weight.grad) for weight in weights if weight.grad is not None])
            found = torch.maximum(found, (~norm.isfinite()).to(found))
        found = greatest_of_processes(found)  # all processes leave out the same steps
        optimizer.found_inf = found  # type: ignore[attr-defined]
        on_host = torch.stack((loss_bad, found)).to("cpu", non_blocking=True)
        arrived = torch.cuda.current_stream().record_event() if found.is_cuda else None
        step = _Step(trainer.global_step + 1, self._captions, self._images, on_host, arrived)
        self._captions, self._images, self._bad = [], [], None
        self._look(trainer)
        self._waiting = step
        if arrived is None:
            self._look(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(trainer)

    def _look(self, trainer: L.Trainer) -> None:
        """Stop or warn if the step that waits was left out."""
        step, self._waiting = self._waiting, None
        if step is None:
            return
        if step.arrived is not None:
            step.arrived.synchronize()
        loss_bad, found = step.found.bool().tolist()
        self._skipped = self._skipped + 1 if found else 0
        if not found:
            return
        what = "the loss" if loss_bad else "the gradient" if trainer.world_size == 1 else "the loss of another process"
        culprits = _culprits(step, trainer.datamodule)  # type: ignore[attr-defined]
        problem = f"{what} is NaN or infinite in step {step.number}: {culprits}"
        if not self.skip:
            raise InputError(
                f"{problem}. Repair them, lower optimizer.learning_rate, or leave such steps out with "
                "nonfinite_loss=skip; the weights in checkpoints are finite"
            )
        if self._skipped == MOST_SKIPPED:
            raise InputError(
                f"{problem}: the last of {MOST_SKIPPED} such steps in a row. Go on from a checkpoint with a lower "
                "optimizer.learning_rate"
            )
        warnings.warn(f"{problem}; the step is left out", stacklevel=2)


def _culprits(step: _Step, data: CaptionData) -> str:
    """The captions of a step, and the images whose features are no finite numbers, or else all of its images."""
    split, images = data.train_split, np.unique(step.images)
    features = split.feature(data.features)[images].astype(np.float32).reshape(len(images), -1)
    bad = images[~np.isfinite(features).all(axis=1)]
    ids = [repr(split.ids[image]) for image in (bad if len(bad) else images)]
    named = f"captions {', '.join(map(str, sorted(step.captions)))} of split '{split.name}'"
    return (
        f"{named}; the embedding of {listed('image', ids)} is, too" if len(bad) else f"{named}, {listed('image', ids)}"
    )


def out_of_memory(error: BaseException) -> bool:
    """True if `error` means that a GPU or the machine has no more memory (torch has several ways to say so)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
