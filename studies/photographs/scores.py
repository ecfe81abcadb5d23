"""Scores of evaluations, with intervals over images, and their table.

A row may have several evaluations, one for each seed: its score is the mean of theirs. Images are resampled for the
intervals, seeds are not.

Shapes: n images; s seeds; k statistics of an image, see `prefixcap.metrics.Metric`.
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
from prefixcap.metrics import METRICS, mean_of, over_folds
from prefixcap.metrics.metric import Score, Statistics, mean
from prefixcap.metrics.significance import confidence_interval, paired_test
from prefixcap.store import FeatureStore, StoreSplit
from prefixcap.utils.files import atomic_write_text, read_json
from studies.photographs.rows import METRICS as METRICS_OF_TABLE

METRIC = dict(zip(("BLEU-4", "METEOR", "CIDEr", "SPICE"), METRICS_OF_TABLE, strict=True))
"""The metric of each score in the table."""
SIMILARITY = "similarity"
COLUMNS = (*METRIC, SIMILARITY)


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
        parts = [statistics(folder, column) for folder in folders]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            continue
        score, together = score_of(column), over_seeds(known)
        low, high = confidence_interval(score, together)[0].tolist() if len(together) > 1 else (np.nan, np.nan)
        values[column] = Value(float(score(together.sum(0))[0]), low, high)
        seeds[column] = [float(score(over_seeds([part]).sum(0))[0]) for part in known]
    distinct = np.mean([len({entry["caption"] for entry in read_json(folder / "captions.json")}) for folder in folders])
    return Scores(values, seeds, float(distinct))


def difference(first: Sequence[Path], second: Sequence[Path], column: str) -> tuple[Value, float] | None:
    """The first row's score minus the second's, with its interval, and the p-value; by their folders.

    None: one of the rows has no such score.

    Raises:
        InputError: they have different numbers of images.
    """
    both: list[Statistics] = []
    for folders in (first, second):
        parts = [statistics(folder, column) for folder in folders]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        both.append(over_seeds(known))
    test = paired_test(score_of(column), both[0], both[1])
    low, high = test.interval[0].tolist()
    return Value(float(test.difference[0]), low, high), float(test.p_value[0])


def statistics(folder: Path, column: str) -> Statistics | None:
    """(n, k) of an evaluation; None: the metric is missing there."""
    if column == SIMILARITY:
        file = folder / f"{SIMILARITY}.json"
        return mean_of(list(read_json(file).values())) if file.exists() else None
    with np.load(folder / STATISTICS, allow_pickle=False) as arrays:
        return np.array(arrays[METRIC[column]]) if METRIC[column] in arrays else None


def score_of(column: str) -> Score:
    """The score of a column as a function of sums over images, for the arrays of `over_seeds`."""
    if column == SIMILARITY:
        return over_folds(mean)
    metric = METRICS[METRIC[column]]
    index = metric.scores.index(column)
    return over_folds(lambda totals: metric.score(totals)[..., index : index + 1])


def over_seeds(parts: Sequence[Statistics]) -> Statistics:
    """s arrays (n, k) -> (n, s, k + 1), the folds of `over_folds`: each seed counts as many images."""
    together = np.stack(parts, axis=1)
    return np.concatenate([together, np.ones((*together.shape[:2], 1))], axis=-1)


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
