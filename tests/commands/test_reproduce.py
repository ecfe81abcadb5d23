"""`prefixcap reproduce`: what it lists, what it refuses, and a rehearsal from nothing to a table."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.readers.demo import read_other_demo
from prefixcap.commands.reproduce.papers import Row, read_papers, rehearsal
from prefixcap.commands.reproduce.walk import Walk
from prefixcap.demo.world import write_coco
from tests.commands.conftest import Command
from tests.processes import python

PAPERS, FILES = read_papers()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_list_counts_the_files_that_are_there(command: Command) -> None:
    folder = Path("data/flickr30k")
    folder.mkdir(parents=True)
    (folder / "dataset_flickr30k.json").touch()
    lines = {line.split()[0]: line for line in command("reproduce").out.splitlines() if line}
    assert lines.keys() == PAPERS.keys() | {"prefixcap"}
    assert "1 of 7 files" in lines["magic"] and "0 of 5 files" in lines["zerocap"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["clipcup"], "there is no paper 'clipcup': choose from clipcap, maccap, "),
        (["clipcap", "--only", "mpl"], "clipcap has no row 'mpl': choose from transformer, mlp-tuned, "),
        (["maccap", "--only", "CapDec"], "the rows of maccap are systems: use `prefixcap compare-systems`"),
        (["clipcap", "--only", "mlp"], "missing: data/coco/train2014, .*: docs/reproduce/clipcap.md says"),
    ],
)
def test_mistakes(command: Command, words: list[str], problem: str) -> None:
    result = command("reproduce", *words)
    assert result.status == 2 and re.match(f"error: {problem}", result.err) and result.err.count("\n") == 1
    assert not Path("runs").exists()


def test_rows_alone_need_only_their_data() -> None:
    walk = Walk(PAPERS["clipcap"].only(["conceptual-transformer"]), FILES, Path("runs"))
    assert walk.files() == ["data/cc3m"] and "embed data=cc3m" in walk.described()
    assert "data=coco" not in walk.described() and "nocaps" not in walk.described()


def test_a_rehearsal_needs_no_files_and_reads_only_the_small_world() -> None:
    for paper in PAPERS.values():
        described = Walk(rehearsal(paper), FILES, Path("runs")).described()
        assert "missing" not in described and set(re.findall(r"data=(\S+)", described)) <= {"demo", "demo_other"}
        assert not re.search(r"lm=(?!demo|runs/)|encoder=(?!demo)|gpt-neo|--source (?!demo_other)", described)


def test_rows_with_the_same_training_share_a_run() -> None:
    row = Row(("data=demo", "seed=1"), ("data=demo",), {})
    paper = replace(PAPERS["clipcap"], rows={"a": row, "b": replace(row, train=("data=demo",)), "c": row})
    walk = Walk(paper, FILES, Path("runs"))
    assert [walk.run_of(row).name for row in paper.rows.values()] == ["a", "b", "a"]


@pytest.fixture
def _small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pictures and sentences, where a rehearsal finds its data or else writes them."""
    sizes = {"train": {"in-domain": 150}, "val": {"in-domain": 20}, "test": {"in-domain": 2}}
    monkeypatch.setattr("prefixcap.demo.world.SPLITS", sizes)
    write_coco(Path("data/demo"))
    read_other_demo("data/demo_other", scenes=50)


def forked(words: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a command as `subprocess.run` does, in a process that has everything imported."""
    assert words[0] == sys.executable
    return python(*words[1:], cwd=Path.cwd())


@pytest.mark.slow
@pytest.mark.usefixtures("_small_world")
def test_a_rehearsal_ends_with_its_table_and_runs_nothing_twice(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains a captioner for a hundred steps, and the second time each step starts Python anew, as for users."""
    words = ["reproduce", "clipcap", "--rehearse", "--only", "mlp-tuned", "--by", "Ada L."]
    with monkeypatch.context() as patch:
        patch.setattr("subprocess.run", forked)
        first = command(*words)
    assert first.status == 0, first.err
    assert re.findall(r"^\$ prefixcap (\S+)", first.out, flags=re.MULTILINE) == ["embed", "embed", "train", "eval"]
    folder = Path("runs/reproduce/clipcap-rehearsal")
    table = (folder / "table.md").read_text()
    scores = json.loads((folder / "eval/mlp-tuned/metrics.json").read_text())
    assert f"| {scores['BLEU-4']:.3f}  | {scores['CIDEr']:.3f} |" in table and scores["CIDEr"] > 0.1
    assert re.search(r"\| Ada L\., 20\d\d-\d\d-\d\d, prefixcap [\d.]+, .*, 0\.\d\d hours +\|", table)
    again = command(*words)
    assert again.status == 0, again.err
    assert re.findall(r"^\$ prefixcap (\S+)", again.out, flags=re.MULTILINE) == ["embed", "embed"]
    assert (folder / "table.md").read_text() == table
