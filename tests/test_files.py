"""Files that cannot be written, and how much of the machine may be used."""

import errno
import os
from pathlib import Path

import pytest

from prefixcap import machine
from prefixcap.errors import InputError
from prefixcap.files import Journal, parse_json, write_text_whole, write_whole


def test_what_stands_in_the_way_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for name, reason in (
        ("file/new", "a file stands where its folder belongs"),
        ("file/below/new", "a file stands where its folder belongs"),
        ("folder", "a folder stands there"),
        ("x" * 250, "the name is too long"),
    ):
        with pytest.raises(InputError, match=f"^cannot write {tmp_path / name}: {reason}; .*again$"):
            write_text_whole(tmp_path / name, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "x"


def test_a_disk_that_can_only_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the disk can only be read"), write_whole(tmp_path / "new"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    with pytest.raises(OSError, match="Input/output"), write_whole(tmp_path / "new"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_journal_goes_on_after_a_line_that_was_cut_short(tmp_path: Path) -> None:
    file, job = tmp_path / "new" / "written.jsonl", {"beams": 5, "forbidden": ("a", "b")}
    Journal(file, job).add({3: "a star", "x": "é\n"})
    assert Journal(file, job).found == {3: "a star", "x": "é\n"}
    whole = file.read_bytes()
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        journal = Journal(file, job)
        assert list(journal.found.items()) == [(3, "a star"), ("x", "é\n")][: max(0, whole[:cut].count(b"\n") - 1)]
        journal.add({"x": "é\n"})
        assert Journal(file, job).found["x"] == "é\n"
    file.write_bytes(whole)
    with pytest.raises(InputError, match=r"written\.jsonl holds results with other settings: name another folder"):
        Journal(file, {"beams": 4})
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("text", "processors"),
    [("max 100000\n", None), ("max", None), ("200000 100000\n", 2), ("150000 100000\n", 2), ("50000 100000\n", 1)],
)
def test_processors_that_a_container_grants(text: str, processors: int | None) -> None:
    assert machine.processors_of_quota(text) == processors
    assert 1 <= machine.processors() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "too many digits"),
        ('{"a": "\\ud83d"}', "surrogate"),
        ('{"a": "\\UD83D"}', "line 1"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"a": "\xff"}', "UTF-8"),
        ('{"a": 1', "line 1"),
        ("", "line 1"),
    ],
)
def test_json_that_python_stumbles_over_is_told_in_one_line(text, problem):
    with pytest.raises(InputError, match=f"^x.json is not .*{problem}"):
        parse_json(text, "x.json")


def test_json_is_read_with_pairs_of_surrogates_and_a_byte_order_mark():
    assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}', "x.json") == {"a": "😀"}
