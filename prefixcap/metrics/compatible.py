"""Scores by the calls of other libraries: dictionaries as for pycocoevalcap, lists as for Hugging Face's `evaluate`.

The figures are those of `score_captions`; nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from prefixcap.errors import InputError
from prefixcap.metrics.captions import score_captions
from prefixcap.metrics.metric import ImageId, MetricUnavailable
from prefixcap.metrics.scores import Scores
from prefixcap.utils.image_ids import by_image

DEFAULT = ("BLEU", "METEOR", "ROUGE-L", "CIDEr")


def compute(
    gts: Mapping[Any, Sequence[Any]], res: Mapping[Any, Any], metrics: Sequence[str] = DEFAULT
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Score captions in the dictionaries of pycocoevalcap.

    Texts are as people or models wrote them: they are tokenized here, which changes nothing about texts that
    pycocoevalcap's tokenizer has tokenized. Ids that are numbers in one dictionary and texts in the other are matched.

    Args:
        gts: references: for each image a list of texts, or of objects with `caption`.
        res: captions: for each image a text, or a list whose first is scored, likewise.
        metrics: names in `METRICS` of what needs captions and references only.

    Returns:
        The scores of all images together, by name; and those of each image, in the order of `gts`.

    Raises:
        InputError: as `score_captions`.
        MetricUnavailable: a metric cannot be computed on this machine.

    Examples:
        >>> gts = {1: [{"caption": "A dog runs."}, {"caption": "The dog is running"}], 2: ["A cat asleep"]}
        >>> scores, per_image = compute(gts, {"1": ["a dog runs"], "2": ["a dog"]}, ["ROUGE-L"])
        >>> round(scores["ROUGE-L"], 3), [round(score, 3) for score in per_image["ROUGE-L"]]
        (0.693, [1.0, 0.386])
    """
    references = {image: [_text(entry) for entry in entries] for image, entries in gts.items()}
    captions = by_image({image: _first(image, given) for image, given in res.items()}, references)
    # As the COCO tools do, which read captions in the order of the images.
    ordered = {image: captions[image] for image in references if image in captions}
    scores = _complete(score_captions(ordered | captions, references, metrics))
    return scores.corpus, {name: [by_id[image] for image in references] for name, by_id in scores.per_image.items()}


class CaptionScorer:
    """Scores lists of captions, as a module of `evaluate` does, after `evaluate.load(…)`.

    Args:
        metrics: names in `METRICS` of what needs captions and references only.

    Examples:
        >>> scorer = CaptionScorer("ROUGE-L")
        >>> scores = scorer.compute(predictions=["a dog runs"], references=[["A dog runs.", "The dog is running"]])
        >>> round(scores["ROUGE-L"], 3)
        1.0
    """

    def __init__(self, *metrics: str) -> None:
        self.metrics = metrics or DEFAULT
        self._captions: list[str] = []
        self._references: list[Sequence[str]] = []

    def add(self, *, prediction: str, references: str | Sequence[str]) -> None:
        """Add an image: its caption, and its references, one or several."""
        self.add_batch(predictions=[prediction], references=[references])

    def add_batch(self, *, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> None:
        """Add images: the caption of each, and its references, one or several.

        Raises:
            InputError: the numbers of captions and of images with references differ.
        """
        if len(predictions) != len(references):
            raise InputError(f"{len(predictions)} predictions and {len(references)} lists of references: give as many")
        self._captions += predictions
        self._references += [[texts] if isinstance(texts, str) else texts for texts in references]

    def compute(
        self,
        *,
        predictions: Sequence[str] | None = None,
        references: Sequence[str | Sequence[str]] | None = None,
    ) -> dict[str, float]:
        """The scores of all images added so far and of these, by name; then it starts anew.

        Raises:
            InputError: as `add_batch` and `score_captions`.
            MetricUnavailable: a metric cannot be computed on this machine.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions or [], references=references or [])
        captions, texts = dict(enumerate(self._captions)), dict(enumerate(self._references))
        self._captions, self._references = [], []
        return _complete(score_captions(captions, texts, self.metrics)).corpus


def _complete(scores: Scores) -> Scores:
    for metric, reason in scores.missing.items():
        raise MetricUnavailable(f"{metric} is missing: {reason}")
    return scores


def _first(image: ImageId, given: Any) -> Any:
    if isinstance(given, list | tuple) and not given:
        raise InputError(f"image {image!r} has an empty list of captions: give one")
    return _text(given[0] if isinstance(given, list | tuple) else given)


def _text(entry: Any) -> Any:
    return entry.get("caption") if isinstance(entry, Mapping) else entry
