"""CIDEr-D (Vedantam et al., 2015, "CIDEr: Consensus-based Image Description Evaluation", sections 4 and 7).

Captions and references are vectors of n-gram counts, each n-gram weighted by how few images' references have it. The
score is the mean cosine of the caption with the references of its image, clipped so that repeating words does not pay,
lowered where lengths differ, times 10.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefixcap.metrics.ngrams import ORDERS, Integers, count_captions, grams_of, shared
from prefixcap.metrics.scorer import mean, mean_of

_SIGMA = 6.0  # of the penalty for another length, in words


class Cider:
    """CIDEr-D as the COCO caption tools compute it: weights come from the references that are given with the captions.

    So the statistics of an image depend on which other images it is scored with.
    """

    name = "CIDEr"
    scores: tuple[str, ...] = ("CIDEr",)

    def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """(images, 2); see `prefixcap.metrics.scorer.Scorer`."""
        of_references = grams_of(references)
        images = of_references.images
        lengths, of_captions = count_captions(captions, of_references)
        cosines = np.zeros(len(images))
        for in_captions, in_references, documents in zip(
            of_captions, of_references.grams, of_references.documents, strict=True
        ):
            # An n-gram that no reference has weighs as much as one that one image has.
            commonness = np.zeros(max(len(documents), in_captions.number.max(initial=0) + 1))
            commonness[: len(documents)] = np.log(np.maximum(documents, 1))
            rarity = np.log(float(len(captions))) - commonness
            caption_weights = in_captions.times * rarity[in_captions.number]
            reference_weights = in_references.times * rarity[in_references.number]
            caption_norms = _norms(in_captions.text, caption_weights, len(captions))
            norms = caption_norms[images] * _norms(in_references.text, reference_weights, len(images))
            caption_entry, reference_entry = shared(in_captions, in_references, images)
            weights = reference_weights[reference_entry]
            products = np.minimum(caption_weights[caption_entry], weights) * weights
            sums = np.bincount(in_references.text[reference_entry], products, len(images))
            cosines += np.divide(sums, norms, out=np.zeros(len(images)), where=norms != 0)
        # The tools take the number of pairs of words for the length.
        difference = np.maximum(lengths - 1, 0)[images] - np.maximum(of_references.lengths - 1, 0)
        similarities = cosines / len(ORDERS) * np.exp(-(difference**2) / (2 * _SIGMA**2))
        return mean_of(10 * np.bincount(images, similarities) / np.bincount(images))

    def score(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 2) -> (..., 1): the mean over images."""
        return mean(totals)


def _norms(texts: Integers, weights: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """(count,) lengths of the vectors of texts."""
    return np.sqrt(np.bincount(texts, weights**2, count))
