"""The CPUs, memory and devices that this process may use; a scheduler or a container often grants less than exists."""

import math
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

from prefixcap.errors import InputError

if TYPE_CHECKING:
    import torch


def cpu_count() -> int:
    """The number of CPUs."""
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    file = Path("/sys/fs/cgroup/cpu.max")
    return min(granted, cpus_of_quota(file.read_text() if file.is_file() else "max") or granted)


def cpus_of_quota(text: str) -> int | None:
    """The CPUs that a control group's `cpu.max` grants, rounded up; None if it sets no limit.

    The file holds two numbers, microseconds of CPU time and the period of the clock in which they may be used:
    https://docs.kernel.org/admin-guide/cgroup-v2.html.
    """
    quota, _, period = text.partition(" ")
    return math.ceil(int(quota) / int(period)) if quota.strip() != "max" else None


def memory_bytes() -> int:
    """The memory in bytes."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [8 << 30]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(file).read_text() if Path(file).is_file() else ""
        sizes += [int(limit)] if limit.strip().isdigit() else []
    return min(sizes)


def free_memory_bytes(device: "torch.device") -> int:
    """The memory of a GPU that is free, in bytes; of another device, all memory of the machine."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_bytes()


def gpu_name() -> str | None:
    """The name of the GPU that Lightning's accelerator "gpu" trains on; None: there is none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def gpu_has_bfloat16() -> bool:
    """Whether that GPU multiplies matrices in bfloat16: those of compute capability 8.0 (2020) and later."""
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies matrices in bfloat16 at a useful rate: one with AVX2 alone is many times slower than
    in float32.
    """
    import torch

    return torch.backends.cpu.get_cpu_capability() not in ("NO AVX", "AVX2")


def describe_machine() -> str:
    """The processor that models run on by default, in words, to stand beside a time: "NVIDIA H100 80GB HBM3", or
    "Intel(R) Xeon(R) CPU @ 2.20GHz, 2 CPUs, 1 thread", where threads are those that torch uses.
    """
    import torch

    if gpu := gpu_name():
        return gpu
    file = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)", file.read_text() if file.is_file() else "", re.MULTILINE)
    name = names[0].strip() if names else platform.processor() or platform.machine()
    cpus, threads = cpu_count(), torch.get_num_threads()
    return f"{name}, {cpus} CPU{'s' * (cpus > 1)}, {threads} thread{'s' * (threads > 1)}"


def usable_device(device: "str | torch.device") -> "torch.device":
    """The device, after trying it: better now than after a download; "auto": a GPU, if there is one.

    Raises:
        InputError: it cannot be used.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # "not compiled with CUDA" is an AssertionError
        reason = str(error).partition("\n")[0]
        raise InputError(f"device {str(device)!r} cannot be used ({reason}): choose another, e.g. cpu") from error
    return torch.device(device)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that a GPU or the machine is out of memory (torch has several ways to say so)."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
