"""BLEU-1 to BLEU-4 (Papineni et al., 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation").

As the COCO caption tools compute it: the reference length of an image is that of the reference closest to the caption
in length (the shorter of two), and small constants stand where a division by 0 would.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefixcap.metrics.ngrams import ORDERS, count_captions, grams_of, shared

_SMALL = 1e-9
_TINY = 1e-15


class Bleu:
    """BLEU with n-grams of one to four words.

    The statistics of an image are (columns): 0: words of the caption; 1: words of the closest reference; 2 to 5:
    n-grams of the caption; 6 to 9: those of them that a reference has, each at most as often as one reference has it.
    """

    name = "BLEU"
    scores: tuple[str, ...] = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")

    def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """(images, 10) counts; see `prefixcap.metrics.scorer.Scorer`."""
        of_references = grams_of(references)
        images = of_references.images
        lengths, of_captions = count_captions(captions, of_references)
        difference = np.abs(of_references.lengths - lengths[images])
        nearest_first = np.lexsort((of_references.lengths, difference, images))
        nearest = nearest_first[np.searchsorted(images, np.arange(len(captions)))]
        columns = [lengths, of_references.lengths[nearest]]
        columns += [np.maximum(lengths - order + 1, 0) for order in ORDERS]
        for in_captions, in_references in zip(of_captions, of_references.grams, strict=True):
            caption_entry, reference_entry = shared(in_captions, in_references, images)
            most = np.zeros_like(in_captions.times)
            np.maximum.at(most, caption_entry, in_references.times[reference_entry])
            correct = np.minimum(most, in_captions.times)
            columns.append(np.bincount(in_captions.text, correct, len(captions)))
        return np.stack(columns, axis=-1).astype(np.float64)

    def score(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 10) sums of counts -> (..., 4): section 2.3 of the paper."""
        caption_length, reference_length = totals[..., :1], totals[..., 1:2]
        guessed, correct = totals[..., 2:6], totals[..., 6:]
        precision = np.cumprod((correct + _TINY) / (guessed + _SMALL), axis=-1) ** (1 / np.array(ORDERS))
        ratio = (caption_length + _TINY) / (reference_length + _SMALL)
        return precision * np.exp(np.minimum(1 - 1 / ratio, 0))
