"""Files that cannot be written, and how much of the machine may be used."""

import csv
import errno
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from prefixcap.captioner import Captioner
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.language import load_language_model
from prefixcap.sharing.export import export_onnx, export_program
from prefixcap.training.checkpoints import AtomicCheckpointIO
from prefixcap.utils import hardware
from prefixcap.utils.files import (
    Journal,
    atomic_write,
    atomic_write_folder,
    atomic_write_text,
    no_space,
    parse_json,
    read_table,
    temporary_path,
    write_table,
)


def test_what_stands_in_the_way_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for name, reason in (
        ("file/new", "a file stands where its folder belongs"),
        ("file/below/new", "a file stands where its folder belongs"),
        ("folder", "a folder stands there"),
        ("x" * 250, "the name is too long"),
    ):
        with pytest.raises(InputError, match=f"^cannot write {tmp_path / name}: {reason}; .*again$"):
            atomic_write_text(tmp_path / name, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "x"


def test_a_disk_that_can_only_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the disk can only be read"), atomic_write(tmp_path / "new"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    with pytest.raises(OSError, match="Input/output"), atomic_write(tmp_path / "new"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_journal_goes_on_after_a_line_that_was_cut_short(tmp_path: Path) -> None:
    file, job = tmp_path / "new" / "written.jsonl", {"beams": 5, "forbidden": ("a", "b")}
    Journal(file, job).add({3: "a star", "x": "é\n"})
    assert Journal(file, job).results == {3: "a star", "x": "é\n"}
    whole = file.read_bytes()
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        journal = Journal(file, job)
        assert list(journal.results.items()) == [(3, "a star"), ("x", "é\n")][: max(0, whole[:cut].count(b"\n") - 1)]
        journal.add({"x": "é\n"})
        assert Journal(file, job).results["x"] == "é\n"
    file.write_bytes(whole)
    with pytest.raises(InputError, match=r"written\.jsonl holds results with other settings: name another folder"):
        Journal(file, {"beams": 4})
    assert file.read_bytes() == whole
    anew = Journal(file, {"beams": 4}, anew=True)
    assert not anew.results and file.read_bytes() == whole  # until there is something else to keep
    anew.add({7: "a moon"})
    assert Journal(file, {"beams": 4}).results == {7: "a moon"}


@pytest.mark.parametrize(
    ("text", "processors"),
    [("max 100000\n", None), ("max", None), ("200000 100000\n", 2), ("150000 100000\n", 2), ("50000 100000\n", 1)],
)
def test_processors_that_a_container_grants(text: str, processors: int | None) -> None:
    assert hardware.cpus_of_quota(text) == processors
    assert 1 <= hardware.cpu_count() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "too many digits"),
        ('{"a": "\\UD83D"}', "line 1"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"a": "\xff"}', "UTF-8"),
        ('{"a": 1', "line 1"),
        ("", "line 1"),
    ],
)
def test_json_that_python_stumbles_over_is_told_in_one_line(text, problem):
    with pytest.raises(InputError, match=f"^x.json is not .*{problem}"):
        parse_json(text, "x.json")


def test_json_is_read_with_pairs_of_surrogates_and_a_byte_order_mark():
    assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}', "x.json") == {"a": "😀"}


def test_a_new_file_has_the_mode_that_open_gives(tmp_path: Path) -> None:
    """Also one that a library writes by way of a file of its own, which others cannot read."""
    weights = {"a": torch.zeros(2)}
    save_file(weights, tmp_path / "private")
    before = os.umask(0o027)
    try:
        (tmp_path / "plain").write_text("x")
        atomic_write_text(tmp_path / "text", "x")
        for _ in range(2):  # the second takes the place of the first
            with atomic_write(tmp_path / "weights") as temporary:
                save_file(weights, temporary)
            with atomic_write_folder(tmp_path / "folder") as temporary:
                (temporary / "in").mkdir(parents=True)
                save_file(weights, temporary / "in" / "weights")
    finally:
        os.umask(before)
    plain = (tmp_path / "plain").stat().st_mode
    assert plain & 0o777 == 0o640
    for name in ("text", "weights", "folder/in/weights"):
        assert (tmp_path / name).stat().st_mode == plain, name


def left_by(process: int, path: Path, machine: str | None = None, folder: bool = False) -> Path:
    """What another process has written of what is to become `path`."""
    own = temporary_path(path).name.removesuffix(f".{os.getpid()}.tmp")
    start = own if machine is None else f".{path.name}.{machine}"
    leftover = path.with_name(f"{start}.{process}.tmp")
    if folder:
        leftover.mkdir()
        (leftover / "weights").write_text("half")
    else:
        leftover.write_text("half")
    return leftover


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path: Path) -> None:
    path, week = tmp_path / "last.ckpt", 7 * 24 * 3600
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    killed.kill()
    killed.wait()
    running = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        gone = [left_by(killed.pid, path), left_by(10**9, path, folder=True), left_by(7, path, "old.node.example")]
        os.utime(gone[-1], (0, time.time() - week - 60))
        kept = [
            left_by(running.pid, path),
            left_by(killed.pid, path, "other.node.example"),  # it may run there
            left_by(killed.pid, tmp_path / "best.ckpt"),
            left_by(killed.pid, tmp_path / "x.last.ckpt"),
        ]
        os.utime(kept[1], (0, time.time() - week + 60))
        for name in (".last.ckpt.tmp", ".last.ckpt.notes.tmp", "last.ckpt.host.1.tmp", ".last.ckpt.host.1.tmp~"):
            (tmp_path / name).write_text("somebody's")
            kept.append(tmp_path / name)
            os.utime(kept[-1], (0, 0))
        atomic_write_text(path, "whole")
        assert not [leftover for leftover in gone if leftover.exists()]
        assert {file.name for file in tmp_path.iterdir()} == {path.name, *(leftover.name for leftover in kept)}
    finally:
        running.kill()
        running.wait()


KILLED_WHILE_WRITING = """
import os, signal, sys, pathlib, prefixcap.utils.files
with prefixcap.utils.files.atomic_write(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_as_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    atomic_write_text(path, "before")
    process = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, path])
    assert process.returncode == -signal.SIGKILL
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 2
    atomic_write_text(path, "after")
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"] and path.read_text() == "after"


@pytest.fixture(params=["disk", "limit"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder in which 300 kB have room, and no more: a small disk, where one may be mounted, or by a limit."""
    if request.param == "limit":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        try:
            yield tmp_path
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_told_and_what_stood_there_is_kept(full: Path) -> None:
    tensors = {"weight": torch.randn(200_000)}  # 800 kB
    for name in ("a", "b"):
        (full / name).write_text("before")

    def by_safetensors(path: Path) -> None:
        with atomic_write(path) as temporary:
            save_file(tensors, temporary)

    def by_text(path: Path) -> None:
        atomic_write_text(path, "x" * 800_000)

    def by_torch(path: Path) -> None:
        AtomicCheckpointIO().save_checkpoint({"state_dict": tensors}, path)

    def in_a_folder(path: Path) -> None:
        with atomic_write_folder(path.with_name("folder")) as temporary:
            temporary.mkdir()
            save_file(tensors, temporary / "weights")

    def in_a_journal(path: Path) -> None:
        journal = Journal(path.with_name("journal.jsonl"), {})
        journal.add({1: "x" * 800_000})

    for write in (by_safetensors, by_text, by_torch, in_a_folder, in_a_journal):
        with pytest.raises(InputError, match=r"^cannot write .*: no space left on the disk; .*again$") as told:
            write(full / "a")
        assert "\n" not in str(told.value)
        (full / "journal.jsonl").unlink(missing_ok=True)
        assert {file.name for file in full.iterdir()} - {"disk"} == {"a", "b"}, write
        assert (full / "a").read_text() == "before"


@pytest.mark.slow
@pytest.mark.parametrize("full", ["limit"], indirect=True)
def test_captioners_and_exports_on_a_full_disk(full: Path) -> None:
    encoder, mapper = load_encoder("demo"), {"name": "mlp", "prefix_length": 2}
    captioner = Captioner(load_language_model("demo", "full"), encoder.identity, mapper)
    (full / "shared").mkdir()
    (full / "shared" / "mine.txt").write_text("before")
    with pytest.raises(InputError, match=r"^cannot write .*: no space left on the disk"):
        captioner.save_pretrained(full / "shared")
    assert [file.name for file in (full / "shared").iterdir()] == ["mine.txt"]
    for export in (export_program, export_onnx):
        with pytest.raises(InputError, match=r"^cannot write .*: no space left on the disk") as told:
            export(captioner, full / "exported")
        assert "\n" not in str(told.value) and not (full / "exported").exists()
        assert not list(full.glob(".exported*"))


def test_no_space_is_what_led_to_another_error() -> None:
    full = OSError(errno.ENOSPC, "full")
    for other in (OSError(errno.EACCES, "no"), RuntimeError("x"), ValueError("os error 28"), OSError("(os error 5)")):
        assert not no_space(other)
    for error in (full, RuntimeError("I/O error: File too large (os error 27)"), OSError(errno.EDQUOT, "quota")):
        assert no_space(error)
        outer = RuntimeError("writer failed")
        outer.__context__ = error
        assert no_space(outer)


@settings(max_examples=50, derandomize=True, database=None, deadline=None)
@given(st.lists(st.tuples(st.text(), st.floats(allow_nan=False)), min_size=1))
@example([("=1+1", -0.3), ("'=1", 1e-9), ("''-x", 0.0), ("\t=1", -1.0), ("\uff1d1", 2.0), ("a;=1", 3.0), ("", 4.0)])
def test_texts_in_tables_come_back_and_none_begins_as_a_formula(rows: list[tuple[str, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.csv"
        write_table(file, [Cell(text.replace("\r", " ").replace("\0", " "), score) for text, score in rows])
        found = read_table(file, Cell)
        cells = [row[0] for row in csv.reader(io.StringIO(file.read_text(encoding="utf-8"), newline=""))][1:]
    assert found == [Cell(text.replace("\r", " ").replace("\0", " "), score) for text, score in rows]
    assert not any(cell.startswith(tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")) for cell in cells)


@dataclass
class Cell:
    text: str
    score: float
