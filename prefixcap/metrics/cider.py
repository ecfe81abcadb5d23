"""CIDEr-D (Vedantam et al., 2015, "CIDEr: Consensus-based Image Description Evaluation", sections 4 and 7).

Captions and references are vectors of n-gram counts, each n-gram weighted by how few images' references have it. The
score is the mean cosine of the caption with the references of its image, clipped so that repeating words does not pay,
lowered where lengths differ, times 10.

Shapes: n captions, one for each image; r references of all images together.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefixcap.metrics.metric import Metric, Statistics, mean_of
from prefixcap.metrics.ngrams import ORDERS, Integers, ReferenceGrams, count_captions, grams_of, shared

_SIGMA = 6.0  # of the penalty for another length, in words


class Cider(Metric):
    """CIDEr-D, 0 to 10, as the COCO caption tools compute it.

    The weights of n-grams come from the references that are given with the captions, so the statistics of an image
    depend on which other images are scored with it.

    Examples:
        >>> references = [["a dog runs", "the dog is running"], ["a cat asleep"]]
        >>> Cider().statistics(["a dog runs", "a cat"], references).round(2).tolist()
        [[4.19, 1.0], [3.49, 1.0]]
    """

    name = "CIDEr"
    scores = ("CIDEr",)
    uses_all_images = True

    def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
        """(n, 2); see `prefixcap.metrics.Metric`."""
        return mean_of(consensus(captions, grams_of(references), len(captions)))


def tells_nothing(references: ReferenceGrams, counted: int) -> bool:
    """Whether CIDEr-D is 0 whatever the captions are: no n-gram of the references is rarer than all others.

    This is so for a single image, for images that have the same references, and for references without words.

    Args:
        references: of all images.
        counted: how many images.
    """
    return all((documents[documents > 0] >= counted).all() for documents in references.documents)


def consensus(captions: Sequence[str], references: ReferenceGrams, counted: int) -> NDArray[np.float64]:
    """CIDEr-D of tokenized captions, one for each image of the references.

    Args:
        captions: of as many images as the references.
        references: of at least one text an image.
        counted: of how many images' references `references.documents` tells.

    Returns:
        (captions,) scores.
    """
    images = references.images  # (r,) the image of each reference
    lengths, caption_grams = count_captions(captions, references)  # (n,) words; n-grams of each order
    cosines = np.zeros(len(images))  # (r,) of a caption and the reference, summed over orders
    for in_captions, in_references, documents in zip(
        caption_grams, references.grams, references.documents, strict=True
    ):
        # The vectors: counts of n-grams, weighted by rarity; equation 1.
        caption_weights = in_captions.times * rarity(in_captions.number, documents, counted)
        reference_weights = in_references.times * rarity(in_references.number, documents, counted)
        # Their lengths, and for each pair of caption and reference the product of both.
        caption_norms = norms(in_captions.text, caption_weights, len(captions))
        both_norms = caption_norms[images] * norms(in_references.text, reference_weights, len(images))
        # Their clipped dot products: only n-grams that both have count.
        caption_entry, reference_entry = shared(in_captions, in_references, images)
        weights = reference_weights[reference_entry]
        products = np.minimum(caption_weights[caption_entry], weights) * weights
        sums = np.bincount(in_references.text[reference_entry], products, len(images))
        cosines += np.divide(sums, both_norms, out=np.zeros(len(images)), where=both_norms != 0)
    # The penalty for another length; the tools take the number of pairs of words for the length.
    difference = np.maximum(lengths - 1, 0)[images] - np.maximum(references.lengths - 1, 0)
    similarities = cosines / len(ORDERS) * np.exp(-(difference**2) / (2 * _SIGMA**2))
    scores: NDArray[np.float64] = 10 * np.bincount(images, similarities) / np.bincount(images)
    return scores


def rarity(numbers: Integers, documents: Integers, counted: int) -> NDArray[np.float64]:
    """Weights of n-grams. One that no reference has weighs as much as one that one image has."""
    frequencies = np.ones(len(numbers))
    known = numbers < len(documents)
    frequencies[known] = np.maximum(documents[numbers[known]], 1)
    rarity: NDArray[np.float64] = np.log(float(counted)) - np.log(frequencies)
    return rarity


def norms(texts: Integers, weights: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """(count,) lengths of the vectors of texts."""
    return np.sqrt(np.bincount(texts, weights**2, count))
