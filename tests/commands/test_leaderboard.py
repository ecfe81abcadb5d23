"""`prefixcap leaderboard`: the names of systems, what it writes, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.conftest import Command
from tests.evaluation.test_leaderboard import EXACT, VAGUE, write_evaluations
from tests.evaluation.test_report import Page


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = write_evaluations(tmp_path_factory.mktemp("evaluations"), exact=EXACT, vague=VAGUE)
    return made["exact"], made["vague"]


def systems(page: Path) -> list[str]:
    named: list[str] = Page(page.read_text(encoding="utf-8")).data["systems"]
    return named


def test_page_of_two_systems(
    command: Command, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("leaderboard", *folders) == (0, "written to leaderboard.html\n", "")
    assert systems(Path("leaderboard.html")) == ["exact", "vague"]
    out = tmp_path / "deep" / "page.html"
    words = ("leaderboard", f"the one={folders[0]}", folders[1], "--out", out, "--title", "a & b")
    for _ in range(2):  # the second replaces the first
        assert command(*words).status == 0
    assert systems(out) == ["the one", "vague"] and "<h1>a &amp; b</h1>" in out.read_text(encoding="utf-8")


def test_a_folder_with_an_equals_sign(
    command: Command, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("beams=4").symlink_to(folders[0])
    Path("runs").mkdir()
    Path("runs/x=1").symlink_to(folders[1])
    assert command("leaderboard", "beams=4", "x=runs/x=1", "--out", "page.html").status == 0
    assert systems(Path("page.html")) == ["beams=4", "x"]


def test_mistakes(mistaken: Callable[..., str], folders: tuple[Path, Path], tmp_path: Path) -> None:
    exact, vague = folders
    out = ("--out", tmp_path / "page.html")
    assert "holds no evaluation" in mistaken("leaderboard", exact, tmp_path, *out)
    assert "two systems are called 'exact'" in mistaken("leaderboard", exact, exact, *out)
    assert "two systems are called 'A'" in mistaken("leaderboard", f"A={exact}", f"A={vague}", *out)
    assert "give FOLDER or NAME=FOLDER" in mistaken("leaderboard", f"={exact}", *out)
    assert "missing argument" in mistaken("leaderboard")
    report = exact / "report.html"
    before = report.read_bytes()
    assert "is no leaderboard: name another file" in mistaken("leaderboard", exact, vague, "--out", report)
    assert report.read_bytes() == before and not (tmp_path / "page.html").exists()
