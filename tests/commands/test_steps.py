"""Steps of a comparison: finished ones are not run again, stopped ones continue, and their time is that of the work."""

import os
import time
from pathlib import Path

import pytest

from prefixcap.commands.common.steps import Timing, train_once, write_csv
from prefixcap.errors import InputError


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that are run; each but the third is stopped, after it has kept a checkpoint 5 s ahead of now."""
    run: list[list[str]] = []

    def call(command: list[str]) -> object:
        run.append(command[3:])
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        last.parent.mkdir(exist_ok=True)
        last.touch()
        os.utime(last, (time.time() + 5, time.time() + 5))
        return type("Done", (), {"returncode": 0 if len(run) == 3 else 1})

    monkeypatch.setattr("subprocess.run", call)
    return run


def test_a_stopped_training_continues_from_its_checkpoint(tmp_path: Path, commands: list[list[str]]) -> None:
    run = tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"
    for _ in range(2):
        with pytest.raises(InputError, match=r"^train failed: correct that"):
            train_once(run, "model=mlp", "seed=3")
    assert not Timing.read(run).finished
    timing = train_once(run, "model=mlp", "seed=3")
    assert commands == [["train", "model=mlp", "seed=3", f"run_dir={run}"], *[["train", f"ckpt={last}"]] * 2]
    assert timing.finished and timing == Timing.read(run) and timing.machine
    assert len(timing.sessions) == 3 and 10 <= timing.seconds < 13  # to the checkpoints of the two that were stopped
    assert train_once(run, "model=mlp", "seed=3") == timing and len(commands) == 3


def test_a_language_model_continues_by_the_same_command(tmp_path: Path, commands: list[list[str]]) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match=r"^train-lm failed"):
            train_once(tmp_path / "run", "data=demo", command="train-lm")
    assert commands == [["train-lm", "data=demo", f"run_dir={tmp_path / 'run'}"]] * 2


def test_numbers_of_a_table_stay_numbers_and_texts_are_no_formulas(tmp_path: Path) -> None:
    write_csv(tmp_path / "table.csv", [["name", "change"], ["-1+1", -0.25]])
    assert (tmp_path / "table.csv").read_text() == "name,change\n'-1+1,-0.25\n"
