"""The captured training step: that a GPU can capture it, and that replays train as Lightning's steps do.

Without a GPU, what CUDA does is left out: a replay runs the step again, on the tensors of its shape. Whether the step
can be captured is tested on tensors without contents: in PyTorch's fake mode these can be on a GPU that is not there.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.features import EncoderIdentity
from prefixcap.language import Tuning
from prefixcap.language.quantization import checkpoint_layers
from prefixcap.noise import Noise
from prefixcap.packing import pack
from prefixcap.training import CaptionTraining, cuda_graphs
from prefixcap.training.captured import CapturedStep, StepResult
from prefixcap.training.checkpoints import RandomState, best_and_last
from prefixcap.training.cuda_graphs import CapturedTraining
from prefixcap.training.ema import AveragedWeights
from prefixcap.training.nan_guard import FiniteLoss
from prefixcap.training.objectives import SelfCritical
from prefixcap.utils.cuda_graphs import CudaGraphs
from tests.conftest import IDENTITY, assert_equal, small_captioner, small_lm
from tests.training.test_training import make_store

MLP = {"name": "mlp", "prefix_length": 4}
TRANSFORMER = {"name": "transformer", "prefix_length": 4, "clip_length": 3, "layers": 2}
CROSS = {"name": "cross_attention", "head_dim": 4}
QUERY = {"name": "query", "prefix_length": 4, "layers": 1, "heads": 2, "width": 8}


class Rerun(CudaGraphs[StepResult]):
    """In place of a GPU's graphs."""

    replayed = 0  # training steps

    def __init__(self, device: torch.device) -> None:
        Rerun.replayed = 0

    def warm_up(self, function: Callable[[], StepResult]) -> StepResult:
        return function()

    def capture(self, function: Callable[[], StepResult]) -> Callable[[], StepResult]:
        def replay() -> StepResult:
            Rerun.replayed += 1
            return function()

        Rerun.replayed -= 1  # the replay by which a capture is checked
        return replay


def capture_on_cpu(patch: Callable[[object, str, Any], None] = setattr, graphs: type[Rerun] = Rerun) -> None:
    """Let `CapturedTraining` go its way without a GPU."""
    patch(cuda_graphs, "CudaGraphs", graphs)
    patch(cuda_graphs, "obstacle", lambda *_: None)


DEMO = EncoderIdentity("demo", "0" * 64, "none", 16)


class OnlyOn(TorchDispatchMode):
    """Fails where an operation has a tensor elsewhere, as a copy from the host has, or gives Python a number."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.seen = device, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        for value in tree_leaves((args, kwargs, result)):
            assert not isinstance(value, torch.Tensor) or value.device.type == self.device, (function, value.device)
        assert function is not torch.ops.aten._local_scalar_dense.default
        self.seen += 1
        return result


CASES: dict[str, tuple[Tuning, dict[str, Any], dict[str, Any], Noise | None]] = {
    "frozen, transformer": ("frozen", TRANSFORMER, {}, None),
    "tuned, MLP": ("full", MLP, {}, None),
    "adapters, patches": ("lora", QUERY, {}, None),
    "cross-attention, patches": ("frozen", CROSS, {"start_token": True}, None),
    "noise, start token": ("frozen", MLP, {"start_token": True, "normalize_embeddings": True}, Noise()),
    "noise in a ball": ("frozen", MLP, {}, Noise("ball")),
    "noise in some dimensions": ("frozen", MLP, {}, Noise("dimensions")),
}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_neither_waits_for_a_gpu_nor_copies_from_the_host(
    case: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without contents; the backward pass on the CPU alone, as autograd asks for a GPU's driver."""
    tuning, mapper, options, noise = CASES[case]
    captioner = Captioner(small_lm(tuning), IDENTITY, mapper, **options)
    embeddings = torch.randn(2, 5, 16) if mapper in (QUERY, CROSS) else torch.randn(2, 16)
    batch = pack(embeddings, [[5, 6, 0], [7, 0], [8, 9, 0]], [0, 0, 1], captioner.prefix_length)
    mode = FakeTensorMode()

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        fake = mode.from_tensor(tensor.detach())
        with mode:
            return fake.to(device)

    weights = {weight: torch.nn.Parameter(moved(weight), weight.requires_grad) for weight in captioner.parameters()}
    for module in captioner.modules():
        own, buffers = module._parameters, module._buffers
        own.update({name: weights[weight] for name, weight in own.items() if weight is not None})
        buffers.update({name: moved(buffer) for name, buffer in buffers.items() if buffer is not None})
    batch = batch._each(moved)
    trained = [weight for weight in captioner.parameters() if weight.requires_grad]

    def backward(loss: torch.Tensor) -> None:
        for weight in trained:
            weight.grad = torch.zeros_like(weight)

    if device == "cuda":
        monkeypatch.setattr(torch.Tensor, "backward", backward)
    update: Any = Mock()  # has no fake version
    monkeypatch.setattr(torch, "_fused_adamw_", update)
    trainer: Any = SimpleNamespace(
        lightning_module=CaptionTraining(captioner, None, noise=noise),  # type: ignore[arg-type]
        precision_plugin=Precision(), optimizers=[torch.optim.AdamW(trained, fused=True)], gradient_clip_val=1.0,
        strategy=SimpleNamespace(root_device=torch.device(device)), precision="32-true",
    )  # fmt: skip
    with mode:
        step = CapturedStep(trainer, Mock())
        with OnlyOn(device) as only:
            step._step(batch)
    assert only.seen > 100
    assert {update.call_args.kwargs[name].device.type for name in ("lr", "found_inf")} == {device}
    assert update.call_args.args[0] == trained


class Losses(L.Callback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        assert outputs.keys() == {"loss", "train_loss"} and outputs["loss"] == outputs["train_loss"]
        self.values.append(outputs["loss"].item())


def train(
    store: Path, run: Path, captured: bool, precision: Any = "32-true", rate: float = 2**-7, **options: Any
) -> tuple[list[float], L.Trainer]:
    """68 steps of a small captioner with dropout and noise, averaged weights, and validations.

    With the rate, 4 steps of warm-up and 64 of decay, all learning rates are float32 numbers.
    """
    L.seed_everything(5, verbose=False)
    captioner = small_captioner("full", "mlp")
    data, losses = CaptionData(store, captioner, batch_size=3), Losses()
    data.fixed_shapes = True  # also without graphs: noise and dropout of padded batches are other random numbers
    trainer = L.Trainer(
        max_epochs=17, check_val_every_n_epoch=5, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, gradient_clip_val=1.0, precision=precision, **{"accelerator": "cpu"} | options,
        log_every_n_steps=2, logger=CSVLogger(run, "", ""), default_root_dir=run,
        callbacks=[*best_and_last(run, monitor="val_loss"), RandomState(), FiniteLoss(), AveragedWeights(0.7),
                   LearningRateMonitor("step"), losses, CapturedTraining("auto" if captured else False)],
    )  # fmt: skip
    noise = Noise(variance=0.01)
    trainer.fit(CaptionTraining(captioner, data.val_split, rate, warmup_steps=4, max_tokens=3, noise=noise), data)
    return losses.values, trainer


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_captured_steps_train_as_lightnings_do(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: losses, checkpoints with the optimizer's state and all counters, validations, metrics.csv."""
    capture_on_cpu(monkeypatch.setattr)
    monkeypatch.setattr("prefixcap.training.captured.MOST_SHAPES", 99)
    store = make_store(tmp_path / "store")
    (eager, before), (captured, after) = (
        train(store, tmp_path / name, name == "captured", precision) for name in ("eager", "captured")
    )
    assert captured == eager and len(eager) == before.global_step == after.global_step == 68
    assert Rerun.replayed == 68
    optimization = after.fit_loop.epoch_loop.automatic_optimization
    assert (
        isinstance(optimization, cuda_graphs._CapturedOptimization) and optimization.step is None
    )  # its memory is free
    for name in ("best.ckpt", "last.ckpt"):
        one, other = (torch.load(tmp_path / run / name, weights_only=True) for run in ("eager", "captured"))
        for checkpoint in (one, other):  # what the other callbacks keep has the folder's name in it
            checkpoint["callbacks"] = checkpoint["callbacks"]["RandomState"]
        assert_equal(one, other, name)
    table = (tmp_path / "eager" / "metrics.csv").read_text()
    assert table.count("\n") > 34 and table == (tmp_path / "captured" / "metrics.csv").read_text()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("bf16-mixed", 1e-3)])
def test_graphs_of_a_gpu_compute_the_same(
    precision: str, tolerance: float, exact: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    store = make_store(tmp_path / "store")
    options: dict[str, Any] = {"accelerator": "gpu", "deterministic": exact}
    eager, captured, again = (
        train(store, tmp_path / str(number), number > 0, precision, **options)[0] for number in range(3)
    )
    assert not any("CUDA graphs:" in str(warning.message) for warning in recwarn)  # that none could be captured
    np.testing.assert_allclose(captured, eager, rtol=tolerance)
    assert captured == again or not exact  # a GPU adds up the gradients of embeddings in any order


def test_a_learning_rate_is_rounded_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture_on_cpu(monkeypatch.setattr)
    store = make_store(tmp_path / "store")
    eager, captured = (train(store, tmp_path / "run", captured, rate=1e-2)[0] for captured in (False, True))
    np.testing.assert_allclose(captured, eager, rtol=1e-5)
    assert captured != eager


class Refused(Rerun):
    """A GPU that refuses to capture; or one that computes something else."""

    def capture(self, function: Callable[[], StepResult]) -> Callable[[], StepResult]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


class Wrong(Rerun):
    """A graph that computes something else."""

    def capture(self, function: Callable[[], StepResult]) -> Callable[[], StepResult]:
        def replay() -> StepResult:
            result = function()
            result.outputs["loss"] = 1.1 * result.outputs["loss"]
            return result

        return replay


@pytest.mark.parametrize(("graphs", "reason"), [(Refused, "operation not permitted"), (Wrong, "has the loss")])
def test_training_goes_on_without_graphs_that_fail_and_says_why(
    graphs: type[Rerun], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "store")
    eager, _ = train(store, tmp_path / "eager", False)
    capture_on_cpu(monkeypatch.setattr, graphs)
    with pytest.warns(UserWarning, match=f"training goes on without CUDA graphs: .*{reason}"):
        other, _ = train(store, tmp_path / "other", True)
    assert other == eager


def test_beyond_some_shapes_steps_run_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "store")
    capture_on_cpu(monkeypatch.setattr)
    captured, _ = train(store, tmp_path / "captured", True)
    monkeypatch.setattr("prefixcap.training.captured.MOST_SHAPES", 1)
    with pytest.warns(UserWarning, match="CUDA graphs for 1 shapes of batches only"):
        other, _ = train(store, tmp_path / "other", True)
    assert other == captured


def test_while_gradients_are_summed_steps_are_lightnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from some epoch on with `GradientAccumulationScheduler`."""
    monkeypatch.setattr(_AutomaticOptimization, "run", lambda *_: {"loss": "Lightning's"})
    trainer, step = Mock(accumulate_grad_batches=2, callbacks=[]), Mock(return_value=Mock(outputs={"loss": "captured"}))
    optimization = cuda_graphs._CapturedOptimization(Mock(trainer=trainer), step)
    arguments: Any = (Mock(), 0, {"batch": Mock()})
    assert optimization.run(*arguments) == {"loss": "Lightning's"} and not step.called
    trainer.accumulate_grad_batches = 1
    assert optimization.run(*arguments) == {"loss": "captured"} and step.called


def test_what_forbids_graphs_is_named(tmp_path: Path) -> None:
    class Watch(L.Callback):
        def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            pass

    def reason(captioner: Captioner | None = None, training: Any = (), **options: Any) -> str | None:
        trainer = {
            "strategy": SingleDeviceStrategy(torch.device("cuda", 0)), "callbacks": [FiniteLoss(), RandomState()],
            "accumulate_grad_batches": 1, "precision_plugin": Precision(), "gradient_clip_algorithm": None,
        }  # fmt: skip
        captioner = captioner or small_captioner("full", "mlp")
        module = CaptionTraining(captioner, None, **dict(training))  # type: ignore[arg-type]
        return cuda_graphs.obstacle(SimpleNamespace(**trainer | options), module)  # type: ignore[arg-type]

    checkpointed, compiled, quantized = (small_captioner("full", "mlp") for _ in range(3))
    checkpoint_layers(checkpointed.language_model.model)
    compiled.language_model.compile_training("reduce-overhead")
    quantized.language_model.quantization = "4bit"
    ddp = DDPStrategy(parallel_devices=[torch.device("cuda", 0)], cluster_environment=Mock(local_rank=lambda: 0))
    assert reason() is None
    found = [
        reason(strategy=SingleDeviceStrategy(torch.device("cpu"))),
        reason(strategy=ddp),
        reason(accumulate_grad_batches=2),
        reason(precision_plugin=Mock(scaler=1)),
        reason(gradient_clip_algorithm="value"),
        reason(training={"fused": False}),
        reason(quantized),
        reason(checkpointed),
        reason(compiled),
        reason(training={"objective": SelfCritical(compiled, None, lambda *_: np.zeros(1))}),
        reason(callbacks=[Watch()]),
    ]
    named = ["no GPU", "several devices", "summed", "16-mixed", "by value", "fused", "4bit", "checkpointing",
             "compiled", "SelfCritical", "Watch"]  # fmt: skip
    for text, name in zip(found, named, strict=True):
        assert text is not None and name in text


def test_the_choice_is_checked(mistake: Callable[..., str], tmp_path: Path) -> None:
    assert "cuda_graphs must be auto, true or false, not 'fast'" in mistake("train", "cuda_graphs=fast")
    store = make_store(tmp_path / "store", DEMO)
    options = ["data=coco", f"data.store={store}", "encoder=demo", "lm=demo", "model=mlp", f"run_dir={tmp_path}"]
    told = mistake("train", *options, "cuda_graphs=true", "trainer.accelerator=cpu")
    assert "there is no GPU: set cuda_graphs=auto" in told
