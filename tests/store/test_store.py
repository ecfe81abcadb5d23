"""The feature store: what is written is read again, and nothing half-made passes for whole."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from prefixcap.encoders.protocol import EncoderIdentity
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore, ImageRecord, Skipped, StoreWriter

ENCODER = EncoderIdentity("clip:small", "ab" * 32, "shorter side to 8", dim=4)
OTHER = EncoderIdentity("clip:other", "cd" * 32, "shorter side to 8", dim=4)

RECORDS = [
    ImageRecord(7, "a.jpg", "train", ("a cat", "ein Kätzchen"), "in-domain"),
    ImageRecord(3, "b/ü.jpg", "val", ("a dog",)),
    ImageRecord(9, "c.jpg", "train", ("a 🐦",)),
]


def embeddings(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float16)


def writer(path: Path, job: str = "job", encoder: EncoderIdentity = ENCODER, parts: int = 2) -> StoreWriter:
    return StoreWriter(path, encoder, "photographs", path.parent, job, parts)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two parts: two images, then one and a skipped one."""
    path = tmp_path / "store"
    made = writer(path)
    made.write_part(0, RECORDS[:2], embeddings(3)[:2], [])
    made.write_part(1, RECORDS[2:], embeddings(3)[2:], [Skipped(5, "d.jpg", "missing file")])
    made.finish([Skipped(1, "", "empty caption")])
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
    assert np.array_equal(split.embeddings, embeddings(3)[[0, 2]])
    assert split.captions == ["a cat", "ein Kätzchen", "a 🐦"]
    assert split.caption_images.dtype == np.int64
    assert split.caption_images.tolist() == [0, 0, 1]
    assert split.references() == {7: ["a cat", "ein Kätzchen"], 9: ["a 🐦"]}
    assert opened.split("val").files == [store.parent / "b/ü.jpg"]


def test_string_ids(tmp_path: Path) -> None:
    made = writer(tmp_path / "store", parts=1)
    record = ImageRecord("a/7.jpg", "a/7.jpg", "test", ("a cat",))
    made.write_part(0, [record], embeddings(1), [Skipped("a/8.jpg", "a/8.jpg", "not an image")])
    made.finish()
    assert FeatureStore(tmp_path / "store").split("test").ids == ["a/7.jpg"]
    assert made.skipped() == [Skipped("a/8.jpg", "a/8.jpg", "not an image")]


def test_any_hdf5_tool_reads_a_part(store: Path) -> None:
    with h5py.File(store / "part-00001.h5") as part:
        assert part.attrs["format"] == "prefixcap feature store"
        assert part.attrs["encoder"] == "clip:small"
        assert part["images/id"].dtype == np.int64
        assert part["images/embedding"].dtype == np.float16
        assert part["captions/image"][()].tolist() == [0]
        assert part["skipped/reason"].asstr()[()].tolist() == ["missing file"]


def test_skipped_csv_lists_everything(store: Path) -> None:
    lines = (store / "skipped.csv").read_text().splitlines()
    assert lines == ["id,file,reason", "1,,empty caption", "5,d.jpg,missing file"]


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
    writer(tmp_path / "store", parts=7).write_part(0, RECORDS, embeddings(3), [])
    with pytest.raises(InputError, match=r"unfinished \(1 of 7 parts\): run the same .* again"):
        FeatureStore(tmp_path / "store")


@pytest.mark.parametrize(
    ("key", "value", "message"), [("format_version", 2, "version 2"), ("format", "else", "not part of")]
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
    assert [again.has_part(0), again.has_part(1)] == [True, False]


def test_part_damaged_within(store: Path) -> None:
    part = store / "part-00001.h5"
    part.write_bytes(bytes(part.stat().st_size))
    with pytest.raises(InputError, match=r"part-00001\.h5 is damaged"):
        FeatureStore(store).split("train")


@pytest.mark.parametrize("finished", [True, False])
def test_other_job(store: Path, finished: bool) -> None:
    if not finished:
        (store / "index.json").unlink()
    with pytest.raises(InputError, match=r"encoder clip:small.*encoder clip:other.*delete that folder, or") as caught:
        writer(store, job="another", encoder=OTHER)
    assert "\n" not in str(caught.value)
    assert writer(store).has_part(1)


def test_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "store"
    made = writer(path, parts=3)
    made.write_part(0, RECORDS, embeddings(3), [])
    # /dev/full answers every write as a full disk does, so the real error of the real system call comes back.
    (path / f".part-00001.h5.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"part-00001\.h5: no space left on the disk") as caught:
        made.write_part(1, RECORDS, embeddings(3), [])
    assert "\n" not in str(caught.value)
    assert [file.name for file in path.iterdir()] == ["part-00000.h5"]
    assert made.has_part(0)


def test_full_disk_at_the_index(tmp_path: Path) -> None:
    path = tmp_path / "store"
    made = writer(path, parts=1)
    made.write_part(0, RECORDS, embeddings(3), [])
    (path / f".index.json.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(InputError, match="no space left"):
        made.finish()
    with pytest.raises(InputError, match="unfinished"):
        FeatureStore(path)
    made.finish()
    assert FeatureStore(path).captions == 4


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    made = writer(path, parts=1)
    made.write_part(0, RECORDS, embeddings(3), [])
    (path / ".part-00000.h5.1.tmp").write_bytes(b"half")
    made.finish()
    assert sorted(file.name for file in path.iterdir()) == ["index.json", "part-00000.h5", "skipped.csv"]
