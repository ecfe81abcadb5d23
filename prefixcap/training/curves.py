"""The curves of a run as a picture, `curves.png`, drawn from `metrics.csv`."""

import csv
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from prefixcap.errors import InputError
from prefixcap.utils.plotting import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Series = list[tuple[int, float]]  # (step, value)

# The columns of metrics.csv in each panel; "lr" is the learning rate of any optimizer.
PANELS = {
    "loss, nats a token": ("train_loss", "val_loss"),
    "contrastive loss": ("contrastive_loss",),
    "reward of samples": ("train_reward",),
    "CIDEr of validation captions": ("val_cider",),
    "learning rate": ("lr",),
}
SHARE = 0.05  # of the time of training that is spent on drawing, at most
FIRST = 10.0  # seconds of training before the first drawing, unless it ends before
SMOOTHED = 100  # more points are drawn with their moving average over a fiftieth of them


class Curves(Callback):
    """Draws `curves.png` in a run's folder after validations and when training ends, also when it is stopped.

    Validations of the first seconds are left out, and those that follow a drawing so soon that all drawing would take
    more than `SHARE`. It needs matplotlib, and the `metrics.csv` of Lightning's CSVLogger in that folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._next = 0.0  # seconds of the clock, from which on it may be drawn again

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._next = time.monotonic() + FIRST

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if time.monotonic() >= self._next:
            self._draw(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._draw(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        with suppress(InputError):  # the user is to see what ended training
            self._draw(trainer)

    def _draw(self, trainer: L.Trainer) -> None:
        table, start = self.run_dir / "metrics.csv", time.monotonic()
        if trainer.is_global_zero and table.exists() and (series := read_series(table)):
            save_figure(draw(series), self.run_dir / "curves.png")
            end = time.monotonic()
            self._next = end + (end - start) * (1 / SHARE - 1)


def read_series(table: Path) -> dict[str, Series]:
    """The columns of a `metrics.csv` that `PANELS` shows, by name."""
    shown = {name for names in PANELS.values() for name in names}
    series: dict[str, Series] = {}
    with table.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for column, value in row.items():
                name = column.partition("-")[0]  # lr-AdamW
                if value and name in shown:
                    series.setdefault(name, []).append((int(row["step"]), float(value)))
    return series


def draw(series: Mapping[str, Series]) -> "Figure":
    """A figure with each of the `PANELS` that has a series, over the steps of training."""
    from matplotlib.figure import Figure

    shown = {label: [name for name in names if name in series] for label, names in PANELS.items()}
    shown = {label: names for label, names in shown.items() if names}
    figure = Figure(figsize=(4.4 * len(shown), 3.6), layout="constrained")
    panels = figure.subplots(1, len(shown), sharex=True, squeeze=False)[0]
    for panel, (title, names) in zip(panels, shown.items(), strict=True):
        for name in names:
            steps, values = np.array(series[name]).T
            label, color, marker = ("validation", "tab:orange", "o") if "val_" in name else ("training", "tab:blue", "")
            if len(steps) > SMOOTHED:
                panel.plot(steps, values, color, alpha=0.25, linewidth=1)
                window = np.full(len(steps) // 50, 1 / (len(steps) // 50))
                steps, values = np.convolve(steps, window, "valid"), np.convolve(values, window, "valid")
            panel.plot(steps, values, color, marker=marker, markersize=4, label=label)
        panel.set_title(title, fontsize="medium")
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        if len(names) > 1:
            panel.legend(frameon=False)
    return figure
