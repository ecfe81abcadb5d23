"""Entity precision and recall, beside a plain count."""

import random
from pathlib import Path

import pytest

from prefixcap.errors import InputError
from prefixcap.evaluation import evaluate
from prefixcap.evaluation.comparison import compare
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
    scores = evaluate(captions, references, ["entities"], vocabulary=Vocabulary(NAMES)).scores
    assert list(scores.corpus.values()) == pytest.approx(expected)


def test_intervals_people_and_domains() -> None:
    captions = {1: "a dog and dogs", 2: "Two cats", 3: "a car"}
    references = {1: ["a dog", "a dog on a sofa"], 2: ["a dog", "a dog"], 3: ["cars", "a street"]}
    domains = {1: "in", 2: "out", 3: "in"}
    evaluation = evaluate(captions, references, ["entities"], domains=domains, vocabulary=Vocabulary([*NAMES, "dog"]))
    assert evaluation.scores.corpus == pytest.approx(
        {"entity precision": 2 / 3, "entity recall": 2 / 4, "entity F1": 4 / 7}
    )
    assert evaluation.scores.per_image["entity recall"] == {1: 0.5, 2: 0, 3: 1}
    assert evaluation.domains["out"].corpus["entity precision"] == 0
    assert evaluation.humans is not None and evaluation.humans.corpus["entity recall"] > 0.5
    assert "entity precision" in evaluation.table() and "names that were there before" in evaluation.table()


def test_nothing_is_said_and_no_vocabulary() -> None:
    scores = evaluate({1: "a street"}, {1: ["a road"]}, ["entities"], vocabulary=Vocabulary(NAMES)).scores
    assert set(scores.corpus.values()) == {0.0}
    with pytest.raises(InputError, match="entities needs the names to look for: give vocabulary="):
        evaluate({1: "a street"}, {1: ["a road"]}, ["entities"])


def test_scores_with_other_names_are_not_compared(tmp_path: Path) -> None:
    captions, references = {1: "a dog", 2: "a cat"}, {1: ["a dog"], 2: ["a dog"]}
    for folder, names in (("a", NAMES), ("same", NAMES[::-1]), ("b", NAMES[:2])):
        evaluation = evaluate(captions, references, ["entities"], vocabulary=Vocabulary(names))
        evaluation.write(tmp_path / folder, folder)
    assert "entity F1" in compare(tmp_path / "a", tmp_path / "same").table()
    with pytest.raises(InputError, match="different vocabularies: score entities of all with the same names"):
        compare(tmp_path / "a", tmp_path / "b")
