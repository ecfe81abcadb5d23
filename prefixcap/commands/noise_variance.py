"""Plot MacCap's scores against the noise in training, and against the image patches at inference.

These are Figures 4 and 5 of the supplement of Qiu et al. 2024.

The best checkpoint of every run below FOLDER captions the images of a store, with as many patches of each image as a \
text had copies in training: noise_variance.csv and noise_variance.png. One of the runs captions them with other \
numbers of patches, too: patches.csv and patches.png. Scores that a table has already are kept, unless the checkpoint \
is newer. Drawing needs matplotlib: pip install 'prefixcap\\[plot]'

As in section 4.3 of the paper the patches have noise, too, always of the same variance. One caption is generated for \
each image; the paper chooses the best of 20, which takes 20 times as long: --rerank 20
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
import yaml
from numpy.typing import NDArray

from prefixcap.errors import InputError, name_rows
from prefixcap.features import Feature
from prefixcap.metrics import score_captions
from prefixcap.store import FeatureStore
from prefixcap.utils.deferred import deferred_imports
from prefixcap.utils.files import read_table, read_text, write_table
from prefixcap.utils.plotting import require_matplotlib, save_figure

with deferred_imports():  # what follows imports torch: it waits until the options are checked
    from prefixcap.captioner import Captioner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prefixcap.captioner import Captioner

REGIONS = Feature.REGIONS  # one for each patch, the most looked at first
PUBLISHED_VARIANCE = 0.016  # in training, where the paper has its best scores; in the released code at inference, too
EMBED = "prefixcap embed data=... data.store=FOLDER 'features=[image,regions]' regions="
EXAMPLES = """  prefixcap train --multirun experiment=noise_variance

  prefixcap embed data=flickr30k data.store=stores/flickr30k-20 \\
      'features=\\[image,regions]' regions=20

  prefixcap noise-variance runs/noise_variance \\
      --images stores/flickr30k-20"""


@dataclass(frozen=True)
class Run:
    """A run of `prefixcap train`.

    Attributes:
        name: its folder, relative to that of all runs.
        checkpoint: its best one.
        variance: the variance of the noise in training.
        copies: copies of each text in training, each with its own noise.
    """

    name: str
    checkpoint: Path
    variance: float
    copies: int


@dataclass(frozen=True)
class Sample:
    """Images to caption.

    Attributes:
        store: the store that they are in.
        split: the name of their split.
        digest: the digest of the split.
        regions: (images, regions, dim), in order of attention.
        embeddings: (images, dim), of the full images.
        references: the captions by image id, in the same order.
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
        patches: the number of patches per image at inference.
        store: the first digits of the split's digest.
        split: the name of the split.
        images: the number of images.
        decode: the name of the decoder.
        noise, rerank: see `Captioner.candidates` and `Captioner.caption`.
        bleu_4: from 0 to 1.
        cider: from 0 on.
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


def main(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the runs.")],
    images: Annotated[
        str,
        typer.Option(metavar="STORE", help="A feature store with images and regions, to be captioned."),
    ],
    split: Annotated[str, typer.Option(metavar="NAME", help="The split of the store.")] = "test",
    count: Annotated[int, typer.Option(metavar="N", help="At most N images of it.")] = 5000,
    decode: Annotated[str, typer.Option(metavar="NAME", help="The name of a decoder.")] = "beam",
    noise: Annotated[
        float, typer.Option(metavar="VARIANCE", help="Noise on the patches at inference.")
    ] = PUBLISHED_VARIANCE,
    rerank: Annotated[
        int,
        typer.Option(metavar="N", help="Generate N candidates, of which the encoder chooses one; 0: generate one."),
    ] = 0,
    patches: Annotated[
        list[int] | None,
        typer.Option(metavar="N...", help="Numbers of patches to compare (default: 1 3 5 10 20).", show_default=False),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", show_default=False,
            help=f"The run that compares them (default: the one with variance {PUBLISHED_VARIANCE}).",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Write tables and figures, and print the tables. Raises InputError as `find_runs` and `evaluate_runs` do."""
    require_matplotlib()
    if not noise >= 0 or rerank < 0:
        raise InputError(f"--noise and --rerank are at least 0, not {noise:g} and {rerank}")
    patches = patches or [1, 3, 5, 10, 20]
    runs = find_runs(folder)
    chosen = _choose(runs, run)
    sample = read_sample(FeatureStore(images), split, count)
    with_copies = {trained: [trained.copies] for trained in runs}
    _require_regions(sample, [*patches, *(trained.copies for trained in runs)])
    variances = evaluate_runs(with_copies, sample, folder / "noise_variance.csv", decode, noise, rerank)
    numbers = evaluate_runs({chosen: patches}, sample, folder / "patches.csv", decode, noise, rerank)
    save_figure(draw_variances(variances), folder / "noise_variance.png")
    save_figure(draw_patches(numbers, chosen.copies), folder / "patches.png")
    results = f"results: {folder}/ (noise_variance.csv, noise_variance.png, patches.csv, patches.png)"
    print(f"{table(variances)}\n\n{table(numbers)}\n\n{results}")


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
                "e.g. those of `prefixcap train --multirun experiment=noise_variance`"
            ) from error
        runs.append(Run(str(config.parent.relative_to(folder)), checkpoint, variance, copies))
    return runs


def read_sample(store: FeatureStore, name: str, most: int) -> Sample:
    """The images of a split that have captions, or `most` of them, drawn at random, but always the same.

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
    all_references = split.references()
    references = {image_id: all_references[image_id] for image_id in (split.ids[row] for row in rows.tolist())}
    return Sample(store, name, split.digest, regions[rows], split.embeddings[rows], references)


def evaluate_runs(
    wanted: Mapping[Run, Sequence[int]], sample: Sample, file: Path, decode: str, noise: float, rerank: int
) -> list[Point]:
    """The scores of runs, each with some numbers of patches, also written to a table after each.

    Args:
        wanted: the numbers of patches for each run.
        sample: the images.
        file: the table. Scores that it has already are kept, unless the run's checkpoint is newer.
        decode, noise, rerank: see `Point`.

    Raises:
        InputError: the file is not such a table, a checkpoint cannot be loaded, its captioner does not read regions of
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
    """BLEU-4 and CIDEr against the variance of the noise in training, on a logarithmic axis that begins with 0."""
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
    """BLEU-4 and CIDEr against the number of patches, for a captioner trained with `copies` copies of each text."""
    best = f"the best in the paper: as many as copies of a text in training, {copies}"
    figure = _draw(points, "patches", "patches of an image at inference", copies, best)
    for panel in figure.axes:
        panel.set_xticks(sorted({point.patches for point in points}))
    return figure


def _draw(points: Sequence[Point], over: str, label: str, best: float, best_label: str) -> "Figure":
    """A figure with a panel for each score, and a dotted line at the best value of the paper."""
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
        panel.set_ylim(
            0, 1.15 * max(height for _, height in drawn) or None
        )  # from 0, otherwise chance differences would look large
        panel.grid(axis="y", alpha=0.3)
    figure.legend(handles=[dotted], loc="outside lower center", frameon=False)
    return figure


def _choose(runs: Sequence[Run], name: str | None) -> Run:
    """The run of a name, or the one that was trained with the paper's variance."""
    matching = [run for run in runs if (run.variance == PUBLISHED_VARIANCE if name is None else run.name == name)]
    if len(matching) != 1:
        wanted = f"have noise of variance {PUBLISHED_VARIANCE}" if name is None else f"are named '{name}'"
        names = ", ".join(run.name for run in runs)
        raise InputError(f"{len(matching)} runs {wanted}, where one is needed: give --run NAME, one of {names}")
    return matching[0]


def _require_regions(sample: Sample, numbers: Sequence[int]) -> None:
    available, least, most = sample.regions.shape[1], min(numbers), max(numbers)
    if least < 1:
        raise InputError(f"--patches are at least 1, not {least}")
    if most > available:
        raise InputError(
            f"{sample.store.location} has {available} regions of each image, and {most} are asked for: embed the "
            f"images again with {EMBED}{most}, or give fewer as --patches"
        )


def _open(run: Run, store: FeatureStore) -> "Captioner":
    from prefixcap.captioner import load
    from prefixcap.data import require_match
    from prefixcap.utils.hardware import usable_device

    captioner = load(run.checkpoint, usable_device("auto"))
    if captioner.features != REGIONS:
        raise InputError(
            f"{run.checkpoint} reads {captioner.features}, not {REGIONS}: name a folder that has only runs of MacCap"
        )
    require_match(store, captioner)
    return captioner


if __name__ == "__main__":
    from prefixcap.commands import main as run_command

    run_command("noise-variance")
