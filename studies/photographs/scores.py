"""Scores of evaluations, with intervals over images, and their table.

A row may have several evaluations, one for each seed: its score is the mean of theirs, and seeds are resampled as well
as images.

Shapes: n images; k statistics of an image, see `prefixcap.metrics.Metric`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from prefixcap.encoders import Encoder
from prefixcap.evaluation.evaluation import STATISTICS
from prefixcap.metrics import METRICS, mean_of
from prefixcap.metrics.metric import Score, Statistics, mean
from prefixcap.metrics.pairwise import compare_systems
from prefixcap.metrics.significance import confidence_interval
from prefixcap.store import FeatureStore, StoreSplit
from prefixcap.utils.files import atomic_write_text, read_json
from studies.photographs.rows import METRICS as METRICS_OF_TABLE

METRIC = dict(zip(("BLEU-4", "METEOR", "CIDEr", "SPICE"), METRICS_OF_TABLE, strict=True))
"""The metric of each score in the table."""
SIMILARITY = "similarity"
COLUMNS = (*METRIC, SIMILARITY)
SAMPLES = 1000  # of the bootstrap, as in evaluations


@dataclass(frozen=True)
class Value:
    """A score with its 95% confidence interval."""

    score: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.score:.3f} ± {(self.high - self.low) / 2:.3f}"


@dataclass(frozen=True)
class Scores:
    """The scores of a row.

    Attributes:
        values: by column, of those that could be computed.
        seeds: for each column the score of each seed.
        distinct: how many different captions the images have, the mean over seeds.
    """

    values: dict[str, Value]
    seeds: dict[str, list[float]]
    distinct: float


@cache
def read_scores(folders: tuple[Path, ...]) -> Scores:
    """The scores of a row from the folders of its evaluations, all of the same images; kept, as intervals take long."""
    values: dict[str, Value] = {}
    seeds: dict[str, list[float]] = {}
    for column in COLUMNS:
        if (runs := of_seeds(folders, column)) is None:
            continue
        score = score_of(column)
        seeds[column] = [float(score(run.sum(0))[0]) for run in runs]
        low = high = np.nan
        if len(runs[0]) > 1:
            low, high = compare_systems(score, [runs], samples=SAMPLES).intervals[0, 0].tolist()
        values[column] = Value(float(np.mean(seeds[column])), low, high)
    distinct = np.mean([len({entry["caption"] for entry in read_json(folder / "captions.json")}) for folder in folders])
    return Scores(values, seeds, float(distinct))


def difference(first: Sequence[Path], second: Sequence[Path], column: str) -> tuple[Value, float] | None:
    """The first row's score minus the second's, with its interval, and the p-value; by their folders.

    None: one of the rows has no such score.

    Raises:
        InputError: they have different numbers of images.
    """
    runs, others = of_seeds(first, column), of_seeds(second, column)
    if runs is None or others is None:
        return None
    test = compare_systems(score_of(column), [runs, others], samples=SAMPLES)
    low, high = test.difference_interval[0, 0].tolist()
    return Value(float(test.difference[0, 0]), low, high), float(test.p_value[0, 0])


def of_seeds(folders: Sequence[Path], column: str) -> list[Statistics] | None:
    """(n, k) of each evaluation; None: the metric is missing in one."""
    parts = [statistics(folder, column) for folder in folders]
    known = [part for part in parts if part is not None]
    return known if len(known) == len(parts) else None


def statistics(folder: Path, column: str) -> Statistics | None:
    """(n, k) of an evaluation; None: the metric is missing there."""
    if column == SIMILARITY:
        file = folder / f"{SIMILARITY}.json"
        return mean_of(list(read_json(file).values())) if file.exists() else None
    with np.load(folder / STATISTICS, allow_pickle=False) as arrays:
        return np.array(arrays[METRIC[column]]) if METRIC[column] in arrays else None


def score_of(column: str) -> Score:
    """The score of a column as a function of sums over images."""
    if column == SIMILARITY:
        return mean
    metric = METRICS[METRIC[column]]
    index = metric.scores.index(column)
    return lambda totals: metric.score(totals)[..., index : index + 1]


def write_similarity(folder: Path, split: StoreSplit, encoder: Encoder) -> None:
    """Write how near each caption of an evaluation is to its photograph, a cosine in the encoder's space.

    Args:
        folder: of an evaluation; `similarity.json` is written there, unless it was.
        split: of a store, which has the photographs.
        encoder: that made the store.
    """
    file = folder / f"{SIMILARITY}.json"
    if file.exists():
        return
    rows = {image: row for row, image in enumerate(split.ids)}
    captions = {entry["image_id"]: entry["caption"] for entry in read_json(folder / "captions.json")}
    images = torch.from_numpy(split.embeddings[:].astype(np.float32)[[rows[image] for image in captions]])
    batches = [list(captions.values())[start : start + 256] for start in range(0, len(captions), 256)]
    texts = torch.cat([encoder.encode_texts(batch).float().cpu() for batch in batches])
    cosines = F.cosine_similarity(images, texts)
    atomic_write_text(file, json.dumps(dict(zip(captions, cosines.tolist(), strict=True))) + "\n")


def people(folder: Path, store: FeatureStore) -> Scores:
    """What people reach, from any evaluation of all photographs: each caption scored against the other four."""
    humans = read_json(folder / "metrics.json")["humans"]
    intervals = humans["intervals"]
    values = {name: Value(humans[name], *intervals[name]) for name in METRIC if name in humans}
    split = store.split("test")
    images = torch.from_numpy(split.embeddings[:].astype(np.float32))[split.caption_images[:]]
    texts = torch.from_numpy(split.feature("captions/embedding")[:].astype(np.float32))
    cosines = F.cosine_similarity(images, texts).numpy()
    means = mean_of(np.bincount(split.caption_images[:], cosines) / np.bincount(split.caption_images[:]))
    low, high = confidence_interval(mean, means)[0].tolist()
    values[SIMILARITY] = Value(float(means[:, 0].mean()), low, high)
    groups = list(split.references().values())
    distinct = [len({captions[number] for captions in groups}) for number in range(min(map(len, groups)))]
    return Scores(values, {}, float(np.mean(distinct)))
