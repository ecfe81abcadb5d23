"""`index.json` of feature stores that somebody else made, damaged or to harm, and the files that they name."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefixcap.errors import InputError
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join
from tests.hostile.test_stores import ENCODER, content, write


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write(tmp_path / "store")


def put(value: Any, *keys: Any) -> Callable[[dict[str, Any]], Any]:
    """Set a value below some keys."""

    def change(index: dict[str, Any]) -> None:
        for key in keys[:-1]:
            index = index[key]
        index[keys[-1]] = value

    return change


INDEXES: list[Callable[[dict[str, Any]], Any]] = [
    *(lambda index, key=key: index.pop(key) for key in (
        "format", "encoder", "source", "image_root", "job", "made_with", "images", "captions", "splits", "parts"
    )),
    *(lambda index, key=key: index["parts"][0].pop(key) for key in (
        "file", "bytes", "digest", "shards", "images", "captions", "longest_caption", "skipped", "splits"
    )),
    *(put(value, "parts") for value in (None, 7, {}, [], [None], [[]], "part-00000.h5")),
    *(put(value, "splits") for value in (None, 7, [], {"train": 3}, {"train": None}, {})),
    *(put(value, "parts", 0, "file") for value in (
        "/etc/passwd", "../part-00000.h5", "part-00000.h5/../x", "part-0.h5", "part-00000.h5\n", "", None, 3,
        "part-" + 5 * "\u0660" + ".h5", "PART-00000.H5", "part-00000.h5\x00", "index.json", "C:\\part-00000.h5",
    )),
    *(put(value, *key) for value in (-1, 1.5, float("nan"), float("inf"), 10**30, 10**4000, True, "3") for key in (
        ("images",), ("parts", 0, "bytes"), ("parts", 0, "images"), ("splits", "train", "captions"),
        ("parts", 0, "longest_caption"), ("parts", 0, "skipped"), ("encoder", "dim"), ("format_version",),
    )),
    *(put(value, "parts", 0, "digest") for value in ("", "xyz", None, "A" * 64, "0" * 65)),
    *(put(value, "parts", 0, "shards") for value in (None, [], [0], [0, 1, 2], [0, 10**12], [-1, 1], ["0", "1"])),
    *(put(value, "encoder") for value in (None, "clip", [], {"name": "clip"}, {"name": 3, "digest": 4})),
    put([1], "made_with"), put({"a": [1]}, "made_with"), put({"a": None}, "made_with"),
    put(3, "image_root"), put(None, "source"), put(["x"], "job"),
    put(8, "images"), put(13, "captions"), put({"images": 1, "captions": 1}, "splits", "test"),
    put(5, "parts", 0, "splits", "train", "images"),
    lambda index: index["parts"].append(index["parts"][0]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(INDEXES)))
def test_an_index_that_cannot_be(number: int, store: Path) -> None:
    index = json.loads((store / "index.json").read_text())
    INDEXES[number](index)
    sys.set_int_max_str_digits(0)
    try:
        (store / "index.json").write_text(json.dumps(index))
    finally:
        sys.set_int_max_str_digits(4300)
    with pytest.raises(InputError, match=r"index\.json") as caught:
        FeatureStore(store)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    with pytest.raises(InputError):
        StoreWriter(store, ENCODER, "photographs", store.parent, "job", 1)
    assert {file.name for file in store.iterdir()} == {"index.json", "part-00000.h5", "skipped.csv"}


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe{}", b"null", b"[]", b"3", b"[" * 100_000, b'"\\ud800"', b"9" * 5000, b"{}" + b" " * 2**24],
)
def test_an_index_that_is_something_else(text: bytes, store: Path) -> None:
    (store / "index.json").write_bytes(text)
    with pytest.raises(InputError, match=r"index\.json"):
        FeatureStore(store)


def test_an_index_that_is_no_file(store: Path) -> None:
    (store / "index.json").unlink()
    (store / "index.json").mkdir()
    with pytest.raises(InputError, match=r"index\.json cannot be read"):
        FeatureStore(store)
    (store / "index.json").rmdir()
    os.mkfifo(store / "index.json")  # to open it would wait for ever
    with pytest.raises(InputError, match=r"index\.json cannot be read"):
        FeatureStore(store)


def test_an_index_with_more_keys_than_are_known(store: Path) -> None:
    """A later version of the program may write them."""
    before = content(store)
    index = json.loads((store / "index.json").read_text())
    index["parts"][0]["colour"] = index["colour"] = index["encoder"]["colour"] = ["red"]
    (store / "index.json").write_text(json.dumps(index))
    assert content(store) == before


@pytest.mark.parametrize(
    "file",
    ["../secret.jpg", "/etc/secret.jpg", "a/../../secret.jpg", "..", ".", "", "a\x00b"],
)
def test_images_outside_of_their_folder_have_no_path(file: str, tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "store", ENCODER, "photographs", tmp_path / "images", "job", 1)
    records = [ImageRecord(0, file.replace("\x00", ""), "train", ()), ImageRecord(1, "b/../c.jpg", "train", ())]
    writer.write_piece(0, 0, 1, records, {"images/embedding": np.ones((2, 4), np.float16)}, [])
    join(tmp_path / "store")
    files = FeatureStore(tmp_path / "store").split("train").files
    expected = None if "\x00" not in file else tmp_path / "images" / "ab"
    assert files == [expected, tmp_path / "images" / "c.jpg"]
