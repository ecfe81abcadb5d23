"""Plot captioning scores against the prefix length (ClipCap, Mokady et al. 2021, Figure 7).

The best checkpoint of every run below FOLDER captions training and test images. Writes the scores to \
prefix_length.csv and the figure to prefix_length.png, both in FOLDER. Scores that the table has already are kept, \
unless the checkpoint is newer. Drawing needs matplotlib: pip install 'prefixcap\\[plot]'
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from prefixcap.errors import InputError
from prefixcap.utils.files import read_table, write_table
from prefixcap.utils.plotting import require_matplotlib, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LANGUAGE_MODELS = {
    "frozen": "frozen language model",
    "lora": "language model with LoRA",
    "full": "tuned language model",
}
TABLE = "prefix_length.csv"
FIGURE = "prefix_length.png"
EXAMPLES = """  prefixcap train --multirun experiment=prefix_length

  prefixcap prefix-length runs/prefix_length"""


@dataclass(frozen=True)
class Point:
    """The scores of a run on a split.

    Attributes:
        run: its folder, relative to that of all runs.
        setting: its mapper, and how its language model was tuned.
        prefix_length: vectors per image that the mapper returns.
        split: train or test.
        most_images: the limit of captioned images per split.
        decode: the name of the decoder.
        bleu_4: from 0 to 1.
        cider: from 0 on.
    """

    run: str
    setting: str
    prefix_length: int
    split: str
    most_images: int
    decode: str
    bleu_4: float
    cider: float


def main(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the runs.")],
    images: Annotated[int, typer.Option(metavar="N", help="At most N images per split.")] = 5000,
    decode: Annotated[str, typer.Option(metavar="NAME", help="The name of a decoder.")] = "beam",
) -> None:
    """Write the table and the figure. Raises InputError as `evaluate_runs` does."""
    require_matplotlib()
    save_figure(draw(evaluate_runs(folder, images, decode)), folder / FIGURE)
    print(f"results: {folder / TABLE}, {folder / FIGURE}")


def evaluate_runs(folder: Path, most_images: int, decode: str) -> list[Point]:
    """The scores of every run below a folder on both splits, also written to `prefix_length.csv` after each run.

    Args:
        folder: contains runs of `prefixcap train`, at any depth.
        most_images: of a larger split this many images are drawn at random, the same for each run.
        decode: the name of a decoder.

    Raises:
        InputError: there is no run, the table cannot be read, or the training store of a run cannot be opened.
    """
    checkpoints = sorted(folder.glob("**/checkpoints/best.ckpt"))
    if not checkpoints:
        raise InputError(f"no run below {folder} has checkpoints/best.ckpt: name the folder of a sweep's runs")
    runs = {str(checkpoint.parent.parent.relative_to(folder)): checkpoint for checkpoint in checkpoints}
    table = folder / TABLE
    points = [
        point
        for point in (read_table(table, Point) if table.exists() else [])
        if (point.most_images, point.decode) == (most_images, decode)
        and point.run in runs
        and runs[point.run].stat().st_mtime < table.stat().st_mtime
    ]
    known = {point.run for point in points}
    for run, checkpoint in runs.items():
        if run not in known:
            print(f"captioning with {checkpoint}", file=sys.stderr)
            points += evaluate_run(checkpoint, run, most_images, decode)
            write_table(table, points)
    return points


def evaluate_run(checkpoint: Path, run: str, most_images: int, decode: str) -> list[Point]:
    """The scores of a checkpoint on images of the splits train and test; for the arguments see `evaluate_runs`."""
    import torch

    from prefixcap.captioner import load
    from prefixcap.data import require_match
    from prefixcap.metrics import score_captions
    from prefixcap.store.named import open_training_store
    from prefixcap.utils.hardware import usable_device

    captioner = load(checkpoint, usable_device("auto"))
    store = open_training_store(captioner.trained_on, checkpoint)
    require_match(store, captioner)
    points = []
    for name in ("train", "test"):
        split = store.split(name)
        rows = np.unique(split.caption_images[:])
        if len(rows) > most_images:
            rows = np.sort(np.random.default_rng(0).choice(rows, most_images, replace=False))
        captions = captioner.caption(torch.from_numpy(split.feature(captioner.features)[rows]), decode, progress=True)
        ids, references = [split.ids[row] for row in rows], split.references()
        scores = score_captions(
            dict(zip(ids, captions, strict=True)), {image_id: references[image_id] for image_id in ids},
            ["BLEU", "CIDEr"],
        ).corpus  # fmt: skip
        setting = f"{captioner.mapper_options['name']}, {LANGUAGE_MODELS[captioner.language_model.tuning]}"
        points.append(
            Point(
                run, setting, captioner.prefix_length, name, most_images, decode, scores["BLEU-4"], scores["CIDEr"]
            )
        )  # fmt: skip
    return points


def draw(points: Sequence[Point]) -> "Figure":
    """A figure with a panel for each setting: BLEU-4 and CIDEr against the prefix length, solid for test images and
    dashed for training images."""
    from matplotlib.figure import Figure

    settings = sorted({point.setting for point in points})
    figure = Figure(figsize=(4.8 * len(settings), 4), layout="constrained")
    left = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    right = [panel.twinx() for panel in left]
    for panel, twin, setting in zip(left, right, settings, strict=True):
        twin.sharey(right[0])
        lines = []
        for axes, name, attribute, colour in (
            (panel, "BLEU-4", "bleu_4", "tab:red"),
            (twin, "CIDEr", "cider", "tab:blue"),
        ):
            for split, style in (("test", "-"), ("train", "--")):
                scores = sorted(
                    (point.prefix_length, getattr(point, attribute))
                    for point in points
                    if (point.setting, point.split) == (setting, split)
                )
                lines += axes.plot(
                    *zip(*scores, strict=True), style, color=colour, marker=".", label=f"{name}, {split}"
                )
            axes.set_ylabel(name, color=colour)
        panel.set(title=setting, xlabel="prefix length", xticks=sorted({point.prefix_length for point in points}))
    figure.legend(handles=lines, loc="outside lower center", ncols=4)
    return figure


if __name__ == "__main__":
    from prefixcap.commands import main as run

    run("prefix-length")
