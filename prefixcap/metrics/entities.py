"""Precision and recall of the entities in captions: the names of a vocabulary that captions and references mention.

Shapes: n images.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from prefixcap.metrics.metric import Metric, MetricInputs, Statistics
from prefixcap.vocabulary import Vocabulary, entities_in


class EntityMentions(Metric):
    """Entity precision, recall and F1, 0 to 1, over all images together.

    The entities of an image are those that its references mention, all of them together. Precision is the share of the
    entities in captions that their images have, recall the share of the images' entities that their captions mention;
    F1 is their harmonic mean. Each entity counts once an image. Recall is low for any single caption, as several
    references mention more than one does: compare it with that of people, the captions of the human row.

    The statistics of an image are (columns): 0: entities in both; 1: in the caption; 2: in the references.

    Examples:
        >>> vocabulary = Vocabulary(["dog", "cat", "sofa", "ball"])
        >>> references = [["two dogs play", "dogs and a ball"]]
        >>> statistics = EntityMentions().statistics(["a dog on a sofa"], references, vocabulary)
        >>> statistics.astype(int).tolist(), EntityMentions().score(statistics.sum(axis=0)).tolist()
        ([[1, 2, 2]], [0.5, 0.5, 0.5])
    """

    name = "entities"
    scores = ("entity precision", "entity recall", "entity F1")
    needs = ("vocabulary",)
    tokenized = False
    english_only = True

    def statistics(
        self, captions: Sequence[str], references: Sequence[Sequence[str]], vocabulary: Vocabulary
    ) -> Statistics:
        """(n, 3) counts; see `prefixcap.metrics.Metric`."""
        counts = np.zeros((len(captions), 3))
        for row, (caption, texts) in enumerate(zip(captions, references, strict=True)):
            said = set(entities_in(caption, vocabulary))
            there = {name for text in texts for name in entities_in(text, vocabulary)}
            counts[row] = len(said & there), len(said), len(there)
        return counts

    def score(self, totals: Statistics) -> Statistics:
        """(..., 3) sums of counts -> (..., 3); 0 where there is nothing to divide by."""
        both, said, there = totals[..., 0], totals[..., 1], totals[..., 2]
        scores: Statistics = np.stack((both, both, 2 * both), -1) / np.maximum(
            np.stack((said, there, said + there), -1), 1
        )
        return scores

    def notes(self, inputs: MetricInputs) -> Iterable[str]:
        """What was dropped from the vocabulary."""
        return inputs.vocabulary.notes if inputs.vocabulary is not None else ()
