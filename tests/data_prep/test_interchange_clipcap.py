"""ClipCap's pickles to the store: what is in them is read, and no code of theirs runs."""

import builtins
import io
import os
import pickle
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefixcap.errors import InputError
from prefixcap.store import FeatureStore, Skipped
from tests.data_prep.test_interchange import DEMO, Run, embeddings, imported, run

__all__ = ["run"]  # a fixture


def published(ids: list[Any], dtype: torch.dtype = torch.float16, seed: int = 0) -> dict[str, Any]:
    """As parse_coco.py makes it: a row a caption, the same for the captions of one image."""
    images = list(dict.fromkeys(ids))
    rows = torch.from_numpy(embeddings(len(images), seed))[[images.index(image_id) for image_id in ids]]
    captions = [
        {"image_id": image_id, "id": 1000 + row, "caption": f"Caption {row}.\n", "clip_embedding": row}
        for row, image_id in enumerate(ids)
    ]
    return {"clip_embedding": rows.to(dtype), "captions": captions}


def plain(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def oldest(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=3))


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


WRITERS: list[Callable[[Any, Path], None]] = [plain, oldest, torch.save, legacy]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_rows_of_an_image_become_one(tmp_path: Path, write: Callable[[Any, Path], None], dtype: torch.dtype) -> None:
    content = published([9, 4, 9, 4, 9, 5], dtype)
    content["captions"][3]["caption"] = " "
    write(content, tmp_path / "train.pkl")
    store = imported(tmp_path / "store", tmp_path / "train.pkl")
    split = store.split("train")
    assert list(split.references().items()) == [
        (9, ["Caption 0.", "Caption 2.", "Caption 4."]),
        (4, ["Caption 1."]),
        (5, ["Caption 5."]),
    ]
    assert np.array_equal(split.embeddings[:], torch.from_numpy(embeddings(3)).to(dtype).half().numpy())
    assert store.skipped() == [Skipped(4, "", "empty caption")]
    assert store.made_with == {"normalized": False, "imported_from": "ClipCap"}


def test_two_splits_by_command(tmp_path: Path, run: Run) -> None:
    plain(published(["00000007", "00000007", "00000003"]), tmp_path / "a.pkl")
    torch.save(published(["00000001"], seed=1), tmp_path / "b.pt")
    options = ("--encoder", "demo", "--store", tmp_path / "store")
    code, out, err = run("import-features", f"train={tmp_path / 'a.pkl'}", f"val={tmp_path / 'b.pt'}", *options)
    assert (code, err) == (0, "")
    assert out == f"images: train 2, val 1; captions: 4\nstore: {tmp_path / 'store'} (0.0 MB)\n"
    assert FeatureStore(tmp_path / "store").split("train").ids == ["00000007", "00000003"]
    assert np.array_equal(FeatureStore(tmp_path / "store").split("val").embeddings[:], embeddings(1, 1))


def test_containers_around_tensors(tmp_path: Path) -> None:
    content = OrderedDict(published([1, 2]))
    content["clip_embedding"] = content["clip_embedding"].float().requires_grad_()
    plain(content, tmp_path / "a.pkl")
    assert imported(tmp_path / "store", tmp_path / "a.pkl").split("train").ids == [1, 2]


def test_rows_of_one_image_that_differ(tmp_path: Path) -> None:
    content = published(["a", "b", "a", "b"], torch.float32)
    content["clip_embedding"][2] *= 1 + 5e-4  # rounding
    plain(content, tmp_path / "a.pkl")
    assert imported(tmp_path / "store", tmp_path / "a.pkl").split("train").ids == ["a", "b"]
    content["clip_embedding"][3] *= 1 + 2e-3
    plain(content, tmp_path / "b.pkl")
    with pytest.raises(InputError, match=r"b\.pkl: image 'b' has embeddings that differ \(row 3 from its first\)"):
        imported(tmp_path / "other", tmp_path / "b.pkl")


def test_an_image_that_is_not_finite(tmp_path: Path) -> None:
    content = published([1, 2, 1])
    content["clip_embedding"][[0, 2]] = float("inf")
    plain(content, tmp_path / "a.pkl")
    store = imported(tmp_path / "store", tmp_path / "a.pkl")
    assert store.split("train").ids == [2]
    assert store.skipped() == [Skipped(1, "", "embedding is not finite")]


def changed(**entry: Any) -> dict[str, Any]:
    content = published([1, 2])
    content["captions"][1] |= entry
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(clip_embedding=2), r"entry 1 of `captions` \(image 2\) points to row 2, but there are 2 embeddings"),
        (changed(clip_embedding=-1), r"\(image 2\) points to row -1"),
        (changed(clip_embedding=True), r"points to row True"),
        (changed(clip_embedding="1"), r"points to row '1'"),
        (changed(image_id=1.0), r"'image_id' must be a 64-bit integer or a string, not 1\.0"),
        (changed(image_id="1"), r"the id '1' is a text, but"),
        ({"clip_embedding": torch.ones(2, 5), "captions": []}, r"width 5, but encoder demo"),
        ({"clip_embedding": torch.ones(2, DEMO.dim).long(), "captions": []}, r"holds int64"),
        ({"clip_embedding": torch.ones(2, DEMO.dim), "captions": []}, r"a\.pkl holds no embeddings"),
        ({"clip_embedding": torch.ones(1, DEMO.dim), "captions": ["A."]}, r"entry 0 of `captions` is no dictionary"),
        ({"clip_embedding": torch.ones(1, DEMO.dim), "captions": [{"image_id": 1}]}, "lacks the key 'clip_embedding'"),
        ({"clip_embedding": [1.0], "captions": []}, r"a\.pkl is no ClipCap file"),
        ({"captions": []}, r"a\.pkl is no ClipCap file"),
        ([1, 2], r"a\.pkl is no ClipCap file"),
    ],
)
@pytest.mark.parametrize("write", [plain, torch.save])
def test_what_may_be_wrong(tmp_path: Path, write: Callable[[Any, Path], None], content: Any, message: str) -> None:
    write(content, tmp_path / "a.pkl")
    with pytest.raises(InputError, match=message):
        imported(tmp_path / "store", tmp_path / "a.pkl")


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04}", b"PK\x03\x04", b"\x80\x04" + b"(" * 99, b"\x80\x04N."])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pkl (cannot be read as a pickle|is no ClipCap file)"):
        imported(tmp_path / "store", tmp_path / "a.pkl")
    torch.save(published([1, 2]), tmp_path / "b.pt")
    whole = (tmp_path / "b.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"b\.pt cannot be read as a pickle"):
        imported(tmp_path / "store", tmp_path / "b.pt")


class Call:
    """Unpickled by Python itself, it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def traps(file: Path) -> list[tuple[Call, str]]:
    """What would make `file`, and how the refusal names it; torch.save leaves out the module of what is built in."""
    make = f"touch {file}"
    return [
        (Call(os.system, make), r"(posix|os)\.system"),
        (Call(builtins.eval, f"open({str(file)!r}, 'w')"), r"(builtins\.)?eval"),
        (Call(builtins.exec, f"open({str(file)!r}, 'w')"), r"(builtins\.)?exec"),
        (Call(subprocess.Popen, ["touch", str(file)]), r"(subprocess|commands)\.Popen"),
        (Call(Path.touch, file), r"((builtins\.)?getattr|pathlib\.[\w.]+)"),
    ]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("write", WRITERS)
def test_code_is_refused_by_name(tmp_path: Path, write: Callable[[Any, Path], None], number: int) -> None:
    trap, name = traps(tmp_path / "sprung")[number]
    for content in (trap, published([1]) | {"more": trap}, changed(caption=trap)):
        write(content, tmp_path / "a.pkl")
        with pytest.raises(InputError, match=rf"a\.pkl asks for {name}, which .*: nothing of it was run"):
            imported(tmp_path / "store", tmp_path / "a.pkl")
        with pytest.raises(InputError, match="asks for"):  # whatever the suffix
            (tmp_path / "a.pkl").rename(tmp_path / "a.pt")
            imported(tmp_path / "store", tmp_path / "a.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("write", WRITERS)
def test_code_inside_the_bytes_of_a_tensor(tmp_path: Path, write: Callable[[Any, Path], None], number: int) -> None:
    """A plain pickle has each tensor's storage as bytes that torch.load opens: those may be anything."""
    trap, name = traps(tmp_path / "sprung")[number]
    write(trap, tmp_path / "nested")
    inner = (tmp_path / "nested").read_bytes()
    plain({"clip_embedding": Call(torch.storage._load_from_bytes, inner), "captions": []}, tmp_path / "a.pkl")
    with pytest.raises(
        InputError, match=rf"a\.pkl asks for {name}, which" if write in (torch.save, legacy) else "a.pkl"
    ):
        imported(tmp_path / "store", tmp_path / "a.pkl")
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_written_by_hand(tmp_path: Path) -> None:
    for code, name in (
        (b"cos\nsystem\n(Vtouch %s\ntR.", r"os\.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x0bos.system()\x93.", r"builtins\.os\.system\(\)"),
        (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", r"torch\._utils\._rebuild_tensor_v2\.__globals__"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.", r"collections\.OrderedDict\.__init__"),
        (b"ctorch.serialization\nload\n.", r"torch\.serialization\.load"),
    ):
        (tmp_path / "a.pkl").write_bytes(code.replace(b"%s", str(tmp_path / "sprung").encode()))
        with pytest.raises(InputError, match=rf"a\.pkl asks for {name}, which"):
            imported(tmp_path / "store", tmp_path / "a.pkl")
    assert not (tmp_path / "sprung").exists()


def test_what_a_pickle_is_given_cannot_be_changed(tmp_path: Path) -> None:
    """The opcode BUILD sets attributes of functions too."""
    code = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x05\x00\x00\x00spellK\x01s\x86b."
    (tmp_path / "a.pkl").write_bytes(code)
    assert pickle.load(io.BytesIO(code)).spell == 1
    del torch._utils._rebuild_tensor_v2.spell
    with pytest.raises(InputError, match=r"a\.pkl is no ClipCap file"):
        imported(tmp_path / "store", tmp_path / "a.pkl")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "spell")


def test_the_traps_do_spring(tmp_path: Path) -> None:
    for number in range(5):
        trap, _ = traps(tmp_path / str(number))[number]
        result = pickle.loads(pickle.dumps(trap))
        if isinstance(result, subprocess.Popen):
            result.wait()
        assert (tmp_path / str(number)).exists()
