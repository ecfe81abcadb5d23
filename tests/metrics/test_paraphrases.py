import gzip
import random
from pathlib import Path

import pytest

from prefixcap.metrics import paraphrases
from prefixcap.metrics.java import ASSETS, run_java
from prefixcap.metrics.metric import MetricUnavailable
from prefixcap.metrics.paraphrases import forms, paraphrases_of
from prefixcap.utils.files import user_cache

Pair = tuple[str, str, str]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a table is sought; with an empty cache."""
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(paraphrases, "tools_folder", lambda metric: tmp_path / metric)
    (tmp_path / "meteor" / "data").mkdir(parents=True)
    return tmp_path / "meteor" / "data" / "paraphrase-en.gz"


def write(table: Path, pairs: list[Pair]) -> None:
    table.write_bytes(gzip.compress("".join(f"{line}\n" for pair in pairs for line in pair).encode()))


def read(captions: list[str], references: list[list[str]]) -> list[Pair]:
    """The pairs of the references, and of these those of the captions, by the class that METEOR's program calls."""
    with paraphrases_of(references) as file:
        chosen = file.with_suffix(".gz")
        run_java("METEOR", ["-cp", str(ASSETS), "Paraphrases", str(file), str(chosen)], forms(captions))
        lines = gzip.decompress(chosen.read_bytes()).decode().splitlines()
    assert not file.exists()
    return list(zip(lines[0::3], lines[1::3], lines[2::3], strict=True))


def test_pairs_are_those_with_phrases_of_captions_and_references(table: Path) -> None:
    """Against a search of each phrase in each text."""
    generator = random.Random(0)

    def phrase(most: int) -> str:
        return " ".join(generator.choices("abcdefgh", k=generator.randint(1, most)))

    pairs = [(str(n / 1000), phrase(7), phrase(3)) for n in range(1000)]
    captions = [phrase(5) for _ in range(3)]
    references = [[phrase(12), phrase(9)] for _ in range(3)]
    write(table, pairs)

    def stands(pair: Pair, texts: list[str]) -> bool:
        return any(f" {phrase} " in f" {text} " for phrase in pair[1:] for text in texts)

    in_references = [text for texts in references for text in texts]
    expected = [pair for pair in pairs if stands(pair, captions) and stands(pair, in_references)]
    assert 10 < len(expected) < 500
    assert read(captions, references) == expected


def test_words_with_signs_find_their_phrases(table: Path) -> None:
    pairs = [("1", "two story", "high"), ("2", "us", "states"), ("3", "caf\u00e9", "bar"), ("4", "it 's", "zzz")]
    write(table, [*pairs, ("5", "dog", "hound"), ("6", "story house", "villa")])
    captions = ["a two-story house", "u.s. caf\u00e9"]
    assert read(captions, [captions, captions]) == [*pairs, ("6", "story house", "villa")]


def test_the_table_is_read_once_for_the_same_texts(table: Path) -> None:
    """Of whichever images they are: people are compared with some of each other's captions at a time."""
    write(table, [("1", "dog", "hound"), ("2", "cat", "pet")])
    assert read(["dog"], [["hound", "cat"]]) == [("1", "dog", "hound")]
    table.unlink()
    assert read(["pet"], [["hound", "cat"]]) == [("2", "cat", "pet")]
    assert read(["pet"], [["cat"], ["hound"], ["cat", "cat"]]) == [("2", "cat", "pet")]
    with pytest.raises(MetricUnavailable, match=r"paraphrase-en\.gz"):
        read(["pet"], [["cat", "hound"], ["a cat"]])
    assert not (user_cache() / "references").exists()  # whose files it does not drive out


def test_the_longest_phrases_have_seven_words(table: Path) -> None:
    """As in METEOR's own table."""
    write(table, [("1", "a b c d e f g", "long")])
    assert read(["z a b c d e f g"], [["a b c d e f g h"]]) == [("1", "a b c d e f g", "long")]
