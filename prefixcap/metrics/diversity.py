"""Diversity of captions: whether a captioner says many different things or repeats a few.

Vocabulary and novelty are those of table 1 of Tewel et al., "ZeroCap: Zero-Shot Image-to-Text Generation for
Visual-Semantic Arithmetic", CVPR 2022; distinct n-grams are those of Li et al., "A Diversity-Promoting Objective
Function for Neural Conversation Models", NAACL 2016.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefixcap.metrics.ptb import tokenize
from prefixcap.metrics.texts import TextMetric, check_texts


def diversity(captions: Sequence[str]) -> dict[str, float]:
    """How varied tokenized captions are.

    Args:
        captions: at least one; lower-case words joined by spaces, as `prefixcap.metrics.ptb.tokenize` gives them.

    Returns:
        - "Vocabulary": number of different words in all captions;
        - "Distinct-1", "Distinct-2": different words and pairs of neighbouring words, each over the number of all of
          them, 0 to 1 (0 if there are none). They fall as captions are added: compare equal numbers of captions;
        - "Length": words in a caption, on average.

    Examples:
        >>> diversity(["a dog runs", "a dog"])
        {'Vocabulary': 3.0, 'Distinct-1': 0.6, 'Distinct-2': 0.6666666666666666, 'Length': 2.5}
    """
    split = [caption.split(" ") if caption else [] for caption in captions]
    words = [word for caption_words in split for word in caption_words]
    pairs = [pair for caption_words in split for pair in pairwise(caption_words)]
    return {
        "Vocabulary": float(len(set(words))),
        "Distinct-1": len(set(words)) / max(len(words), 1),
        "Distinct-2": len(set(pairs)) / max(len(pairs), 1),
        "Length": len(words) / len(captions),
    }


def novel(captions: Sequence[str], training_captions: Iterable[str]) -> NDArray[np.bool_]:
    """(captions,) which of tokenized captions are not among the tokenized captions of training.

    Examples:
        >>> novel(["a dog runs", "a dog"], ["a dog", "a cat"]).tolist()
        [True, False]
    """
    return ~np.isin(_digests(captions), np.unique(_digests(training_captions)))


class Diversity(TextMetric):
    """`diversity` of captions and, against the captions of training, their novelty.

    Captions are tokenized as for the other metrics, so that neither case nor punctuation makes a word or a caption
    another one. The state is the captions, some 50 bytes each; of a training caption 8 bytes are kept.

    Args:
        training_captions: what the captioner was trained on; without them there is no novelty.
        options: those of `torchmetrics.Metric`.

    Examples:
        >>> metric = Diversity(training_captions=["A dog runs."])
        >>> metric.update(["a dog runs", "A dog sleeps."])
        >>> {name: round(float(value), 2) for name, value in metric.compute().items()}
        {'Vocabulary': 4.0, 'Distinct-1': 0.67, 'Distinct-2': 0.75, 'Length': 3.0, 'Novel': 0.5}
    """

    def __init__(self, training_captions: Iterable[str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._training = None if training_captions is None else np.unique(_digests(map(tokenize, training_captions)))

    def update(self, captions: Sequence[str]) -> None:
        """Add captions. Raises InputError if one is not a string."""
        check_texts(captions)
        self._add([tokenize(caption)] for caption in captions)

    def compute(self) -> dict[str, Tensor]:
        """What `diversity` gives and, if training captions are known, "Novel": the share of captions, 0 to 1, that
        are not among them ("%Novel" in ZeroCap, times 100). Of all captions of all ranks.

        Raises:
            InputError: there are no captions.
        """
        captions = [caption for [caption] in self._images()]
        figures = diversity(captions)
        if self._training is not None:
            figures["Novel"] = 1 - float(np.isin(_digests(captions), self._training).mean())
        return {name: torch.tensor(value, device=self.device) for name, value in figures.items()}


def _digests(captions: Iterable[str]) -> NDArray[np.uint64]:
    """64 bits of each caption: a new caption is mistaken for one of n known ones with probability n / 2^64."""
    digests = (blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=8).digest() for caption in captions)
    return np.fromiter((int.from_bytes(digest, "big") for digest in digests), np.uint64)
