"""Two evaluations of the same images, side by side: which captioner is better, and how sure that is."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prefixcap.errors import InputError
from prefixcap.evaluation.evaluation import OBJECTS, STATISTICS
from prefixcap.evaluation.report import Table, table
from prefixcap.metrics import METRICS
from prefixcap.metrics.registry import lower_is_better
from prefixcap.metrics.significance import paired_test


@dataclass(frozen=True)
class Comparison:
    """The paired bootstrap of two captioners, see `prefixcap.metrics.significance.paired_test`.

    Attributes:
        names: of the two evaluations.
        scores: two rows of scores, by name.
        difference: the first captioner's score minus the second's.
        intervals: the 95% confidence interval of each difference.
        p_values: how likely a difference at least as clear would be if neither was better.
        unknown: metrics that both have and that are not in `METRICS`.
    """

    names: tuple[str, str]
    scores: tuple[dict[str, float], dict[str, float]]
    difference: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    p_values: dict[str, float]
    unknown: tuple[str, ...] = ()

    def table(self) -> str:
        """As text."""
        first, second = self.scores
        rows = {"A": first, "B": second, "A - B": self.difference, "p-value": self.p_values}
        described = Table("comparison", rows, {"A - B": self.intervals})
        names = [f"{letter}: {name}" for letter, name in zip("AB", self.names, strict=True)]
        notes = [
            "±: half of a 95% confidence interval; p-value: two-sided; both by paired bootstrap over images",
            "diversity and perplexity, which no image has by itself, are not compared",
        ]
        if lower := lower_is_better(self.difference):
            notes.append(f"less is better: {', '.join(lower)}")
        if self.unknown:
            notes.append(f"not compared, as METRICS lacks them: {', '.join(self.unknown)}")
        return "\n".join([*names, table(described.rows, described.intervals), *notes])


def compare(first: Path, second: Path) -> Comparison:
    """Compare two evaluations by the metrics that both have.

    Args:
        first: the folder of an evaluation.
        second: likewise, of the same images and references.

    Raises:
        InputError: a folder holds no evaluation, or that of one image, or the images, the references or all metrics
            differ.
    """
    a, b = _read(first), _read(second)
    images, others = (json.loads(str(statistics.pop("images"))) for statistics in (a, b))
    rows = {image: row for row, image in enumerate(others)}
    known = set(images)
    if odd := [image for image in images if image not in rows] + [image for image in others if image not in known]:
        raise InputError(
            f"{first} and {second} evaluate different images, {odd[0]!r} for one ({len(odd)} in all): compare captions "
            "of the same images"
        )
    if str(a.pop("references")) != str(b.pop("references")):
        raise InputError(f"{first} and {second} have different references: evaluate both with the same references")
    common = [metric for metric in a if metric in b and metric != OBJECTS]
    of_objects = any("objects" in getattr(METRICS.get(name), "needs", ()) for name in common)
    if of_objects and str(a.pop(OBJECTS, "")) != str(b.pop(OBJECTS, "")):
        raise InputError(
            f"{first} and {second} have different objects of images: score CHAIR of both with the same instances"
        )
    if len(images) < 2:
        raise InputError(f"{first} and {second} evaluate one image, which cannot tell which is better: evaluate more")
    if not (metrics := [name for name in common if name in METRICS]):
        raise InputError(f"{first} and {second} have no metric in common: evaluate both with the same metrics")
    b = {metric: b[metric][[rows[image] for image in images]] for metric in metrics}
    scores: tuple[dict[str, float], dict[str, float]] = ({}, {})
    difference: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    p_values: dict[str, float] = {}
    for metric in metrics:
        names, score = METRICS[metric].scores, METRICS[metric].score
        tested = paired_test(score, a[metric], b[metric])
        for row, statistics in zip(scores, (a, b), strict=True):
            row.update(zip(names, score(statistics[metric].sum(axis=0)).tolist(), strict=True))
        difference |= dict(zip(names, tested.difference.tolist(), strict=True))
        intervals |= dict(zip(names, map(tuple, tested.interval.tolist()), strict=True))
        p_values |= dict(zip(names, tested.p_value.tolist(), strict=True))
    unknown = tuple(name for name in common if name not in METRICS)
    return Comparison((str(first), str(second)), scores, difference, intervals, p_values, unknown)


def _read(folder: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(folder / STATISTICS, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{folder} holds no evaluation ({STATISTICS}: {error}): give two folders that eval.py wrote"
        ) from error
