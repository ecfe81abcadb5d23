"""Vocabularies: what a file says, and what texts mention, beside a search by regular expressions."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixcap.errors import InputError
from prefixcap.metrics.coco_objects import CATEGORIES
from prefixcap.vocabulary import Vocabulary, as_vocabulary, entities_in, vocabulary_of

WORDS = ("dog", "hot dog", "dog house", "cat", "house", "tv stand", "tv")


def by_pattern(text: str) -> list[str]:
    """Mentions of WORDS by one pattern, whose alternatives are tried in the order of their lengths."""
    phrases = sorted(WORDS, key=lambda word: -word.count(" "))
    pattern = rf"\b({'|'.join(phrases)})s?\b"
    return re.findall(pattern, text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(("hot", "dog", "dogs", "house", "houses", "tv", "tvs", "stand", "cat", "a", ","))))
def test_mentions_beside_a_regular_expression(words: list[str]) -> None:
    text = " ".join(words)
    vocabulary = Vocabulary(WORDS)
    assert vocabulary.mentions(text) == by_pattern(text)
    assert entities_in(text, vocabulary) == list(dict.fromkeys(by_pattern(text)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Children, WOLVES and mice", ["child", "wolf", "mouse"]),
        ("three buses and a bus", ["bus", "bus"]),
        ("T-shirts and a t shirt", ["T-shirt", "T-shirt"]),
        ("the child's boxes", ["child", "box"]),
        ("a childish fox, mousetraps", []),
        ("St. Bernards", ["St. Bernard"]),
        ("a 7 up, and go up", ["7 Up"]),
        ("7, up", []),
        ("buildings", ["buildings"]),
        ("a building", ["building"]),
        ("Zwei Hunde in Köln, 犬", ["Köln", "犬"]),
        ("", []),
    ],
)
def test_forms_of_words(text: str, expected: list[str]) -> None:
    names = ["child", "wolf", "mouse", "bus", "T-shirt", "box", "St. Bernard", "7 Up", "buildings", "building"]
    assert Vocabulary([*names, "Köln", "犬"]).mentions(text) == expected


def test_a_file_with_comments_other_words_and_lines_to_drop(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    lines = ["# things", "", "person: man,  young woman , man", "dog  # an animal", "Dog", "hot   dog", "man", " "]
    file.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    vocabulary = as_vocabulary(str(file))
    assert vocabulary.names == ("person", "dog", "hot dog") and len(vocabulary) == 3
    assert vocabulary.words["person"] == ("person", "man", "young woman")
    assert vocabulary.notes == [
        f"{file}: dropped 2 empty lines and names that were there before in lines 5 ('Dog'), 7 ('man')"
    ]
    assert vocabulary.mentions("A young woman, two men and a person") == ["person"] * 3
    again = Vocabulary(vocabulary.lines)
    assert (again.words, again.notes, again.lines) == (vocabulary.words, [], vocabulary.lines)
    assert as_vocabulary(again) is again


def test_mistakes(tmp_path: Path) -> None:
    for lines, message in (
        ([], "x.txt has 0 names: give at least 2"),
        (["# nothing", "dog", "dog"], "x.txt has 1 name: give at least 2"),
        (["dog", "!!", "cat"], "x.txt, line 2: '!!' has no letters or digits"),
        (["dog: puppy,", "cat"], "x.txt, line 1: '' has no letters"),
        (["dog: pet", "cat: pets, pet"], "x.txt, line 2: 'pet' stands for 'dog' already"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            Vocabulary(lines, "x.txt")
    with pytest.raises(InputError, match="name 2 is 3: give a text"):
        as_vocabulary(["dog", 3])  # type: ignore[list-item]
    with pytest.raises(InputError, match="given as 3: give the path of a text file"):
        as_vocabulary(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot read"):
        as_vocabulary(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\ndog")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        as_vocabulary(tmp_path / "latin.txt")


def test_a_vocabulary_of_captions_has_nouns(shared: Path) -> None:
    """The figures of the docstring."""
    captions: list[str] = []
    for split in ("val", "test"):
        images = json.loads((shared / "captions" / f"coco_karpathy_{split}.json").read_text())
        captions += [caption for image in images for caption in image["captions"]]
    vocabulary = vocabulary_of(captions)
    assert len(vocabulary) == 751
    missing = [category for category in CATEGORIES if " " not in category and not vocabulary.mentions(category)]
    assert sorted(missing) == ["bear", "broccoli", "orange", "scissors", "skis"]
    no_nouns = {"red", "large", "young", "small", "sitting", "walks", "holding", "wooden", "empty", "with", "and"}
    assert no_nouns.isdisjoint(vocabulary.names)
    with pytest.raises(InputError, match="vocabulary of the captions has 0 names"):
        vocabulary_of(["a dog", "a cat"])
