"""Parts whose layout is right and whose rows, attributes or bytes are not: damaged, cut short, changed at random."""

import json
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from prefixcap.errors import InputError
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join
from tests.hostile.test_stores import ENCODER, IMAGES, Change, content, is_refused, rewrite, write
from tests.processes import python


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write(tmp_path / "store")


def set_rows(name: str, where: Any, value: Any) -> Change:
    def change(file: h5py.File) -> None:
        file[name][where] = value

    return change


ROWS: dict[str, tuple[Change, str]] = {
    "image beyond": (set_rows("captions/image", -1, IMAGES), "point to images that are not there"),
    "image far beyond": (set_rows("captions/image", 0, 2**62), "point to images that are not there"),
    "image below": (set_rows("captions/image", 3, -1), "point to images that are not there"),
    "end beyond": (set_rows("captions/text_end", -1, 2**40), "ends do not fit"),
    "end below": (set_rows("captions/text_end", 0, -5), "ends do not fit"),
    "falling end": (set_rows("captions/text_end", 4, 1), "ends do not fit"),
    "long caption": (set_rows("captions/text_end", slice(0, 3), 0), "ends do not fit"),
    "code without a name": (set_rows("images/split", 0, 9), "of split 'train', but the index says"),
    "another split": (set_rows("images/split", 0, 1), "of split 'train', but the index says"),
    "no UTF-8": (set_rows("captions/text", 3, 0xFF), "not UTF-8"),
    "half a letter": (set_rows("captions/text_end", 0, 6), "not UTF-8"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_cannot_be(
    name: str, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = ROWS[name]
    rewrite(store, change)
    assert message in is_refused(store, capsys, monkeypatch)


def set_attribute(name: str, value: Any) -> Change:
    return lambda file: file.attrs.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_attribute("format_version", "three"), "version three"),
        (set_attribute("format_version", [3, 3]), "version"),
        (set_attribute("format_version", np.arange(5000)), "version None"),
        (set_attribute("format", [1, 2]), "not part of a prefixcap feature store"),
        (set_attribute("format", h5py.Empty("f4")), "not part of a prefixcap feature store"),
        (set_attribute("format", np.bytes_(b"\xff")), "not part of a prefixcap feature store"),
    ],
)
def test_attributes_of_a_wrong_kind(change: Change, message: str, store: Path) -> None:
    """The index says the format of a finished store; where it is made, a file of something else is left alone."""
    before = content(store)
    rewrite(store, change)
    assert content(store) == before
    (store / "index.json").unlink()
    with pytest.raises(InputError, match=message):
        StoreWriter(store, ENCODER, "photographs", store.parent, "job", 1)
    assert (store / "part-00000.h5").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("made_with", "{"),
        ("made_with", '{"a": []}'),
        ("made_with", "9" * 5000),
        ("made_with", 7),
        ("digest", "../.."),
        ("job", [1, 2]),
        ("dim", "4"),
        ("dim", -4),
        ("shards_in_all", 10**12),
        ("encoder", None),
    ],
)
def test_pieces_with_attributes_of_a_wrong_kind_are_made_again(tmp_path: Path, name: str, value: Any) -> None:
    """Nothing is joined of them; the writer takes them away, as all that is damaged."""
    made = StoreWriter(tmp_path / "store", ENCODER, "photographs", tmp_path, "job", 1)
    rows = {"images/embedding": np.ones((1, 4), np.float16)}
    made.write_piece(0, 0, 1, [ImageRecord(1, "", "train", ("a",))], rows, [])
    (piece,) = (tmp_path / "store" / "pieces").iterdir()
    with h5py.File(piece, "a") as file:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value
    with pytest.raises(InputError, match=name):
        join(tmp_path / "store")
    assert StoreWriter(tmp_path / "store", ENCODER, "photographs", tmp_path, "job", 1).missing() == [0]


def test_pieces_of_unlike_features_are_not_joined(tmp_path: Path) -> None:
    made = StoreWriter(tmp_path / "store", ENCODER, "photographs", tmp_path, "job", 2)
    for shard, width in ((0, 4), (1, 5)):
        rows = {"images/embedding": np.ones((1, width), np.float16)}
        made.write_piece(shard, 0, 1, [ImageRecord(shard, "", "train", ("a",))], rows, [])
    with pytest.raises(InputError, match=r"000001-0000-of-0001\.h5 has other features"):
        join(tmp_path / "store")


@pytest.mark.parametrize("size", [0, 1, 8, 100, 2048, -1])
def test_a_part_cut_short(
    size: int, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = store / "part-00000.h5"
    part.write_bytes(part.read_bytes()[:size])
    index = json.loads((store / "index.json").read_text())
    index["parts"][0]["bytes"] = part.stat().st_size
    (store / "index.json").write_text(json.dumps(index))
    assert "part-00000.h5" in is_refused(store, capsys, monkeypatch)


def test_a_folder_for_a_part(store: Path) -> None:
    (store / "part-00000.h5").unlink()
    (store / "part-00000.h5").mkdir()
    with pytest.raises(InputError, match="is no file"):
        FeatureStore(store)


def test_strings_whose_heap_is_damaged(store: Path) -> None:
    """The length, the heap or the number in the heap of the first file name is another."""
    part = store / "part-00000.h5"
    whole = part.read_bytes()
    with h5py.File(part) as file:
        place = file["images/file"].id.get_offset()
    for offset, form, value in ((0, "<I", 3), (0, "<I", 2**32 - 1), (4, "<Q", 2**63), (4, "<Q", 96), (12, "<I", 70000)):
        damaged = bytearray(whole)
        struct.pack_into(form, damaged, place + offset, value)
        part.write_bytes(damaged)
        with pytest.raises(InputError, match=r"part-00000\.h5"):
            content(store)


FUZZ = """
import random, sys
from pathlib import Path
from prefixcap.commands.verify import find_problems
from prefixcap.errors import InputError
from tests.hostile.test_stores import content
store, part = Path(sys.argv[1]), Path(sys.argv[1]) / "part-00000.h5"
whole, before, draw = part.read_bytes(), content(store), random.Random(0)
count = {"same": 0, "refused": 0, "verify": 0}
for number in range(200):
    damaged = bytearray(whole)
    for place in draw.sample(range(len(whole)), draw.choice([1, 1, 3, 30])):
        damaged[place] ^= 1 << draw.randrange(8)
    part.write_bytes(damaged)
    print(number, flush=True)
    try:
        same = content(store) == before
    except InputError as error:
        assert chr(10) not in str(error), error
        count["refused"] += 1
        continue
    count["same" if same else "verify"] += 1
    assert same or list(find_problems(store)), number
print(count)
assert min(count.values()) >= 1, count
"""


def test_bytes_flipped_at_random(store: Path) -> None:
    """In a process of its own: nothing may crash it."""
    process = python("-c", FUZZ, store, timeout=300)
    assert process.returncode == 0, process.stdout[-100:] + process.stderr[-3000:]
