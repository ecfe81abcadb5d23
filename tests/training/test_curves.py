"""The picture of a run's curves: what is in it, and when it is drawn."""

import csv
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.training import CaptionTraining, curves
from prefixcap.training.checkpoints import LastCheckpoint, Stopped
from prefixcap.training.curves import Curves, Series, draw, read_series
from tests.conftest import small_captioner
from tests.training.test_training import make_store


def test_the_panels_show_what_there_is(tmp_path: Path) -> None:
    rows = [{"step": step, "epoch": 0, "train_loss": 5 / (step + 1), "lr-AdamW": ""} for step in range(0, 40, 2)]
    rows += [{"step": step, "epoch": 0, "train_loss": "", "lr-AdamW": step / 1000} for step in range(0, 40, 2)]
    rows += [{"step": step, "epoch": 0, "val_loss": 3.0 - step / 100, "val_cider": step / 50} for step in (19, 39)]
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["step", "epoch", "train_loss", "lr-AdamW", "val_loss", "val_cider"])
        table.writeheader()
        table.writerows(rows)
    series = read_series(tmp_path / "metrics.csv")
    assert series["val_cider"] == [(19, 0.38), (39, 0.78)]
    loss, cider, rate = draw(series).axes
    training, validation = loss.lines
    assert (training.get_label(), validation.get_label()) == ("training", "validation")
    assert np.allclose(training.get_xydata(), [(step, 5 / (step + 1)) for step in range(0, 40, 2)])
    assert np.allclose(validation.get_xydata(), [(19, 2.81), (39, 2.61)])
    assert np.allclose(cider.lines[0].get_xydata(), [(19, 0.38), (39, 0.78)])
    assert np.allclose(rate.lines[0].get_xydata(), [(step, step / 1000) for step in range(0, 40, 2)])
    assert [panel.get_xlabel() for panel in (loss, cider, rate)] == ["step"] * 3
    assert loss.get_legend() is not None and cider.get_legend() is None


def test_many_points_are_drawn_with_their_moving_average() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=500).tolist()
    (panel,) = draw({"train_loss": [(10 * step, value) for step, value in enumerate(values)]}).axes
    raw, smooth = panel.lines
    assert np.allclose(raw.get_ydata(), values)
    averages = [sum(values[start : start + 10]) / 10 for start in range(491)]
    assert np.allclose(smooth.get_xydata(), [(10 * start + 45, of) for start, of in enumerate(averages)])


class Halt(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(signal.SIGTERM)


def test_they_are_drawn_after_validations_at_the_end_and_when_training_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = small_captioner("frozen", "mlp")
    data = CaptionData(make_store(tmp_path / "store"), captioner, batch_size=3)  # four steps an epoch
    drawn: list[dict[str, Series]] = []
    monkeypatch.setattr(curves, "draw", lambda series: (drawn.append(series), draw(series))[1])

    def fit(run: Path, *callbacks: L.Callback) -> None:
        drawn.clear()
        trainer = L.Trainer(
            max_epochs=2, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            accelerator="cpu", logger=CSVLogger(run, name="", version=""), default_root_dir=run, log_every_n_steps=1,
            callbacks=[LastCheckpoint(run / "last.ckpt"), Curves(run), LearningRateMonitor("step"), *callbacks],
        )  # fmt: skip
        trainer.fit(CaptionTraining(captioner, data.val_split, max_tokens=3), data)

    fit(tmp_path / "short")
    assert [len(series["val_cider"]) for series in drawn] == [2]
    assert [step for step, _ in drawn[-1]["train_loss"]] == [*range(8)]
    monkeypatch.setattr(curves, "FIRST", 0)
    fit(tmp_path / "longer")  # the second validation comes too soon
    assert [len(series["val_cider"]) for series in drawn] == [1, 2]
    monkeypatch.setattr(curves, "SHARE", 1)
    fit(tmp_path / "whole")
    assert [len(series["val_cider"]) for series in drawn] == [1, 2, 2]
    assert [step for step, _ in drawn[-1]["train_loss"]] == [step for step, _ in drawn[-1]["lr"]] == [*range(8)]
    with Image.open(tmp_path / "whole" / "curves.png") as picture:
        assert picture.width > 2 * picture.height
    with pytest.raises(Stopped):
        fit(tmp_path / "stopped", Halt(6))
    assert [step for step, _ in drawn[-1]["train_loss"]] == [*range(6)] and len(drawn) == 2
    assert (tmp_path / "stopped" / "curves.png").exists()

    def full(figure: Any, path: Path) -> None:
        raise InputError("no space left on the disk")

    monkeypatch.setattr(curves, "save_figure", full)
    with pytest.raises(Stopped):  # and not that there is no space left
        fit(tmp_path / "full", Halt(2))
