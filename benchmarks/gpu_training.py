"""A section of `gpu.py`: training steps, without Lightning around them, on batches that lie on the device already."""

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator

import torch
from gpu import Row, Setting
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from train_steps import BATCH, NAMES, Step, eager_step, matrix_rate, packed, plain_recipe, random_captioner, run
from transformers import GPT2Config

TINY = GPT2Config(n_embd=64, n_layer=2, n_head=4)
PREPARED = 4  # batches


def training(setting: Setting) -> Iterator[Row]:
    """The published recipe, and ours; a ratio is that of the time of the published recipe in fp32."""
    device, config = torch.device(setting.device), TINY if setting.tiny else GPT2Config()
    rate = matrix_rate(device, torch.bfloat16)
    yield {"system": "a large product in bf16", "TFLOP/s": rate / 1e12}
    for size, tuning in itertools.product((5,) if setting.tiny else (BATCH, 320, 1280), NAMES):
        builders: dict[str, Callable[..., Step]] = {
            "published recipe": plain_recipe,
            "published recipe, TF32": plain_recipe,
            "ours, eager": ours,
        }
        recipe = operations = math.nan
        for kind, build in builders.items():
            torch.set_float32_matmul_precision("high" if "TF32" in kind else "highest")
            row: Row = {"system": NAMES[tuning], "captions": size, "kind": kind}
            try:
                step = build(tuning, device, size, config)
                took = seconds_a_step(step, setting.seconds)
                if "captured" not in kind:
                    operations = operations_of(step)
                recipe = took if kind == "published recipe" else recipe
                row |= {"ms a step": 1e3 * took, "captions/s": size / took, "ratio": recipe / took}
                row |= {"of the bf16 rate": operations / took / rate, **gpu_use(step, took, device)}
            except torch.OutOfMemoryError:
                row["ms a step"] = "out of memory"
            yield row
            step = None  # type: ignore[assignment]
            gc.collect()
            torch.cuda.empty_cache()


def ours(tuning: str, device: torch.device, size: int, config: GPT2Config) -> Step:
    """Our step in bf16, launched from Python, on batches with the captions of an image together."""
    batches = itertools.cycle(list(itertools.islice(packed(device, size), PREPARED)))
    return eager_step(random_captioner(tuning, config).to(device).train(), torch.bfloat16, batches)


def seconds_a_step(step: Step, seconds: float) -> float:
    """The quickest of three turns."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    run(step, PREPARED)  # all shapes once
    start = time.perf_counter()
    run(step, 1)
    steps = max(2, round(seconds / (time.perf_counter() - start)))
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


def gpu_use(step: Step, took: float, device: torch.device) -> Row:
    """The share of a step's time in which kernels run, and peak memory."""
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run(step, 3)
    kernels = sum(
        event.self_device_time_total
        for event in profiled.key_averages()
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    )
    return {"GPU busy": kernels / 1e6 / 3 / took, "peak GB": peak / 1e9}
