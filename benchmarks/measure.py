"""What several benchmarks need: a process of its own for what is measured, and its memory."""

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def in_own_process(function: Callable[..., None], *arguments: Any) -> None:
    """Call `function` in a new process, whose memory has not grown before; if it fails, end this one too."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def memory(kind: str) -> int:
    """Bytes of this process (Linux): "RssAnon", those that map no file, or "VmHWM", all that were ever resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))
