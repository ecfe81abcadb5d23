"""The evaluation of a captioner: its captions' scores, beside what people reach, written to a folder."""

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefixcap.errors import InputError, listed, name_rows
from prefixcap.evaluation.report import CaptionedImage, Table, html_report, table
from prefixcap.metrics import (
    SCORERS,
    ImageId,
    Scores,
    check_metrics,
    over_folds,
    score_captions,
    score_humans,
    score_parts,
)
from prefixcap.metrics.scorer import mean, mean_of
from prefixcap.metrics.significance import Score, confidence_interval
from prefixcap.utils.files import as_cell, atomic_write, atomic_write_text, table_writer

if TYPE_CHECKING:
    from torch import Tensor

    from prefixcap.encoders import Encoder
    from prefixcap.language import LanguageModel

OTHER_METRICS = ("CLIPScore", "diversity", "perplexity")  # beside SCORERS, which need captions and references alone
STATISTICS = "statistics.npz"
LEAST = 0.001  # of people's score, for a ratio to it: what is less is what constants against division by 0 make of it


@dataclass
class Evaluation:
    """Captions of images, with their scores.

    Attributes:
        captions: one for each image.
        references: the human captions of each image.
        scores: of the captions.
        humans: each human caption scored against the others of its image; None where no image has two.
        domains: the scores of each domain alone, as nocaps has them, and "overall"; empty where there are none.
        extra: further figures, by name, e.g. the share of right attributes in the small world.
        files: where the images lie, as far as is known.
        notes: what else is to be said of the figures, one line each.
    """

    captions: Mapping[ImageId, str]
    references: Mapping[ImageId, Sequence[str]]
    scores: Scores
    humans: Scores | None
    domains: dict[str, Scores] = field(default_factory=dict)
    extra: dict[str, dict[str, float]] = field(default_factory=dict)
    files: Mapping[ImageId, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95% confidence interval of each score of the captions, by bootstrap over images; none of one image."""
        return _intervals(self.scores)

    @cached_property
    def human_intervals(self) -> dict[str, tuple[float, float]]:
        """Those of the humans' scores: all captions of an image are drawn together."""
        return _intervals(self.humans) if self.humans is not None else {}

    @cached_property
    def domain_intervals(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Those of each domain's scores."""
        return {domain: _intervals(scores) for domain, scores in self.domains.items()}

    def all_notes(self) -> list[str]:
        """What is to be said of the scores, one line each, `notes` among them."""
        notes = [f"{metric} is missing: {reason}" for metric, reason in self.scores.missing.items()]
        if empty := self.scores.empty:
            have = "1 caption has" if len(empty) == 1 else f"{len(empty)} captions have"
            notes.append(f"{have} no word: {listed('image', [repr(image_id) for image_id in empty])}")
        notes += self.scores.notes
        if self.intervals:
            notes.append("95% confidence intervals (±: half of one) by bootstrap over images")
        elif self.scores.corpus:
            notes.append("one image has no confidence interval")
        if low := [name for name, score in (self.humans.corpus if self.humans else {}).items() if score < LEAST]:
            notes.append(f"captions / humans: none for {', '.join(low)}, where people score less than {LEAST}")
        return notes + self.notes

    def tables(self) -> list[Table]:
        """The captions' scores beside the humans', and then the further figures."""
        rows = {"captions": self.scores.corpus}
        if self.humans is not None:
            rows |= {"humans": self.humans.corpus, "captions / humans": self._of_humans()}
        intervals = {"captions": self.intervals, "humans": self.human_intervals}
        tables = [Table("scores", rows, intervals, self.all_notes())]
        if self.domains:
            domains = {domain: scores.corpus for domain, scores in self.domains.items()}
            notes = [
                f"{domain}: {note}"
                for domain, scores in self.domains.items()
                if domain != "overall"
                for note in scores.notes
                if note not in self.scores.notes
            ]
            tables.append(Table("domains", domains, self.domain_intervals, notes))
        return tables + [Table(name, {name: figures}) for name, figures in self.extra.items()]

    def table(self) -> str:
        """The tables as text."""
        return "\n\n".join("\n".join([table(part.rows, part.intervals), *part.notes]) for part in self.tables())

    def write(self, folder: Path, title: str) -> None:
        """Write `metrics.json`, `captions.json` (COCO results), `per_image.csv` and `report.html`, each whole; and
        `statistics.npz`, for comparisons with other captions of the same images.

        Raises:
            InputError: the folder cannot be written to, or the disk is full.
        """
        metrics: dict[str, Any] = self.scores.corpus | {"intervals": self.intervals, "images": len(self.references)}
        metrics["notes"] = self.all_notes()
        if self.humans is not None:
            humans: dict[str, Any] = self.humans.corpus | {"intervals": self.human_intervals}
            metrics |= {"humans": humans, "captions / humans": self._of_humans()}
        if self.domains:
            metrics["domains"] = {
                domain: scores.corpus | {"intervals": self.domain_intervals[domain]}
                for domain, scores in self.domains.items()
            }
        results = [{"image_id": image_id, "caption": caption} for image_id, caption in self.captions.items()]
        atomic_write_text(folder / "captions.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        atomic_write_text(folder / "per_image.csv", self._per_image())
        atomic_write_text(folder / "report.html", html_report(title, self.tables(), self._images()))
        # Sorted, so that neither the order of images nor that of their references makes them others.
        references = sorted(json.dumps([image_id, sorted(texts)]) for image_id, texts in self.references.items())
        with atomic_write(folder / STATISTICS) as temporary, temporary.open("wb") as file:
            described = {
                "images": np.array(json.dumps(list(self.references))),
                "references": np.array(hashlib.sha256(json.dumps(references).encode()).hexdigest()),
            }
            np.savez(file, **described, **self.scores.statistics)  # type: ignore[arg-type]  # none is named allow_pickle
        atomic_write_text(folder / "metrics.json", json.dumps(_finite(metrics | self.extra), indent=1) + "\n")

    def _of_humans(self) -> dict[str, float]:
        """Each score of the captions over that of people, where theirs is clearly more than 0."""
        of_humans = self.humans.corpus if self.humans is not None else {}
        captions = self.scores.corpus
        return {
            name: captions[name] / score for name, score in of_humans.items() if score >= LEAST and name in captions
        }

    def _per_image(self) -> str:
        text = io.StringIO()
        rows = table_writer(text)
        rows.writerow(["image_id", "caption", *self.scores.per_image])
        for image_id, caption in self.captions.items():
            scores = (round(of_images[image_id], 6) for of_images in self.scores.per_image.values())
            rows.writerow([as_cell(image_id), as_cell(caption), *scores])
        return text.getvalue()

    def _images(self) -> list[CaptionedImage]:
        return [
            CaptionedImage(
                image_id,
                caption,
                self.references[image_id],
                {name: of[image_id] for name, of in self.scores.per_image.items()},
                self.files.get(image_id),
            )
            for image_id, caption in self.captions.items()
        ]


def evaluate(
    captions: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    metrics: Sequence[str] = ("BLEU", "METEOR", "ROUGE-L", "CIDEr"),
    files: Mapping[ImageId, Path] | None = None,
    domains: Mapping[ImageId, str] | None = None,
    encoder: "Encoder | None" = None,
    embeddings: "Tensor | None" = None,
    language_model: "LanguageModel | None" = None,
    training_captions: Sequence[str] | None = None,
) -> Evaluation:
    """Score captions against references, and the references against each other.

    Args:
        captions: one for each image.
        references: of the same images.
        metrics: of `SCORERS` and `OTHER_METRICS`; CLIPScore gives RefCLIPScore, too.
        files: where the images lie.
        domains: of the images, e.g. "in-domain"; each is scored by itself, too.
        encoder: for CLIPScore.
        embeddings: (images, dim) of that encoder, in the order of `references`; for CLIPScore.
        language_model: for perplexity.
        training_captions: for diversity: which captions are new.

    Raises:
        InputError: a metric is unknown or lacks what it needs, and as `prefixcap.metrics.score_captions`.
    """
    # All that may be wrong is told before anything is computed that takes long.
    check_metrics(metrics, OTHER_METRICS)
    if "CLIPScore" in metrics:
        if encoder is None or embeddings is None:
            raise InputError("CLIPScore needs the images' embeddings: give ckpt=PATH, or captions=FILE with data=…")
        from prefixcap.metrics.clip_score import clip_scores_of_texts, require_directions

        with name_rows(references):
            require_directions(embeddings)
    if "perplexity" in metrics and language_model is None:
        raise InputError("perplexity needs a language model: name one with perplexity_lm=…, e.g. gpt2")
    of_references = [metric for metric in metrics if metric in SCORERS]
    parts: dict[str, list[ImageId]] = {}
    for image_id, domain in (domains or {}).items():
        parts.setdefault(domain, []).append(image_id)
    if parts:
        of_parts = score_parts(captions, references, parts, of_references)
        scores = of_parts["overall"]
    else:
        scores, of_parts = score_captions(captions, references, of_references), {}
    texts = [captions[image_id] for image_id in references]
    extra: dict[str, dict[str, float]] = {}
    if encoder is not None and embeddings is not None and "CLIPScore" in metrics:
        of_texts = clip_scores_of_texts(encoder, embeddings, texts, list(references.values()))
        for name, values in of_texts.items():
            _add(scores, name, dict(zip(references, values.tolist(), strict=True)))
            for domain, of_part in of_parts.items():
                if domain != "overall":
                    _add(of_part, name, {image_id: scores.per_image[name][image_id] for image_id in parts[domain]})
    if "diversity" in metrics:
        from prefixcap.metrics.diversity import Diversity

        diversity = Diversity(training_captions)
        diversity.update(texts)
        extra["diversity"] = {name: float(value) for name, value in diversity.compute().items()}
    if "perplexity" in metrics and not any(map(str.strip, texts)):
        scores.missing["perplexity"] = "no caption has a word"
    elif language_model is not None and "perplexity" in metrics:
        from prefixcap.metrics.perplexity import Perplexity

        perplexity = Perplexity(language_model)
        with name_rows(references):
            perplexity.update(texts)
        extra["perplexity"] = {f"under {language_model.name}": float(perplexity.compute())}
    humans = score_humans(references, of_references)
    return Evaluation(captions, references, scores, humans, of_parts, extra, files or {})


def how_to_score(metric: str) -> tuple[Sequence[str], Score]:
    """The names of what a metric gives, and the function from sums of its statistics to that."""
    return (SCORERS[metric].scores, SCORERS[metric].score) if metric in SCORERS else ((metric,), mean)


def _intervals(scores: Scores) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for metric, statistics in scores.statistics.items():
        if len(statistics) < 2:
            continue
        names, score = how_to_score(metric)
        bounds = confidence_interval(over_folds(score) if statistics.ndim == 3 else score, statistics).tolist()
        found |= {name: (low, high) for name, (low, high) in zip(names, bounds, strict=True)}
    return found


def _finite(value: Any) -> Any:
    """The value with None for what JSON has no number for: NaN and infinity."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _add(scores: Scores, name: str, of_images: dict[ImageId, float]) -> None:
    """A score that is a mean over images."""
    scores.statistics[name] = mean_of(list(of_images.values()))
    scores.per_image[name] = of_images
    scores.corpus[name] = float(np.mean(list(of_images.values())))
