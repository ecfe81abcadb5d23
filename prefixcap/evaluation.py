"""Captions against references: read them, score them, write the evaluation's folder."""

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefixcap.errors import InputError
from prefixcap.files import read_json, write_text_whole
from prefixcap.metrics import METRICS, Scores, score_captions, score_humans
from prefixcap.report import html_report, table

ImageId = int | str


@dataclass
class Evaluation:
    """Captions of images, with their scores.

    Attributes:
        captions: one for each image.
        references: the human captions of each image.
        scores: of the captions.
        humans: each human caption scored against the others of its image; None where no image has two.
        extra: further figures, by name, e.g. the share of right attributes in the small world.
        files: where the images lie, as far as is known.
    """

    captions: dict[ImageId, str]
    references: dict[ImageId, list[str]]
    scores: Scores
    humans: Scores | None
    extra: dict[str, dict[str, float]] = field(default_factory=dict)
    files: dict[ImageId, Path] = field(default_factory=dict)

    def table(self) -> str:
        """The scores as text, the captions' beside the humans', and then the further figures."""
        rows = {"captions": self.scores.corpus}
        if self.humans is not None:
            rows["humans"] = self.humans.corpus
        parts = [table(rows), *(table({name: figures}) for name, figures in self.extra.items())]
        missing = [f"{metric} is missing: {reason}" for metric, reason in self.scores.missing.items()]
        return "\n\n".join(["\n".join([parts[0], *missing]), *parts[1:]])

    def write(self, folder: Path, title: str) -> None:
        """Write `metrics.json`, `captions.json` (COCO results), `per_image.csv` and `report.html`, each whole.

        Raises:
            InputError: the folder cannot be written to, or the disk is full.
        """
        metrics: dict[str, Any] = dict(self.scores.corpus)
        if self.humans is not None:
            metrics["humans"] = self.humans.corpus
        results = [{"image_id": image_id, "caption": caption} for image_id, caption in self.captions.items()]
        write_text_whole(folder / "captions.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        write_text_whole(folder / "per_image.csv", self._per_image())
        write_text_whole(folder / "report.html", html_report(title, self.table(), self._gallery()))
        write_text_whole(folder / "metrics.json", json.dumps(metrics | self.extra, indent=1) + "\n")

    def _per_image(self) -> str:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["image_id", "caption", *self.scores.per_image])
        for image_id, caption in self.captions.items():
            rows.writerow([image_id, caption, *(f"{of[image_id]:.6f}" for of in self.scores.per_image.values())])
        return text.getvalue()

    def _gallery(self, most: int = 60) -> list[tuple[Path, str, list[str]]]:
        """Evenly spaced images, each with its caption and references."""
        known = [image_id for image_id in self.captions if image_id in self.files]
        step = max(1, len(known) // most)
        return [(self.files[i], self.captions[i], self.references[i]) for i in known[::step][:most]]


def evaluate(
    captions: dict[ImageId, str],
    references: dict[ImageId, list[str]],
    metrics: tuple[str, ...] = METRICS,
    files: dict[ImageId, Path] | None = None,
) -> Evaluation:
    """Score captions against references, and the references against each other.

    Raises:
        InputError: see `prefixcap.metrics.score_captions`.
    """
    scores = score_captions(captions, references, metrics)
    return Evaluation(captions, references, scores, score_humans(references, metrics), files=files or {})


def read_captions(path: str | Path) -> dict[ImageId, str]:
    """Captions of images from a JSON file.

    Either the COCO results format, `[{"image_id": …, "caption": …}, …]`, or entries with `prediction` and
    `image_name`, as MAGIC publishes its results.

    Raises:
        InputError: there is no such file, it has another form, or an image has two captions.
    """
    captions: dict[ImageId, str] = {}
    for number, entry in enumerate(_entries(path)):
        if "prediction" in entry and "image_name" in entry:
            image_id, caption = entry["image_name"], entry["prediction"]
        elif "caption" in entry and "image_id" in entry:
            image_id, caption = entry["image_id"], entry["caption"]
        else:
            raise InputError(
                f"{path}: entry {number} has neither 'image_id' and 'caption' (COCO results) nor 'image_name' and "
                "'prediction': give captions in one of these forms"
            )
        if image_id in captions:
            raise InputError(
                f"{path}: image {image_id!r} has two captions (entry {number} is the second): give one each"
            )
        captions[image_id] = caption
    return captions


def read_references(path: str | Path) -> dict[ImageId, list[str]]:
    """References of images from a JSON file.

    Either COCO annotations (an object with `annotations`), a Karpathy split file (an object with `images` that have
    `sentences`), or entries with `image_name` and `captions`.

    Raises:
        InputError: there is no such file, or it has another form.
    """
    content = read_json(Path(path))
    references: dict[ImageId, list[str]] = {}
    try:
        if isinstance(content, dict) and "annotations" in content:
            for annotation in content["annotations"]:
                references.setdefault(annotation["image_id"], []).append(annotation["caption"])
        elif isinstance(content, dict):
            for image in content["images"]:
                image_id = image.get("cocoid", image["filename"])
                references[image_id] = [sentence["raw"] for sentence in image["sentences"]]
        else:
            for entry in content:
                references[entry["image_name"]] = list(entry["captions"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} holds no references (no key {error}): give COCO annotations, a Karpathy split file, or a list of "
            "entries with 'image_name' and 'captions'"
        ) from error
    return references


def _entries(path: str | Path) -> list[dict[str, Any]]:
    content = read_json(Path(path))
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise InputError(f"{path} is not a list of captions: give COCO results, [{{'image_id': …, 'caption': …}}, …]")
    return content
