"""Reads an evaluation from the folder that it was written to: the figures of `metrics.json`, captions and scores."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from prefixcap.errors import InputError
from prefixcap.evaluation.report import read_report
from prefixcap.utils.files import from_cell, read_json, read_text

_OTHER = ("intervals", "humans", "captions / humans", "domains", "intervals of figures")  # objects, no tables

Bounds = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Figures:
    """Scores of all captions together, by name, with their 95% confidence intervals as far as there are any."""

    scores: dict[str, float]
    intervals: Bounds


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation as `Evaluation.write` left it.

    Attributes:
        figures: the captions' scores.
        humans: those of people; without scores where they have none.
        tables: further figures, by the table they are in, e.g. "diversity".
        notes: on the scores, one line each.
        captions: by image id, in the order of the file; ids are texts here.
        per_image: by score, those of each image in this order; None where an image has none.
        references: by image id, as far as `report.html` holds them: of more than 10,000 images, a sample.
        pictures: small ones as data URLs, likewise: those of the images that the report shows.
    """

    figures: Figures
    humans: Figures
    tables: dict[str, Figures]
    notes: tuple[str, ...]
    captions: dict[str, str]
    per_image: dict[str, list[float | None]]
    references: dict[str, list[str]]
    pictures: dict[str, str]


def read_evaluation(folder: Path) -> StoredEvaluation:
    """Read the evaluation in a folder. Its report need not be there.

    Args:
        folder: with `metrics.json`, `captions.json`, `per_image.csv` and `report.html`.

    Raises:
        InputError: a file is missing or damaged.
    """
    if not (folder / "metrics.json").is_file():
        raise InputError(f"{folder} holds no evaluation (no metrics.json): give folders that an evaluation wrote")
    metrics = read_json(folder / "metrics.json")
    if not isinstance(metrics, dict):
        raise InputError(f"{folder / 'metrics.json'} holds no scores by name: evaluate again")
    tables = {
        name: _figures(table, _object(metrics, "intervals of figures").get(name))
        for name, table in metrics.items()
        if name not in _OTHER and isinstance(table, dict)
    }
    humans, notes = _object(metrics, "humans"), metrics.get("notes")
    captions = _read_captions(folder / "captions.json")
    references, pictures = _read_references(folder / "report.html")
    scores = {name: value for name, value in metrics.items() if name != "images"}
    return StoredEvaluation(
        figures=_figures(scores, metrics.get("intervals")),
        humans=_figures(humans, humans.get("intervals")),
        tables={name: table for name, table in tables.items() if table.scores},
        notes=tuple(note for note in notes if isinstance(note, str)) if isinstance(notes, list) else (),
        captions=captions,
        per_image=_read_per_image(folder / "per_image.csv", list(captions)),
        references=references,
        pictures=pictures,
    )


def _object(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figures(content: Mapping[str, Any], intervals: object) -> Figures:
    """The numbers of an object; None and what is no number is left out."""
    bounds = intervals.items() if isinstance(intervals, dict) else ()
    return Figures(
        {name: float(value) for name, value in content.items() if _is_number(value)},
        {
            name: (float(pair[0]), float(pair[1]))
            for name, pair in bounds
            if isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair))
        },
    )


def _read_captions(file: Path) -> dict[str, str]:
    entries = read_json(file)
    try:
        captions = {str(entry["image_id"]): entry["caption"] for entry in entries}
    except (TypeError, KeyError) as error:
        raise InputError(f"{file} is no list of objects with image_id and caption: evaluate again") from error
    if not captions or len(captions) != len(entries) or not all(isinstance(text, str) for text in captions.values()):
        raise InputError(f"{file} does not hold one caption for each image: evaluate again")
    return captions


def _read_per_image(file: Path, images: Sequence[str]) -> dict[str, list[float | None]]:
    """The columns of the scores; rows are in the order of the captions."""
    try:
        header, *rows = csv.reader(io.StringIO(read_text(file), newline=""))
        values = [[_score(cell) for cell in row[2:]] for row in rows]
        ids = [from_cell(row[0]) for row in rows]
    except (ValueError, IndexError, csv.Error) as error:
        raise InputError(f"{file} is not a table that an evaluation wrote: evaluate again") from error
    if ids != list(images) or any(len(row) != len(header) - 2 for row in values):
        raise InputError(f"{file} and captions.json have different images: evaluate again")
    return {name: [row[column] for row in values] for column, name in enumerate(header[2:])}


def _score(cell: str) -> float | None:
    value = float(cell)
    return value if abs(value) < float("inf") else None


def _read_references(file: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """References and pictures by image id; both are empty if the report is not there or no report."""
    data = read_report(read_text(file)) if file.is_file() else {}
    ids, references = dict[str, str](), dict[str, list[str]]()
    for index, row in _object(data, "images").items():
        if isinstance(row, list) and len(row) == 4 and isinstance(row[2], list):
            ids[index] = str(row[0])
            references[ids[index]] = [text for text in row[2] if isinstance(text, str)]
    pictures = {
        ids[index]: picture
        for index, picture in _object(data, "pictures").items()
        if index in ids and isinstance(picture, str) and picture.startswith("data:image/")
    }
    return references, pictures
