"""A store on object storage: fsspec's file system in memory stands for the cloud."""

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest

from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join
from prefixcap.store.remote import cache_folder

URL = "memory://bucket/photographs"


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fsspec.AbstractFileSystem:
    """Holds a store of two parts, "train" in the first and "val" in the second."""
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path / "cache"))
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    upload(tmp_path, filesystem, monkeypatch, seed=0)
    return filesystem


def upload(folder: Path, filesystem: fsspec.AbstractFileSystem, patch: pytest.MonkeyPatch, seed: int) -> None:
    patch.setattr("prefixcap.store.writer.PART_BYTES", 1)
    local = folder / f"store{seed}"
    made = StoreWriter(local, EncoderIdentity("random", "0" * 64, "none", 4), "random", folder, f"job {seed}", 2)
    for shard, split in enumerate(["train", "val"]):
        records = [ImageRecord(2 * shard + row, "", split, ("a cat",)) for row in range(2)]
        made.write_piece(shard, 0, 1, records, {"images/embedding": embeddings(seed)[2 * shard : 2 * shard + 2]}, [])
    join(local)
    filesystem.put(f"{local}/", f"{URL.removeprefix('memory://')}/", recursive=True)


def embeddings(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(4, 4)).astype(np.float16)


def test_parts_are_fetched_when_they_are_needed(cloud: fsspec.AbstractFileSystem) -> None:
    store = FeatureStore(f"{URL}/")
    assert store.location == URL and store.splits == {"train": 2, "val": 2}
    assert not list(store.path.glob("*.h5"))
    assert np.array_equal(store.split("val").embeddings[:], embeddings(0)[2:])
    assert [file.name for file in store.path.glob("*.h5")] == ["part-00001.h5"]
    assert np.array_equal(store.split("train").embeddings[:], embeddings(0)[:2])


def test_what_was_fetched_is_kept(cloud: fsspec.AbstractFileSystem) -> None:
    FeatureStore(URL).split("train")
    cloud.rm("bucket/photographs/part-00000.h5")
    assert np.array_equal(FeatureStore(URL).split("train").embeddings[:], embeddings(0)[:2])


def test_another_store_in_its_place_is_fetched(
    cloud: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FeatureStore(URL).split("train")
    upload(tmp_path, cloud, monkeypatch, seed=1)
    assert np.array_equal(FeatureStore(URL).split("train").embeddings[:], embeddings(1)[:2])


def test_a_part_cut_short_on_the_way_is_fetched_again(cloud: fsspec.AbstractFileSystem) -> None:
    FeatureStore(URL).split("train")
    part = cache_folder(URL) / "part-00000.h5"
    part.write_bytes(part.read_bytes()[:100])
    assert np.array_equal(FeatureStore(URL).split("train").embeddings[:], embeddings(0)[:2])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/nothing", r"cannot fetch memory://bucket/nothing/index\.json: .*nothing"),
        ("nosuch://bucket/store", r"cannot fetch nosuch://bucket/store/index\.json: .*nosuch"),
    ],
)
def test_what_cannot_be_fetched(cloud: fsspec.AbstractFileSystem, url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FeatureStore(url)
    shutil.rmtree(cache_folder(url).parent)
