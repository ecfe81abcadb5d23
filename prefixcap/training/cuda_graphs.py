"""Whether training steps are captured in CUDA graphs, and how they take the place of Lightning's."""

import warnings
from collections import OrderedDict
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer

from prefixcap.errors import OptionError
from prefixcap.language.quantization import has_checkpointed_layers
from prefixcap.training.captured import CapturedStep, CaptureError, StepResult
from prefixcap.training.module import CaptionTraining
from prefixcap.training.nan_guard import FiniteLoss
from prefixcap.utils.cuda_graphs import CudaGraphs

rank_zero_print = rank_zero_only(print)

# Hooks in the middle of a step, of which a replayed one has none.
_INNER_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")


class CapturedTraining(Callback):
    """Captures training steps in CUDA graphs, see `prefixcap.training.captured`: a step of small kernels, as that of
    GPT-2 with 40 captions, then takes the time that the GPU computes, without the time that Python launches.

    A step whose loss or gradient is NaN or infinite changes no weight, as with `FiniteLoss`, which reports it.

    Args:
        cuda_graphs: "auto": where that is possible, otherwise one line says why not (on a CPU none); True: or else an
            error; False: nowhere.

    Raises:
        InputError: `cuda_graphs` is True and something forbids it, when training starts.
    """

    def __init__(self, cuda_graphs: bool | Literal["auto"] = "auto") -> None:
        self.cuda_graphs = cuda_graphs

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.cuda_graphs is False:
            return
        reason = obstacle(trainer, pl_module)
        if reason and self.cuda_graphs is True:
            raise OptionError(f"training steps cannot be captured in CUDA graphs: {reason}", cuda_graphs="auto")
        if reason:
            if trainer.strategy.root_device.type == "cuda":
                rank_zero_print(f"no CUDA graphs: {reason}")
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data is not None:
            data.fixed_shapes = True
        loop = trainer.fit_loop.epoch_loop
        step = CapturedStep(trainer, CudaGraphs(trainer.strategy.root_device))
        loop.automatic_optimization = _CapturedOptimization(loop.automatic_optimization, step)
        rank_zero_print("training steps are captured in CUDA graphs")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        optimization = trainer.fit_loop.epoch_loop.automatic_optimization
        if isinstance(optimization, _CapturedOptimization):
            optimization.step = None  # gives the memory of its graphs back


def obstacle(trainer: L.Trainer, module: L.LightningModule) -> str | None:
    """What keeps the training steps of a run from being captured; None: nothing that is known before they are."""
    assert isinstance(module, CaptionTraining)
    language_model, objective = module.captioner.language_model, type(module.objective).__name__
    inside = [
        type(callback).__name__
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if not isinstance(callback, FiniteLoss)
        and any(is_overridden(hook, callback, Callback) for hook in _INNER_HOOKS)
    ]
    found = {
        "there is no GPU": trainer.strategy.root_device.type != "cuda",
        "training runs on several devices": type(trainer.strategy) is not SingleDeviceStrategy,
        "gradients of several batches are summed for a step": trainer.accumulate_grad_batches > 1,
        "precision 16-mixed scales the loss": getattr(trainer.precision_plugin, "scaler", None) is not None,
        "gradients are clipped by value": trainer.gradient_clip_algorithm == "value",
        "the optimizer is not fused": not module.adamw_options.get("fused", True),
        f"weights are quantized ({language_model.quantization})": language_model.quantization is not None,
        "gradient checkpointing keeps random states": has_checkpointed_layers(language_model.model),
        "compiled layers have CUDA graphs of their own": language_model.compiled_into_cuda_graphs,
        f"objective {objective} is not capturable": not module.objective.capturable,
        f"callback {', '.join(inside)} looks into the step": bool(inside),
    }
    return next((reason for reason, holds in found.items() if holds), None)


class _CapturedOptimization(_AutomaticOptimization):
    """Lightning's automatic optimization with captured steps; or with its own, once capturing fails."""

    def __init__(self, before: _AutomaticOptimization, step: CapturedStep) -> None:
        super().__init__(before.trainer)
        self.optim_progress = before.optim_progress
        self.step: CapturedStep | None = step

    def run(self, optimizer: Optimizer, batch_idx: int, kwargs: OrderedDict[str, Any]) -> dict[str, Any]:
        summed = self.trainer.accumulate_grad_batches > 1  # a callback may change that between epochs
        if self.step is not None and not self._skip_backward and not summed:
            try:
                return self._count(self.step(kwargs["batch"]))
            except CaptureError as error:
                warnings.warn(f"training goes on without CUDA graphs: {error}", stacklevel=2)
                self.step = None
        return super().run(optimizer, batch_idx, kwargs)

    def _count(self, result: StepResult) -> dict[str, Any]:
        """Tell the callback and the counters of Lightning that a step was made."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FiniteLoss):
                callback.watch(self.trainer, result.nonfinite)
        progress = self.optim_progress.optimizer
        progress.zero_grad.increment_started()
        for counter in (progress.zero_grad, progress.step):
            counter.increment_ready()
            counter.increment_completed()
        return result.outputs
