"""BLEU-1 to BLEU-4 (Papineni et al., 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation").

As the COCO caption tools compute it: the reference length of an image is that of the reference closest to the caption
in length (the shorter of two), and small constants prevent a division by 0.

Shapes: n images; r references of all images together.
"""

from collections.abc import Sequence

import numpy as np

from prefixcap.metrics.metric import Metric, Statistics
from prefixcap.metrics.ngrams import ORDERS, count_captions, grams_of, shared

_SMALL = 1e-9
_TINY = 1e-15


class Bleu(Metric):
    """BLEU with n-grams of one to four words, 0 to 1.

    The statistics of an image are (columns): 0: words of the caption; 1: words of the closest reference; 2 to 5:
    n-grams of the caption; 6 to 9: those of them that a reference has, each at most as often as one reference has it.

    Examples:
        >>> statistics = Bleu().statistics(["a dog runs"], [["the dog is running", "a dog on a beach"]])
        >>> statistics.astype(int).tolist()
        [[3, 4, 3, 2, 1, 0, 2, 1, 0, 0]]
        >>> Bleu().score(statistics.sum(axis=0)).round(3).tolist()
        [0.478, 0.414, 0.0, 0.0]
    """

    name = "BLEU"
    scores = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")

    def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
        """(n, 10) counts; see `prefixcap.metrics.Metric`."""
        counted = grams_of(references)
        images = counted.images  # (r,) the image of each reference
        lengths, caption_grams = count_captions(captions, counted)  # (n,) words; n-grams of each order
        # The first reference of each image once they are sorted by image, difference in length, and length.
        difference = np.abs(counted.lengths - lengths[images])
        nearest_first = np.lexsort((counted.lengths, difference, images))
        nearest = nearest_first[np.searchsorted(images, np.arange(len(captions)))]  # (n,)
        columns = [lengths, counted.lengths[nearest]]
        columns += [np.maximum(lengths - order + 1, 0) for order in ORDERS]
        for in_captions, in_references in zip(caption_grams, counted.grams, strict=True):
            caption_entry, reference_entry = shared(in_captions, in_references, images)
            # For each n-gram of a caption, the largest count that one reference of its image has.
            most = np.zeros_like(in_captions.times)
            np.maximum.at(most, caption_entry, in_references.times[reference_entry])
            correct = np.minimum(most, in_captions.times)
            columns.append(np.bincount(in_captions.text, correct, len(captions)))
        return np.stack(columns, axis=-1).astype(np.float64)

    def score(self, totals: Statistics) -> Statistics:
        """(..., 10) sums of counts -> (..., 4): section 2.3 of the paper."""
        caption_length, reference_length = totals[..., :1], totals[..., 1:2]
        guessed, correct = totals[..., 2:6], totals[..., 6:]
        precision = np.cumprod((correct + _TINY) / (guessed + _SMALL), axis=-1) ** (1 / np.array(ORDERS))
        ratio = (caption_length + _TINY) / (reference_length + _SMALL)
        scores: Statistics = precision * np.exp(np.minimum(1 - 1 / ratio, 0))  # times the brevity penalty
        return scores
