"""What a folder of clip-retrieval may have wrong, and the one line that tells it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.interchange import importing
from prefixcap.errors import InputError
from tests.data_prep.test_interchange import DEMO, Run, clip_retrieval_folder, embeddings, imported, numbered, run

__all__ = ["run"]  # a fixture


def mistakes() -> Sequence[Any]:
    good = (embeddings(3), numbered(3))
    twice = {"image_path": ["a", "b", "a"], "caption": ["A."] * 3}
    return [
        ({"0": (embeddings(3)[:, :-1], numbered(3))}, None, rf"width {DEMO.dim - 1}, but encoder demo .* {DEMO.dim}"),
        ({"0": (embeddings(4), numbered(3))}, None, r"metadata_0\.parquet has 3 rows, but .*img_emb_0\.npy has 4"),
        ({"0": good}, {"0": embeddings(2)}, r"text_emb_0\.npy has 2 rows"),
        ({"0": good, "1": good}, {"0": embeddings(3)}, "text_emb and .*img_emb do not have the same files: number 1"),
        ({"0": good, "00": good}, None, r"img_emb_0\.npy and .*img_emb_00\.npy have the same number"),
        ({"0": (embeddings(3), twice)}, None, r"img_emb_0\.npy, row 2: the id 'a' comes twice"),
        ({"0": good, "1": good}, None, r"img_emb_1\.npy, row 0: the id '0\.jpg' comes twice"),
        ({"0": good, "1": (embeddings(1), {"key": [7]})}, None, r"img_emb_1\.npy, row 0: the id 7 is a number, but"),
        ({"0": (embeddings(1), {"key": [1.5]})}, None, r"the id 1\.5 is neither"),
        ({"0": (embeddings(1), {"key": [""]})}, None, "the id '' is neither"),
        ({"0": (embeddings(1), {"key": ["a\0b"]})}, None, "is neither"),
        ({"0": (embeddings(1), {"image_path": ["a"], "split": [3]})}, None, "the split 3 is no text"),
        ({"0": (np.zeros((3, DEMO.dim), int), numbered(3))}, None, "give floating-point embeddings"),
        ({"0": (embeddings(3)[:, :, None], numbered(3))}, None, r"of shape \(3, 128, 1\)"),
        ({"0": (embeddings(0), numbered(0))}, None, "holds no embeddings"),
        (
            {"0": (embeddings(2) * np.nan, numbered(2))},
            None,
            r"no image of .* can be used; the first is '0\.jpg': embed",
        ),
        (
            {"0": (embeddings(1), {"key": ["a"], "captions": [["A.", "B."]]})},
            {"0": embeddings(1)},
            "2 captions, but text",
        ),
    ]


@pytest.mark.parametrize(("files", "texts", "message"), mistakes())
def test_what_a_folder_may_have_wrong(tmp_path: Path, files: Any, texts: Any, message: str) -> None:
    folder = clip_retrieval_folder(tmp_path / "laion", files, texts)
    with pytest.raises(InputError, match=message):
        imported(tmp_path / "store", folder)


def test_a_wrong_source_leaves_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "CHUNK", 1)
    folder = clip_retrieval_folder(tmp_path / "laion", {"0": (embeddings(3) * np.nan, numbered(3))})
    with pytest.raises(InputError, match="no image"):
        imported(tmp_path / "store", folder)
    assert not (tmp_path / "store").exists()


def test_files_that_are_missing_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = clip_retrieval_folder(tmp_path / "laion", {"0": (embeddings(50), numbered(50))})
    other = clip_retrieval_folder(tmp_path / "text", {"0": (embeddings(1), numbered(1, 90))}, {"0": embeddings(1)})
    with pytest.raises(InputError, match=r"text has text_emb and .*laion has not"):
        imported(tmp_path / "store", folder, other)
    array, table = folder / "img_emb" / "img_emb_0.npy", folder / "metadata" / "metadata_0.parquet"
    content = array.read_bytes()
    array.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"img_emb_0\.npy cannot be read as a file of numbers"):
        imported(tmp_path / "store", folder)
    array.write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        patch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(InputError, match=r"pip install 'prefixcap\[parquet\]'"):
            imported(tmp_path / "store", folder)
    damaged = bytearray(table.read_bytes())
    damaged[4:200] = bytes(196)
    table.write_bytes(damaged)
    with pytest.raises(InputError, match=r"metadata_0\.parquet cannot be read as Parquet"):
        imported(tmp_path / "store", folder)
    table.write_bytes(b"no table")
    with pytest.raises(InputError, match=r"metadata_0\.parquet cannot be read as Parquet"):
        imported(tmp_path / "store", folder)
    table.unlink()
    with pytest.raises(InputError, match="number 0 is in one only"):
        imported(tmp_path / "store", folder)
    array.unlink()
    with pytest.raises(InputError, match=r"has no file img_emb_0\.npy"):
        imported(tmp_path / "store", folder)


def test_one_line_for_mistakes(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.npy").touch()
    for source, message in [
        (tmp_path / "none.pkl", "there is no "),
        (tmp_path / "a.txt", "none of the forms that can be imported: clip-retrieval's"),
        (tmp_path, "none of the forms"),
        (tmp_path / "a.npy", "1 .npy or .npz files and 0 files of captions"),
    ]:
        code, out, err = run("import-features", source, "--store", tmp_path / "store", "--encoder", "demo")
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ") and message in err
    code, _, err = run("export-features", tmp_path / "none", tmp_path / "out")
    assert code == 2 and err.startswith("error: there is no feature store") and err.count("\n") == 1
