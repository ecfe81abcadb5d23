"""Plain NumPy files with captions in JSON to the store."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefixcap.errors import InputError
from prefixcap.store import FeatureStore, Skipped
from tests.data_prep.test_interchange import DEMO, Run, embeddings, imported, run

__all__ = ["run"]  # a fixture

ENTRIES = [
    "A cat.",
    ["A dog.", "Ein  Hund.\n"],
    {"caption": "A star.", "image_id": 77, "file": "b/star.jpg", "split": "val"},
    {"captions": ["A ring.", 5, ""], "id": 78, "image": "ring.jpg"},
    {"captions": []},
    {"caption": None, "split": None},
]


def written(folder: Path, entries: Any, rows: np.ndarray | None = None, name: str = "rows.npy") -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    np.save(folder / name, embeddings(len(entries)) if rows is None else rows)
    (folder / "captions.json").write_text(json.dumps(entries))
    return folder / name, folder / "captions.json"


def test_all_forms_of_entries(tmp_path: Path) -> None:
    array, captions = written(tmp_path / "data", ENTRIES)
    store = imported(tmp_path / "store", array, captions=[captions], image_root=tmp_path / "photographs")
    train, val = store.split("train"), store.split("val")
    assert train.references() == {0: ["A cat."], 1: ["A dog.", "Ein Hund."], 78: ["A ring."], 4: []}
    assert val.references() == {77: ["A star."]}
    assert val.files == [tmp_path / "photographs" / "b" / "star.jpg"]
    assert train.files[2] == tmp_path / "photographs" / "ring.jpg"
    assert np.array_equal(train.embeddings[:], embeddings(6)[[0, 1, 3, 4]])
    assert store.skipped() == [
        Skipped(78, "ring.jpg", "caption is not text"),
        Skipped(78, "ring.jpg", "empty caption"),
        Skipped(5, "", "caption is not text"),
    ]
    assert store.made_with == {"normalized": False, "imported_from": "arrays and JSON"}


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8"])
def test_any_precision(tmp_path: Path, dtype: str) -> None:
    rows = np.asfortranarray(embeddings(3).astype(dtype))
    array, captions = written(tmp_path / "data", ["A.", "B.", "C."], rows)
    assert np.array_equal(
        imported(tmp_path / "store", array, captions=[captions]).split("train").embeddings[:], embeddings(3)
    )


@pytest.mark.parametrize("names", [["embeddings", "other"], ["anything"]])
def test_npz(tmp_path: Path, names: list[str]) -> None:
    _, captions = written(tmp_path / "data", ["A.", "B."])
    arrays = dict(zip(names, [embeddings(2, 5), np.zeros(9)], strict=False))
    np.savez_compressed(tmp_path / "rows.npz", **arrays)
    store = imported(tmp_path / "store", tmp_path / "rows.npz", captions=[captions])
    assert np.array_equal(store.split("train").embeddings[:], embeddings(2, 5))


def test_several_files_by_command(tmp_path: Path, run: Run) -> None:
    one, first = written(tmp_path / "one", ["A.", "B."])
    two, second = written(tmp_path / "two", [{"caption": "", "split": "test"}, "D."], embeddings(2, 1))
    options = ("--captions", first, "--captions", second, "--encoder", "demo", "--store", tmp_path / "store")
    code, out, err = run("import-features", f"train={one}", f"val={two}", *options)
    assert (code, err) == (0, "")
    assert out == (
        f"images: train 2, val 1; captions: 3\nskipped: 1, see {tmp_path / 'store' / 'skipped.csv'}\n"
        f"  2: empty caption\nstore: {tmp_path / 'store'} (0.0 MB)\n"
    )
    assert FeatureStore(tmp_path / "store").split("val").references() == {3: ["D."]}
    assert FeatureStore(tmp_path / "store").source == f"arrays and JSON {one}, arrays and JSON {two}"
    second.write_text(json.dumps(["C.", "E."]))
    assert "holds the feature store of another job" in run("import-features", f"train={one}", f"val={two}", *options)[2]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["A."], r"captions\.json has 1 entries, but .*rows\.npy has 2 rows"),
        ({"a": 1, "b": 2}, r"captions\.json is no JSON list"),
        (["A.", 7], r"captions\.json: entry 1 is neither a caption"),
        (["A.", {"text": "B."}], r"captions\.json: entry 1 is neither a caption"),
        ([{"caption": "A.", "id": True}, "B."], r"rows\.npy, row 0: the id True is neither"),
        ([{"caption": "A.", "id": None}, "B."], r"rows\.npy, row 0: the id None is neither"),
        ([{"caption": "A.", "id": 2**63}, "B."], r"the id 9223372036854775808 is neither"),
        ([{"caption": "A.", "id": "\ud800"}, "B."], r"the id '\\ud800' is neither"),
        ([{"caption": "A.", "id": "a"}, "B."], r"row 1: the id 1 is a number, but those before"),
        ([{"caption": "A.", "id": 1}, "B."], r"row 1: the id 1 comes twice"),
        ([{"caption": "A.", "file": ["a"]}, "B."], r"row 0: the file \['a'\] is no text"),
        ([{"caption": "A.", "split": "a\0"}, "B."], r"row 0: the split 'a\\x00' is no text"),
    ],
)
def test_what_entries_may_have_wrong(tmp_path: Path, entries: Any, message: str) -> None:
    array, captions = written(tmp_path / "data", entries, embeddings(2))
    with pytest.raises(InputError, match=message):
        imported(tmp_path / "store", array, captions=[captions])


def test_neighbouring_negative_ids_are_two(tmp_path: Path) -> None:
    """Python's hashes of -1 and -2 are the same."""
    array, captions = written(tmp_path / "data", [{"caption": "A.", "id": -1}, {"caption": "B.", "id": -2}])
    assert imported(tmp_path / "store", array, captions=[captions]).split("train").ids == [-1, -2]


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


def test_pickled_objects_are_not_opened(tmp_path: Path) -> None:
    trap = np.array([[Trap(tmp_path / "sprung")]], object)
    array, captions = written(tmp_path / "data", ["A."])
    np.save(array, trap, allow_pickle=True)
    np.savez(tmp_path / "rows.npz", embeddings=trap)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for path in (array, tmp_path / "rows.npz", tmp_path / "pickle.npy"):
        with pytest.raises(InputError, match=r"rows\.np.|pickle\.npy"):
            imported(tmp_path / "store", path, captions=[captions])
    assert not (tmp_path / "sprung").exists()
    np.load(array, allow_pickle=True)
    assert (tmp_path / "sprung").exists()  # it does spring where it may


def test_other_contents(tmp_path: Path) -> None:
    _, captions = written(tmp_path / "data", ["A.", "B."])
    np.savez(tmp_path / "two.npz", a=embeddings(2), b=embeddings(2))
    with pytest.raises(InputError, match=r"two\.npz has the arrays a, b: name the embeddings"):
        imported(tmp_path / "store", tmp_path / "two.npz", captions=[captions])
    np.save(tmp_path / "ints.npy", np.ones((2, DEMO.dim), np.int64))
    with pytest.raises(InputError, match=r"ints\.npy holds int64 of shape"):
        imported(tmp_path / "store", tmp_path / "ints.npy", captions=[captions])
    (tmp_path / "text.npz").write_text("embeddings")
    with pytest.raises(InputError, match=r"text\.npz cannot be read"):
        imported(tmp_path / "store", tmp_path / "text.npz", captions=[captions])
    content = (tmp_path / "two.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cut\.npz cannot be read"):
        imported(tmp_path / "store", tmp_path / "cut.npz", captions=[captions])
