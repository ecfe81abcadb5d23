"""What a GPU reaches, in one run: training, `prefixcap train` itself, equality, decoding, embedding, and their parts.

    python benchmarks/gpu.py --out figures      # six minutes on one H100 or H200
    python benchmarks/gpu.py --tiny             # tiny models on a CPU, to see that every section works

Each section runs in a process of its own, which ends when its time is over: neither an error nor a section that takes
too long costs the figures of another. The numbers of a ratio are measured in one process. A table of each section is
printed at the end; with `--out`, tables and figures are also written to a folder, after each section.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

Row = dict[str, str | float]

SECTIONS = {  # the module that has a function of this name, and the seconds it may take; the least important last
    "training": ("gpu_training", 75),
    "command": ("gpu_command", 105),
    "equality": ("gpu_command", 50),
    "decoding": ("gpu_inference", 25),
    "embedding": ("gpu_inference", 35),
    "loss": ("gpu_training", 8),
    "packing": ("gpu_inference", 8),
    "compiled": ("gpu_training", 34),
}
START = 20  # seconds in which all of them import what they need, at the same time
PACKAGES = ("torch", "lightning", "transformers", "triton", "numpy")


@dataclass(frozen=True)
class Setting:
    """What the sections share.

    Attributes:
        device: "cuda" or "cpu".
        tiny: tiny models and few steps.
        folder: for temporary files.
        seconds: of each of three turns of a measurement, about.
    """

    device: str
    tiny: bool
    folder: Path
    seconds: float

    @property
    def batch(self) -> int:
        """Captions of a training step, as in the paper."""
        return 5 if self.tiny else 40

    @property
    def captured(self) -> str:
        """What steps are called that are captured on a GPU; on a CPU nothing can be."""
        return "re-run, no graph" if self.device == "cpu" else "captured"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--tiny", action="store_true", help="tiny models and few steps, on a CPU")
    parser.add_argument("--out", type=Path, help="a folder for gpu.json and gpu.md")
    parser.add_argument("--slower", type=float, default=1, help="multiplies the seconds that sections may take")
    given = parser.parse_args()
    if given.tiny:
        os.environ["TRITON_INTERPRET"] = "1"  # processes read it when they import Triton
    started, machine, tables = time.monotonic(), describe_machine(), dict[str, list[Row]]()
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder, contextlib.ExitStack() as stack:
        setting = Setting("cpu" if given.tiny else "cuda", given.tiny, Path(folder), 0.01 if given.tiny else 0.3)
        sections = {name: start(name, setting) for name in given.sections}
        for process, _ in sections.values():
            stack.callback(end, process)
        for _, connection in sections.values():
            connection.poll(max(0, started + START * given.slower - time.monotonic()))
        for name, (process, connection) in sections.items():
            print(f"\n{name}", flush=True)
            tables[name] = []
            begun = time.monotonic()
            for row in rows_of(connection, SECTIONS[name][1] * given.slower):
                tables[name].append(row)
                print("  " + ", ".join(f"{key}: {text(value)}" for key, value in row.items()), flush=True)
            end(process)
            print(f"  took {time.monotonic() - begun:.0f} s", flush=True)
            if given.out:
                given.out.mkdir(parents=True, exist_ok=True)
                (given.out / "gpu.json").write_text(json.dumps({"machine": machine, "sections": tables}, indent=1))
                (given.out / "gpu.md").write_text(report(machine, tables))
    print("\n" + report(machine, tables))
    print(f"took {time.monotonic() - started:.0f} s in all")
    sys.exit(any("failed" in row for table in tables.values() for row in table))


def start(name: str, setting: Setting) -> tuple[BaseProcess, Connection]:
    """A process that waits for its turn to measure a section, and the connection by which it sends rows."""
    on_gpu = setting.device == "cuda"
    kind = multiprocessing.get_context("spawn").Process if on_gpu else multiprocessing.Process
    own, other = multiprocessing.Pipe()
    process = kind(target=measure, args=(name, setting, other))
    process.start()
    other.close()
    return process, own


def measure(name: str, setting: Setting, connection: Connection) -> None:
    """In that process: send an empty row once it can begin, then those of the section, and None behind the last."""
    os.setsid()  # so that it can be ended with the processes it started
    try:
        section = getattr(importlib.import_module(SECTIONS[name][0]), name)
        connection.send({})
        connection.recv()
        for row in section(setting):
            connection.send(row)
    except Exception as error:
        traceback.print_exc()
        connection.send({"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"})
    connection.send(None)


def rows_of(connection: Connection, seconds: float) -> Iterator[Row]:
    """The rows of a section, as it measures them."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(OSError):  # its process has ended: what it sent before can be read
        connection.send("begin")
    try:
        while connection.poll(max(0.0, deadline - time.monotonic())):
            if (row := connection.recv()) is None:
                return
            if row:
                yield row
        yield {"failed": f"ended after {seconds:.0f} s"}
    except (EOFError, OSError):
        yield {"failed": "its process ended"}


def end(process: BaseProcess) -> None:
    """End a section's process, with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.kill()
    process.join()


def describe_machine() -> dict[str, str]:
    """The card and its driver, the cores, and versions."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        card = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        card = "none"
    versions = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {"GPU, driver": card, "cores": str(len(os.sched_getaffinity(0))), **versions}


def report(machine: dict[str, str], tables: dict[str, list[Row]]) -> str:
    """All figures in Markdown."""
    parts = [", ".join(f"{name} {value}" for name, value in machine.items())]
    for name, rows in tables.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines = [columns, ["---"] * len(columns)]
        lines += [[text(row[column]) if column in row else "" for column in columns] for row in rows]
        parts.append(f"## {name}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join(parts) + "\n"


def text(value: str | float) -> str:
    """A number with three digits or more."""
    return value if isinstance(value, str) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
