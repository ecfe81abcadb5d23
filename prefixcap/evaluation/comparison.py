"""Evaluations of the same images, side by side: which captioner is better, and how sure that is."""

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from prefixcap.errors import InputError
from prefixcap.evaluation.evaluation import OBJECTS, STATISTICS, TOKENIZER, VOCABULARY, finite
from prefixcap.evaluation.matrices import aligned, label, matrix, number, signed
from prefixcap.evaluation.report import table
from prefixcap.metrics import METRICS
from prefixcap.metrics.metric import Score, Statistics, figure_name
from prefixcap.metrics.pairwise import SystemsTest, Test, compare_systems, groups_of_equals
from prefixcap.metrics.registry import lower_is_better
from prefixcap.utils.files import atomic_write_text, write_table

SIGNIFICANT = 0.05  # a corrected p-value below it
_SAMPLES = 10_000

Runs: TypeAlias = Path | Sequence[Path]
"""A system: the folder of its evaluation, or those of its runs."""


@dataclass(frozen=True)
class ComparedSystem:
    """A system's score.

    Attributes:
        system: the folder of its evaluation, or those of its runs, separated by commas.
        metric: the name of the score, e.g. "BLEU-4".
        score: the mean over runs.
        low: end of the 95% confidence interval.
        high: the other end.
        groups: letters. Two systems that share one do not differ significantly.
    """

    system: str
    metric: str
    score: float
    low: float
    high: float
    groups: str


@dataclass(frozen=True)
class ComparedPair:
    """Two systems' difference in a score.

    Attributes:
        first: a system.
        second: another.
        metric: the name of the score.
        difference: the first system's score minus the second's.
        low: end of its 95% confidence interval.
        high: the other end.
        effect_size: the difference in standard deviations over images: `prefixcap.metrics.pairwise.effect_size`.
        p_value: how likely a difference at least as clear would be if neither was better.
        corrected_p_value: by Holm, for the number of pairs.
    """

    first: str
    second: str
    metric: str
    difference: float
    low: float
    high: float
    effect_size: float
    p_value: float
    corrected_p_value: float


@dataclass(frozen=True)
class Comparison:
    """Systems compared by every score that all have, see `prefixcap.metrics.pairwise.compare_systems`.

    Attributes:
        names: of the systems.
        runs: the folders of the runs of each.
        images: how many.
        test: where p-values come from, "bootstrap" or "randomization".
        samples: of intervals and of the test.
        systems: by score, those of `names` in their order.
        pairs: by score, each system with those after it.
        notes: what a reader should know, one line each.
    """

    names: tuple[str, ...]
    runs: tuple[tuple[str, ...], ...]
    images: int
    test: Test
    samples: int
    systems: dict[str, list[ComparedSystem]]
    pairs: dict[str, list[ComparedPair]]
    notes: tuple[str, ...] = ()

    def pair(self, metric: str, first: int = 0, second: int = 1) -> ComparedPair:
        """The difference of two systems, given by their places in `names`, the first before the second."""
        return self.pairs[metric][_all_pairs(len(self.names)).index((first, second))]

    def table(self) -> str:
        """As text: of two systems one table, of more a list and two matrices for each score."""
        letters = [label(place) for place in range(len(self.names))]
        lines = [f"{letter}: {name}" for letter, name in zip(letters, self.names, strict=True)]
        if len(letters) == 2:
            lines.append(self._table_of_two())
        else:
            blocks = [block for metric in self.systems for block in self._blocks(metric, letters)]
            lines += ["", "\n\n".join(blocks), ""]
        return "\n".join([*lines, *self.notes])

    def _table_of_two(self) -> str:
        pairs = {metric: pair for metric, (pair,) in self.pairs.items()}
        rows, intervals = dict[str, dict[str, float]](), dict[str, dict[str, tuple[float, float]]]()
        for place, letter in enumerate("AB"):
            systems = {metric: systems[place] for metric, systems in self.systems.items()}
            rows[letter] = {metric: system.score for metric, system in systems.items()}
            intervals[letter] = {metric: (system.low, system.high) for metric, system in systems.items()}
        rows["A - B"] = {metric: pair.difference for metric, pair in pairs.items()}
        intervals["A - B"] = {metric: (pair.low, pair.high) for metric, pair in pairs.items()}
        rows["p-value"] = {metric: pair.p_value for metric, pair in pairs.items()}
        rows["effect size"] = {metric: pair.effect_size for metric, pair in pairs.items()}
        return table(rows, intervals)

    def _blocks(self, metric: str, letters: Sequence[str]) -> Iterator[str]:
        """A list of the systems, and matrices of their differences."""
        systems = self.systems[metric]
        rows = [[metric, "score", "95% interval", "groups"]]
        rows += [
            [letter, number(system.score), f"{number(system.low)} to {number(system.high)}", system.groups]
            for letter, system in zip(letters, systems, strict=True)
        ]
        yield aligned(rows, spaces=3)

        def both(above: Callable[[ComparedPair], str], below: Callable[[ComparedPair], str]) -> list[list[str]]:
            cells = [["-"] * len(letters) for _ in letters]
            for (a, b), pair in zip(_all_pairs(len(letters)), self.pairs[metric], strict=True):
                cells[a][b], cells[b][a] = above(pair), below(pair)
            return cells

        yield f"{metric}: row less column; below the diagonal, corrected p-values\n" + matrix(
            letters, both(lambda pair: signed(pair.difference), lambda pair: f"{pair.corrected_p_value:.4f}")
        )
        yield f"{metric}: effect sizes; below the diagonal, halves of the intervals of the differences\n" + matrix(
            letters,
            both(lambda pair: f"{pair.effect_size:+.2f}", lambda pair: f"±{number((pair.high - pair.low) / 2)}"),
        )

    def write(self, folder: Path) -> None:
        """Write `comparison.json`, `systems.csv` and `pairs.csv`, each atomically.

        Args:
            folder: is made if need be.

        Raises:
            InputError: the folder cannot be written to, or the disk is full.
        """
        content: dict[str, Any] = {
            "systems": [{"name": name, "runs": runs} for name, runs in zip(self.names, self.runs, strict=True)],
            "images": self.images,
            "test": self.test,
            "samples": self.samples,
            "correction": "Holm, over the pairs of each score",
            "scores": {
                metric: {"systems": [*map(asdict, systems)], "pairs": [*map(asdict, self.pairs[metric])]}
                for metric, systems in self.systems.items()
            },
            "notes": self.notes,
        }
        write_table(folder / "systems.csv", [system for systems in self.systems.values() for system in systems])
        write_table(folder / "pairs.csv", [pair for pairs in self.pairs.values() for pair in pairs])
        text = json.dumps(finite(content), indent=1, ensure_ascii=False)
        atomic_write_text(folder / "comparison.json", text + "\n")


def compare(*systems: Runs, test: Test = "bootstrap", samples: int | None = None, seed: int = 0) -> Comparison:
    """Compare evaluations of the same images by the scores that all have.

    Args:
        systems: two or more. Where one has several runs, e.g. with different seeds, runs are drawn as well as images.
        test: where p-values come from: "bootstrap" or "randomization" (approximate randomization).
        samples: None: 10,000, or as many more as the correction of very many pairs needs.
        seed: of the draw.

    Raises:
        InputError: there are fewer than two systems; a folder holds no evaluation, or that of one image; the images,
            the references or all metrics differ; and as `prefixcap.metrics.pairwise.compare_systems`.
    """
    folders = [(system,) if isinstance(system, Path) else tuple(system) for system in systems]
    if len(folders) < 2 or not all(folders):
        raise InputError("a comparison takes two or more systems, each of one evaluation or more: give their folders")
    read = [[_read(folder) for folder in runs] for runs in folders]
    first = read[0][0]
    for run in (run for runs in read for run in runs):
        _require_same(first, run)
    if len(first.rows) < 2:
        raise InputError(f"{_several(folders)} evaluate one image, which cannot tell which is better: evaluate more")
    common = [name for name in first.arrays if all(_has_same(run, name, first) for runs in read for run in runs)]
    needed = {need for name in common for need in getattr(METRICS.get(name), "needs", ())}
    for need in needed & _SAME.keys():
        _require_same_inputs([run for runs in read for run in runs], need)
    parts = [part for part in map(_part, common) if part is not None]
    if not parts:
        raise InputError(f"{_several(folders)} have no metric in common: evaluate all with the same metrics")
    rows = [[[run.rows[image] for image in first.rows] for run in runs] for runs in read]
    statistics = [
        [
            np.concatenate([run.arrays[part.array][order] for part in parts], axis=-1)
            for run, order in zip(runs, orders, strict=True)
        ]
        for runs, orders in zip(read, rows, strict=True)
    ]
    score = _together(parts, [first.arrays[part.array].shape[-1] for part in parts])
    # So many that even the smallest p-value times the number of pairs is 0.01 at most.
    samples = samples or max(_SAMPLES, 200 * len(_all_pairs(len(folders))))
    tested = compare_systems(score, statistics, test, samples, seed=seed)
    names = tuple(", ".join(map(str, runs)) for runs in folders)
    metrics = [metric for part in parts for metric in part.scores]
    return Comparison(
        names=names,
        runs=tuple(tuple(map(str, runs)) for runs in folders),
        images=len(first.rows),
        test=test,
        samples=samples,
        systems={metric: _systems(tested, column, metric, names) for column, metric in enumerate(metrics)},
        pairs={metric: _pairs(tested, column, metric, names) for column, metric in enumerate(metrics)},
        notes=tuple(_notes(read, parts, test, samples)),
    )


class _Run(NamedTuple):
    """What `statistics.npz` holds: the row of each image, digests of references and of what else scores depend on, the
    tokenizer, (n, k) statistics by name."""

    folder: Path
    rows: dict[str | int, int]
    references: str
    inputs: dict[str, str]
    tokenizer: str
    arrays: dict[str, Statistics]


class _Part(NamedTuple):
    """A metric, or a figure that sums determine: the name of its array, its scores, and how they come from sums."""

    array: str
    scores: tuple[str, ...]
    score: Score


def _read(folder: Path) -> _Run:
    try:
        with np.load(folder / STATISTICS, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{folder} holds no evaluation ({STATISTICS}: {error}): give folders that an evaluation was written to"
        ) from error
    images, references = json.loads(str(arrays.pop("images"))), str(arrays.pop("references"))
    inputs, tokenizer = {name: str(arrays.pop(name, "")) for name in _SAME}, str(arrays.pop(TOKENIZER, "ptb"))
    return _Run(folder, {image: row for row, image in enumerate(images)}, references, inputs, tokenizer, arrays)


def _require_same(first: _Run, other: _Run) -> None:
    """Refuse evaluations of other images or against other references."""
    if odd := [*(image for image in first.rows if image not in other.rows), *(other.rows.keys() - first.rows.keys())]:
        raise InputError(
            f"{first.folder} and {other.folder} evaluate different images, {odd[0]!r} for one ({len(odd)} in all): "
            "compare captions of the same images"
        )
    if first.references != other.references:
        raise InputError(
            f"{first.folder} and {other.folder} have different references: evaluate both with the same references"
        )
    if first.tokenizer != other.tokenizer:
        raise InputError(
            f"{first.folder} and {other.folder} have different tokenizers, {first.tokenizer} and {other.tokenizer}: "
            "evaluate both with the same"
        )


def _has_same(run: _Run, name: str, first: _Run) -> bool:
    """Whether a run has an array of the same width as the first; that of mBLEU-4 depends on the size of sets."""
    return name in run.arrays and run.arrays[name].shape[-1] == first.arrays[name].shape[-1]


# What the scores of a metric depend on besides captions and references: what a message calls it, and what to do.
_SAME = {
    OBJECTS: "objects of images: score CHAIR of all with the same instances",
    VOCABULARY: "vocabularies: score entities of all with the same names",
}


def _require_same_inputs(runs: Sequence[_Run], need: str) -> None:
    for run in runs:
        if run.inputs[need] != runs[0].inputs[need]:
            raise InputError(f"{runs[0].folder} and {run.folder} have different {_SAME[need]}")


def _several(folders: Sequence[Sequence[Path]]) -> str:
    """The first two folders of systems, and how many more there are."""
    more = sum(map(len, folders)) - 2
    return f"{folders[0][0]} and {folders[1][0]}" + (f" and {more} more" if more else "")


def _part(array: str) -> _Part | None:
    """What `METRICS` knows of an array; a figure's has the name of its metric and its own, see `figure_key`."""
    if array in METRICS:
        return _Part(array, METRICS[array].scores, METRICS[array].score)
    name, _, figure = array.partition("/")
    return _Part(array, (figure_name(name, figure),), METRICS[name].score) if name in METRICS else None


def _together(parts: Sequence[_Part], widths: Sequence[int]) -> Score:
    """All scores as one function of all statistics side by side: what is drawn at random is drawn once."""
    ends = np.cumsum(widths)[:-1]

    def score(totals: Statistics) -> Statistics:
        columns = zip(parts, np.split(totals, ends, axis=-1), strict=True)
        return np.concatenate([part.score(own) for part, own in columns], axis=-1)

    return score


def _systems(tested: SystemsTest, column: int, metric: str, names: Sequence[str]) -> list[ComparedSystem]:
    scores, corrected = tested.scores[:, column].tolist(), tested.corrected_p_value[:, column]
    different = [pair for pair, p_value in zip(tested.pairs, corrected, strict=True) if p_value < SIGNIFICANT]
    groups = groups_of_equals(len(names), different)
    better = -1 if lower_is_better([metric]) else 1
    groups.sort(key=lambda group: -max(better * scores[member] for member in group))
    letters = ["".join(label(n).lower() for n, group in enumerate(groups) if row in group) for row in range(len(names))]
    bounds = tested.intervals[:, column].tolist()
    return [
        ComparedSystem(name, metric, score, low, high, letter)
        for name, score, (low, high), letter in zip(names, scores, bounds, letters, strict=True)
    ]


def _pairs(tested: SystemsTest, column: int, metric: str, names: Sequence[str]) -> list[ComparedPair]:
    figures = (tested.difference, *np.moveaxis(tested.difference_interval, -1, 0), tested.effect_size, tested.p_value)
    columns = np.stack([figure[:, column] for figure in (*figures, tested.corrected_p_value)], axis=-1).tolist()
    return [ComparedPair(names[a], names[b], metric, *row) for (a, b), row in zip(tested.pairs, columns, strict=True)]


def _notes(read: Sequence[Sequence[_Run]], parts: Sequence[_Part], test: Test, samples: int) -> Iterator[str]:
    numbers = sorted({len(runs) for runs in read})  # of runs
    drawn = "images and runs" if numbers[-1] > 1 else "images"
    yield f"±: half of a 95% confidence interval, by bootstrap over {drawn}, {samples:,} samples"
    how = f"paired bootstrap over {drawn}" if test == "bootstrap" else "approximate randomization"
    least = (2 if test == "bootstrap" else 1) / (samples + 1)
    yield f"p-value: two-sided, by {how}; none is below {least:.4f}"
    if len(read) > 2:
        count = len(_all_pairs(len(read)))
        yield f"corrected: by Holm's method for the {count} pairs of a score (not for the number of scores)"
        yield f"groups: systems that share a letter do not differ significantly (corrected p < {SIGNIFICANT})"
    yield "effect size: the difference in standard deviations over images (of a mean, Cohen's paired d)"
    if several := [count for count in numbers if 1 < count < 5]:
        yield f"{several[0]} runs say little of how much runs differ: intervals are coarse"
    if numbers[0] == 1 < numbers[-1]:
        yield "how much runs differ is not known of systems with one run, and not in their intervals"
    if lower := lower_is_better([name for part in parts for name in part.scores]):
        yield f"less is better: {', '.join(lower)}"
    if any(part.array.startswith("diversity/") for part in parts):
        yield "the vocabulary and distinct n-grams, which are no sums over images, are not compared"
    everything = dict.fromkeys(name for runs in read for run in runs for name in run.arrays)
    known = [name for name in everything if _part(name) is not None]
    if unknown := [name for name in everything if name not in known]:
        yield f"not compared, as METRICS lacks them: {', '.join(unknown)}"
    compared = [part.array for part in parts]
    shared = [name for name in known if all(name in run.arrays for runs in read for run in runs)]
    if resized := [name for name in shared if name not in compared]:
        yield f"not compared, as the numbers of captions an image differ: {', '.join(resized)}"
    if partial := [name.replace("/", " ", 1) for name in known if name not in [*compared, *resized]]:
        yield f"not compared, as not all have them: {', '.join(partial)}"


def _all_pairs(systems: int) -> list[tuple[int, int]]:
    return list(combinations(range(systems), 2))
