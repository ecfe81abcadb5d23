"""The notebooks run from their first cell to the last, in a kernel of their own and an empty folder.

Left out is only the cell that installs the package.
"""

import csv
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT
from tests.processes import python

NOTEBOOKS = ROOT / "notebooks"

COMMAND = """#!{interpreter} -IS
import os, sys
from multiprocessing.connection import Client
with Client({address!r}, authkey=b"test") as connection:
    connection.send((sys.argv[1:], os.getcwd(), dict(os.environ)))
    status, printed, errors = connection.recv()
sys.stderr.write(errors)
sys.stderr.flush()
sys.stdout.write(printed)
sys.exit(status)
"""


@pytest.fixture
def _command(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The `prefixcap` of the PATH is a program that asks this process to fork the command.

    To start Python anew for each would take most of the time.
    """
    folder = tmp_path_factory.mktemp("bin")
    address, program = str(folder / "socket"), folder / "prefixcap"
    program.write_text(COMMAND.format(interpreter=sys.executable, address=address))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join((str(folder), os.environ["PATH"])))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with Listener(address, authkey=b"test") as listener:

        def serve() -> None:
            while True:
                with listener.accept() as connection:
                    if (asked := connection.recv()) is None:
                        return
                    words, cwd, environment = asked
                    done = python("-m", "prefixcap", *words, cwd=cwd, environment=environment)
                    connection.send((done.returncode, done.stdout, done.stderr))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        with Client(address, authkey=b"test") as connection:
            connection.send(None)
        thread.join()


def run(name: str, folder: Path, **parameters: int) -> str:
    """Run a notebook in a folder; -> what it prints."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbformat.validate(notebook)
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", ())]
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = "\n".join(f"{parameter} = {value}" for parameter, value in parameters.items())
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs: list[Any] = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "error:" not in printed, printed  # of a command, after which a notebook goes on
    return printed


def draw_few(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw pictures into a folder by the notebook's own cell, and keep a few: to embed and caption fifty takes long."""
    cells = [cell.source for cell in nbformat.read(NOTEBOOKS / name, as_version=4).cells if "draw(" in cell.source]
    assert len(cells) == 1
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        exec(cells[0], {})
    table = folder / "pictures" / "captions.csv"
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = list(dict.fromkeys(row["image"] for row in rows))
    splits = dict(zip(names, [*["train"] * 8, *["val"] * 2, *["test"] * 3], strict=False))
    for picture in names[len(splits) :]:
        (folder / "pictures" / picture).unlink()
    with table.open("w", newline="", encoding="utf-8") as file:
        kept = csv.writer(file)
        kept.writerow(["image", "caption", "split"])
        kept.writerows([row["image"], row["caption"], splits[row["image"]]] for row in rows if row["image"] in splits)


def test_no_outputs_are_kept() -> None:
    files = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert [file.stem for file in files] == ["compare_systems", "first_captions", "train_on_a_folder"]
    for file in files:
        cells = nbformat.read(file, as_version=4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), file.name


@pytest.mark.slow
@pytest.mark.usefixtures("_command")
def test_first_captions(tmp_path: Path) -> None:
    """Slow because a kernel starts Python anew, and it and a command open the encoder's networks."""
    (tmp_path / "pictures").mkdir()
    for name in ("chelsea", "china"):
        shutil.copy(ROOT / "docs" / "photographs" / f"{name}.jpg", tmp_path / "pictures")
    printed = run("first_captions.ipynb", tmp_path)
    assert printed.count("(low)") >= 1  # no cat was in the photographs of the training
    caption = (tmp_path / "pictures" / "china.txt").read_text(encoding="utf-8").strip()
    assert caption and caption in printed


@pytest.mark.slow
@pytest.mark.usefixtures("_command")
def test_train_on_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow because it embeds, trains and evaluates twice, each in a process that opens the encoder's networks."""
    draw_few("train_on_a_folder.ipynb", tmp_path, monkeypatch)
    printed = run("train_on_a_folder.ipynb", tmp_path, STEPS=10)
    assert "keeps encoder photo, mapper mlp, language model" in printed or "best checkpoint" in printed
    assert (tmp_path / "runs" / "mine" / "checkpoints" / "best.ckpt").is_file()
    assert printed.count("before:") == printed.count("after:") == 3


@pytest.mark.slow
@pytest.mark.usefixtures("_command")
def test_compare_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow because it embeds, and evaluates twice, each in a process that opens the captioner."""
    draw_few("compare_systems.ipynb", tmp_path, monkeypatch)
    printed = run("compare_systems.ipynb", tmp_path)
    assert "p-value" in printed and "CIDEr" in printed
    page = (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    assert '"beam"' in page and '"greedy"' in page  # the systems, by the names of their folders
