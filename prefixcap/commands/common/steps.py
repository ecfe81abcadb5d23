"""The steps of a longer comparison, each a command in a process of its own: finished ones are not run again."""

import csv
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prefixcap.errors import InputError
from prefixcap.utils.files import as_cell, atomic_write_text, read_json
from prefixcap.utils.hardware import describe_machine

TIMING = "timing.json"


@dataclass
class Timing:
    """How long a step took, and on what; kept in its folder.

    Attributes:
        sessions: when each process started and ended, in seconds since 1970; of one that was killed, when it last kept
            a part of its work, as what it did afterwards was lost.
        machine: that of the last session.
        finished: whether the last process ended by itself.
    """

    sessions: list[list[float]] = field(default_factory=list)
    machine: str = ""
    finished: bool = False

    @property
    def seconds(self) -> float:
        """All sessions together, with start-up."""
        return sum(end - start for start, end in self.sessions)

    @classmethod
    def read(cls, folder: Path) -> "Timing":
        """What is known of the step in a folder. Raises InputError if the file is damaged."""
        file = folder / TIMING
        return cls(**read_json(file)) if file.exists() else cls()


def run_once(folder: Path, command: str, options: Sequence[str], progress: Path) -> Timing:
    """Run a command that writes into a folder, unless it has finished before.

    Args:
        folder: of the step.
        command: a command of `prefixcap`.
        options: of the command.
        progress: the file in which it keeps what is done.

    Raises:
        InputError: the command failed, or the folder cannot be written to.
    """
    timing = Timing.read(folder)
    if timing.finished:
        return timing
    if timing.sessions and progress.exists():
        timing.sessions[-1][1] = max(timing.sessions[-1][1], progress.stat().st_mtime)
    start = time.time()
    timing.machine = describe_machine()
    timing.sessions.append([start, start])
    atomic_write_text(folder / TIMING, json.dumps(asdict(timing)) + "\n")
    call(command, *options)
    timing.sessions[-1][1], timing.finished = time.time(), True
    atomic_write_text(folder / TIMING, json.dumps(asdict(timing)) + "\n")
    return timing


def train_once(run: Path, *options: str, command: str = "train") -> Timing:
    """Train in a folder, unless that was done; a training that was stopped continues from its last checkpoint.

    Args:
        run: the folder of the run.
        options: of the command, without `run_dir=`.
        command: train or train-lm.

    Raises:
        InputError: the training failed, or the folder cannot be written to.
    """
    last = run / "checkpoints" / "last.ckpt"
    if last.exists() and command == "train":  # train-lm continues when it is given the same options again
        return run_once(run, command, [f"ckpt={last}"], last)
    return run_once(run, command, [*options, f"run_dir={run}"], last)


def call(command: str, *options: str) -> None:
    """Run another command. Raises InputError if it fails; it has said why."""
    print(f"\n$ prefixcap {command} {' '.join(options)}", flush=True)
    if subprocess.run([sys.executable, "-m", "prefixcap", command, *options]).returncode:
        raise InputError(f"{command} failed: correct that and run the same command again, which continues from here")


def slug(name: str) -> str:
    """A name as a folder that an option can name without quotes."""
    return re.sub(r"[^\w.]+", "-", name)


def write_csv(path: Path, rows: Sequence[Sequence[str | float]]) -> None:
    """Write rows, the first of which is the head, as CSV. Raises InputError if the file cannot be written."""
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(map(as_cell, row) for row in rows)
    atomic_write_text(path, lines.getvalue())


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"
