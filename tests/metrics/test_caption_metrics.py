import copy
import doctest
import pickle
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu import Bleu as CocoBleu
from pycocoevalcap.cider.cider import Cider as CocoCider
from pycocoevalcap.rouge.rouge import Rouge as CocoRouge

import prefixcap.metrics.caption_metrics as module
from prefixcap.errors import InputError
from prefixcap.metrics.caption_metrics import BLEU, METEOR, ROUGEL, SPICE, CaptionMetric, CIDEr
from prefixcap.metrics.metric import Metric, MetricUnavailable
from prefixcap.metrics.ptb import tokenize
from tests.metrics.coco_tools import needs_shared_data, shared_json

CAPTIONS = ["A dog runs on sand.", "", "Two cats!"]
REFERENCES = [["A dog runs at the beach.", "The dog"], ["A man rides a horse"], ["Two cats sleep", "", "cats (two)"]]


class WordsInCommon(Metric):
    """The share of a caption's words that the first reference has. Keeps what it was given last."""

    name = "words"
    scores = ("words in common", "captions")

    def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        self.given = captions, references
        words = [set(caption.split()) for caption in captions]
        common = [len(of & set(texts[0].split())) for of, texts in zip(words, references, strict=True)]
        return np.array([common, [len(of) for of in words], np.ones(len(words))], np.float64).T

    def score(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack((totals[..., 0] / totals[..., 1], totals[..., 2]), axis=-1)


def scores(metric: CaptionMetric) -> dict[str, float]:
    return {name: score.item() for name, score in metric.compute().items()}


@needs_shared_data
def test_scores_are_those_of_the_coco_tools_on_all_captions() -> None:
    """Without METEOR, whose Java program takes long to start: `test_meteor` compares its scorer."""
    entries = random.Random(0).sample(shared_json("results/magic_coco_test.json"), 120)
    captions, references = [entry["prediction"] for entry in entries], [entry["captions"] for entry in entries]
    tables: Any = (
        {i: [tokenize(text) for text in texts] for i, texts in enumerate(references)},
        {i: [tokenize(text)] for i, text in enumerate(captions)},
    )
    expected = {f"BLEU-{n}": of for n, of in enumerate(CocoBleu(4).compute_score(*tables, verbose=0)[0], 1)}
    for name, scorer in (("ROUGE-L", CocoRouge()), ("CIDEr", CocoCider())):
        expected[name] = scorer.compute_score(*tables)[0]
    found: dict[str, float] = {}
    for metric in (BLEU(), ROUGEL(), CIDEr()):
        for start in range(0, 120, 50):
            metric.update(captions[start : start + 50], references[start : start + 50])
        found |= scores(metric)
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_scorer_is_given_the_tokenized_texts_in_order() -> None:
    scorer = WordsInCommon()
    metric = CaptionMetric(scorer)
    odd = [
        "caf\u00e9 \U0001f600 \u4e2d\u6587",
        "half a pair \ud83d",
        "zero \x00 byte",
        "two\nlines \u2028 three",
        "\xff\xfe",
    ]
    metric.update(CAPTIONS, REFERENCES)
    metric.update(odd, [odd[: i + 1] for i in range(len(odd))])
    metric.update([], [])
    assert scores(metric)["captions"] == 8
    captions, references = scorer.given
    assert captions == [tokenize(caption) for caption in CAPTIONS + odd]
    assert references[:3] == [[tokenize(text) for text in texts] for texts in REFERENCES]
    assert references[3:] == [[tokenize(text) for text in odd[: i + 1]] for i in range(len(odd))]
    assert references[2] == ["two cats sleep", "", "cats -lrb- two -rrb-"]


def test_metrics_accumulate_are_copied_and_reset() -> None:
    metric = CaptionMetric(WordsInCommon()).set_dtype(torch.float16)  # which is no business of texts
    first = metric(CAPTIONS[:2], REFERENCES[:2])  # forward: the score of the batch
    assert first["words in common"].item() == pytest.approx(3 / 5) and first["captions"].item() == 2
    metric.update(CAPTIONS[2:], REFERENCES[2:])
    for copied in (metric, metric.clone(), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert scores(copied) == pytest.approx({"words in common": 5 / 7, "captions": 3})
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(InputError, match="call update"):
        metric.compute()
    metric.update(CAPTIONS[2:], REFERENCES[2:])
    assert scores(metric)["captions"] == 1


@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        (CAPTIONS, REFERENCES[:2], "3 captions, but references of 2 images"),
        (CAPTIONS, [["a"], [], []], "references in rows 1, 2: give each image a list"),
        (CAPTIONS, [["a"], "A man rides a horse", ["b"]], "references in row 1: give each image a list"),
        ("A dog", REFERENCES, "captions: one string where a list of strings belongs"),
        (["a", 3, "b"], REFERENCES, "captions: row 1: not a string"),
        (CAPTIONS, [["a"], ["b"], ["c", None]], "references of row 2: row 1: not a string"),
        (CAPTIONS, "abc", "but references of 3 images"),
    ],
)
def test_mistakes_are_told_with_their_rows(captions: Any, references: Any, message: str) -> None:
    metric = CaptionMetric(WordsInCommon())
    with pytest.raises(InputError, match=message):
        metric.update(captions, references)
    metric.update(CAPTIONS, REFERENCES)
    assert scores(metric)["captions"] == 3


def test_each_metric_has_its_scorer() -> None:
    names = [metric().scorer.name for metric in (BLEU, METEOR, ROUGEL, CIDEr, SPICE)]
    assert names == ["BLEU", "METEOR", "ROUGE-L", "CIDEr", "SPICE"]


@pytest.mark.parametrize(("make", "needs"), [(METEOR, "Java"), (SPICE, "prefixcap setup-spice")])
def test_a_metric_that_cannot_be_computed_says_so(
    make: Callable[[], CaptionMetric], needs: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path))
    metric = make()
    metric.update(CAPTIONS, REFERENCES)
    with pytest.raises(MetricUnavailable, match=needs):
        metric.compute()


def test_examples() -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted > 0 and failed == 0
