"""What is kept of references: the same from the file as made anew, whatever happened to the file."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prefixcap.metrics.cache
from prefixcap.metrics.cache import cached
from prefixcap.metrics.ngrams import ReferenceTexts
from prefixcap.metrics.references import WORTH_A_FILE, tokenized_references


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path))
    return tmp_path / "references"


def make(calls: list[int]) -> dict[str, np.ndarray]:
    calls.append(1)
    return {"numbers": np.arange(1000), "none": np.empty(0)}


def assert_made(content: Any, times: int) -> None:
    calls: list[int] = []
    for _ in range(2):
        arrays = cached("kind", content, lambda: make(calls))
        assert list(arrays) == ["numbers", "none"]
        assert (arrays["numbers"] == np.arange(1000)).all() and arrays["none"].shape == (0,)
    assert len(calls) == times


def test_the_same_content_is_made_once(files: Path) -> None:
    assert_made([["a dog", "\ud83d"]], 1)
    assert_made([["a dog", "\ud83d"]], 0)
    assert_made([["a dog"], ["\ud83d"]], 1)
    assert len(list(files.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "no archive", "a folder"])
def test_a_damaged_file_is_made_again(files: Path, damage: str) -> None:
    assert_made("x", 1)
    (file,) = files.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    written = {"truncated": content[:-100], "empty": b"", "flipped": content, "no archive": b"numbers"}
    if damage == "a folder":
        file.unlink()
        file.mkdir()
        assert_made("x", 2)  # and cannot be kept
    else:
        file.write_bytes(written[damage])
        assert_made("x", 1)
        assert_made("x", 0)


def test_the_newest_twenty_are_kept(files: Path) -> None:
    written: list[Path] = []
    for number in range(20):
        assert_made(number, 1)
        (file,) = set(files.iterdir()) - set(written)
        os.utime(file, (number + 1, number + 1))
        written.append(file)
    left = files / ".left.tmp"  # by a process that was killed
    left.touch()
    os.utime(left, (0, 0))
    assert_made(0, 0)  # used again: no more the oldest
    assert_made("new", 1)
    assert len(list(files.iterdir())) == 20
    assert written[0].exists() and not written[1].exists() and not left.exists()


def test_without_a_place_for_files_everything_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path / "file"))
    assert_made("x", 2)


def test_other_code_makes_it_again(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a package of one file in Python and one in Java in place of ours."""
    (tmp_path / "code" / "assets").mkdir(parents=True)
    monkeypatch.setattr(prefixcap.metrics.cache, "__file__", str(tmp_path / "code" / "cache.py"))
    try:
        for changed in ("cache.py", "assets/Program.class"):
            prefixcap.metrics.cache._code.cache_clear()
            (tmp_path / "code" / changed).write_text("other code")
            assert_made("x", 1)
            assert_made("x", 0)
    finally:
        prefixcap.metrics.cache._code.cache_clear()


def test_what_cannot_be_made_is_not_kept(files: Path) -> None:
    def fail() -> dict[str, np.ndarray]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached("kind", "x", fail)
    assert not files.exists()


def _in_a_process(number: int) -> bool:
    references = _many()
    return all(tokenized_references(references) == [[f"dog {i}"] for i in range(len(references))] for _ in range(5))


def _many() -> list[list[str]]:
    return [[f"Dog, {i}!"] for i in range(WORTH_A_FILE)]


def test_processes_share_the_files(files: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_in_a_process, range(4), chunksize=1) == [True] * 4
    assert len(list(files.iterdir())) == 1


def test_references_from_the_cache_are_those_that_were_made(files: Path) -> None:
    references = [["A dog, a dog!", "", "caf\u00e9 \ud83d bar"][: i % 3 + 1] for i in range(WORTH_A_FILE)]
    made, read = tokenized_references(references), tokenized_references(references)
    assert len(list(files.iterdir())) == 1
    plain = ReferenceTexts(list(texts) for texts in made)
    assert read == made == plain and made[2] == ["a dog a dog", "", made[2][2]]
    for grams in (made.grams, read.grams):
        np.testing.assert_equal(grams._asdict(), plain.grams._asdict())


def test_few_references_are_not_worth_a_file(files: Path) -> None:
    assert tokenized_references([["A dog."]]) == [["a dog"]]
    assert not files.exists()
