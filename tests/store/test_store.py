"""The feature store: what is written is read again, and nothing half-made passes for whole."""

import json
import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import prefixcap.store.writer
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.store import FeatureStore, ImageRecord, Skipped, StoreWriter, join
from prefixcap.utils.files import temporary_path

ENCODER = EncoderIdentity("clip:small", "ab" * 32, "shorter side to 8", dim=4)
OTHER = EncoderIdentity("clip:other", "cd" * 32, "shorter side to 8", dim=4)

RECORDS = [
    ImageRecord(7, "a.jpg", "train", ("a cat", "ein Kätzchen"), "in-domain"),
    ImageRecord(3, "b/ü.jpg", "val", ("a dog",)),
    ImageRecord(9, "c.jpg", "train", ("a 🐦",)),
]


def embeddings(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float16)


def writer(path: Path, job: str = "job", encoder: EncoderIdentity = ENCODER, shards: int = 2) -> StoreWriter:
    return StoreWriter(path, encoder, "photographs", path.parent, job, shards)


def write(made: StoreWriter, shard: int, images: list[ImageRecord], rows: np.ndarray, *skipped: Skipped) -> None:
    """A shard of one piece."""
    made.write_piece(shard, 0, 1, images, {"images/embedding": rows}, skipped)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two parts: two images, then one and a skipped one."""
    monkeypatch.setattr("prefixcap.store.writer.PART_BYTES", 16)
    path = tmp_path / "store"
    made = writer(path)
    write(made, 0, RECORDS[:2], embeddings(3)[:2], Skipped("", "", "empty caption"))
    write(made, 1, RECORDS[2:], embeddings(3)[2:], Skipped(5, "d.jpg", "missing file"))
    join(path)
    return path


def test_reads_what_was_written(store: Path) -> None:
    opened = FeatureStore(store)
    assert opened.encoder == ENCODER
    assert opened.source == "photographs"
    assert opened.splits == {"train": 2, "val": 1}
    assert opened.captions == 4
    split = opened.split("train")
    assert split.ids == [7, 9]
    assert split.files == [store.parent / "a.jpg", store.parent / "c.jpg"]
    assert split.domains == ["in-domain", ""]
    assert split.embeddings.dtype == np.float16
    assert np.array_equal(split.embeddings[:], embeddings(3)[[0, 2]])
    assert split.captions[:] == ["a cat", "ein Kätzchen", "a 🐦"]
    assert split.caption_images.dtype == np.int64
    assert split.caption_images[:].tolist() == [0, 0, 1]
    assert split.references() == {7: ["a cat", "ein Kätzchen"], 9: ["a 🐦"]}
    assert opened.split("val").files == [store.parent / "b/ü.jpg"]


def test_string_ids(tmp_path: Path) -> None:
    made = writer(tmp_path / "store", shards=1)
    record = ImageRecord("a/7.jpg", "a/7.jpg", "test", ("a cat",))
    write(made, 0, [record], embeddings(1), Skipped("a/8.jpg", "a/8.jpg", "not an image"))
    join(tmp_path / "store")
    opened = FeatureStore(tmp_path / "store")
    assert opened.split("test").ids == ["a/7.jpg"]
    assert opened.skipped() == [Skipped("a/8.jpg", "a/8.jpg", "not an image")]


def test_any_hdf5_tool_reads_a_part(store: Path) -> None:
    with h5py.File(store / "part-00001.h5") as part:
        assert part.attrs["format"] == "prefixcap feature store"
        assert part.attrs["encoder"] == "clip:small"
        assert part["images/id"].dtype == np.int64
        assert part["images/embedding"].dtype == np.float16
        assert h5py.check_enum_dtype(part["images/split"].dtype) == {"train": 0}
        assert part["captions/image"][()].tolist() == [0]
        assert part["captions/text"][()].tobytes().decode() == "a 🐦"
        assert part["captions/text_end"][()].tolist() == [6]
        assert part["skipped/reason"].asstr()[()].tolist() == ["missing file"]


def test_skipped_csv_lists_everything(store: Path) -> None:
    lines = (store / "skipped.csv").read_text().splitlines()
    assert lines == ["id,file,reason", ",,empty caption", "5,d.jpg,missing file"]


def test_unknown_split(store: Path) -> None:
    with pytest.raises(InputError, match=r"no split 'test'; it has train, val"):
        FeatureStore(store).split("test")


def test_encoder_must_agree(store: Path) -> None:
    opened = FeatureStore(store)
    opened.require_encoder(EncoderIdentity("the same under another name", ENCODER.digest, ENCODER.preprocessing, 4))
    with pytest.raises(InputError, match=r"clip:small, but clip:other"):
        opened.require_encoder(OTHER)
    with pytest.raises(InputError, match=r"clip:small \(weights abababab\), but clip:small \(weights cdcdcdcd\)"):
        opened.require_encoder(EncoderIdentity(ENCODER.name, OTHER.digest, ENCODER.preprocessing, 4))
    with pytest.raises(InputError, match=r"\(shorter side to 8\), but clip:small \(shorter side to 9\)"):
        opened.require_encoder(EncoderIdentity(ENCODER.name, ENCODER.digest, "shorter side to 9", 4))


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no feature store at"):
        FeatureStore(tmp_path / "nothing")
    with pytest.raises(InputError, match="not a feature store"):
        FeatureStore(tmp_path)


def test_unfinished(tmp_path: Path) -> None:
    write(writer(tmp_path / "store", shards=7), 0, RECORDS, embeddings(3))
    with pytest.raises(InputError, match=r"unfinished \(1 of 7 shards\): run the command that made it .* again"):
        FeatureStore(tmp_path / "store")


@pytest.mark.parametrize(
    ("key", "value", "message"), [("format_version", 1, "version 1"), ("format", "else", "not part of")]
)
def test_other_format(store: Path, key: str, value: object, message: str) -> None:
    index = json.loads((store / "index.json").read_text())
    (store / "index.json").write_text(json.dumps(index | {key: value}))
    with pytest.raises(InputError, match=message):
        FeatureStore(store)
    (store / "index.json").unlink()
    for file in store.glob("*.h5"):
        with h5py.File(file, "a") as part:
            part.attrs[key] = value
    with pytest.raises(InputError, match=message):
        writer(store)


def test_index_is_no_json(store: Path) -> None:
    (store / "index.json").write_text("{")
    with pytest.raises(InputError, match=r"index\.json cannot be read"):
        FeatureStore(store)


def test_missing_part(store: Path) -> None:
    (store / "part-00001.h5").unlink()
    with pytest.raises(InputError, match=r"part-00001\.h5 is missing"):
        FeatureStore(store)


def test_truncated_part(store: Path) -> None:
    part = store / "part-00001.h5"
    size = part.stat().st_size
    os.truncate(part, size - 100)
    with pytest.raises(InputError, match=rf"part-00001\.h5 has {size - 100} of {size} bytes"):
        FeatureStore(store)
    again = writer(store)
    assert not again.finished()
    assert again.missing() == [1]
    write(again, 1, RECORDS[2:], embeddings(3)[2:], Skipped(5, "d.jpg", "missing file"))
    join(store)
    assert part.stat().st_size == size
    assert FeatureStore(store).split("train").ids == [7, 9]


def test_part_damaged_within(store: Path) -> None:
    part = store / "part-00001.h5"
    part.write_bytes(bytes(part.stat().st_size))
    with pytest.raises(InputError, match=r"part-00001\.h5 is damaged"):
        FeatureStore(store).split("train").embeddings[:]


@pytest.mark.parametrize("finished", [True, False])
def test_other_job(store: Path, finished: bool) -> None:
    if not finished:
        (store / "index.json").unlink()
    with pytest.raises(InputError, match=r"encoder clip:small.*encoder clip:other.*delete that folder, or") as caught:
        writer(store, job="another", encoder=OTHER)
    assert "\n" not in str(caught.value)
    assert writer(store).missing() == ([] if finished else [0, 1])


def test_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "store"
    made = writer(path, shards=3)
    write(made, 0, RECORDS, embeddings(3))
    # /dev/full answers every write as a full disk does, so the real error of the real system call comes back.
    piece = "000001-0000-of-0001.h5"
    temporary_path(path / "pieces" / piece).symlink_to("/dev/full")
    with pytest.raises(InputError, match=rf"{piece}: no space left on the disk") as caught:
        write(made, 1, RECORDS, embeddings(3))
    assert "\n" not in str(caught.value)
    assert [file.name for file in (path / "pieces").iterdir()] == ["000000-0000-of-0001.h5"]
    assert made.missing() == [1, 2]


@pytest.mark.parametrize("file", ["part-00000.h5", "skipped.csv", "index.json"])
def test_full_disk_at_the_end(tmp_path: Path, file: str) -> None:
    path = tmp_path / "store"
    made = writer(path, shards=1)
    write(made, 0, RECORDS, embeddings(3))
    temporary_path(path / file).symlink_to("/dev/full")
    with pytest.raises(InputError, match="no space left"):
        join(path)
    with pytest.raises(InputError, match="unfinished"):
        FeatureStore(path)
    join(path)
    assert FeatureStore(path).captions == 4


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    made = writer(path, shards=1)
    write(made, 0, RECORDS, embeddings(3))
    for leftover in (path / ".part-00000.h5.1.tmp", path / "pieces" / ".000000-0000-of-0001.h5.1.tmp"):
        leftover.write_bytes(b"half")
    join(path)
    assert sorted(file.name for file in path.iterdir()) == ["index.json", "part-00000.h5", "skipped.csv"]


def test_pieces_that_a_killed_run_left_are_taken_away(tmp_path: Path) -> None:
    """It was killed as it removed them, when the store was whole; what is not of a writer stays."""
    path = tmp_path / "store"
    made = writer(path)
    for shard in range(2):
        write(made, shard, [RECORDS[shard]], embeddings(1))
    shutil.copytree(path / "pieces", tmp_path / "copy")
    join(path)
    before = (path / "part-00000.h5").read_bytes()
    for foreign in ((), ("notes.txt", "1-of-2.h5", "00001-0000-of-0001.h5")):
        (path / "pieces").mkdir()
        shutil.copy(tmp_path / "copy" / "000001-0000-of-0001.h5", path / "pieces")
        (path / "pieces" / ".000000-0000-of-0001.h5.host.1.tmp").write_bytes(b"half")
        (path / ".index.json.host.1.tmp").write_bytes(b"half")
        for name in foreign:
            (path / "pieces" / name).write_text("mine")
        assert writer(path).finished()
        left = sorted(file.name for file in (path / "pieces").iterdir()) if foreign else []
        assert left == sorted(foreign) and (path / "pieces").exists() == bool(foreign)
        assert not list(path.glob(".*.tmp"))
    assert (path / "part-00000.h5").read_bytes() == before and FeatureStore(path).captions == 3


def test_pieces_behind_a_link_are_left_alone(tmp_path: Path) -> None:
    other = writer(tmp_path / "other")
    write(other, 0, RECORDS[:1], embeddings(1))
    made = writer(tmp_path / "store", shards=1)
    write(made, 0, RECORDS, embeddings(3))
    join(tmp_path / "store")
    (tmp_path / "store" / "pieces").symlink_to(tmp_path / "other" / "pieces")
    writer(tmp_path / "store", shards=1)
    assert other.missing() == [1]


def test_files_of_other_names_are_no_parts(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for name in ("part-one.h5", "part-000001.txt", "part-1.h5"):
        (tmp_path / "store" / name).write_text("mine")
    writer(tmp_path / "store")
    assert len(list((tmp_path / "store").iterdir())) == 3


def test_pieces_made_apart_are_joined_when_all_are_together(tmp_path: Path) -> None:
    one, other, together = tmp_path / "one", tmp_path / "other", tmp_path / "together"
    write(writer(one), 0, RECORDS[:2], embeddings(3)[:2])
    write(writer(other), 1, RECORDS[2:], embeddings(3)[2:])
    with pytest.raises(InputError, match=r"one lacks 1 of 2 shards, 1 for one"):
        join(one)
    shutil.copytree(one, together)
    shutil.copytree(other, together, dirs_exist_ok=True)
    join(together)
    assert FeatureStore(together).split("train").ids == [7, 9]


def test_pieces_of_another_job_are_not_joined(tmp_path: Path) -> None:
    write(writer(tmp_path / "one"), 0, RECORDS[:2], embeddings(3)[:2])
    write(writer(tmp_path / "other", job="another"), 1, RECORDS[2:], embeddings(3)[2:])
    shutil.copytree(tmp_path / "other", tmp_path / "one", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"000001-0000-of-0001\.h5 is of another job"):
        join(tmp_path / "one")


def test_a_damaged_piece_is_made_again(tmp_path: Path) -> None:
    made = writer(tmp_path / "store")
    for shard in range(2):
        write(made, shard, [RECORDS[shard]], embeddings(1))
    os.truncate(tmp_path / "store" / "pieces" / "000001-0000-of-0001.h5", 1000)
    with pytest.raises(InputError, match=r"000001-0000-of-0001\.h5 is damaged"):
        join(tmp_path / "store")
    assert writer(tmp_path / "store").missing() == [1]


def test_two_processes_may_join_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is through, and has taken the pieces away, when this one has only listed them."""
    made = writer(tmp_path / "store")
    for shard in range(2):
        write(made, shard, [RECORDS[shard]], embeddings(1))
    late = prefixcap.store.writer.pieces_of(tmp_path / "store")
    join(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr("prefixcap.store.writer.pieces_of", lambda store: late)
        join(tmp_path / "store")
    assert FeatureStore(tmp_path / "store").split("train").ids == [7]


@pytest.mark.parametrize("part_bytes", [1, 40, 100, 2**30])
def test_rows_come_from_any_number_of_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    """Against plain lists: images of two splits in a random order, with none to three captions each."""
    monkeypatch.setattr("prefixcap.store.writer.PART_BYTES", part_bytes)
    random = np.random.default_rng(0)
    images = [
        ImageRecord(n, f"{n}.jpg", str(random.choice(["train", "val"])), tuple(f"é{n}.{c}" for c in range(n % 4)))
        for n in range(23)
    ]
    images += [ImageRecord(n, f"{n}.jpg", "train", ("whole",)) for n in range(23, 30)]
    rows = embeddings(30)
    made = writer(tmp_path / "store", shards=10)
    for shard in range(10):
        of = range(3 * shard, 3 * shard + 3)
        made.write_piece(shard, 1, 2, [images[of[2]]], {"images/embedding": rows[of[2:]]}, [])
        made.write_piece(shard, 0, 2, [images[n] for n in of[:2]], {"images/embedding": rows[of[:2]]}, [])
    join(tmp_path / "store")
    parts = len(list((tmp_path / "store").glob("part-*.h5")))
    assert parts == {1: 10, 40: 10, 100: 3, 2**30: 1}[part_bytes]
    for name in ("train", "val"):
        split = pickle.loads(pickle.dumps(FeatureStore(tmp_path / "store").split(name)))
        own = [image for image in images if image.split == name]
        texts = [(row, caption) for row, image in enumerate(own) for caption in image.captions]
        assert split.ids == [image.id for image in own]
        for _ in range(20):
            chosen = random.integers(0, len(own), 7)
            assert np.array_equal(split.embeddings[chosen], rows[[own[row].id for row in chosen]])
            chosen = random.integers(0, len(texts), 7)
            assert split.captions[chosen] == [texts[caption][1] for caption in chosen]
            assert split.caption_images[chosen].tolist() == [texts[caption][0] for caption in chosen]
        assert split.captions[2:5] == [caption for _, caption in texts[2:5]]
        assert split.captions[3] == texts[3][1]
        long = [number for number, (_, caption) in enumerate(texts) if len(caption.encode()) > 4]
        assert split.captions_longer_than(4).tolist() == long
