"""Measure the modality gap between the images and captions of a feature store (MacCap, Qiu et al. 2024, section 3).

Prints the numbers and the noise variances that they suggest for training on text, and draws two figures, which need \
matplotlib: pip install 'prefixcap\\[plot]'
"""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from prefixcap.errors import InputError
from prefixcap.store import FeatureStore
from prefixcap.utils.files import atomic_write, atomic_write_text
from prefixcap.utils.plotting import require_matplotlib, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prefixcap.textonly.gap import Floats, Gap

NUMBERS, OFFSET, HISTOGRAM, PROJECTION = "gap.json", "modality_offset.npy", "gap_histogram.png", "gap_projection.png"
COLOURS = {"text": "goldenrod", "global": "tab:red", "region": "tab:green", "mix": "tab:blue"}
LABELS = {
    "text": "caption",
    "global": "global: whole image",
    "region": "region: a part of the image",
    "mix": "mix: a part and the whole",
}
# Table 1 of the paper, and the share in section 3.1: ViT-B/32, the validation images of COCO.
PUBLISHED = {
    "global": (0.330, 0.446, 0.228, None),
    "region": (None, None, None, 0.33),
    "mix": (0.352, 0.422, 0.242, None),
}


EXAMPLES = """  prefixcap embed data=demo 'features=\\[image,regions,caption]' \\
      data.store=stores/gap

  prefixcap gap stores/gap --split val"""


def main(
    store: Annotated[
        str,
        typer.Argument(metavar="STORE", help="A feature store of images, regions and captions: a folder or a URL."),
    ],
    split: Annotated[str, typer.Option(metavar="NAME", help="The split to measure.")] = "val",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where numbers and figures go (default: below runs/gap).", show_default=False
        ),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Draw N pairs of an image and a caption at random (default: all).", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="The random seed of that draw.")] = 0,
    projection: Annotated[str, typer.Option(metavar="NAME", help="pca, or umap, which needs umap-learn.")] = "pca",
) -> None:
    """Print the report; see `report_gap`."""
    print(report_gap(store, split, out, pairs, seed, projection))


def report_gap(
    store: str,
    split: str = "val",
    out: Path | None = None,
    pairs: int | None = None,
    seed: int = 0,
    projection: str = "pca",
) -> str:
    """Measure the gap in a split of a store, and return a table as text.

    Written are gap.json, two figures, and modality_offset.npy, which the noise of a captioner takes as its offset.

    Args:
        store: a folder or a URL, as `FeatureStore` takes it.
        split: its name.
        out: the folder to write to; None: runs/gap/<name of the store>-<split>.
        pairs, seed: as `measure_gap`.
        projection: "pca" or "umap".

    Raises:
        InputError: as `FeatureStore`, `measure_gap` and `project` do, matplotlib is missing, or the folder cannot be
            written to.
    """
    require_matplotlib()
    opened = FeatureStore(store)
    from prefixcap.textonly.gap import measure_gap, sample_points

    plane, axes = project(sample_points(opened, split, pairs, seed), projection, seed)
    gap = measure_gap(opened, split, pairs, seed)
    folder = out or Path("runs/gap") / f"{opened.location.rpartition('/')[2]}-{split}"
    about = {"store": opened.location, "split": split, "encoder": opened.encoder.name, "seed": seed}
    numbers = about | asdict(gap)
    offset = np.array(numbers.pop("modality_offset"), np.float32)
    atomic_write_text(folder / NUMBERS, json.dumps(numbers, indent=1) + "\n")
    with atomic_write(folder / OFFSET) as temporary, temporary.open("wb") as file:
        np.save(file, offset)
    for name, figure in ((HISTOGRAM, draw_histograms(gap)), (PROJECTION, draw_projection(plane, axes))):
        save_figure(figure, folder / name)
    written = ", ".join([NUMBERS, OFFSET, HISTOGRAM, PROJECTION])
    heading = f"{opened.location}, {split}: {gap.pairs:,} pairs of an image and a caption, {gap.dim} dimensions"
    return f"{heading}\n\n{table(gap)}\n\nwritten to {folder}: {written}"


def table(gap: "Gap") -> str:
    """The numbers of the gap, beside those that the paper published, and the noise variances that it suggests."""
    lines = [
        "          cosine of a pair            caption less image, in each dimension",
        "          mean    max    min  closer     mean   sigma  kurtosis  distance  offset",
    ]
    for name, numbers in gap.features.items():
        cosines = _row(numbers.cosine_mean, numbers.cosine_max, numbers.cosine_min, numbers.closer_share)
        lines.append(
            f"{name:8}{cosines}  {numbers.mean:+7.4f} {numbers.variance**0.5:7.4f} {numbers.excess_kurtosis:+9.2f} "
            f"{numbers.gaussian_distance:9.3f} {numbers.offset_norm:7.3f}"
        )
    lines += ["MacCap, Table 1 (ViT-B/32, COCO):"] + [f"{name:8}{_row(*row)}" for name, row in PUBLISHED.items()]
    lines += [
        "closer: share of the pairs in which a part of the image is closer to the caption than the whole is",
        "kurtosis: 0 for a Gaussian; distance: from the Gaussian of mean 0 and this sigma (Kolmogorov-Smirnov)",
        "offset: length of the mean difference",
        "",
        "model.noise.variance that they suggest            " + "".join(f"{name:>9}" for name in gap.features),
    ]
    features = gap.features.values()
    for what, values in (
        ("cosine: noise that is normalized after", [feature.variance_of_cosine for feature in features]),
        ("gap: noise that is not", [feature.variance for feature in features]),
        ("gap around its mean: the same, with noise.offset", [feature.variance_around_offset for feature in features]),
        ("captions of one image (CapDec): from text alone", [gap.captions_variance]),
    ):
        lines.append(f"  {what:48}" + "".join(f"{'-' if value is None else f'{value:.3g}':>9}" for value in values))
    return "\n".join(lines + [f"note: {note}" for note in gap.notes])


def _row(mean: float | None, most: float | None, least: float | None, closer: float | None) -> str:
    cosines = "".join(f"{'-' if value is None else f'{value:.3f}':>7}" for value in (mean, most, least))
    return f"{cosines}{'-' if closer is None else f'{closer:.1%}':>8}"


def project(points: dict[str, "Floats"], method: str = "pca", seed: int = 0) -> tuple[dict[str, "Floats"], list[str]]:
    """Points of several kinds, each (points, dim), in the plane: (points, 2) each, and what the two axes are.

    Args:
        points: by their kind. All together decide the projection.
        method: "pca", or "umap" as in the paper's Figure 6.
        seed: of UMAP.

    Raises:
        InputError: there is no such method, or umap-learn is missing.
    """
    together = np.concatenate(list(points.values()))
    if method == "pca":
        centred = together.astype(np.float64) - together.mean(0, dtype=np.float64)
        spread, axes = np.linalg.eigh(centred.T @ centred)
        first_two = axes[:, [-1, -2]]
        first_two *= np.sign(first_two[np.abs(first_two).argmax(0), [0, 1]])  # otherwise the sign would be arbitrary
        plane = centred @ first_two
        shares = spread[[-1, -2]] / spread.sum()
        labels = [f"principal component {place} ({share:.0%} of the variance)" for place, share in enumerate(shares, 1)]
    elif method == "umap":
        if importlib.util.find_spec("umap") is None:
            raise InputError("--projection umap needs UMAP: pip install umap-learn, or give --projection pca")
        plane = importlib.import_module("umap").UMAP(random_state=seed).fit_transform(together)
        labels = ["UMAP 1", "UMAP 2"]
    else:
        raise InputError(f"there is no projection {method!r}: choose pca or umap")
    ends = np.cumsum([len(rows) for rows in points.values()])[:-1]
    return dict(zip(points, np.split(plane, ends), strict=True)), labels


def draw_histograms(gap: "Gap") -> "Figure":
    """The dimension-wise differences of each feature, with the zero-mean Gaussian that fits best: Figure 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(gap.features), 3.8), layout="constrained")
    panels = figure.subplots(1, len(gap.features), sharex=True, sharey=True, squeeze=False)[0]
    reach = 4.5 * max(feature.variance for feature in gap.features.values()) ** 0.5
    for panel, (name, numbers) in zip(panels, gap.features.items(), strict=True):
        counts, width, sigma = np.array(numbers.histogram.counts), numbers.histogram.width, numbers.variance**0.5
        edges = numbers.histogram.start + width * np.arange(len(counts) + 1)
        panel.stairs(counts / counts.sum() / width, edges, fill=True, color=COLOURS[name], alpha=0.5, label="measured")
        across = np.linspace(-reach, reach, 400)
        bell = np.exp(-((across / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi))
        panel.plot(across, bell, color="black", linewidth=1.2, label=rf"Gaussian, mean 0, $\sigma$ = {sigma:.4f}")
        panel.plot([], [], " ", label=f"mean {numbers.mean:+.4f}, excess kurtosis {numbers.excess_kurtosis:+.2f}")
        panel.set(title=LABELS[name], xlabel="caption less image, per dimension", xlim=(-reach, reach))
        panel.legend(fontsize="small", loc="upper center", frameon=False)
    panels[0].set(ylabel="density", ylim=(0, 1.35 * panels[0].get_ylim()[1]))
    return figure


def draw_projection(plane: dict[str, "Floats"], axes: list[str]) -> "Figure":
    """Points of several kinds in the plane, as `project` gives them: Figure 6."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    panel = figure.subplots()
    size = max(3.0, min(25.0, 10_000 / max(len(points) for points in plane.values())))
    for name, points in plane.items():
        panel.scatter(
            points[:, 0], points[:, 1], s=size, color=COLOURS[name], alpha=0.5, linewidths=0, label=LABELS[name]
        )
    title = f"Embeddings of {len(plane['global']):,} images and {len(plane['text']):,} captions, scaled to length one"
    panel.set(xlabel=axes[0], ylabel=axes[1])
    panel.set_title(title, fontsize="medium")
    panel.set_aspect("equal", adjustable="datalim")
    figure.legend(loc="outside lower center", ncols=len(plane), markerscale=(30 / size) ** 0.5, frameon=False)
    return figure
