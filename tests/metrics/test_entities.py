"""Entity precision and recall, beside a plain count."""

import random

import pytest

from prefixcap.errors import InputError
from prefixcap.evaluation import evaluate
from prefixcap.metrics import METRICS
from prefixcap.metrics.entities import EntityMentions, entity_scores
from prefixcap.vocabulary import Vocabulary

NAMES = ("dog", "cat", "sofa", "ball", "tree", "car")


def sentence(generator: random.Random) -> str:
    return " and ".join(f"a {name}" for name in generator.sample(NAMES, generator.randint(0, 4))) or "nothing"


def test_beside_a_plain_count() -> None:
    generator = random.Random(0)
    captions = {image: sentence(generator) for image in range(200)}
    references = {image: [sentence(generator) for _ in range(3)] for image in captions}
    right = said = there = 0
    for image, caption in captions.items():
        for name in NAMES:
            in_caption, in_references = name in caption, any(name in text for text in references[image])
            right += in_caption and in_references
            said += in_caption
            there += in_references
    expected = (right / said, right / there, 2 * right / (said + there))
    assert list(entity_scores(captions, references, Vocabulary(NAMES)).values()) == pytest.approx(expected)


def test_as_a_metric_it_has_intervals_and_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "entities", EntityMentions(Vocabulary(NAMES)))
    captions = {1: "a dog and dogs", 2: "Two cats", 3: "a car"}
    references = {1: ["a dog", "a dog on a sofa"], 2: ["a dog", "a dog"], 3: ["cars", "a street"]}
    evaluation = evaluate(captions, references, ["entities"])
    assert evaluation.scores.corpus == pytest.approx(
        {"entity precision": 2 / 3, "entity recall": 2 / 4, "entity F1": 4 / 7}
    )
    assert evaluation.scores.per_image["entity recall"] == {1: 0.5, 2: 0, 3: 1}
    assert evaluation.humans is not None and evaluation.humans.corpus["entity recall"] > 0.5
    assert "entity precision" in evaluation.table()


def test_nothing_is_said_and_mistakes() -> None:
    vocabulary = Vocabulary(NAMES)
    assert set(entity_scores({1: "a street"}, {1: ["a road"]}, vocabulary).values()) == {0.0}
    with pytest.raises(InputError, match="no captions to score"):
        entity_scores({}, {}, vocabulary)
    with pytest.raises(InputError, match="image 2 has a caption and no references"):
        entity_scores({1: "a dog", 2: "a cat"}, {1: ["a dog"], 2: []}, vocabulary)
