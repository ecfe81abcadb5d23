"""Diversity of the set of captions that a captioner gives to one image: whether it says different things about it.

Div-1, Div-2 and mBLEU-4 are those of Shetty et al., "Speaking the Same Language: Matching Machine to Human Captions by
Adversarial Training", ICCV 2017; self-CIDEr is that of Wang and Chan, "Describing like Humans: On Diversity in Image
Captioning", CVPR 2019. All depend on how many captions an image has: compare sets of the same size.

Shapes: n images; m captions of an image, M of the image that has most; T captions of all images together.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefixcap.metrics.bleu import Bleu
from prefixcap.metrics.cider import norms, rarity
from prefixcap.metrics.metric import Metric, MetricInputs, Statistics, over_folds
from prefixcap.metrics.ngrams import ORDERS, ReferenceGrams, count_captions, grams_of
from prefixcap.metrics.tokenizers import TOKENIZERS

Candidates = Sequence[Sequence[str]]


class SetDiversity(Metric):
    """Div-1, Div-2 and self-CIDEr, 0 to 1, the means over images; more is more diverse.

    Div-1 is the number of different words in the captions of an image, over all their words; Div-2 is the number of
    different pairs of neighbouring words, over all words, too. For self-CIDEr see `self_cider`.

    Examples:
        >>> references = [["a dog runs", "the dog is running"], ["a cat asleep"]]
        >>> candidates = [["a dog", "a dog"], ["a cat asleep", "the kitten sleeps"]]
        >>> SetDiversity().statistics(["a dog", "a cat asleep"], references, candidates, {}).round(2).tolist()
        [[0.5, 0.25, 0.0, 1.0], [1.0, 0.67, 1.0, 1.0]]
    """

    name = "set-diversity"
    scores = ("Div-1", "Div-2", "self-CIDEr")
    needs = ("candidates", "shared", "tokenizer")
    brings = ("mBLEU-4",)
    uses_all_images = True

    def statistics(
        self,
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
        candidates: Candidates,
        shared: dict[str, Any],
        tokenizer: str = "ptb",
    ) -> Statistics:
        """(n, 4) = (Div-1, Div-2, self-CIDEr, 1); of the captions, only the candidates are read."""
        sets = _tokenized(candidates, shared, tokenizer)
        columns = [[_distinct(texts, order) for texts in sets] for order in (1, 2)]
        return np.stack((*columns, self_cider(sets, grams_of(references)), np.ones(len(sets))), axis=-1)

    def score(self, totals: Statistics) -> Statistics:
        """(..., 4) sums -> (..., 3) means over images."""
        scores: Statistics = totals[..., :3] / totals[..., 3:]
        return scores

    def notes(self, inputs: MetricInputs) -> Iterator[str]:
        """How large the sets are."""
        sizes = [len(texts) for texts in inputs.candidates or ()]
        each = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        yield (
            f"Div-1, Div-2, self-CIDEr, mBLEU-4: of {each} captions an image; they only compare with sets of that size"
        )


class MutualBleu(Metric):
    """mBLEU-4, 0 to 1: BLEU-4 of each caption of an image against the others of the image; less is more diverse.

    BLEU of all first captions, that of all second ones and so on, and the mean of these, weighted by how many images
    have so many captions.

    Examples:
        >>> same = ["a dog runs on sand", "a dog runs on sand"]
        >>> statistics = MutualBleu().statistics([""], [[]], [same], {})
        >>> MutualBleu().score(statistics.sum(axis=0)).round(3).tolist()
        [1.0]
    """

    name = "mBLEU-4"
    scores = ("mBLEU-4",)
    needs = ("candidates", "shared", "tokenizer")
    tokenized = False
    higher_is_better = False

    def statistics(
        self,
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
        candidates: Candidates,
        shared: dict[str, Any],
        tokenizer: str = "ptb",
    ) -> Statistics:
        """(n, 11 M): for each place in the set, the 10 statistics of `Bleu`, and 1 if the image has a caption there."""
        sets = _tokenized(candidates, shared, tokenizer)
        statistics = np.zeros((len(sets), max(map(len, sets)), 11))
        for place in range(statistics.shape[1]):
            rows = [row for row, texts in enumerate(sets) if len(texts) > place]
            others = [[*sets[row][:place], *sets[row][place + 1 :]] for row in rows]
            statistics[rows, place, :10] = Bleu().statistics([sets[row][place] for row in rows], others)
            statistics[rows, place, 10] = 1
        return statistics.reshape(len(sets), -1)

    def score(self, totals: Statistics) -> Statistics:
        """(..., 11 M) sums -> (..., 1)."""
        by_place = totals.reshape(*totals.shape[:-1], -1, 11)  # (..., M, 11)
        scores: Statistics = over_folds(Bleu().score)(by_place)[..., 3:]
        return scores


def sets_of_people(references: Candidates, candidates: Candidates | None) -> list[list[str]] | None:
    """As many of each image's references as it has candidates, the first ones; None if it has fewer, or no candidates.

    Examples:
        >>> sets_of_people([["a dog", "the dog", "one dog"]], [["a wet dog", "a dog"]])
        [['a dog', 'the dog']]
    """
    if candidates is None or any(len(texts) < len(own) for texts, own in zip(references, candidates, strict=True)):
        return None
    return [list(texts[: len(own)]) for texts, own in zip(references, candidates, strict=True)]


def self_cider(sets: Sequence[Sequence[str]], references: ReferenceGrams) -> NDArray[np.float64]:
    """Self-CIDEr of the captions of each image: 0 if all are the same, 1 if no two have an n-gram in common.

    The kernel K of an image has in row i and column j the CIDEr of caption i with caption j, without the factor 10: the
    cosine of n-gram counts that are weighted as in `prefixcap.metrics.cider`, the mean over n-grams of one to four
    words. With s the roots of the eigenvalues of K, self-CIDEr is -log(max(s) / sum(s)) / log(m).

    Args:
        sets: tokenized captions of n images, two or more of each.
        references: of the same images; they say how rare an n-gram is.

    Returns:
        (n,) scores; 0 where no caption has an n-gram of any weight.

    Examples:
        >>> references = grams_of([["a dog"], ["a cat"]])
        >>> self_cider([["the dog", "the dog", "a bird"], ["one cat", "a kitten"]], references).round(3).tolist()
        [0.487, 1.0]
    """
    ends = np.cumsum([0, *map(len, sets)])  # (n + 1,) the first caption of each image
    kernels = [np.zeros((len(texts), len(texts))) for texts in sets]
    _, grams = count_captions(list(chain.from_iterable(sets)), references)
    for entries, documents in zip(grams, references.documents, strict=True):
        weights = entries.times * rarity(entries.number, documents, len(sets))  # (entries,)
        lengths = norms(entries.text, weights, ends[-1])[entries.text]
        weights = np.divide(weights, lengths, out=np.zeros(len(weights)), where=lengths != 0)
        starts = np.searchsorted(entries.text, ends)  # (n + 1,) the first entry of each image
        for kernel, first, (start, end) in zip(kernels, ends, pairwise(starts), strict=False):
            numbers, column = np.unique(entries.number[start:end], return_inverse=True)
            vectors = np.zeros((len(kernel), len(numbers)))  # (m, different n-grams of the image), of length 1
            vectors[entries.text[start:end] - first, column] = weights[start:end]
            kernel += vectors @ vectors.T / len(ORDERS)
    return np.array([_spread(kernel) for kernel in kernels])


def _spread(kernel: NDArray[np.float64]) -> float:
    """0 if an (m, m) kernel has rank 1, up to 1 if all its eigenvalues are the same."""
    roots = np.sqrt(np.clip(np.linalg.eigvalsh(kernel), 0, None))
    return float(np.log(roots.sum() / roots.max()) / np.log(len(kernel))) if roots.any() else 0.0


def _distinct(texts: Sequence[str], order: int) -> float:
    """The number of different n-grams in tokenized texts, over their words; 0 where there are none."""
    split = [text.split() for text in texts]
    grams = {gram for words in split for gram in zip(*(islice(words, n, None) for n in range(order)), strict=False)}
    return len(grams) / max(sum(map(len, split)), 1)


def _tokenized(candidates: Candidates, shared: dict[str, Any], tokenizer: str) -> list[list[str]]:
    """The captions of each image, tokenized as one text in this order, once for both metrics."""
    if "candidates" not in shared:
        texts = iter(TOKENIZERS[tokenizer](chain.from_iterable(candidates)))
        shared["candidates"] = [list(islice(texts, len(own))) for own in candidates]
    sets: list[list[str]] = shared["candidates"]
    return sets
