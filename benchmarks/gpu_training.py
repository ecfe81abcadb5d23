"""Three sections of `gpu.py`: training steps, without Lightning around them, on batches that lie on the device already;
the same with compiled layers; and the two ways to compute the loss."""

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gpu import Row, Setting
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from train_steps import (
    NAMES,
    PREFIX,
    Step,
    captions,
    eager_step,
    matrix_rate,
    owners_of,
    packed,
    plain_recipe,
    random_captioner,
    run,
)
from transformers import GPT2Config

from prefixcap.data.shapes import choose_shapes
from prefixcap.losses import token_cross_entropy
from prefixcap.packing import BatchShape, lay_out
from prefixcap.training import CaptionTraining
from prefixcap.training.captured import CapturedStep, CaptureError, StepResult
from prefixcap.utils.cuda_graphs import CudaGraphs

TINY = GPT2Config(n_embd=64, n_layer=2, n_head=4)
PREPARED = 8  # batches
TARGETS = (440, 3_500, 14_000)  # of 40, 320 and 1,280 captions


def training(setting: Setting) -> Iterator[Row]:
    """The published recipe, and ours; a ratio is that of the time of the published recipe in fp32."""
    device, config = torch.device(setting.device), config_of(setting)
    rate = matrix_rate(device, torch.bfloat16)
    yield {"system": "a large product in bf16", "TFLOP/s": rate / 1e12}
    # The sizes in the order of their importance, as time may run out.
    for size, tuning in itertools.product((setting.batch,) if setting.tiny else (setting.batch, 1280, 320), NAMES):
        builders: dict[str, Callable[..., Step]] = {
            "published recipe": plain_recipe,
            "published recipe, TF32": plain_recipe,
            "ours, eager": ours,
            f"ours, {setting.captured}": captured,
        }
        recipe = operations = math.nan
        for kind, build in builders.items():
            torch.set_float32_matmul_precision("highest" if kind == "published recipe" else "high")
            row: Row = {"system": NAMES[tuning], "captions": size, "kind": kind}
            step: Step | None = None
            try:
                step = build(tuning, device, size, config)
                took = seconds_a_step(step, setting.seconds, PREPARED if "ours" in kind else 2)
                if kind == "ours, eager":
                    operations = operations_of(step)
                recipe = took if kind == "published recipe" else recipe
                row |= {"ms a step": 1e3 * took, "captions/s": size / took, "ratio": recipe / took}
                row |= peak_memory()
                if "ours" in kind:
                    row |= {"of the bf16 rate": operations / took / rate, **gpu_use(step, took)}
            except (torch.OutOfMemoryError, CaptureError) as error:
                row["ms a step"] = f"{type(error).__name__}: {error}".partition("\n")[0]
            yield row
            step = None  # frees its memory
            gc.collect()
            torch.cuda.empty_cache()


def compiled(setting: Setting) -> Iterator[Row]:
    """Captured steps whose layers are compiled, beside those whose are not."""
    torch.set_float32_matmul_precision("high")
    size, device = setting.batch, torch.device(setting.device)
    for tuning, name in list(NAMES.items())[: 1 if setting.tiny else None]:
        plain = seconds_a_step(captured(tuning, device, size, config_of(setting)), setting.seconds)
        start = time.perf_counter()
        took = seconds_a_step(captured(tuning, device, size, config_of(setting), compiled=True), setting.seconds)
        yield {
            "system": name,
            "captions": size,
            "kind": f"ours, {setting.captured}",
            "ms a step": 1e3 * plain,
            "compiled": 1e3 * took,
            "ratio": plain / took,
            "s to compile and measure": time.perf_counter() - start,
        }


def loss(setting: Setting) -> Iterator[Row]:
    """The loss and its gradient by torch's kernels and by one of Triton's, with a frozen head."""
    device, words, width = torch.device(setting.device), 100 if setting.tiny else 50_257, 768
    head = torch.randn(words, width, device=device) / math.sqrt(width)
    for count in (8,) if setting.tiny else TARGETS:
        hidden = torch.randn(count, width, device=device, requires_grad=True)
        targets = torch.randint(words, (count,), device=device)

        def step(kernel: bool, hidden: Tensor = hidden, targets: Tensor = targets) -> Tensor:
            hidden.grad = None
            with torch.autocast(device.type, torch.bfloat16):
                total = token_cross_entropy(hidden, head, None, targets, kernel=kernel)
            total.backward()
            return total.detach()

        plain: tuple[float, Tensor, Tensor] | None = None
        for kernel in (False, True):
            took = seconds_a_step(partial(step, kernel), setting.seconds)
            memory, total = peak_memory(), step(kernel)
            assert hidden.grad is not None
            plain = plain or (took, total, hidden.grad)
            yield {
                "targets": count,
                "kernel": "Triton" if kernel else "torch",
                "ms": 1e3 * took,
                "ratio": plain[0] / took,
                **memory,
                "loss, relative difference": (total / plain[1] - 1).abs().item(),
                "gradient, of the largest": ((hidden.grad - plain[2]).abs().max() / plain[2].abs().max()).item(),
            }


def ours(tuning: str, device: torch.device, size: int, config: GPT2Config) -> Step:
    """Our step in bf16, launched from Python, on batches with the captions of an image together."""
    batches = itertools.cycle(list(itertools.islice(packed(device, size), PREPARED)))
    return eager_step(random_captioner(tuning, config, device, torch.bfloat16), torch.bfloat16, batches)


def captured(
    tuning: str, device: torch.device, size: int, config: GPT2Config, compiled: bool = False, grouped: bool = True
) -> Step:
    """The same as one CUDA graph for each shape of batches, on batches that are padded as in training."""
    captioner = random_captioner(tuning, config, device, torch.bfloat16)
    if compiled:
        captioner.language_model.compile_training("default")
    trainer: Any = SimpleNamespace(  # what a captured step asks of Lightning
        lightning_module=CaptionTraining(captioner, None),  # type: ignore[arg-type]
        precision="bf16-mixed",
        precision_plugin=MixedPrecision("bf16-mixed", device.type),
        optimizers=[AdamW([weight for weight in captioner.parameters() if weight.requires_grad], 2e-5, fused=True)],
        gradient_clip_val=1.0,
        strategy=SimpleNamespace(root_device=device),
    )
    step = CapturedStep(trainer, Rerun() if device.type == "cpu" else CudaGraphs(device))
    padded = packed(device, size, grouped, fixed_shapes(size, grouped))
    batches = itertools.cycle(list(itertools.islice(padded, PREPARED)))
    return lambda: step(next(batches)).outputs["loss"]


class Rerun(CudaGraphs[StepResult]):
    """In place of graphs, which a CPU does not have."""

    def __init__(self) -> None: ...

    def warm_up(self, step: Callable[[], StepResult]) -> StepResult:
        return step()

    def capture(self, step: Callable[[], StepResult]) -> Callable[[], StepResult]:
        return step


@cache
def fixed_shapes(size: int, grouped: bool) -> list[BatchShape]:
    """The shapes that `prefixcap.data` would choose, from as many batches."""
    layouts = []
    for images in itertools.islice(captions(size), min(256, -(-100_000 // size))):
        lengths, owners = np.array([len(row) for image in images for row in image]), owners_of(images, grouped)
        layouts.append(lay_out(lengths, owners, int(owners[-1]) + 1, PREFIX))
    return choose_shapes(layouts)


def config_of(setting: Setting) -> GPT2Config:
    return TINY if setting.tiny else GPT2Config()


def seconds_a_step(step: Step, seconds: float, warm: int = PREPARED) -> float:
    """The quickest of three turns, after some steps."""
    forget_peak()
    run(step, warm)
    start = time.perf_counter()
    run(step, 1)
    steps = max(1, round(seconds / (time.perf_counter() - start)))
    took = []
    for _ in range(3):
        start = time.perf_counter()
        run(step, steps)
        took.append((time.perf_counter() - start) / steps)
    return min(took)


def operations_of(step: Step) -> float:
    """Floating-point operations of the matrix products, the mean of some steps."""
    with FlopCounterMode(display=False) as counter:
        run(step, PREPARED)
    total: int = counter.get_total_flops()
    return total / PREPARED


def gpu_use(step: Step, took: float) -> Row:
    """The share of a step's time in which kernels run, on a GPU."""
    if not torch.cuda.is_available():
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run(step, PREPARED)
    kernels = sum(
        event.self_device_time_total
        for event in profiled.key_averages()
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    )
    return {"GPU busy": kernels / 1e6 / PREPARED / took}


def forget_peak() -> None:
    """Begin to measure the peak memory of a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> Row:
    """Of a GPU, since `forget_peak`."""
    return {"peak GB": torch.cuda.max_memory_allocated() / 1e9} if torch.cuda.is_available() else {}
