"""Draw what lambda does in ZeroCap: `python -m prefixcap.commands.figures.zerocap_lambda FOLDER` (Tewel et al.
2022, supplement C).

    prefixcap eval --multirun method=zerocap data=coco limit=100 'metrics=[CLIPScore,perplexity]' \\
        method.language_weight=0.05,0.1,0.2,0.4,0.8

writes an evaluation for each lambda below `runs/eval/zerocap`. Their CLIPScore and perplexity go to `lambda.csv` in the
folder, and are drawn in `lambda.png`. Drawing needs matplotlib: pip install "prefixcap[plot]"
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefixcap.errors import InputError
from prefixcap.utils.files import read_json, read_text, write_table
from prefixcap.utils.plotting import command_parser, run_command, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """An evaluation.

    Attributes:
        run: its folder, below that of all.
        language_weight: lambda.
        clip_score: mean CLIPScore of its captions.
        perplexity: of its captions.
    """

    run: str
    language_weight: float
    clip_score: float
    perplexity: float


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command_parser("prefixcap.commands.figures.zerocap_lambda", __doc__)
    parser.add_argument("folder", type=Path, help="of the evaluations, e.g. runs/eval/zerocap")
    run_command(parser, _write, arguments)


def _write(given: argparse.Namespace) -> str:
    points = read_points(given.folder)
    write_table(given.folder / "lambda.csv", points)
    save_figure(draw(points), given.folder / "lambda.png")
    return f"results: {given.folder / 'lambda.csv'}, {given.folder / 'lambda.png'}"


def read_points(folder: Path) -> list[Point]:
    """The evaluations below a folder, by lambda.

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
        raise InputError(f"no evaluation of ZeroCap lies below {folder}: make some as --help says")
    if len(others) > 1:
        raise InputError(f"evaluations below {folder} differ in more than lambda: name a folder of one sweep")
    return sorted(points, key=lambda point: point.language_weight)


def draw(points: Sequence[Point]) -> "Figure":
    """A figure of CLIPScore (left axis) and perplexity (right axis) over lambda, as the supplement has it."""
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
    main()
