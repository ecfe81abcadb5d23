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

TRAINING = "training.json"


@dataclass
class Training:
    """How long a run was trained, and on what; kept in its folder.

    Attributes:
        sessions: when each process started and ended, in seconds since 1970; of one that was killed, when it wrote the
            last checkpoint, as what it did afterwards was lost.
        machine: that of the last session.
        finished: whether the training ended by itself.
    """

    sessions: list[list[float]] = field(default_factory=list)
    machine: str = ""
    finished: bool = False

    @property
    def seconds(self) -> float:
        """All sessions together, with start-up and validation."""
        return sum(end - start for start, end in self.sessions)

    @classmethod
    def read(cls, run: Path) -> "Training":
        """What is known of the run in a folder: nothing if there is none."""
        file = run / TRAINING
        return cls(**read_json(file)) if file.exists() else cls()

    def write(self, run: Path) -> None:
        """Keep it in the folder of the run. Raises InputError if it cannot be written."""
        atomic_write_text(run / TRAINING, json.dumps(asdict(self)) + "\n")


def train_once(run: Path, *options: str, command: str = "train") -> Training:
    """Train in a folder, unless that was done; a training that was stopped continues from its last checkpoint.

    Args:
        run: the folder of the run.
        options: of the command, without `run_dir=`.
        command: train or train-lm.

    Raises:
        InputError: the training failed, or the folder cannot be written to.
    """
    training, last = Training.read(run), run / "checkpoints" / "last.ckpt"
    if training.finished:
        return training
    if last.exists() and training.sessions:
        training.sessions[-1][1] = max(training.sessions[-1][1], last.stat().st_mtime)
    start = time.time()
    training.machine = describe_machine()
    training.sessions.append([start, start])
    training.write(run)
    # train-lm continues by itself when it is given the same options again
    continued = last.exists() and command == "train"
    call(command, *([f"ckpt={last}"] if continued else [*options, f"run_dir={run}"]))
    training.sessions[-1][1], training.finished = time.time(), True
    training.write(run)
    return training


def call(command: str, *options: str) -> None:
    """Run another command. Raises InputError if it fails; it has said why."""
    print(f"\n$ prefixcap {command} {' '.join(options)}", flush=True)
    if subprocess.run([sys.executable, "-m", "prefixcap", command, *options]).returncode:
        raise InputError(f"{command} failed: correct that and run the same command again, which continues from here")


def slug(name: str) -> str:
    """A name as a folder that an option can name without quotes."""
    return re.sub(r"[^\w.]+", "-", name)


def write_tables(folder: Path, rows: Sequence[Sequence[str]]) -> str:
    """Write rows, the first of which is the head, to `table.md` and `table.csv`; return the Markdown."""
    text, lines = markdown(rows), io.StringIO()
    atomic_write_text(folder / "table.md", text)
    csv.writer(lines, lineterminator="\n").writerows(map(as_cell, row) for row in rows)
    atomic_write_text(folder / "table.csv", lines.getvalue())
    return text


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"
