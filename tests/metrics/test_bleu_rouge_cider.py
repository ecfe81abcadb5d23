"""BLEU, ROUGE-L and CIDEr against the scorers of pycocoevalcap."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu import Bleu as CocoBleu
from pycocoevalcap.cider.cider import Cider as CocoCider
from pycocoevalcap.rouge.rouge import Rouge as CocoRouge

from prefixcap.metrics.bleu import Bleu
from prefixcap.metrics.cider import Cider
from prefixcap.metrics.metric import Metric
from prefixcap.metrics.ngrams import ReferenceTexts
from prefixcap.metrics.ptb import tokenize
from prefixcap.metrics.rouge import RougeL
from tests.metrics.coco_tools import needs_shared_data, shared_json

SCORERS = [Bleu(), RougeL(), Cider()]
Texts = tuple[list[str], list[list[str]]]


def of_the_tools(scorer: Metric, captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[NDArray]:
    """(scores,) of the corpus and (images, scores)."""
    gts = {image: list(texts) for image, texts in enumerate(references)}
    res = {image: [caption] for image, caption in enumerate(captions)}
    if scorer.name == "BLEU":
        corpus, per_image = CocoBleu(4).compute_score(gts, res, verbose=0)
    elif scorer.name == "ROUGE-L":
        corpus, per_image = CocoRouge().compute_score(gts, res)
    else:
        corpus, per_image = CocoCider().compute_score(gts, res)
    return [np.array(corpus).reshape(-1), np.array(per_image).T.reshape(len(captions), -1)]


def assert_same(scorer: Metric, captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    corpus, per_image = of_the_tools(scorer, captions, references)
    statistics = scorer.statistics(captions, references)
    assert scorer.score(statistics.sum(axis=0)) == pytest.approx(corpus, rel=0, abs=1e-12)
    assert scorer.score(statistics) == pytest.approx(per_image, rel=0, abs=1e-12)


@needs_shared_data
@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: scorer.name)
def test_captions_of_a_real_captioner(scorer: Metric) -> None:
    entries = random.Random(0).sample(shared_json("results/magic_coco_test.json"), 400)
    captions = [tokenize(entry["prediction"]) for entry in entries]
    references = [[tokenize(text) for text in entry["captions"]] for entry in entries]
    assert_same(scorer, captions, references)
    assert_same(scorer, captions, ReferenceTexts(references))  # their n-grams are counted once


def short_texts() -> st.SearchStrategy[Texts]:
    """Captions and references of one to six images, from few words, so that they repeat and share n-grams."""
    text = st.lists(st.sampled_from(["a", "b", "c", "dog's", "\u00e9"]), max_size=8).map(" ".join)
    images = st.lists(st.tuples(text, st.lists(text, min_size=1, max_size=4)), min_size=1, max_size=6)
    return images.map(lambda images: ([caption for caption, _ in images], [texts for _, texts in images]))


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: scorer.name)
@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(texts=short_texts())
def test_short_captions(scorer: Metric, texts: Texts) -> None:
    """Also empty ones, words that repeat, and single words."""
    captions, references = texts
    if scorer.name == "CIDEr" and not any(text for of_image in references for text in of_image):
        # pycocoevalcap fails where there are no document frequencies; nothing is alike then.
        assert (scorer.score(scorer.statistics(captions, references)) == 0).all()
    else:
        assert_same(scorer, captions, references)


@pytest.mark.parametrize(
    ("captions", "references"),
    [
        (["a b", "a"], [["a b c d"], ["a b c", ""]]),  # BLEU: references of other lengths, two equally near
        (["x x x y", "y"], [["a b"], ["a a"]]),  # n-grams that no reference has
        (["", ""], [["a"], ["b c"]]),
        (["a\u00a0b"], [["a b", "c"]]),  # ROUGE-L splits at spaces alone
        (["a b c d e f g h i j k l m n o p q r s t u v w x y z " * 8], [["z y x w " * 40, "a"]]),
    ],
)
def test_chosen_captions(captions: list[str], references: list[list[str]]) -> None:
    for scorer in SCORERS:
        assert_same(scorer, captions, references)


def test_scores_take_any_leading_axes() -> None:
    captions, references = ["a b c d", "b"], [["a b c e", "a"], ["b", "c"]]
    for scorer in SCORERS:
        statistics = scorer.statistics(captions, references)
        stacked = scorer.score(np.stack([statistics, statistics[::-1]]))
        assert stacked.shape == (2, 2, len(scorer.scores))
        assert (stacked[1, 0] == scorer.score(statistics[1])).all()
