"""Edits of a store of sentences, beside a list that is edited in the same way; and edits that are killed."""

import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import prefixcap.store.edit
from prefixcap.commands.verify import find_problems
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity, Feature
from prefixcap.store import FeatureStore, ImageRecord, Skipped, StoreWriter, join
from prefixcap.store.edit import copy_sentences, edit, editing, new_ids, sentences
from prefixcap.store.part import Columns
from prefixcap.store.writer import parts_of
from tests.processes import start

ENCODER = EncoderIdentity("clip:small", "ab" * 32, "shorter side to 8", dim=4)

Row = tuple[str, str]  # split and caption


def embedding(text: str) -> np.ndarray:
    return np.random.default_rng(list(text.encode())).normal(size=4).astype(np.float16)


def make(path: Path, rows: Sequence[Row], shards: int = 1, strings: bool = False) -> FeatureStore:
    """A store of sentences in as many shards."""
    made = StoreWriter(path, ENCODER, "sentences", path.parent, "job", shards)
    for shard in range(shards):
        own = list(enumerate(rows))[shard::shards]
        records = [ImageRecord(str(number) if strings else number, "", split, (text,)) for number, (split, text) in own]
        features = {str(Feature.CAPTION): np.array([embedding(text) for _, (_, text) in own])}
        made.write_piece(shard, 0, 1, records, features, [Skipped("", f"{shard}.txt", "blank")])
    join(path)
    return FeatureStore(path)


def blocks(rows: Sequence[Row], ids: Sequence[int | str] | range, size: int = 5) -> list[Columns]:
    records = [ImageRecord(number, "", split, (text,)) for number, (split, text) in zip(ids, rows, strict=True)]
    return [
        Columns.from_records(
            records[start : start + size],
            {str(Feature.CAPTION): np.array([embedding(text) for _, text in rows[start : start + size]])},
            [],
        )
        for start in range(0, len(rows), size)
    ]


def content(path: Path) -> list[Row]:
    """All rows, sorted; each has its own embedding, no id comes twice, and nothing is damaged."""
    store = FeatureStore(path)
    assert list(find_problems(path)) == []
    rows, ids = list[Row](), list[int | str]()
    for name in store.splits:
        split = store.split(name)
        captions = split.captions[:]
        rows += [(name, text) for text in captions]
        ids += split.ids
        assert np.array_equal(split.feature(Feature.CAPTION)[:], np.array([embedding(text) for text in captions]))
        assert split.caption_images[:].tolist() == list(range(len(captions)))
    assert len(set(ids)) == len(ids) and len({type(each) for each in ids}) == 1
    return sorted(rows)


ROWS: list[Row] = [("val" if number % 7 == 0 else "train", f"caption {number} \u00e9") for number in range(40)]


@pytest.mark.parametrize("strings", [False, True])
def test_random_edits_beside_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strings: bool) -> None:
    monkeypatch.setattr(prefixcap.store.edit, "PART_BYTES", 80)  # ten rows
    monkeypatch.setattr(prefixcap.store.edit, "BLOCK", 3)
    path, drawn = tmp_path / "store", random.Random(0)
    monkeypatch.setattr("prefixcap.store.writer.PART_BYTES", 100)
    make(path, ROWS, 4, strings)
    expected, number = sorted(ROWS), 0
    for _ in range(10):
        with editing(path) as store:
            keep, parts = [], store.parts()
            removed = {row for row in expected if drawn.random() < 0.2} if drawn.random() < 0.7 else set()
            for part in parts:
                texts, splits = part.texts(np.arange(part.length("captions/image"))), part["images/split"]
                keep.append(np.array([row not in removed for row in zip(splits, texts, strict=True)], np.bool_))
            added = [("train", f"new {number + more}") for more in range(drawn.choice([0, 0, 1, 13]))]
            number += len(added)
            edit(store, keep, blocks(added, new_ids(store, len(added))))
        expected = sorted([row for row in expected if row not in removed] + added)
        assert content(path) == expected
        assert len(parts_of(path)) == len(FeatureStore(path).parts()) <= len(expected) / 5 + 2
    assert {file.name for file in path.iterdir() if not file.name.startswith("part-")} == {
        ".lock", "index.json", "skipped.csv"
    }  # fmt: skip


def test_what_is_left_out_stays_listed_and_the_command_that_made_the_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    before = make(path, ROWS).skipped()
    with editing(path) as store:
        edit(store, added=blocks([("train", "new")], new_ids(store, 1)))
    assert FeatureStore(path).skipped() == before and FeatureStore(path).source == "sentences, edited"
    with pytest.raises(InputError, match=r"of another job .*sentences, edited"):
        StoreWriter(path, ENCODER, "sentences", path.parent, "job", 1)


def test_a_reader_keeps_what_it_has_opened(tmp_path: Path) -> None:
    split = make(tmp_path / "store", ROWS).split("train")
    with editing(tmp_path / "store") as store:  # before anything was read
        edit(store, [np.arange(40) % 2 == 0])
    texts = [text for name, text in ROWS if name == "train"]
    assert split.captions[:] == texts
    assert np.array_equal(split.feature(Feature.CAPTION)[:], np.array([embedding(text) for text in texts]))


def test_an_edit_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make(path, ROWS)
    files = sorted(path.iterdir())

    def failing() -> list[Columns]:
        yield from blocks([("train", "new")], [40])
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"), editing(path) as store:
        edit(store, added=failing())
    with pytest.raises(InputError, match="nothing would be left in"), editing(path) as store:
        edit(store, [np.zeros(40, np.bool_)])
    assert content(path) == sorted(ROWS) and sorted(path.iterdir()) == sorted([path / ".lock", *files])


def test_copies_are_of_one_split_and_can_be_edited(tmp_path: Path) -> None:
    made = StoreWriter(tmp_path / "images", ENCODER, "photographs", tmp_path, "job", 1)
    texts = [["a", "b"], [], ["c"]]
    records = [ImageRecord(f"{n}.jpg", f"{n}.jpg", "train" if n else "val", tuple(own)) for n, own in enumerate(texts)]
    features = {
        "images/embedding": np.ones((3, 4), np.float16),
        str(Feature.CAPTION): np.array([embedding(text) for own in texts for text in own]),
    }
    made.write_piece(0, 0, 1, records, features, [])
    join(tmp_path / "images")
    store = FeatureStore(tmp_path / "images")
    with pytest.raises(InputError, match=r"has images/embedding, .* `prefixcap datastore copy`"), editing(store.path):
        pass
    copy_sentences(store, "val", tmp_path / "copy")
    assert content(tmp_path / "copy") == [("val", "a"), ("val", "b")]
    with editing(tmp_path / "copy") as opened:
        more = sentences(store.split("train"), new_ids(opened, 1), "val", np.float16)
        edit(opened, added=more)
    assert content(tmp_path / "copy") == [("val", "a"), ("val", "b"), ("val", "c")]
    for call, message in (
        (lambda: copy_sentences(store, "val", tmp_path / "copy"), "copy exists already"),
        (lambda: copy_sentences(store, "test", tmp_path / "new"), "has no split 'test'"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert not (tmp_path / "new").exists()


def test_stores_that_are_not_edited(tmp_path: Path) -> None:
    make(tmp_path / "store", ROWS)
    several = StoreWriter(tmp_path / "several", ENCODER, "sentences", tmp_path, "job", 1)
    rows = np.ones((3, 4), np.float16)
    several.write_piece(0, 0, 1, [ImageRecord(0, "", "train", ("a", "b", "c"))], {str(Feature.CAPTION): rows}, [])
    join(several.path)
    for path, message in (
        (tmp_path / "nothing", "there is no feature store at"),
        (several.path, "has images with several captions, or with none"),
        ("https://example.org/store", "is a URL"),
    ):
        with pytest.raises(InputError, match=message), editing(path):
            pass
    assert not (tmp_path / "nothing").exists()
    with (
        editing(tmp_path / "store"),
        pytest.raises(InputError, match="is being edited by another process"),
        editing(tmp_path / "store"),
    ):
        pass


@pytest.mark.parametrize("done", [False, True])
def test_what_a_killed_edit_leaves_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    """One that ended just before it replaced the index, or just after."""
    path = tmp_path / "store"
    make(path, ROWS)
    with monkeypatch.context() as stopped, editing(path) as store:
        stopped.setattr(prefixcap.store.edit, "_remove_unnamed", lambda _: None)
        if not done:
            stopped.setattr(prefixcap.store.edit, "write_index", lambda *_: None)
        edit(store, added=blocks([("train", "new")], new_ids(store, 1)))
    assert len(parts_of(path)) == 2 and len(FeatureStore(path).parts()) == 1
    assert content(path) == sorted(ROWS + [("train", "new")] * done)
    with editing(path):
        pass
    assert len(parts_of(path)) == 1 and content(path) == sorted(ROWS + [("train", "new")] * done)


def edit_for_ever(path: Path) -> None:
    """Remove all sentences and add others in their place, again and again."""
    prefixcap.store.edit.PART_BYTES = 80
    prefixcap.store.edit.BLOCK = 3
    while True:
        with editing(path) as store:
            number = int(store.split("train").captions[0].partition(" ")[2]) + 1
            keep = [np.zeros(part.length("images/id"), np.bool_) for part in store.parts()]
            edit(store, keep, blocks([("train", f"edit {number}")] * 40, new_ids(store, 40)))


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Long because each edit that is killed runs in a process of its own."""
    path, moments = tmp_path / "store", random.Random(0)
    make(path, [("train", "edit 0")] * 40)
    last = 0
    for _ in range(6):
        before, process = (path / "index.json").read_bytes(), start(edit_for_ever, path)
        while process.is_alive() and (path / "index.json").read_bytes() == before:
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.2))
        process.kill()
        process.join()
        rows = content(path)  # all of one edit
        assert len(rows) == 40 and len(set(rows)) == 1
        number = int(rows[0][1].partition(" ")[2])
        assert number > last
        last = number
    with editing(path) as store:
        edit(store, added=blocks([("train", "new")], new_ids(store, 1)))
    assert len(content(path)) == 41
    names = {file.name for file in path.iterdir()}
    assert names == {".lock", "index.json", "skipped.csv", *(part.path.name for part in FeatureStore(path).parts())}
