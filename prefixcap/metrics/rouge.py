"""ROUGE-L (Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3).

As the COCO caption tools compute it: precision and recall are each the best over the references, and recall weighs
more (β = 1.2).

n is the number of images.
"""

from collections.abc import Sequence

from prefixcap.metrics.metric import Metric, Statistics, mean_of

_BETA = 1.2


class RougeL(Metric):
    """ROUGE-L, 0 to 1: the longest sequence of words, not necessarily adjacent, that caption and reference share.

    Examples:
        >>> statistics = RougeL().statistics(["a dog runs"], [["the dog is running", "a dog on a beach"]])
        >>> statistics.round(4).tolist()  # the score of the image, and 1
        [[0.4784, 1.0]]
    """

    name = "ROUGE-L"
    scores = ("ROUGE-L",)

    def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
        """(n, 2); see `prefixcap.metrics.Metric`."""
        return mean_of([_rouge_l(caption, texts) for caption, texts in zip(captions, references, strict=True)])


def _rouge_l(caption: str, references: Sequence[str]) -> float:
    """Equations 2 to 4 of the paper. As in the tools, a caption without words counts as one empty word."""
    words = caption.split(" ")
    positions: dict[str, int] = {}  # for each word a number, whose bits are the positions of the word
    for position, word in enumerate(words):
        positions[word] = positions.get(word, 0) | 1 << position
    precision = recall = 0.0
    for reference in references:
        reference_words = reference.split(" ")
        common = _common(reference_words, positions, len(words))
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(reference_words))
    if precision == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(words: Sequence[str], positions: dict[str, int], length: int) -> int:
    """Length of the longest common subsequence of `words` and a text of `length` words, all its columns at once.

    Hyyrö, "Bit-Parallel LCS-length Computation Revisited", 2004: a bit of `row` is 0 where the row of the table of
    lengths rises by 1.
    """
    row = full = (1 << length) - 1
    for word in words:
        matches = row & positions.get(word, 0)
        row = (row + matches | row - matches) & full
    return length - row.bit_count()
