"""Train and score captioners that are trained on text only, side by side.

Trains each system on the captions of one data set and evaluates it on the images of another (or the same), for each \
seed, by `train` and `eval`; finished steps are skipped. Prints a table beside the numbers that MacCap published \
(Qiu et al. 2024, Tables 2 and 3), and writes it to table.md and table.csv.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer

from prefixcap.commands.common.steps import call, markdown, slug, train_once, write_csv
from prefixcap.errors import InputError
from prefixcap.utils.files import atomic_write_text, read_json

RIGHT = "right attributes"  # of the small world: the share of captions in which every word is true
METRICS = ("BLEU-1", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")


@dataclass(frozen=True)
class System:
    """How a row of the table is computed.

    Attributes:
        learner: what is trained: model=… in the small world, experiment=… otherwise; None: nothing.
        train: further options of `train`.
        evaluate: options of `eval`; MEMORY stands for the training store, LANGUAGE_MODEL for the name of the frozen
            language model.
    """

    learner: str | None
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()


EXAMPLES = """  prefixcap compare-systems --source coco_text --target flickr30k

  prefixcap compare-systems --source demo_other --target demo \\
      --systems Baseline MacCap --seeds 0 1 2"""
BEAMS = ("decode=beam", "decode.beams=4")
MEMORY = "memory=MEMORY"
SYSTEMS = {
    "CLIPRe": System(None, (), ("method=clipre", MEMORY)),
    "ZeroCap": System(None, (), ("method=zerocap",)),
    "MAGIC": System(None, (), ("method=magic", "method.lm=LANGUAGE_MODEL")),
    "Baseline": System("decap_frozen", (), BEAMS),
    "CapDec": System("capdec_frozen", (), BEAMS),
    "CapDec, 20 candidates": System("capdec_frozen", (), ("decode=maccap",)),
    "DeCap": System("decap_frozen", (), (*BEAMS, MEMORY, "memory_size=50000")),  # Table 6
    "MacCap": System("maccap", (), ("decode=maccap",)),
    "MacCap without noise": System("maccap", ("model.noise.variance=0.0",), ("decode=maccap",)),
    "MacCap, whole image": System("maccap", (), ("decode=maccap", "regions=0")),
    "MacCap, as released": System(
        "maccap",
        ("model.start_token=true", "max_caption_tokens=24", "released_tokens=true"),
        ("decode=maccap_released",),
    ),
    "MacCap, noise as released": System("maccap", (), ("decode=maccap", "decode.unit_parts=true")),
    "MacCap, start token": System("maccap", ("model.start_token=true",), ("decode=maccap",)),
    "MacCap, one candidate": System("maccap", (), ("decode=maccap", "decode.rerank=1")),
    "MacCap, whole image, one candidate": System("maccap", (), ("decode=maccap", "regions=0", "decode.rerank=1")),
    "CapDec, tuned GPT-2": System("capdec", (), ("decode=clipcap",)),
    "DeCap, own language model": System(
        "decap", (), ("decode=greedy", "decode.max_tokens=30", MEMORY, "memory_size=500000")
    ),
    "supervised": System("capdec_frozen", ("model.learns_from=images", "model.noise=null"), BEAMS),
}
DEFAULT_SYSTEMS = ("CLIPRe", "Baseline", "CapDec", "DeCap", "MacCap")

# By source and target: B@1, B@4, METEOR, ROUGE-L, CIDEr, SPICE. CapDec, DeCap and MAGIC are rows with a dagger, of a
# frozen language model.
PUBLISHED: dict[tuple[str, str], dict[str, tuple[float | None, ...]]] = {
    ("cc3m_text", "coco"): {
        "CLIPRe": (None, 0.046, 0.133, None, 0.256, 0.092),
        "ZeroCap": (None, 0.026, 0.115, None, 0.146, 0.055),
        "MAGIC": (0.188, 0.004, 0.054, 0.142, 0.021, 0.011),
        "Baseline": (0.318, 0.034, 0.094, 0.221, 0.101, 0.046),
        "CapDec": (0.372, 0.046, 0.116, 0.288, 0.093, 0.052),
        "DeCap": (0.462, 0.089, 0.152, 0.341, 0.292, 0.093),
        "MacCap": (0.591, 0.176, 0.200, 0.443, 0.525, 0.120),
        "DeCap, own language model": (None, 0.088, 0.160, None, 0.421, 0.109),
    },
    ("coco_text", "flickr30k"): {
        "CLIPRe": (0.387, 0.044, 0.096, 0.272, 0.059, 0.042),
        "MAGIC": (0.188, 0.006, 0.051, 0.134, 0.021, 0.013),
        "Baseline": (0.429, 0.072, 0.126, 0.305, 0.140, 0.067),
        "CapDec": (0.490, 0.105, 0.153, 0.373, 0.183, 0.090),
        "DeCap": (0.511, 0.099, 0.153, 0.362, 0.247, 0.087),
        "MacCap": (0.595, 0.154, 0.179, 0.413, 0.303, 0.114),
        "CapDec, tuned GPT-2": (0.602, 0.173, 0.186, 0.427, 0.357, None),
        "DeCap, own language model": (None, 0.163, 0.179, None, 0.357, 0.111),
    },
    ("flickr30k_text", "coco"): {
        "CLIPRe": (0.414, 0.052, 0.125, 0.307, 0.183, 0.057),
        "MAGIC": (0.188, 0.004, 0.054, 0.142, 0.021, 0.011),
        "Baseline": (0.375, 0.049, 0.118, 0.296, 0.112, 0.055),
        "CapDec": (0.453, 0.087, 0.151, 0.353, 0.178, 0.064),
        "DeCap": (0.455, 0.088, 0.162, 0.360, 0.273, 0.101),
        "MacCap": (0.473, 0.092, 0.166, 0.362, 0.278, 0.092),
        "CapDec, tuned GPT-2": (0.433, 0.092, 0.163, 0.367, 0.273, None),
        "DeCap, own language model": (None, 0.121, 0.180, None, 0.444, 0.109),
    },
    ("coco_text", "coco"): {
        "CLIPRe": (0.395, 0.049, 0.114, 0.290, 0.136, 0.053),
        "ZeroCap": (0.498, 0.007, 0.154, 0.318, 0.345, 0.092),
        "MAGIC": (0.188, 0.004, 0.054, 0.042, 0.021, 0.011),
        "Baseline": (0.414, 0.069, 0.141, 0.317, 0.221, 0.079),
        "CapDec": (0.537, 0.156, 0.206, 0.435, 0.465, 0.134),
        "DeCap": (0.531, 0.125, 0.188, 0.403, 0.427, 0.126),
        "MacCap": (0.614, 0.174, 0.223, 0.459, 0.697, 0.157),
        "CapDec, tuned GPT-2": (0.692, 0.264, 0.251, 0.518, 0.918, None),
        "DeCap, own language model": (None, 0.247, 0.250, None, 0.912, 0.187),
    },
    ("flickr30k_text", "flickr30k"): {
        "CLIPRe": (0.385, 0.052, 0.116, 0.276, 0.100, 0.057),
        "ZeroCap": (0.447, 0.054, 0.118, 0.273, 0.168, 0.062),
        "MAGIC": (0.188, 0.006, 0.051, 0.134, 0.021, 0.013),
        "Baseline": (0.418, 0.069, 0.127, 0.308, 0.136, 0.070),
        "CapDec": (0.429, 0.072, 0.136, 0.336, 0.127, 0.054),
        "DeCap": (0.485, 0.096, 0.143, 0.351, 0.213, 0.079),
        "MacCap": (0.564, 0.153, 0.189, 0.414, 0.358, 0.124),
        "CapDec, tuned GPT-2": (0.555, 0.177, 0.200, 0.439, 0.391, None),
        "DeCap, own language model": (None, 0.212, 0.218, None, 0.567, 0.152),
    },
}


def main(
    source: Annotated[str, typer.Option(metavar="NAME", help="The data set to train on, as data=NAME.")] = "coco_text",
    target: Annotated[
        str, typer.Option(metavar="NAME", help="The data set whose test images are captioned, as data=NAME.")
    ] = "coco",
    systems: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME...",
            help=f"One or more of: {'; '.join(SYSTEMS)} (default: {', '.join(DEFAULT_SYSTEMS)}).",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option(metavar="N...", help="Random seeds (default: 0).", show_default=False)
    ] = None,
    train: Annotated[
        list[str] | None, typer.Option(metavar="OPTION...", help="Further options of `train`.", show_default=False)
    ] = None,
    evaluate: Annotated[
        list[str] | None, typer.Option(metavar="OPTION...", help="Further options of `eval`.", show_default=False)
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The folder of all runs and tables (default: runs/systems/SOURCE-to-TARGET).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train, evaluate, and print the table. Raises InputError if a step fails."""
    systems, seeds = systems or list(DEFAULT_SYSTEMS), seeds or [0]
    if unknown := [name for name in systems if name not in SYSTEMS]:
        raise InputError(f"there is no system '{unknown[0]}': choose from {'; '.join(SYSTEMS)}")
    folder = folder or Path("runs/systems") / f"{source}-to-{target}"
    plan = Comparison(source, target, train or [], evaluate or [], folder)
    scores = {name: [score(SYSTEMS[name], name, plan, seed) for seed in seeds] for name in systems}
    rows = table(scores, PUBLISHED.get((source, target), {}))
    text = markdown(rows)
    atomic_write_text(folder / "table.md", text)
    write_csv(folder / "table.csv", rows)
    print(f"\n{source} to {target}, {len(seeds)} seeds\n\n{text}\nwritten to {folder}/table.md and .csv")


@dataclass(frozen=True)
class Comparison:
    """What is the same for all systems: the data sets, further options of `train` and `eval`, and the folder."""

    source: str
    target: str
    train: Sequence[str]
    evaluate: Sequence[str]
    folder: Path


def score(system: System, name: str, plan: Comparison, seed: int) -> dict[str, float]:
    """The metrics of a system, which is trained and evaluated first unless that was done before."""
    from prefixcap.checkpoints.files import read_checkpoint
    from prefixcap.store.named import open_training_store

    learner = system.learner or "decap_frozen"  # CLIPRe retrieves from the store that the others are trained on
    run = plan.folder / slug("-".join([learner, *system.train, str(seed)]).replace("model.", ""))
    last, evaluation = run / "checkpoints" / "last.ckpt", run / "eval" / slug(f"{plan.target}-{name}")
    if not (evaluation / "metrics.json").exists():
        chosen = ("model" if plan.source.startswith("demo") else "experiment") + f"={learner}"
        train_once(run, chosen, f"data={plan.source}", *system.train, *plan.train, f"seed={seed}")
        description = read_checkpoint(last)["prefixcap"]
        location = description["trained_on"]["store"]
        if f"data.store={location}" not in plan.train:
            open_training_store(description["trained_on"], last)  # raises InputError if it cannot be opened
        names = {"MEMORY": location, "LANGUAGE_MODEL": description["language_model"]["name"]}
        options = [re.sub("|".join(names), lambda name: names[name[0]], option) for option in system.evaluate]
        checkpoint = [f"ckpt={run / 'checkpoints' / 'best.ckpt'}"] if system.learner else []
        call("eval", *checkpoint, f"data={plan.target}", *options, *plan.evaluate, f"out={evaluation}")
    metrics = read_json(evaluation / "metrics.json")
    if RIGHT in metrics:
        metrics[RIGHT] = metrics[RIGHT]["overall"]
    return dict(metrics)


def table(scores: dict[str, list[dict[str, float]]], published: dict[str, tuple[float | None, ...]]) -> list[list[str]]:
    """Rows of names and numbers: mean, lowest and highest over the seeds of each system; and the published numbers."""
    metrics = [name for name in (*METRICS, RIGHT) if all(name in row for rows in scores.values() for row in rows)]
    rows = [["", *metrics]]
    for name, runs in scores.items():
        rows.append([name, *(mean_with_range([run[metric] for run in runs]) for metric in metrics)])
        if name in published:
            numbers = dict(zip(METRICS, published[name], strict=True)) | {RIGHT: None}
            rows.append(
                ["  published", *("-" if numbers[name] is None else f"{numbers[name]:.3f}" for name in metrics)]
            )
    return rows


def mean_with_range(values: list[float]) -> str:
    """`0.512 (0.498 to 0.523)`: mean, lowest and highest over seeds; just the number for one seed."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
