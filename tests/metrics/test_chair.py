"""CHAIR: against a plain count, with a planted object, and of people."""

import random
import re
from collections.abc import Collection

import numpy as np
import pytest

from prefixcap.errors import InputError
from prefixcap.metrics import MetricInputs, score_captions, score_humans, score_parts
from prefixcap.metrics.chair import Chair, hallucinated, objects_in_order
from prefixcap.metrics.coco_objects import CATEGORIES, WORDS

CAPTIONS = {
    1: "A dog and a second dog near two cats.",
    2: "a man rides a horse",
    3: "an empty street",
    4: "A sofa, a television and a puppy",
}
REFERENCES = {
    1: ["Two dogs play.", "puppies"],
    2: ["a boy on a pony", "a person riding"],
    3: ["a street", "a road with a bus"],
    4: ["a couch", "a room with a tv and a couch"],
}


def counts(captions: dict[int, str], objects: list[set[str]] | None = None) -> list[list[int]]:
    statistics = Chair().statistics(list(captions.values()), list(REFERENCES.values()), objects)
    return [list(map(int, row)) for row in statistics]


def test_every_mention_counts_as_in_the_published_code() -> None:
    assert counts(CAPTIONS) == [[1, 3, 1, 1], [0, 2, 0, 1], [0, 0, 0, 1], [1, 3, 1, 1]]
    scores = score_captions(CAPTIONS, REFERENCES, ["CHAIR"])
    assert scores.corpus == pytest.approx({"CHAIRi": 2 / 8, "CHAIRs": 2 / 4})
    assert scores.per_image["CHAIRi"] == pytest.approx({1: 1 / 3, 2: 0, 3: 0, 4: 1 / 3})
    assert scores.per_image["CHAIRs"] == {1: 1, 2: 0, 3: 0, 4: 1}
    assert any("without those of COCO's instances" in note for note in scores.notes)


def test_objects_of_instances_are_there_too() -> None:
    objects: list[set[str]] = [{"cat"}, set(), set(), {"dog", "vase"}]
    assert [row[0] for row in counts(CAPTIONS, objects)] == [0, 0, 0, 0]
    scores = score_captions(CAPTIONS, REFERENCES, ["CHAIR"], MetricInputs(objects=objects))
    assert scores.corpus == {"CHAIRi": 0, "CHAIRs": 0} and not scores.notes
    partly = score_captions(CAPTIONS, REFERENCES, ["CHAIR"], MetricInputs(objects=[{"cat"}, None, None, None]))
    assert partly.corpus["CHAIRs"] == 1 / 4 and "3 of 4 images have no instances" in partly.notes[0]


@pytest.mark.parametrize("image", CAPTIONS)
@pytest.mark.parametrize("planted", ["a pizza", "hot dogs", "two toothbrushes"])
def test_a_planted_wrong_object_raises_the_count_by_exactly_one(image: int, planted: str) -> None:
    before = np.array(counts(CAPTIONS)).sum(axis=0)
    after = np.array(counts(CAPTIONS | {image: f"{CAPTIONS[image]} and {planted}"})).sum(axis=0)
    was_right = counts(CAPTIONS)[image - 1][2] == 0
    assert (after - before).tolist() == [1, 1, int(was_right), 0]


def test_people_are_scored_against_the_others_and_the_instances() -> None:
    humans = score_humans(REFERENCES, ["CHAIR"])
    assert humans is not None
    # The first captions mention dog | person, horse | nothing | couch: "pony" is wrong. The second mention
    # dog | person | bus | tv, couch: "bus" and "tv" are wrong.
    assert humans.corpus == pytest.approx({"CHAIRi": (1 / 4 + 2 / 5) / 2, "CHAIRs": (1 / 4 + 2 / 4) / 2})
    assert humans.per_image["CHAIRs"] == {1: 0, 2: 0.5, 3: 0.5, 4: 0.5}
    known = MetricInputs(objects=[set(), {"horse"}, {"bus"}, set()])
    with_instances = score_humans(REFERENCES, ["CHAIR"], known)
    assert with_instances is not None and with_instances.per_image["CHAIRs"] == {1: 0, 2: 0, 3: 0, 4: 0.5}
    alone = {5: ["a zebra"]} | REFERENCES  # an image with one caption is none that people are scored on
    shifted = MetricInputs(objects=[None, *(known.objects or ())])
    again = score_humans(alone, ["CHAIR"], shifted)
    assert again is not None and again.per_image["CHAIRs"] == {1: 0, 2: 0, 3: 0, 4: 0.5}
    uneven = score_humans(
        REFERENCES | {4: ["a couch", "a couch", "a vase"]},
        ["CHAIR"],
        MetricInputs(objects=[set(), {"horse"}, {"bus"}, {"vase"}]),
    )
    assert uneven is not None and uneven.corpus["CHAIRs"] == 0  # the third caption is of the last image alone


def test_a_part_of_the_images_has_its_own_objects() -> None:
    inputs = MetricInputs(objects=[set(), set(), set(), {"dog"}])
    parts = score_parts(CAPTIONS, REFERENCES, {"late": [3, 4], "early": [1, 2]}, ["CHAIR"], inputs)
    assert parts["late"].corpus["CHAIRs"] == 0 and parts["early"].corpus["CHAIRs"] == 0.5
    assert parts["overall"].corpus["CHAIRs"] == 0.25


def plain_count(caption: str, references: list[str], objects: set[str]) -> tuple[int, int]:
    """Wrong and all mentions of captions made of single words of the list: each word looked up by itself."""
    category = {word: name for name, words in WORDS.items() for word in words if " " not in word}

    def named(text: str) -> list[str]:
        words = re.sub("[^a-z ]", "", text.lower()).split()
        return [category[word] for word in words if word in category]

    true = set(objects)
    for text in references:
        true = true | set(named(text))
    wrong = 0
    for name in named(caption):
        if name not in true:
            wrong += 1
    return wrong, len(named(caption))


def test_the_counts_are_those_of_a_plain_loop() -> None:
    draw = random.Random(0)
    words = [word for words in WORDS.values() for word in words if " " not in word and word not in ("seat", "toilet")]

    def text() -> str:
        drawn = [*draw.sample(words, draw.randrange(4)), "street"]  # "and" between them, so that none are compounds
        return " and ".join(drawn).capitalize() + "."

    captions, references = [text() for _ in range(400)], [[text(), text()] for _ in range(400)]
    objects = [set(draw.sample(CATEGORIES, draw.randrange(30))) for _ in range(400)]
    expected = [plain_count(*row) for row in zip(captions, references, objects, strict=True)]
    statistics = Chair().statistics(captions, references, objects)
    assert statistics[:, :2].tolist() == [list(map(float, row)) for row in expected]
    assert 0 < statistics[:, 0].sum() < statistics[:, 1].sum()
    assert statistics[:, 2].tolist() == [float(wrong > 0) for wrong, _ in expected]
    wrong, mentioned = np.array(expected).sum(axis=0)
    score = Chair().score(statistics.sum(axis=0)).tolist()
    assert score == pytest.approx([wrong / mentioned, np.mean([row[0] > 0 for row in expected])])


def test_hallucinated_words_are_named() -> None:
    assert [mention.words for mention in hallucinated("Puppies by a fridge", ["a cat"], {"dog"})] == ["fridge"]


def test_objects_by_image_ids_in_any_form() -> None:
    objects: dict[int | str, Collection[str]] = {391895: {"person"}, "7": ["dog"], "photos/a.jpg": {"cat"}}
    images: list[int | str] = [7, "COCO_val2014_000000391895.jpg", "a.jpg", 8]
    assert objects_in_order(objects, images) == [["dog"], {"person"}, {"cat"}, None]


@pytest.mark.parametrize(
    "objects, message",
    [
        ({1: {"dgo"}}, "image 1 has an object 'dgo', which is none of COCO's 80 categories"),
        ({1: "dog"}, "the objects of image 1 are 'dog': give a set of names"),
        ({1: None}, "the objects of image 1 are None: give a set"),
        ({11: {"dog"}}, "objects are given of other images .11 for one. than captions .1 for one."),
        ({}, "objects are given of other images"),
    ],
)
def test_objects_that_cannot_be_read(objects: dict[int, set[str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        objects_in_order(objects, list(CAPTIONS))


def test_objects_of_fewer_images() -> None:
    inputs = MetricInputs(objects=[{"dog"}])
    with pytest.raises(InputError, match="objects of 1 images, 4 images: give those of each image"):
        score_captions(CAPTIONS, REFERENCES, ["CHAIR"], inputs)
    with pytest.raises(InputError, match="objects of 1 images, 4 images: give those of each image"):
        score_humans(REFERENCES, ["CHAIR"], inputs)
