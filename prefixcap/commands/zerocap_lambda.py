"""Plot CLIPScore and perplexity against lambda, the weight of the language model in ZeroCap.

The figure is that of Tewel et al. 2022, supplement C.

Reads the evaluations below FOLDER, one for each lambda. Writes their numbers to lambda.csv and the figure to \
lambda.png, both in FOLDER. Drawing needs matplotlib: pip install 'prefixcap\\[plot]'
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefixcap.errors import InputError
from prefixcap.utils.files import read_json, read_text, write_table
from prefixcap.utils.plotting import require_matplotlib, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


EXAMPLES = """  prefixcap eval --multirun method=zerocap data=coco limit=100 \\
      'metrics=\\[CLIPScore,perplexity]' \\
      method.language_weight=0.05,0.1,0.2,0.4,0.8

  prefixcap zerocap-lambda runs/eval/zerocap"""


@dataclass(frozen=True)
class Point:
    """An evaluation.

    Attributes:
        run: its folder, relative to that of all evaluations.
        language_weight: lambda.
        clip_score: mean CLIPScore of its captions.
        perplexity: of its captions.
    """

    run: str
    language_weight: float
    clip_score: float
    perplexity: float


def main(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the evaluations.")]) -> None:
    """Write the table and the figure. Raises InputError as `read_points` does."""
    require_matplotlib()
    points = read_points(folder)
    write_table(folder / "lambda.csv", points)
    save_figure(draw(points), folder / "lambda.png")
    print(f"results: {folder / 'lambda.csv'}, {folder / 'lambda.png'}")


def read_points(folder: Path) -> list[Point]:
    """The evaluations below a folder, sorted by lambda.

    Raises:
        InputError: there is none, one lacks a metric, or they differ in more than lambda.
    """
    points, others = [], set()
    for file in sorted(folder.glob("**/written.jsonl")):
        job = json.loads(read_text(file).partition("\n")[0])["job"]
        if job["method"] != "zerocap" or not (file.parent / "metrics.json").exists():
            continue
        weight = job["options"].pop("language_weight")
        others.add(json.dumps(job, sort_keys=True))
        metrics = read_json(file.parent / "metrics.json")
        if "CLIPScore" not in metrics or "perplexity" not in metrics:
            raise InputError(
                f"{file.parent} lacks CLIPScore or perplexity: evaluate with metrics=[CLIPScore,perplexity]"
            )
        (perplexity,) = metrics["perplexity"].values()
        points.append(Point(str(file.parent.relative_to(folder)), weight, metrics["CLIPScore"], perplexity))
    if not points:
        raise InputError(f"there is no evaluation of ZeroCap below {folder}: run some as --help shows")
    if len(others) > 1:
        raise InputError(f"evaluations below {folder} differ in more than lambda: name a folder of one sweep")
    return sorted(points, key=lambda point: point.language_weight)


def draw(points: Sequence[Point]) -> "Figure":
    """A figure of CLIPScore (left axis) and perplexity (right axis) against lambda."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.6), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    weights = [point.language_weight for point in points]
    for axis, values, name, colour, marker in (
        (left, [point.clip_score for point in points], "CLIPScore", "tab:blue", "o"),
        (right, [point.perplexity for point in points], "perplexity", "tab:red", "s"),
    ):
        axis.plot(weights, values, colour, marker=marker)
        axis.set_ylabel(name, color=colour)
        axis.tick_params(axis="y", labelcolor=colour)
    left.set_xlabel("lambda, the weight of the language model")
    left.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    from prefixcap.commands import main as run

    run("zerocap-lambda")
