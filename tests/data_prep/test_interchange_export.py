"""A store to clip-retrieval's files, and back."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from data_prep.interchange.exporting import export_features
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore, ImageRecord, Skipped, StoreWriter, join
from prefixcap.utils.files import temporary_path
from tests.data_prep.test_interchange import DEMO, Run, embeddings, imported, run

__all__ = ["run"]  # a fixture

RECORDS = [
    ImageRecord(7, "a.jpg", "train", ("A cat.", "Ein Kätzchen 🐈."), "in-domain"),
    ImageRecord(3, "b/ü.jpg", "val", ("A dog.",)),
    ImageRecord(9, "", "train", ()),
    ImageRecord(-1, "d.jpg", "test", ("A bird.", "Two.", "Three."), "out-domain"),
    ImageRecord(12, "e.jpg", "train", ("A fish.",)),
]


def store_of(path: Path, records: list[ImageRecord], text: bool = False, shards: int = 3) -> Path:
    """A store with a part for each two images or so."""
    writer = StoreWriter(path, DEMO, "photographs", path.parent / "photographs", "job", shards)
    per_shard = -(-len(records) // shards)
    for shard in range(shards):
        own = records[shard * per_shard : (shard + 1) * per_shard]
        features = {"images/embedding": embeddings(len(own), shard)}
        if text:
            features["captions/embedding"] = embeddings(sum(len(record.captions) for record in own), 10 + shard)
        writer.write_piece(shard, 0, 1, own, features, [Skipped(99, "x.jpg", "missing file")])
    join(path)
    return path


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefixcap.store.writer.PART_BYTES", 1)


def table(folder: Path, number: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pyarrow.parquet.read_table(folder / f"metadata_{number}.parquet").to_pylist()
    return rows


def files_of(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def test_files(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", RECORDS)
    assert export_features(store, tmp_path / "out") == (5, False)
    assert files_of(tmp_path / "out") == [
        *(f"img_emb/img_emb_{number}.npy" for number in range(3)),
        *(f"metadata/metadata_{number}.parquet" for number in range(3)),
    ]
    for number, count in enumerate((2, 2, 1)):
        rows = np.load(tmp_path / "out" / "img_emb" / f"img_emb_{number}.npy")
        assert rows.dtype == np.float16 and np.array_equal(rows, embeddings(count, number))
    assert table(tmp_path / "out" / "metadata", "1") == [
        {"image_path": "", "caption": None, "captions": [], "key": 9, "split": "train", "domain": ""},
        {
            "image_path": "d.jpg",
            "caption": "A bird.",
            "captions": ["A bird.", "Two.", "Three."],
            "key": -1,
            "split": "test",
            "domain": "out-domain",
        },
    ]


@pytest.mark.parametrize("chunk", [1, 2, 1000])
@pytest.mark.parametrize("strings", [False, True])
def test_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, strings: bool) -> None:
    for module in ("importing", "exporting", "clip_retrieval"):
        monkeypatch.setattr(f"data_prep.interchange.{module}.CHUNK", chunk)
    records = RECORDS
    if strings:
        records = [ImageRecord(f"{r.id}.jpg", r.file, r.split, r.captions, r.domain) for r in RECORDS]
    first = FeatureStore(store_of(tmp_path / "store", records))
    export_features(first.path, tmp_path / "out")
    second = imported(tmp_path / "again", tmp_path / "out", image_root=first.image_root)
    assert second.splits == first.splits == {"train": 3, "val": 1, "test": 1}
    for name in first.splits:
        one, two = first.split(name), second.split(name)
        assert two.ids == one.ids and two.domains == one.domains and two.files == one.files
        assert two.references() == one.references()
        assert np.array_equal(two.embeddings[:], one.embeddings[:])


def test_embeddings_of_captions(tmp_path: Path, run: Run) -> None:
    """Written where each image has one caption: in the whole store, or in the split that is asked for."""
    store = store_of(tmp_path / "store", RECORDS, text=True)
    for split, images in ((None, 5), ("test", 1), ("train", 3)):  # some images have more captions, one has none
        assert export_features(store, tmp_path / f"{split}", split) == (images, False)
        assert not (tmp_path / f"{split}" / "text_emb").exists()
    code, out, err = run("export-features", store, tmp_path / "val", "--split", "val")
    assert (code, err) == (0, "")
    assert out == (
        f"images: 1; img_emb, text_emb and metadata in {tmp_path / 'val'}\n"
        f"image_path is relative to {(tmp_path / 'photographs').resolve()}; encoder demo\n"
    )
    first = FeatureStore(store).split("val")
    code, out, _ = run(
        "import-features", tmp_path / "val", "--store", tmp_path / "again", "--encoder", "demo", "--split", "new"
    )
    named = "neither train, val nor test: new; read only where they are named, as split=new\n"
    assert (code, out) == (0, f"images: new 1; captions: 1\n{named}store: {tmp_path / 'again'} (0.0 MB)\n")
    again = FeatureStore(tmp_path / "again").split("new")
    assert np.array_equal(again.embeddings[:], first.embeddings[:])
    assert np.array_equal(again.feature("captions/embedding")[:], first.feature("captions/embedding")[:])

    whole = store_of(tmp_path / "whole", [ImageRecord(n, "", "train", (f"{n}.",)) for n in range(6)], text=True)
    assert export_features(whole, tmp_path / "texts") == (6, True)
    for number in range(3):
        rows = np.load(tmp_path / "texts" / "text_emb" / f"text_emb_{number}.npy")
        assert np.array_equal(rows, embeddings(2, 10 + number))


def test_names_sort_as_numbers_do(tmp_path: Path) -> None:
    records = [ImageRecord(n, "", "train", (f"{n}.",)) for n in range(11)]
    store = store_of(tmp_path / "store", records, shards=11)
    export_features(store, tmp_path / "out")
    assert [table(tmp_path / "out" / "metadata", f"{n:02d}")[0]["key"] for n in range(11)] == list(range(11))


def test_a_split_in_some_parts_only(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", RECORDS)
    export_features(store, tmp_path / "out", "train")
    keys = [[row["key"] for row in table(tmp_path / "out" / "metadata", str(number))] for number in range(3)]
    assert keys == [[7], [9], [12]]
    assert np.array_equal(np.load(tmp_path / "out" / "img_emb" / "img_emb_1.npy"), embeddings(2, 1)[:1])
    with pytest.raises(InputError, match="no split 'nope'; it has train, val, test"):
        export_features(store, tmp_path / "other", "nope")


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path, run: Run) -> None:
    store = store_of(tmp_path / "store", RECORDS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    code, _, err = run("export-features", store, tmp_path / "out")
    assert code == 2 and err.startswith("error: ") and "is there already and not empty" in err
    assert files_of(tmp_path / "out") == ["mine"]
    with pytest.raises(InputError, match="is there already"):
        export_features(store, tmp_path / "out" / "mine")


def test_a_store_without_embeddings_of_images(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "store", DEMO, "sentences", tmp_path, "job", 1)
    record = ImageRecord(0, "", "train", ("A cat.",))
    writer.write_piece(0, 0, 1, [record], {"captions/embedding": embeddings(1)}, [])
    join(tmp_path / "store")
    with pytest.raises(InputError, match="has no embeddings of images"):
        export_features(tmp_path / "store", tmp_path / "out")


@pytest.mark.parametrize("file", ["img_emb_1.npy", "metadata_1.parquet"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    def temporary(path: Path) -> Path:
        if path.name == file:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary_path(path).symlink_to("/dev/full")
        return temporary_path(path)

    store = store_of(tmp_path / "store", RECORDS)
    monkeypatch.setattr("prefixcap.utils.files.temporary_path", temporary)
    with pytest.raises(InputError, match=rf"cannot write .*{file}: no space left on the disk"):
        export_features(store, tmp_path / "out")
    assert not any(Path(name).name in (file, f".{file}") or name.endswith("tmp") for name in files_of(tmp_path / "out"))
