"""The evaluation of a captioner: its captions' scores, beside what people reach, written to a folder."""

import hashlib
import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefixcap.errors import listed
from prefixcap.evaluation.report import CaptionedImage, Table, html_report, table
from prefixcap.metrics import (
    METRICS,
    ImageId,
    MetricInputs,
    Scores,
    over_folds,
    score_humans,
    score_parts,
)
from prefixcap.metrics.chair import objects_in_order
from prefixcap.metrics.metric import Captions, ObjectsOfImages, References
from prefixcap.metrics.registry import lower_is_better
from prefixcap.metrics.significance import confidence_interval
from prefixcap.utils.files import as_cell, atomic_write, atomic_write_text, table_writer

if TYPE_CHECKING:
    from torch import Tensor

    from prefixcap.encoders import Encoder
    from prefixcap.language import LanguageModel
    from prefixcap.metrics.text_encoder import TextEncoder
    from prefixcap.vocabulary import Vocabulary

STATISTICS = "statistics.npz"
OBJECTS = "objects"  # in that file: a digest of the objects of images, on which CHAIR depends
VOCABULARY = "vocabulary"  # likewise: a digest of the names and words on which the scores of entities depend
TOKENIZER = "tokenizer"  # likewise: its name
LEAST = 0.001  # people's score has to be, for a ratio to it; lower BLEU comes from constants against division by 0


@dataclass
class Evaluation:
    """Captions of images, with their scores.

    Attributes:
        captions: one for each image.
        references: the human captions of each image.
        scores: of the captions.
        humans: each human caption scored against the others of its image; None where no image has two.
        domains: the scores of each domain by itself, as nocaps has them, and "overall"; empty where there are none.
        extra: figures of all captions together, by the table they are in, e.g. "diversity", or the share of right
            attributes in the small world.
        files: where the images are stored, as far as is known.
        notes: what else a reader of the figures should know, one line each.
        objects: in each image, in the order of the references, where CHAIR was computed with them.
        vocabulary: of the entities that were counted.
        tokenizer: what split captions into words, see `prefixcap.metrics.tokenizers`.
    """

    captions: Captions
    references: References
    scores: Scores
    humans: Scores | None
    domains: dict[str, Scores] = field(default_factory=dict)
    extra: dict[str, dict[str, float]] = field(default_factory=dict)
    files: Mapping[ImageId, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    objects: ObjectsOfImages | None = None
    vocabulary: "Vocabulary | None" = None
    tokenizer: str = "ptb"

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

    @cached_property
    def figure_intervals(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Those of further figures, by table: of perplexity, length and novelty, which sums over images determine."""
        if len(self.references) < 2:
            return {}
        return {
            table: {
                name: (low, high)
                for name, statistics in figures.items()
                for low, high in confidence_interval(METRICS[table].score, statistics).tolist()
            }
            for table, figures in self.scores.figure_statistics.items()
        }

    def all_notes(self) -> list[str]:
        """What a reader of the scores should know, one line each, `notes` included."""
        notes = [f"{metric} is missing: {reason}" for metric, reason in self.scores.missing.items()]
        if empty := self.scores.empty:
            have = "1 caption has" if len(empty) == 1 else f"{len(empty)} captions have"
            notes.append(f"{have} no word: {listed('image', [repr(image_id) for image_id in empty])}")
        notes += self.scores.notes
        lower = lower_is_better(self.scores.corpus)
        notes += [f"less is better: {', '.join(lower)}"] if lower else []
        if self.intervals:
            notes.append("95% confidence intervals (±: half of one) by bootstrap over images")
        elif self.scores.corpus:
            notes.append("one image has no confidence interval")
        people = {} if self.humans is None else self.humans.corpus
        if low := [name for name in people if people[name] < LEAST and not lower_is_better([name])]:
            notes.append(f"captions / humans: none for {', '.join(low)}, where people score less than {LEAST}")
        return notes + self.notes

    def tables(self) -> list[Table]:
        """The captions' scores beside the humans', and then the further figures."""
        rows = {"captions": self.scores.corpus}
        if self.humans is not None:
            rows |= {"humans": self.humans.corpus}
            rows |= {"captions / humans": ratios} if (ratios := self._human_ratios()) else {}
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
        return tables + [
            Table(name, {name: figures}, {name: self.figure_intervals.get(name, {})})
            for name, figures in self.extra.items()
        ]

    def table(self) -> str:
        """The tables as text."""
        return "\n\n".join("\n".join([table(part.rows, part.intervals), *part.notes]) for part in self.tables())

    def write(self, folder: Path, title: str) -> None:
        """Write `metrics.json`, `captions.json` (COCO results), `per_image.csv`, `report.html` and `statistics.npz`,
        which `prefixcap.evaluation.comparison.compare` reads. Each file is written atomically.

        Args:
            folder: is made if need be.
            title: of the report.

        Raises:
            InputError: the folder cannot be written to, or the disk is full.
        """
        metrics: dict[str, Any] = self.scores.corpus | {"intervals": self.intervals, "images": len(self.references)}
        metrics |= {"tokenizer": self.tokenizer, "notes": self.all_notes()}
        if self.humans is not None:
            humans: dict[str, Any] = self.humans.corpus | {"intervals": self.human_intervals}
            metrics |= {"humans": humans, "captions / humans": self._human_ratios()}
        if self.domains:
            metrics["domains"] = {
                domain: scores.corpus | {"intervals": self.domain_intervals[domain]}
                for domain, scores in self.domains.items()
            }
        results = [{"image_id": image_id, "caption": caption} for image_id, caption in self.captions.items()]
        atomic_write_text(folder / "captions.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        atomic_write_text(folder / "per_image.csv", self._per_image())
        atomic_write_text(folder / "report.html", html_report(title, self.tables(), self._images()))
        # Sorted, so that the digest depends neither on the order of images nor on that of their references.
        references = sorted(json.dumps([image_id, sorted(texts)]) for image_id, texts in self.references.items())
        with atomic_write(folder / STATISTICS) as temporary, temporary.open("wb") as file:
            described = {
                TOKENIZER: np.array(self.tokenizer),
                "images": np.array(json.dumps(list(self.references))),
                "references": _digest(references),
            }
            if self.objects is not None:
                named = sorted(
                    json.dumps([image_id, None if names is None else sorted(names)])
                    for image_id, names in zip(self.references, self.objects, strict=True)
                )
                described[OBJECTS] = _digest(named)
            if self.vocabulary is not None:
                described[VOCABULARY] = _digest(sorted(self.vocabulary.lines))
            figures = {
                figure_key(metric, name): statistics
                for metric, arrays in self.scores.figure_statistics.items()
                for name, statistics in arrays.items()
            }
            np.savez(file, **described, **self.scores.statistics, **figures)  # type: ignore[arg-type]  # none is named allow_pickle
        metrics |= self.extra
        if self.figure_intervals:
            metrics["intervals of figures"] = self.figure_intervals
        atomic_write_text(folder / "metrics.json", json.dumps(finite(metrics), indent=1) + "\n")

    def _human_ratios(self) -> dict[str, float]:
        """Each score of the captions over that of people, where more is better and theirs is clearly more than 0."""
        humans, captions = self.humans.corpus if self.humans is not None else {}, self.scores.corpus
        lower = lower_is_better(humans)
        compared = {name: score for name, score in humans.items() if name in captions and name not in lower}
        return {name: captions[name] / score for name, score in compared.items() if score >= LEAST}

    def _per_image(self) -> str:
        text = io.StringIO()
        rows = table_writer(text)
        rows.writerow(["image_id", "caption", *self.scores.per_image])
        for image_id, caption in self.captions.items():
            cells = (round(scores[image_id], 6) for scores in self.scores.per_image.values())
            rows.writerow([as_cell(image_id), as_cell(caption), *cells])
        return text.getvalue()

    def _images(self) -> list[CaptionedImage]:
        return [
            CaptionedImage(
                image_id,
                caption,
                self.references[image_id],
                {name: scores[image_id] for name, scores in self.scores.per_image.items()},
                self.files.get(image_id),
            )
            for image_id, caption in self.captions.items()
        ]


def evaluate(
    captions: Captions,
    references: References,
    metrics: Sequence[str] = ("BLEU", "METEOR", "ROUGE-L", "CIDEr"),
    files: Mapping[ImageId, Path] | None = None,
    domains: Mapping[ImageId, str] | None = None,
    encoder: "Encoder | None" = None,
    embeddings: "Tensor | None" = None,
    language_model: "LanguageModel | None" = None,
    training_captions: Sequence[str] | None = None,
    objects: Mapping[Any, Collection[str]] | None = None,
    candidates: Mapping[Any, Sequence[str]] | None = None,
    text_encoder: "TextEncoder | None" = None,
    tokenizer: str = "ptb",
    vocabulary: "Vocabulary | None" = None,
) -> Evaluation:
    """Score captions against references, and the references against each other.

    Args:
        captions: one for each image.
        references: of the same images.
        metrics: names in `prefixcap.metrics.METRICS`; CLIPScore brings RefCLIPScore.
        files: where the images are stored.
        domains: of the images, e.g. "in-domain"; each is scored by itself, too.
        encoder: for metrics that compare captions with images: the one that made `embeddings`.
        embeddings: (images, dim) in the order of `references`, likewise.
        language_model: for metrics that need one, as perplexity does.
        training_captions: for diversity: which captions are new.
        objects: for CHAIR: COCO's categories of the objects in each image, e.g. `{391895: {"person", "motorcycle"}}`,
            as `prefixcap.evaluation.instances.read_instances` gives them; ids are numbers, their digits, or COCO's
            names of files. Without them, an image has the objects that its references mention.
        candidates: for set-diversity: several captions of each image.
        text_encoder: for BERTScore and sentence-similarity, as
            `prefixcap.metrics.text_encoder.load_text_encoder` gives it.
        tokenizer: what splits captions into words: "ptb", as the COCO caption tools do, "characters", "13a" or "none".
        vocabulary: for entities: which words of captions and references are looked for.

    Raises:
        InputError: a metric is unknown or lacks what it needs, and as `prefixcap.metrics.score_captions`. Mistakes are
            raised before anything is computed that takes long.

    Examples:
        >>> references = {1: ["a dog is running", "a dog on a beach"], 2: ["a cat asleep", "the cat sleeps"]}
        >>> evaluation = evaluate({1: "a dog runs", 2: "a cat sleeps"}, references, ["ROUGE-L", "diversity"])
        >>> round(evaluation.scores.corpus["ROUGE-L"], 3)
        0.612
        >>> evaluation.extra["diversity"]["Vocabulary"]
        5.0
    """
    parts: dict[str, list[ImageId]] = {}
    for image_id, domain in (domains or {}).items():
        parts.setdefault(domain, []).append(image_id)
    ordered = None if objects is None else objects_in_order(objects, references)
    inputs = MetricInputs(embeddings, encoder, language_model, training_captions, ordered)
    inputs = replace(inputs, text_encoder=text_encoder, tokenizer=tokenizer, vocabulary=vocabulary)
    if candidates is not None:
        inputs = replace(inputs, candidates=[candidates.get(image, ()) for image in references])
    scored = score_parts(captions, references, parts, metrics, inputs)
    scores = scored["overall"]
    humans = score_humans(
        references,
        metrics,
        MetricInputs(objects=ordered, candidates=inputs.candidates, tokenizer=tokenizer, vocabulary=vocabulary),
    )
    domain_scores = scored if parts else {}
    figures = dict(scores.figures)
    evaluation = Evaluation(captions, references, scores, humans, domain_scores, figures, files or {}, objects=ordered)
    if humans is not None and "self-CIDEr" in scores.corpus.keys() - humans.corpus.keys():
        evaluation.notes.append("diversity of sets: none of people, as an image has fewer references than captions")
    return replace(evaluation, tokenizer=tokenizer, vocabulary=vocabulary)


def figure_key(metric: str, figure: str) -> str:
    """The name of a figure's array in `statistics.npz`, where a metric's array has that of the metric."""
    return f"{metric}/{figure}"


def _digest(texts: Sequence[str]) -> NDArray[np.str_]:
    return np.array(hashlib.sha256(json.dumps(texts).encode()).hexdigest())


def _intervals(scores: Scores) -> dict[str, tuple[float, float]]:
    intervals: dict[str, tuple[float, float]] = {}
    for name, statistics in scores.statistics.items():
        if len(statistics) < 2:
            continue
        metric = METRICS[name]
        score = over_folds(metric.score) if statistics.ndim == 3 else metric.score
        bounds = confidence_interval(score, statistics).tolist()
        intervals |= {name: (low, high) for name, (low, high) in zip(metric.scores, bounds, strict=True)}
    return intervals


def finite(value: Any) -> Any:
    """The value with None for what JSON has no number for: NaN and infinity."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
