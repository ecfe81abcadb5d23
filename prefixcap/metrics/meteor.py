"""METEOR (Denkowski and Lavie, 2014: "Meteor Universal"), version 1.5 with the English defaults.

The Java program of the COCO caption tools aligns a caption with each of its references and prints counts for
the best of them. From their sums follow the scores, as the program itself would compute them.
"""

import os
from collections.abc import Sequence

import numpy as np

from prefixcap.metrics.java import ASSETS, failure, run_java, tools_folder
from prefixcap.metrics.metric import Metric, Statistics
from prefixcap.metrics.paraphrases import forms, paraphrases_of
from prefixcap.utils.hardware import memory_bytes

_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MODULES = np.array([1.0, 0.6, 0.8, 0.6])  # weights of exact, stem, synonym and paraphrase matches
_COUNTS = 23
_CHUNKS = 20
_MOST_HEAP = 2 << 30  # what the COCO tools ask for


class Meteor(Metric):
    """METEOR 1.5, 0 to 1. The statistics of an image are the counts of the alignment with its best reference.

    They are (columns): 0, 1: words of caption and reference; 2, 3: function words of both; then for exact, stem,
    synonym and paraphrase matches: content words of caption and reference, function words of both; 20: chunks;
    21, 22: matched words of both.

    Examples:
        >>> statistics = Meteor().statistics(["a dog runs"], [["the dog runs", "a cat"]])  # doctest: +SKIP
        >>> statistics.shape  # doctest: +SKIP
        (1, 23)
    """

    name = "METEOR"
    scores = ("METEOR",)
    runs_java = True
    english_only = True

    def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
        """(n, 23) counts; see `prefixcap.metrics.Metric`."""
        lines = [_line(caption, texts) for caption, texts in zip(captions, references, strict=True)]
        # Our folder comes first: its SynonymMatcher is used in place of that of the jar.
        classes = os.pathsep.join(map(str, (ASSETS, tools_folder("meteor") / "meteor-1.5.jar")))
        heap = min(_MOST_HEAP, memory_bytes() // 2)
        memory = [f"-Xmx{heap}", f"-Xmn{heap // 4}"]  # much for what is new: most of it is the dictionaries, and stays
        # Java's faster compiler only: for so short a run the other takes longer than it saves.
        java = ["-XX:+UseParallelGC", "-XX:TieredStopAtLevel=1", *memory, "-cp", classes, "MeteorStatistics"]
        with paraphrases_of(references) as table:
            arguments = [*java, str(table), str(table.with_suffix(".gz"))]
            printed = run_java(self.name, arguments, f"{forms(captions)}\n{''.join(lines)}").splitlines()
        try:
            counts = np.array([line.split() for line in printed], np.float64).reshape(len(lines), _COUNTS)
        except ValueError as error:  # no numbers, or more or fewer than asked for
            raise failure(self.name, "".join(printed[-1:])) from error
        # Where caption and reference are the same there is no penalty: their one chunk does not count.
        matches = counts[:, 4:_CHUNKS].reshape(-1, 4, 2, 2).sum((1, 2))
        counts[(matches == counts[:, :2]).all(1) & (counts[:, _CHUNKS] == 1), _CHUNKS] = 0
        return counts

    def score(self, totals: Statistics) -> Statistics:
        """(..., 23) sums of counts -> (..., 1): equations 1 to 4 of section 2 of the paper."""
        delta = np.array([_DELTA, 1 - _DELTA])  # weights of content and function words
        lengths, function_words = totals[..., 0:2], totals[..., 2:4]
        weighted_lengths = delta[0] * (lengths - function_words) + delta[1] * function_words
        stages = totals[..., 4:_CHUNKS].reshape(*totals.shape[:-1], 4, 2, 2)  # module, word kind, caption or reference
        weighted_matches = np.einsum("...mkt,m,k->...t", stages, _MODULES, delta)
        with np.errstate(divide="ignore", invalid="ignore"):  # no matches
            precision, recall = np.moveaxis(weighted_matches / weighted_lengths, -1, 0)
            mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
            fragmentation = totals[..., _CHUNKS] / (totals[..., _CHUNKS + 1 :].sum(-1) / 2)
            score = mean * (1 - _GAMMA * fragmentation**_BETA)
        return np.where(np.isnan(score), 0.0, score)[..., None]


def _line(caption: str, references: Sequence[str]) -> str:
    """An image for the program. Tokens may hold its separator inside a tag: <!a|||b>."""
    return " ||| ".join(text.replace("|||", "") for text in (*references, caption)) + "\n"
