"""Folders of clip-retrieval and plain arrays to the store, and a store to clip-retrieval's files and back."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_prep.interchange import importing
from data_prep.interchange.importing import import_features
from prefixcap.commands import main
from prefixcap.data import CaptionData
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore, ImageRecord, Skipped, StoreWriter, join
from tests.conftest import IDENTITY, small_captioner

DEMO = load_encoder("demo").identity
Run = Callable[..., tuple[int, str, str]]


def embeddings(count: int, seed: int = 0, length_one: bool = False) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, DEMO.dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True) if length_one else rows).astype(np.float16)


def clip_retrieval_folder(
    folder: Path, files: dict[str, tuple[np.ndarray, dict[str, list[Any]]]], texts: dict[str, np.ndarray] | None = None
) -> Path:
    """By the number as it stands in the names: embeddings and the columns of the metadata; and text embeddings."""
    for kind in ("img_emb", "metadata", "text_emb"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number, (rows, columns) in files.items():
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", rows)
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "metadata" / f"metadata_{number}.parquet")
    for number, rows in (texts or {}).items():
        np.save(folder / "text_emb" / f"text_emb_{number}.npy", rows)
    return folder


def numbered(count: int, first: int = 0) -> dict[str, list[Any]]:
    """Metadata as clip-retrieval writes it for a folder of images."""
    names = range(first, first + count)
    return {"image_path": [f"{n}.jpg" for n in names], "caption": [f"Caption {n}." for n in names]}


def imported(store: Path, *sources: Path | tuple[str, Path], **options: Any) -> FeatureStore:
    import_features([s if isinstance(s, tuple) else (None, s) for s in sources], store, DEMO, **options)
    return FeatureStore(store)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; give its status and what it printed."""

    def run(command: str, *options: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, options)])
        code = 0
        try:
            main(command)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return code, *capsys.readouterr()

    return run


def test_clip_retrieval(tmp_path: Path) -> None:
    """Two files, the tenth before the ninth by name; with text embeddings."""
    texts = {"9": embeddings(3, 7), "10": embeddings(2, 8)}
    files = {"10": (embeddings(2, 1), numbered(2, 3)), "9": (embeddings(3), numbered(3))}
    folder = clip_retrieval_folder(tmp_path / "laion", files, texts)
    store = imported(tmp_path / "store", folder)
    split = store.split("train")
    assert split.ids == [f"{n}.jpg" for n in range(5)]
    assert split.files == [folder / f"{n}.jpg" for n in range(5)]
    assert split.captions[:] == [f"Caption {n}." for n in range(5)]
    assert np.array_equal(split.embeddings[:], np.concatenate([embeddings(3), embeddings(2, 1)]))
    assert np.array_equal(split.feature("captions/embedding")[:], np.concatenate([texts["9"], texts["10"]]))
    assert store.encoder == DEMO
    assert store.made_with == {"normalized": False, "imported_from": "clip-retrieval"}


def test_columns_and_padding(tmp_path: Path) -> None:
    """As img2dataset leads to: keys, urls, no path; a split column; captions that are unusable."""
    columns = {
        "key": ["000", "001", "002", "003"],
        "url": ["u"] * 4,
        "caption": ["A\ncat.", None, " ", "A dog."],
        "split": ["val", None, "val", ""],
    }
    folder = clip_retrieval_folder(tmp_path / "laion", {"0000": (embeddings(4), columns)})
    store = imported(tmp_path / "store", folder)
    assert store.split("val").references() == {"000": ["A cat."]}
    assert store.split("train").references() == {"003": ["A dog."]}
    assert np.array_equal(store.split("train").embeddings[:], embeddings(4)[3:])
    assert store.split("val").files == [None]
    assert store.skipped() == [Skipped("001", "", "caption is not text"), Skipped("002", "", "empty caption")]


def test_rows_without_anything_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.interchange.clip_retrieval.CHUNK", 1)
    files = {str(n): (embeddings(2, n), {"caption": ["A.", "B."]}) for n in range(2)}
    first = clip_retrieval_folder(tmp_path / "one", files)
    second = clip_retrieval_folder(tmp_path / "two", {"0": (embeddings(1, 9), {"url": ["u"]})})
    store = imported(tmp_path / "store", ("train", first), ("val", second))
    assert store.split("train").ids == [0, 1, 2, 3]
    assert store.split("val").references() == {4: []}


def test_rows_that_are_not_finite_are_skipped_with_their_captions(tmp_path: Path) -> None:
    rows, texts = embeddings(5).astype(np.float32), embeddings(5, 1)
    rows[1, 3], rows[2, 0], texts[4, 1] = np.nan, 1e6, np.inf  # 1e6 is beyond float16
    folder = clip_retrieval_folder(tmp_path / "laion", {"0": (rows, numbered(5))}, {"0": texts})
    store = imported(tmp_path / "store", folder)
    assert store.split("train").ids == ["0.jpg", "3.jpg"]
    assert np.array_equal(store.split("train").feature("captions/embedding")[:], texts[[0, 3]])
    assert [(skip.id, skip.reason) for skip in store.skipped()] == [
        ("1.jpg", "embedding is not finite"),
        ("2.jpg", "embedding is not finite"),
        ("4.jpg", "caption embedding is not finite"),
    ]


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_chunks_do_not_change_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    for module in ("importing", "clip_retrieval"):
        monkeypatch.setattr(f"data_prep.interchange.{module}.CHUNK", chunk)
    files = {"0": (embeddings(5), numbered(5)), "1": (embeddings(2, 1), numbered(2, 5))}
    store = imported(tmp_path / "store", clip_retrieval_folder(tmp_path / "laion", files))
    assert store.split("train").references() == {f"{n}.jpg": [f"Caption {n}."] for n in range(7)}
    assert np.array_equal(store.split("train").embeddings[:], np.concatenate([embeddings(5), embeddings(2, 1)]))


def test_an_import_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(importing, "CHUNK", 2)
    folder = clip_retrieval_folder(tmp_path / "laion", {"0": (embeddings(7), numbered(7))})
    command = ("import-features", folder, "--store", tmp_path / "store", "--encoder", "demo")
    write, left = StoreWriter.write_piece, [True, True, False]

    def stopped(self: StoreWriter, *arguments: Any) -> None:
        if not left.pop(0):
            raise KeyboardInterrupt
        write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write_piece", stopped)
        assert run(*command)[0] == 130  # Ctrl-C
    code, out, _ = run(*command)
    assert code == 0 and "continued after 4 images that were there already\nimages: train 7; captions: 7\n" in out
    assert np.array_equal(FeatureStore(tmp_path / "store").split("train").embeddings[:], embeddings(7))
    assert run(*command)[1].startswith("the store was complete already\n")
    np.save(folder / "img_emb" / "img_emb_0.npy", embeddings(7, seed=1))
    assert "holds the feature store of another job" in run(*command)[2]


def test_large_files_are_known_by_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "HASHED_WHOLE", 100)
    monkeypatch.setattr(importing, "HASHED_END", 50)
    folder = clip_retrieval_folder(tmp_path / "laion", {"0": (embeddings(7), numbered(7))})
    imported(tmp_path / "store", folder)
    rows = embeddings(7)
    rows[-1, -1] = 0
    np.save(folder / "img_emb" / "img_emb_0.npy", rows)
    with pytest.raises(InputError, match="of another job"):
        imported(tmp_path / "store", folder)


def test_embeddings_of_length_one_are_told_and_kept_from_other_captioners(tmp_path: Path, run: Run) -> None:
    rows = embeddings(6, length_one=True)
    folder = clip_retrieval_folder(tmp_path / "laion", {"0": (rows, numbered(6) | {"split": ["train", "val"] * 3})})
    code, out, err = run("import-features", folder, "--store", tmp_path / "store", "--encoder", "demo")
    assert (code, err) == (0, "")
    assert out == (
        "images: train 3, val 3; captions: 6\n"
        f"store: {tmp_path / 'store'} (0.0 MB)\n"
        "embeddings are scaled to length one: train with model.normalize_embeddings=true\n"
    )
    assert FeatureStore(tmp_path / "store").made_with["normalized"] is True
    raw = clip_retrieval_folder(tmp_path / "raw", {"0": (embeddings(6), numbered(6))})
    with pytest.raises(InputError, match=r"laion are scaled to length one and those of .*raw are not"):
        imported(tmp_path / "both", folder, raw)


def test_a_captioner_that_does_not_scale_is_refused_a_scaled_store(tmp_path: Path) -> None:
    captioner = small_captioner()
    writer = StoreWriter(tmp_path / "store", IDENTITY, "test", tmp_path, job="test", shards=1)
    writer.made_with = {"normalized": True}
    images = [ImageRecord(0, "", "train", ("A star.",)), ImageRecord(1, "", "val", ("A ring.",))]
    writer.write_piece(0, 0, 1, images, {"images/embedding": np.eye(2, IDENTITY.dim, dtype=np.float16)}, [])
    join(tmp_path / "store")
    with pytest.raises(InputError, match=r"have unit length, .*: set normalize_embeddings=True"):
        CaptionData(tmp_path / "store", captioner)
    captioner.normalize_embeddings = True
    assert len(CaptionData(tmp_path / "store", captioner).train_split.captions) == 1


def test_splits(tmp_path: Path, run: Run) -> None:
    """Written before a source, for all, or drawn; what is asked for comes before what the rows say."""
    folder = clip_retrieval_folder(tmp_path / "a=b", {"0": (embeddings(400), numbered(400))})
    other = clip_retrieval_folder(
        tmp_path / "other", {"0": (embeddings(1, 1), numbered(1, 900) | {"split": ["train"]})}
    )
    end = ("--encoder", "demo", "--store")
    shares = ("--val-share", "0.25", "--test-share", "0.25")
    assert run("import-features", folder, f"test={other}", *shares, *end, tmp_path / "one")[0] == 0
    splits = FeatureStore(tmp_path / "one").splits
    assert sum(splits.values()) == 401 and all(60 < splits[name] < 140 for name in ("val", "test"))
    run("import-features", folder, *end, tmp_path / "two", *shares)
    drawn = FeatureStore(tmp_path / "two").split("val").ids
    assert drawn == FeatureStore(tmp_path / "one").split("val").ids
    run("import-features", folder, f"extra={other}", "--split", "val", *end, tmp_path / "three")
    assert FeatureStore(tmp_path / "three").splits == {"val": 400, "extra": 1}
    assert "val_share 2.0" in run("import-features", folder, "--val-share", "2", *end, tmp_path / "four")[2]
