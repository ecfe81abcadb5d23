"""`python -m data_prep.verify`: it finds what is wrong, and says what to redo."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import prefixcap.store.writer
from data_prep.embedding import embed
from prefixcap.commands import main
from prefixcap.store.part import Part
from tests.data_prep.test_embed import MeanColour, dataset

Verify = Callable[..., tuple[int, str]]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verify:
    """Run the command; give its status and what it printed, without the progress bar."""

    def run(*stores: Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["verify", *map(str, stores)])
        status = 0
        try:
            main("verify")
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        printed = capsys.readouterr()
        lines = [line for line in printed.err.split("\n") if line.startswith("error: ")]
        return status, printed.out + "\n".join(lines)

    return run


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten images in two parts."""
    monkeypatch.setattr(prefixcap.store.writer, "PART_BYTES", 40)
    embed(dataset(tmp_path / "images"), MeanColour(), tmp_path / "store")
    assert (tmp_path / "store" / "part-00001.h5").exists()
    return tmp_path / "store"


def rewritten(store: Path, change: Callable[[h5py.File], None]) -> None:
    """Change the second part, and let digest and size agree again, as if a program had written it so."""
    part = store / "part-00001.h5"
    with h5py.File(part, "a") as file:
        change(file)
    index = json.loads((store / "index.json").read_text())
    index["parts"][1] |= {"digest": Part(part).digest(), "bytes": part.stat().st_size}
    (store / "index.json").write_text(json.dumps(index))


def test_a_whole_store(store: Path, check: Verify) -> None:
    code, printed = check(store)
    assert (code, printed) == (0, f"{store}: intact; train 8, val 2; captions 20; encoder mean colour\n")


def test_no_store(tmp_path: Path, check: Verify) -> None:
    assert check(tmp_path / "none") == (1, f"error: there is no feature store at {tmp_path / 'none'}; make it with "
                                        "`prefixcap embed ...`")  # fmt: skip


def test_a_flipped_bit(store: Path, check: Verify) -> None:
    part = store / "part-00001.h5"
    content = bytearray(part.read_bytes())
    place = content.index(np.full(3, 8, np.float16).tobytes())  # the embedding of the grey image 8
    content[place] ^= 1
    part.write_bytes(content)
    code, printed = check(store)
    assert (
        code == 1
        and "part-00001.h5 has changed since it was written" in printed
        and f"delete {part} and run" in printed
    )
    part.unlink()
    embed(dataset(store.parent / "images"), MeanColour(), store)
    assert check(store)[0] == 0


def test_a_missing_part(store: Path, check: Verify) -> None:
    (store / "part-00001.h5").unlink()
    code, printed = check(store)
    assert code == 1 and "part-00001.h5 is missing; run the command that made it" in printed


def set_nan(file: h5py.File) -> None:
    file["images/embedding"][1, 2] = np.nan


def set_pointer(file: h5py.File) -> None:
    file["captions/image"][-1] = 99


def set_end(file: h5py.File) -> None:
    file["captions/text_end"][-1] = 9999


def set_id(file: h5py.File) -> None:
    file["images/id"][0] = 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_nan, "1 rows of images/embedding are not finite: delete"),
        (set_pointer, "captions point to images that are not there"),
        (set_end, "the ends of the captions do not fit"),
        (set_id, "1 image ids occur twice, e.g. 0: correct the data set"),
    ],
)
def test_what_a_program_wrote_wrongly(
    store: Path, check: Verify, change: Callable[[h5py.File], None], message: str
) -> None:
    rewritten(store, change)
    code, printed = check(store)
    assert code == 1 and message in printed and printed.count("\n") == 0


def test_wrong_counts(store: Path, check: Verify) -> None:
    index = json.loads((store / "index.json").read_text())
    index["parts"][0]["captions"] += 1
    (store / "index.json").write_text(json.dumps(index))
    assert "but the index says" in check(store)[1]


def test_pieces_put_together_are_joined(tmp_path: Path, check: Verify) -> None:
    data = dataset(tmp_path / "images")
    for task in range(2):
        embed(data, MeanColour(), tmp_path / f"machine{task}", task=task, tasks=2)
    assert "lacks 2 of 4 shards" in check(tmp_path / "machine0")[1]
    shutil.copytree(tmp_path / "machine1", tmp_path / "machine0", dirs_exist_ok=True)
    code, printed = check(tmp_path / "machine0")
    assert code == 0 and "its pieces were joined" in printed
    embed(data, MeanColour(), tmp_path / "alone")
    assert check(tmp_path / "alone")[1].partition(":")[2] in printed
