"""A whole training step, from the forward pass to the update of the weights, captured once for each shape of batches
and then replayed: a GPU runs it as one CUDA graph, in place of a thousand kernels that Python launches one by one.

Nothing in the step waits for the GPU or depends on the values of a batch. A captured step reads and writes the same
memory each time, so a batch is copied into the tensors of its shape before, and results are copied out after it.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from prefixcap.packing import Batch, BatchShape
from prefixcap.training.module import CaptionTraining
from prefixcap.training.nan_guard import nonfinite
from prefixcap.utils.cuda_graphs import CudaGraphs

MOST_SHAPES = 8  # each takes seconds to capture, and memory
_WARM_UPS = 3  # runs before a capture, in which libraries set themselves up and compiled layers are compiled


@dataclass
class StepResult:
    """What a step computed.

    Attributes:
        outputs: as from `CaptionTraining.training_step`: the loss () and the metrics ().
        norm: () of the gradient, before it is clipped.
        nonfinite: (2,) as from `prefixcap.training.nan_guard.nonfinite`.
    """

    outputs: dict[str, Tensor]
    norm: Tensor
    nonfinite: Tensor

    def cloned(self) -> "StepResult":
        """The same in other memory."""
        outputs = {name: value.clone() for name, value in self.outputs.items()}
        return StepResult(outputs, self.norm.clone(), self.nonfinite.clone())


class CaptureError(Exception):
    """A step could not be captured. The weights are as they were before."""


class CapturedStep:
    """Training steps that are replayed.

    Random numbers and the learning rate are those of an eager step: a graph reads the state of torch's generator, and
    the rate from a tensor. Weights that are not finite are not made, see `FiniteLoss`.

    Args:
        trainer: one that trains a `CaptionTraining` on one device with the fused AdamW, without a gradient scaler.
        graphs: where steps are captured.
    """

    def __init__(self, trainer: L.Trainer, graphs: CudaGraphs[StepResult]) -> None:
        assert isinstance(trainer.lightning_module, CaptionTraining)
        self._module, self._precision, self._graphs = trainer.lightning_module, trainer.precision_plugin, graphs
        self._optimizer: Optimizer = trainer.optimizers[0]
        float32 = trainer.precision == "32-true" and self._module.captioner.language_model.dtype == "float32"
        self._tolerance = 1e-4 if float32 else 1e-2
        self._clip = trainer.gradient_clip_val
        self._weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        self._device = trainer.strategy.root_device
        self._rates = [torch.zeros((), device=self._device) for _ in self._optimizer.param_groups]
        self._skip = torch.zeros((), device=self._device)  # 1: the step changes no weight
        self._captured: dict[BatchShape, tuple[Batch, Callable[[], StepResult]]] = {}

    def __call__(self, batch: Batch) -> StepResult:
        """Train on a batch. The first of a shape is captured before; beyond `MOST_SHAPES` the step runs eagerly.

        Raises:
            CaptureError: something in the step cannot be captured, or a replay computes something else.
        """
        shape = batch.shape
        if shape not in self._captured and len(self._captured) < MOST_SHAPES:
            self._captured[shape] = self._capture(batch)
        for tensor, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            tensor.fill_(group["lr"])
        if shape not in self._captured:
            warnings.warn(f"CUDA graphs for {MOST_SHAPES} shapes of batches only: there are more", stacklevel=2)
            return self._step(batch)
        static, replay = self._captured[shape]
        for name, value in _tensors(batch).items():
            getattr(static, name).copy_(value, non_blocking=True)
        return replay().cloned()

    def _capture(self, batch: Batch) -> tuple[Batch, Callable[[], StepResult]]:
        """The tensors that a captured step reads, and the step."""
        static = Batch(**vars(batch) | {name: value.clone() for name, value in _tensors(batch).items()})
        step = partial(self._step, static)
        self._skip.fill_(1)
        try:
            for _ in range(_WARM_UPS):
                expected = self._undisturbed(partial(self._graphs.warm_up, step))
            try:
                replay = self._graphs.capture(step)
                result = self._undisturbed(replay)
            except RuntimeError as error:
                first = error.__context__ or error  # the other is about the end of a capture that had failed
                raise CaptureError(str(first).partition("\n")[0]) from error
            self._require_same(result, expected)
            return static, replay
        finally:
            self._skip.zero_()
            self._optimizer.zero_grad()

    def _step(self, batch: Batch) -> StepResult:
        """The step itself, as Lightning's automatic optimization and `FiniteLoss` have it."""
        with self._precision.train_step_context():
            total, tokens = self._module.total_loss(batch)
            loss = total / tokens
        self._optimizer.zero_grad()
        loss.backward()
        norm = get_total_norm([weight.grad for weight in self._weights if weight.grad is not None])
        flags = nonfinite(loss.detach(), norm)
        if self._clip:
            clip_grads_with_norm_(self._weights, self._clip, norm)
        self._optimizer.found_inf = torch.maximum(flags[1], self._skip)  # type: ignore[attr-defined]
        with self._rates_as_tensors():
            self._optimizer.step()
        del self._optimizer.found_inf  # type: ignore[attr-defined]
        loss = loss.detach()
        return StepResult({"loss": loss, **self._module.objective.metrics(loss)}, norm, flags)

    @contextmanager
    def _rates_as_tensors(self) -> Iterator[None]:
        """Schedulers and checkpoints keep the learning rate as a number, which a graph would not see change."""
        groups = self._optimizer.param_groups
        before = [{name: group[name] for name in ("lr", "capturable")} for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group.update(lr=rate, capturable=True)
        try:
            yield
        finally:
            for group, options in zip(groups, before, strict=True):
                group.update(options)

    def _undisturbed(self, run: Callable[[], StepResult]) -> StepResult:
        """The result of a run, after which random generators are as they were before."""
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            return run().cloned()

    def _require_same(self, result: StepResult, expected: StepResult) -> None:
        for what, one, other in (
            ("loss", result.outputs["loss"], expected.outputs["loss"]),
            ("norm of the gradient", result.norm, expected.norm),
        ):
            if not torch.isclose(one, other, self._tolerance, equal_nan=True):
                raise CaptureError(f"a replay has the {what} {one.item():.6g} in place of {other.item():.6g}")


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
