"""Precision and recall of the entities in captions: the names of a vocabulary that captions and references mention.

Shapes: n images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefixcap.errors import InputError
from prefixcap.metrics.metric import Captions, Metric, References, Statistics
from prefixcap.vocabulary import Vocabulary, entities_in


class EntityMentions(Metric):
    """Entity precision, recall and F1, 0 to 1, over all images together.

    The entities of an image are those that its references mention, all of them together. Precision is the share of the
    entities in captions that their images have, recall the share of the images' entities that their captions mention;
    F1 is their harmonic mean. Each entity counts once an image. Recall is low for any single caption, as several
    references mention more than one does: compare it with that of people, the captions of the human row.

    The metric is none of `METRICS` by itself, as there is no vocabulary for all images:
    `METRICS["entities"] = EntityMentions(Vocabulary.read("objects.txt"))` adds it.

    The statistics of an image are (columns): 0: entities in both; 1: in the caption; 2: in the references.

    Args:
        vocabulary: of the entities.

    Examples:
        >>> metric = EntityMentions(Vocabulary(["dog", "cat", "sofa", "ball"]))
        >>> statistics = metric.statistics(["a dog on a sofa"], [["two dogs play", "dogs and a ball"]])
        >>> statistics.astype(int).tolist(), metric.score(statistics.sum(axis=0)).tolist()
        ([[1, 2, 2]], [0.5, 0.5, 0.5])
    """

    name = "entities"
    scores = ("entity precision", "entity recall", "entity F1")
    tokenized = False
    english_only = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
        """(n, 3) counts; see `prefixcap.metrics.Metric`."""
        counts = np.zeros((len(captions), 3))
        for row, (caption, texts) in enumerate(zip(captions, references, strict=True)):
            said = set(entities_in(caption, self.vocabulary))
            there = {name for text in texts for name in entities_in(text, self.vocabulary)}
            counts[row] = len(said & there), len(said), len(there)
        return counts

    def score(self, totals: Statistics) -> Statistics:
        """(..., 3) sums of counts -> (..., 3); 0 where there is nothing to divide by."""
        both, said, there = totals[..., 0], totals[..., 1], totals[..., 2]
        scores: Statistics = np.stack((both, both, 2 * both), -1) / np.maximum(
            np.stack((said, there, said + there), -1), 1
        )
        return scores


def entity_scores(captions: Captions, references: References, vocabulary: Vocabulary) -> dict[str, float]:
    """Entity precision, recall and F1 of captions, see `EntityMentions`.

    Args:
        captions: one for each image.
        references: of the same images.
        vocabulary: of the entities.

    Raises:
        InputError: there are no captions, or an image has no references.

    Examples:
        >>> scores = entity_scores({7: "a dog"}, {7: ["a dog and a cat"]}, Vocabulary(["dog", "cat"]))
        >>> {name: round(score, 2) for name, score in scores.items()}
        {'entity precision': 1.0, 'entity recall': 0.5, 'entity F1': 0.67}
    """
    texts = _references_of(captions, references)
    metric = EntityMentions(vocabulary)
    totals = metric.statistics(list(captions.values()), texts).sum(axis=0)
    return dict(zip(metric.scores, metric.score(totals).tolist(), strict=True))


def _references_of(captions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> list[Sequence[str]]:
    if not captions:
        raise InputError("there are no captions to score: give one for each image")
    if missing := [image for image in captions if not references.get(image)]:
        raise InputError(f"image {missing[0]!r} has a caption and no references: give references of the same images")
    return [references[image] for image in captions]
