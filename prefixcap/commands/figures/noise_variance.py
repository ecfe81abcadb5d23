"""Draw how well MacCap does over the noise it is trained with, and over the image patches that it is shown:
`python -m prefixcap.commands.figures.noise_variance FOLDER --images STORE` (MacCap, Qiu et al. 2024, supplement 2,
Figures 4 and 5).

The best checkpoint of every run below the folder captions images of the store, with as many patches of each as a text
had copies in training; the scores go to `noise_variance.csv` there, and are drawn in `noise_variance.png`. One of the
runs captions them with other numbers of patches, too: `patches.csv` and `patches.png`. What a table has is not computed
again, unless the checkpoint is newer. Drawing needs matplotlib: pip install "prefixcap[plot]"

As in section 4.3 the patches have noise, too, always of the same variance. One caption is written for each image; the
paper takes the best of 20, which takes 20 times as long: --rerank 20
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from prefixcap.captioner import Captioner, load
from prefixcap.data import require_match
from prefixcap.errors import InputError, name_rows
from prefixcap.features import Feature
from prefixcap.metrics import score_captions
from prefixcap.store import FeatureStore
from prefixcap.utils.files import read_table, read_text, write_table
from prefixcap.utils.hardware import usable_device
from prefixcap.utils.plotting import command_parser, run_command, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REGIONS = Feature.REGIONS  # one for each patch, the most looked at first
PUBLISHED_VARIANCE = 0.016  # in training, where the paper has its best scores; in the released code at inference, too
EMBED = "python -m data_prep.embed data=... data.store=FOLDER 'features=[image,regions]' regions="


@dataclass(frozen=True)
class Run:
    """A run of train.py.

    Attributes:
        name: its folder, below that of all runs.
        checkpoint: its best.
        variance: of the noise that it was trained with.
        copies: of each text in training, each with noise of its own.
    """

    name: str
    checkpoint: Path
    variance: float
    copies: int


@dataclass(frozen=True)
class Sample:
    """Images to caption.

    Attributes:
        store: that they are in.
        split: its name.
        digest: of the split's files.
        regions: (images, regions, dim), the most looked at first.
        embeddings: (images, dim), of the images as a whole.
        references: by image id, in the same order.
    """

    store: FeatureStore
    split: str
    digest: str
    regions: NDArray[np.floating[Any]]
    embeddings: NDArray[np.floating[Any]]
    references: dict[int | str, list[str]]


@dataclass(frozen=True)
class Point:
    """The scores of a run.

    Attributes:
        run, variance: see `Run`.
        patches: of each image that it was shown.
        store: how the digest of the images' files begins.
        split: theirs.
        images: how many.
        decode: name of the decoder.
        noise, rerank: as `Captioner.candidates` and `Captioner.caption` take them.
        bleu_4: 0 to 1.
        cider: from 0.
    """

    run: str
    variance: float
    patches: int
    store: str
    split: str
    images: int
    decode: str
    noise: float
    rerank: int
    bleu_4: float
    cider: float


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command_parser("prefixcap.commands.figures.noise_variance", __doc__)
    parser.add_argument("folder", type=Path, help="of the runs, e.g. runs/noise_variance")
    parser.add_argument("--images", required=True, metavar="STORE", help=f"made by {EMBED}20")
    parser.add_argument("--split", default="test", help="of the store (default: %(default)s)")
    parser.add_argument("--count", type=int, default=5000, help="most images of it (default: %(default)s)")
    parser.add_argument("--decode", default="beam", help="name of a decoder (default: %(default)s)")
    parser.add_argument(
        "--noise", type=float, default=PUBLISHED_VARIANCE, metavar="VARIANCE",
        help="on the patches, at inference (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--rerank", type=int, default=0, metavar="N",
        help="write so many candidates, of which the encoder chooses (default: 0, one is written)",
    )  # fmt: skip
    parser.add_argument(
        "--patches", type=int, nargs="+", default=[1, 3, 5, 10, 20], metavar="N",
        help="numbers of patches to compare (default: 1 3 5 10 20)",
    )  # fmt: skip
    parser.add_argument(
        "--run", metavar="NAME", help=f"which run compares them (default: that with variance {PUBLISHED_VARIANCE})"
    )
    run_command(parser, _write, arguments)


def _write(given: argparse.Namespace) -> str:
    if not given.noise >= 0 or given.rerank < 0:
        raise InputError(f"--noise and --rerank are at least 0, not {given.noise:g} and {given.rerank}")
    runs = find_runs(given.folder)
    chosen = _choose(runs, given.run)
    sample = read_sample(FeatureStore(given.images), given.split, given.count)
    _require_regions(sample, [*given.patches, *(run.copies for run in runs)])
    way = (given.decode, given.noise, given.rerank)
    with_copies = {run: [run.copies] for run in runs}
    variances = evaluate_runs(with_copies, sample, given.folder / "noise_variance.csv", *way)
    numbers = evaluate_runs({chosen: given.patches}, sample, given.folder / "patches.csv", *way)
    save_figure(draw_variances(variances), given.folder / "noise_variance.png")
    save_figure(draw_patches(numbers, chosen.copies), given.folder / "patches.png")
    results = f"results: {given.folder}/ (noise_variance.csv, noise_variance.png, patches.csv, patches.png)"
    return f"{table(variances)}\n\n{table(numbers)}\n\n{results}"


def find_runs(folder: Path) -> list[Run]:
    """The runs below a folder, at any depth, that have a best checkpoint.

    Raises:
        InputError: there is none, or its config.yaml is missing or names no noise.
    """
    checkpoints = sorted(folder.glob("**/checkpoints/best.ckpt"))
    if not checkpoints:
        raise InputError(f"no run below {folder} has checkpoints/best.ckpt: name the folder of a sweep's runs")
    runs = []
    for checkpoint in checkpoints:
        config = checkpoint.parent.parent / "config.yaml"
        try:
            noise = yaml.safe_load(read_text(config))["model"]["noise"]
            variance, copies = float(noise["variance"]), int(noise["copies"])
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{config} has no model.noise with variance and copies: name a folder that has only runs of MacCap, "
                "e.g. those of train.py --multirun experiment=noise_variance"
            ) from error
        runs.append(Run(str(config.parent.relative_to(folder)), checkpoint, variance, copies))
    return runs


def read_sample(store: FeatureStore, name: str, most: int) -> Sample:
    """The images of a split that have captions; of more than `most`, so many are drawn, always the same.

    Raises:
        InputError: there is no such split, it has no regions or no captions, or `most` is below 1.
    """
    if most < 1:
        raise InputError(f"--count is at least 1, not {most}")
    split = store.split(name)
    regions, rows = split.feature(REGIONS), np.unique(split.caption_images[:])
    if not len(rows):
        raise InputError(f"the images of {store.location}, {name}, have no captions to compare with: name another")
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    of_all = split.references()
    references = {image_id: of_all[image_id] for image_id in (split.ids[row] for row in rows.tolist())}
    return Sample(store, name, split.digest, regions[rows], split.embeddings[rows], references)


def evaluate_runs(
    wanted: Mapping[Run, Sequence[int]], sample: Sample, file: Path, decode: str, noise: float, rerank: int
) -> list[Point]:
    """The scores of runs, each with some numbers of patches, also written to a table after each.

    Args:
        wanted: the numbers of patches for each run.
        sample: the images.
        file: the table. What it has of these is not computed again, unless the run's checkpoint is newer.
        decode, noise, rerank: see `Point`.

    Raises:
        InputError: the file is no such table, a checkpoint cannot be loaded, its captioner does not read regions of
            this encoder, or `Captioner.caption` raises it.
    """
    runs = {run.name: run for run in wanted}
    setting = (sample.digest[:12], sample.split, len(sample.references), decode, noise, rerank)
    points = [
        point
        for point in (read_table(file, Point) if file.exists() else [])
        if (point.store, point.split, point.images, point.decode, point.noise, point.rerank) == setting
        and (run := runs.get(point.run)) is not None
        and (point.variance == run.variance and point.patches in wanted[run])
        and run.checkpoint.stat().st_mtime < file.stat().st_mtime
    ]
    for run, numbers in wanted.items():
        missing = sorted({*numbers} - {point.patches for point in points if point.run == run.name})
        if not missing:
            continue
        captioner = _open(run, sample.store)
        for number in missing:
            print(f"captioning with {run.checkpoint}, {number} patches", file=sys.stderr)
            with name_rows(sample.references):
                captions = captioner.caption(
                    sample.regions[:, :number], decode, progress=True, rerank=rerank, embeddings=sample.embeddings,
                    noise=noise, seed=0 if noise else None,
                )  # fmt: skip
            written = dict(zip(sample.references, captions, strict=True))
            scores = score_captions(written, sample.references, ["BLEU", "CIDEr"]).corpus
            points.append(Point(run.name, run.variance, number, *setting, scores["BLEU-4"], scores["CIDEr"]))
            points.sort(key=lambda point: (point.variance, point.run, point.patches))
            write_table(file, points)
    return points


def table(points: Sequence[Point]) -> str:
    """The scores as text, a line for each."""
    width = max(len("run"), *(len(point.run) for point in points))
    lines = [f"{'run':{width}}  noise variance  patches   BLEU-4    CIDEr"]
    for point in points:
        scores = f"{point.bleu_4:7.3f}  {point.cider:7.3f}"
        lines.append(f"{point.run:{width}}  {point.variance:14g}  {point.patches:7}  {scores}")
    return "\n".join(lines)


def draw_variances(points: Sequence[Point]) -> "Figure":
    """BLEU-4 and CIDEr over the variance of the noise in training, on a log axis, to the left of which 0 lies."""
    variances = sorted({point.variance for point in points})
    best = PUBLISHED_VARIANCE
    figure = _draw(points, "variance", "variance of the noise in training", best, f"the best in the paper, {best}")
    for panel in figure.axes:
        panel.set_xscale("symlog", linthresh=min(filter(None, variances), default=1.0), linscale=0.5)
        panel.autoscale(axis="x")
        panel.set_xticks(variances, [f"{variance:g}" for variance in variances])
        panel.minorticks_off()
    return figure


def draw_patches(points: Sequence[Point], copies: int) -> "Figure":
    """BLEU-4 and CIDEr over the number of patches, of a captioner that learned from so many copies of each text."""
    best = f"the best in the paper: as many as copies of a text in training, {copies}"
    figure = _draw(points, "patches", "patches of an image at inference", copies, best)
    for panel in figure.axes:
        panel.set_xticks(sorted({point.patches for point in points}))
    return figure


def _draw(points: Sequence[Point], over: str, label: str, best: float, best_label: str) -> "Figure":
    """A figure with a panel for each score, and a dotted line where the paper has the best."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(f"{points[0].images:,} images of the split {points[0].split}", fontsize="medium")
    panels = figure.subplots(1, 2)
    for panel, score, name, colour in zip(
        panels, ("bleu_4", "cider"), ("BLEU-4", "CIDEr"), ("tab:red", "tab:blue"), strict=True
    ):
        dotted = panel.axvline(best, color="grey", linestyle=":", label=best_label)
        drawn = sorted((getattr(point, over), getattr(point, score)) for point in points)
        panel.plot(*zip(*drawn, strict=True), color=colour, marker="o")
        panel.set(xlabel=label, ylabel=name)
        panel.set_ylim(0, 1.15 * max(height for _, height in drawn) or None)  # from 0, or chance would look large
        panel.grid(axis="y", alpha=0.3)
    figure.legend(handles=[dotted], loc="outside lower center", frameon=False)
    return figure


def _choose(runs: Sequence[Run], name: str | None) -> Run:
    """The run of a name, or the one that was trained with the paper's variance."""
    found = [run for run in runs if (run.variance == PUBLISHED_VARIANCE if name is None else run.name == name)]
    if len(found) != 1:
        wanted = f"have noise of variance {PUBLISHED_VARIANCE}" if name is None else f"are named '{name}'"
        names = ", ".join(run.name for run in runs)
        raise InputError(f"{len(found)} runs {wanted}, where one is needed: give --run NAME, one of {names}")
    return found[0]


def _require_regions(sample: Sample, numbers: Sequence[int]) -> None:
    there, least, most = sample.regions.shape[1], min(numbers), max(numbers)
    if least < 1:
        raise InputError(f"--patches are at least 1, not {least}")
    if most > there:
        raise InputError(
            f"{sample.store.location} has {there} regions of each image, and {most} are asked for: embed the images "
            f"again with {EMBED}{most}, or give fewer as --patches"
        )


def _open(run: Run, store: FeatureStore) -> Captioner:
    captioner = load(run.checkpoint, usable_device("auto"))
    if captioner.features != REGIONS:
        raise InputError(
            f"{run.checkpoint} reads {captioner.features}, not {REGIONS}: name a folder that has only runs of MacCap"
        )
    require_match(store, captioner)
    return captioner


if __name__ == "__main__":
    main()
