"""`benchmarks/gpu.py` works from end to end; the models of speed agree with formulas."""

import json
import math
import multiprocessing
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks import gpu_hours
from tests.conftest import ROOT
from tests.processes import python


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as if it were run as a script
    import gpu

    return gpu


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections", [["training", "decoding", "embedding", "packing"], ["loss"], ["command"], ["equality"], ["compiled"]]
)
def test_every_section_works(sections: list[str], tmp_path: Path) -> None:
    """Slow because `command` and `equality` train several times, each in a fresh process, and `compiled` compiles.

    The others are forked, but for `loss`: when Triton is imported, it reads that it is to interpret its kernels.
    """
    words = ["benchmarks/gpu.py", "--tiny", "--slower", "10", "--out", tmp_path, "--sections"]
    if sections == ["loss"]:
        done = subprocess.run(
            list(map(str, [sys.executable, *words, *sections])), cwd=ROOT, capture_output=True, text=True
        )
    else:
        done = python(*words, *sections)
    assert not done.returncode, done.stdout + done.stderr
    tables = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert list(tables) == sections and all(tables.values())
    assert (tmp_path / "gpu.md").read_text() in done.stdout
    for row in tables.get("equality", []):
        assert row["figure"] == row["allowed"] == 0 or row["figure"] <= row["allowed"]


def test_a_section_that_fails_or_takes_too_long_keeps_its_rows(gpu: ModuleType) -> None:
    for last, told in ((None, None), ("hang", "ended after 0 s"), ("close", "its process ended")):
        own, other = multiprocessing.Pipe()
        other.send({})  # that it can begin
        other.send({"ms": 1.0})
        if last is None:
            other.send(None)
        if last == "close":
            other.close()
        rows = list(gpu.rows_of(own, 0.01))
        assert rows == [{"ms": 1.0}] + ([{"failed": told}] if told else [])


def test_all_sections_end_within_six_minutes(gpu: ModuleType) -> None:
    assert gpu.START + sum(seconds for _, seconds in gpu.SECTIONS.values()) <= 360


def test_rows_of_different_columns_are_one_table(gpu: ModuleType) -> None:
    printed = gpu.report(
        {"GPU": "none"}, {"training": [{"kind": "ours", "ms": 6.314}, {"kind": "recipe", "s": 1285.4}]}
    )
    assert "| kind | ms | s |\n| --- | --- | --- |\n| ours | 6.31 |  |\n| recipe |  | 1,285 |" in printed


@pytest.mark.parametrize(("cost", "workers", "step"), [(0.5, 1, 1.0), (3.0, 2, 1.0), (9.0, 8, 1.0), (0.1, 8, 0.02)])
def test_the_pipeline_is_as_fast_as_its_slower_half(
    cost: float, workers: int, step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from input_pipeline import MEASURED, simulate, table

    assert table(MEASURED) in (ROOT / "docs" / "use" / "gpus.md").read_text(encoding="utf-8")

    steady = simulate(np.full((4, 400), cost), workers, 2, step)
    assert math.isclose(steady, max(step, cost / workers), rel_tol=0.02)
    # Batches that take as long on average, but not each, hold up all GPUs: never faster.
    varied = np.random.default_rng(0).exponential(cost, (4, 400))
    assert simulate(varied * cost / varied.mean(), workers, 2, step) > 0.99 * steady


def test_hours_follow_from_the_measured_steps() -> None:
    """With the operations that were counted, the model gives the times that were measured."""
    for captions, cell in zip((40, 320, 1280), gpu_hours.MEASURED["ours, captured (prototype)"], strict=True):
        step = gpu_hours.CAPTURED_LAYER * gpu_hours.LAYERS + captions * gpu_hours.COUNTED / gpu_hours.CAPTURED_RATE
        assert math.isclose(1e3 * step, float(cell), rel_tol=0.02)
    one = gpu_hours.SYSTEMS["(a) ClipCap, frozen GPT-2"]
    assert one.hours(gpus=8) > one.hours(captured=False) / 8  # gradients are exchanged
