"""The steps of the study: its inputs are made, each row is trained and evaluated, and the table is written."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from prefixcap.commands.common.steps import Timing, call, markdown, run_once, train_once, write_csv
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.errors import InputError
from prefixcap.metrics import METRICS
from prefixcap.metrics.spice_setup import is_set_up
from prefixcap.store import FeatureStore
from prefixcap.utils.files import atomic_write_text, read_json
from prefixcap.vocabulary import vocabulary_of
from studies.photographs.language_model import unpack_smollm2, write_small
from studies.photographs.rows import (
    COCO,
    FLICKR8K,
    FLICKR30K,
    IMAGES,
    OBJECTS,
    PAIRS,
    PUBLISHED,
    ROWS,
    SELF_CRITICAL,
    SMALL,
    SMOLLM2,
    Row,
)
from studies.photographs.scores import COLUMNS, METRIC, Scores, Value, difference, people, read_scores, write_similarity
from studies.photographs.stores import coco_records, flickr30k_records, make_flickr8k, make_texts, training_captions

CAPTIONS = "captions.json"
HEAD = ["", "captioner", *COLUMNS, "distinct", "training, s", "captioning, s", "on"]
NOTES = """
±: half of a 95% confidence interval, by bootstrap over images, and over seeds where there are several; a score is then
their mean. Similarity: the mean cosine of photograph and caption in the encoder's space. Distinct: different captions.
Seconds include start-up, and validation. People: each caption against the other four of its photograph.
"""


@dataclass(frozen=True)
class Study:
    """What is the same for all rows.

    Attributes:
        data: the shared data.
        folder: of all runs, evaluations and tables.
        seeds: of what is trained; None: those of each row.
        train: further options of every training.
        evaluate: further options of every evaluation.
        metrics: of the table; evaluations that lack one are scored again.

    Raises:
        InputError: the folder holds a study with other options.
    """

    data: Path
    folder: Path
    seeds: tuple[int, ...] | None = None
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    metrics: tuple[str, ...] = tuple(METRIC.values())

    def __post_init__(self) -> None:
        file, options = self.folder / "options.json", {"train": [*self.train], "evaluate": [*self.evaluate]}
        if not file.exists():
            atomic_write_text(file, json.dumps(options) + "\n")
        elif (before := read_json(file)) != options:
            raise InputError(f"{self.folder} holds a study with the options {before}: give them, or another --folder")

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of photographs."""
        return load_encoder("photo", "auto")

    def seeds_of(self, row: Row) -> tuple[int, ...]:
        """The seeds that a row is trained with; one where nothing is."""
        return row.seeds if self.seeds is None or not row.train else self.seeds

    def make_inputs(self, names: Sequence[str]) -> None:
        """Make the stores and language models that rows need, unless they are there."""
        needed = {path for name in names for path in ROWS[name].needs}
        make_flickr8k(FLICKR8K, self.data / "flickr8k", self.encoder)
        if COCO in needed:
            make_texts(COCO, self.data / "captions", coco_records(self.data / "captions"), self.encoder)
        if FLICKR30K in needed:
            make_texts(FLICKR30K, self.data / "captions", flickr30k_records(self.data), self.encoder)
        if OBJECTS in needed and not OBJECTS.exists():
            names = vocabulary_of(training_captions(self.data)).names
            atomic_write_text(OBJECTS, "".join(f"{name}\n" for name in names))
        if SMALL in needed and not SMALL.exists():
            write_small(SMALL, training_captions(self.data))
        if SMOLLM2 in needed and not SMOLLM2.exists():
            unpack_smollm2(SMOLLM2)

    def run(self, name: str, seed: int) -> Path:
        """The folder of a row's run; rows that are trained alike share it."""
        row = ROWS[name]
        trained = (row.command, row.train, row.start)
        first = next(other for other, each in ROWS.items() if (each.command, each.train, each.start) == trained)
        return self.folder / "runs" / f"{first}-{seed}"

    def trained(self, name: str, seed: int) -> Timing:
        """Train a row, unless that was done."""
        row, run = ROWS[name], self.run(name, seed)
        options = [*row.train, *self.train, f"seed={seed}"]
        if row.start:
            self.trained(row.start, seed)
            option = "ckpt" if SELF_CRITICAL in row.train else "start"  # the former keeps the options of that run
            options = [f"{option}={best(self.run(row.start, seed))}", *options]
        return train_once(run, *options, command=row.command)

    def evaluated(self, name: str, seed: int) -> Path:
        """Train and evaluate a row, unless that was done; return the folder of the evaluation."""
        row, run, folder = ROWS[name], self.run(name, seed), self.folder / "eval" / f"{name}-{seed}"
        metrics, out = f"metrics=[{','.join(self.metrics)}]", f"out={folder}"
        if row.same_as and row.images_of:
            captions = read_json(self.evaluated(row.same_as, seed) / CAPTIONS)
            wanted = {entry["image_id"] for entry in read_json(self.evaluated(row.images_of, seed) / CAPTIONS)}
            file = folder / "captions_to_score.json"
            atomic_write_text(file, json.dumps([entry for entry in captions if entry["image_id"] in wanted]))
            run_once(folder, "eval", [f"captions={file}", *IMAGES, metrics, "subset=true", out], file)
        else:
            if row.train:
                self.trained(name, seed)
            options = [f"ckpt={best(run)}"] if row.train and row.command == "train" else []
            options += [option.replace("RUN", str(run)) for option in row.evaluate]
            quick = [metric for metric in self.metrics if not METRICS[metric].runs_java] or ["BLEU"]
            options += [*IMAGES, f"split={row.split}", *self.evaluate, f"metrics=[{','.join(quick)}]", out]
            run_once(folder, "eval", options, folder / "written.jsonl")
        if any(column not in read_json(folder / "metrics.json") for column in METRIC if METRIC[column] in self.metrics):
            images = (*IMAGES, f"split={row.split}")
            call("eval", f"captions={folder / CAPTIONS}", *images, metrics, "subset=true", out)
        write_similarity(folder, FeatureStore(FLICKR8K).split(row.split), self.encoder)
        return folder

    def evaluations(self, name: str) -> tuple[Path, ...]:
        """The folders of a row's evaluations, one for each seed."""
        return tuple(self.evaluated(name, seed) for seed in self.seeds_of(ROWS[name]))

    def write_table(self, names: Sequence[str]) -> str:
        """Write `table.md` and `table.csv` of the rows; return the Markdown."""
        rows: list[list[str]] = [HEAD]
        cells: list[list[str | float]] = [[*csv_head()]]
        on_test = (name for name in names if ROWS[name].split == "test")
        complete = next((name for name in on_test if is_complete(self.evaluations(name)[0])), None)
        if complete:
            self._add(rows, cells, ["", "people"], people(self.evaluations(complete)[0], FeatureStore(FLICKR8K)), None)
        for label, published in PUBLISHED.items():
            values = {column: Value(score, score, score) for column, score in published.items()}
            rows.append(["published", label, *(f"{published[c]:.3f}" if c in published else "-" for c in COLUMNS)])
            rows[-1] += ["-"] * (len(HEAD) - len(rows[-1]))
            cells.append(["published", label, *csv_cells(values), "", "", "", "", ""])
        for name in names:
            row = ROWS[name]
            label = row.label + (f", {len(seeds)} seeds" if len(seeds := self.seeds_of(row)) > 1 else "")
            self._add(rows, cells, [row.part, label], read_scores(self.evaluations(name)), name)
        text = markdown(rows) + NOTES
        atomic_write_text(self.folder / "table.md", text)
        write_csv(self.folder / "table.csv", cells)
        return text

    def _add(
        self,
        rows: list[list[str]],
        cells: list[list[str | float]],
        head: list[str],
        scores: Scores,
        name: str | None,
    ) -> None:
        """Add a row to the Markdown and to the CSV."""
        training, captioning, machine = self.timings(name) if name else (None, None, "")
        seconds = ["-" if time is None else f"{time:,.0f}" for time in (training, captioning)]
        values = [str(scores.values[column]) if column in scores.values else "-" for column in COLUMNS]
        rows.append([*head, *values, f"{scores.distinct:,.0f}", *seconds, machine or "-"])
        exact = ["" if time is None else round(time, 1) for time in (training, captioning)]
        seeds = json.dumps(scores.seeds) if scores.seeds else ""
        cells.append([*head, *csv_cells(scores.values), round(scores.distinct, 1), *exact, machine, seeds])

    def timings(self, name: str) -> tuple[float | None, float, str]:
        """Seconds of training and of captioning, the mean over seeds, and the machine."""
        row, seeds = ROWS[name], self.seeds_of(ROWS[name])
        runs = [Timing.read(self.run(name, seed)) for seed in seeds] if row.train else []
        evaluations = [Timing.read(folder) for folder in self.evaluations(name)]
        machine = "; ".join(dict.fromkeys(timing.machine for timing in (*runs, *evaluations)))
        training = sum(timing.seconds for timing in runs) / len(runs) if runs else None
        return training, sum(timing.seconds for timing in evaluations) / len(evaluations), machine

    def write_pairs(self, names: Sequence[str]) -> str:
        """Write `pairs.md` and `pairs.csv`: tests of the orderings of the papers; return the Markdown."""
        rows = [["first", "second", *(f"{column}: first - second, p" for column in ("BLEU-4", "CIDEr", "similarity"))]]
        cells: list[list[str | float]] = [["first", "second", "score", "difference", "low", "high", "p"]]
        for first, second in PAIRS:
            if first not in names or second not in names:
                continue
            rows.append([first, second])
            for column in ("BLEU-4", "CIDEr", "similarity"):
                tested = difference(self.evaluations(first), self.evaluations(second), column)
                if tested is None:
                    rows[-1].append("-")
                    continue
                value, p_value = tested
                rows[-1].append(f"{value.score:+.3f} ± {(value.high - value.low) / 2:.3f}, {p_value:.3f}")
                numbers = (value.score, value.low, value.high, p_value)
                cells.append([first, second, column, *(round(number, 6) for number in numbers)])
        text = markdown(rows)
        atomic_write_text(self.folder / "pairs.md", text)
        write_csv(self.folder / "pairs.csv", cells)
        return text

    def write_sentences(self, name: str, count: int = 50) -> str:
        """Write `sentences.md`: what a row says of test photographs, drawn at random with a seed, each beside a caption
        by a person; return the Markdown."""
        captions = {entry["image_id"]: entry["caption"] for entry in read_json(self.evaluations(name)[0] / CAPTIONS)}
        references = FeatureStore(FLICKR8K).split(ROWS[name].split).references()
        drawn = sorted(np.random.default_rng(0).permutation(sorted(captions))[:count].tolist())
        rows = [[file, captions[file].replace("|", "\\|"), references[file][0].replace("|", "\\|")] for file in drawn]
        text = markdown([["photograph", ROWS[name].label, "a person"], *rows])
        atomic_write_text(self.folder / "sentences.md", text)
        return text


def best(run: Path) -> Path:
    """The checkpoint of a run that was best on the validation split."""
    return run / "checkpoints" / "best.ckpt"


def available() -> list[str]:
    """The metrics of the table that can be computed on this machine."""
    java = shutil.which("java") is not None
    missing = {"METEOR": not java, "SPICE": not java or not is_set_up()}
    return [metric for metric in METRIC.values() if not missing.get(metric)]


def is_complete(folder: Path) -> bool:
    """Whether an evaluation is of all photographs of the test split."""
    return bool(read_json(folder / "metrics.json")["images"] == FeatureStore(FLICKR8K).splits["test"])


def csv_head() -> list[str]:
    """The head of `table.csv`: each score with its interval."""
    scores = [f"{column}{part}" for column in COLUMNS for part in ("", " low", " high")]
    return ["part", "captioner", *scores, "distinct", "training seconds", "captioning seconds", "machine", "by seed"]


def csv_cells(values: dict[str, Value]) -> list[str | float]:
    """The cells of the scores; empty where there is none."""
    known = [values.get(column) for column in COLUMNS]
    return [
        "" if value is None else round(number, 6)
        for value in known
        for number in ((value.score, value.low, value.high) if value else (0.0, 0.0, 0.0))
    ]
