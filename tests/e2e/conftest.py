"""Scripts that run in the tests' own process, in a folder where the small world has few pictures."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefixcap.demo.scenes import DOMAINS
from tests.conftest import run_script
from tests.e2e.browser import Browser

Script = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scripts of a module's tests run."""
    return tmp_path_factory.mktemp("scripts")


@pytest.fixture
def script(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Run a script with options; give what it prints."""
    sizes = {"train": {"in-domain": 40}, "val": {"in-domain": 6}, "test": dict.fromkeys(DOMAINS, 3)}
    monkeypatch.setattr("prefixcap.demo.world.SPLITS", sizes)
    monkeypatch.chdir(folder)

    def run(name: str, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *options])
        run_script(name)
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
