"""The `prefixcap` command in the tests' own process, pictures, and a checkpoint that writes quickly."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from prefixcap import commands
from prefixcap.captioner import Captioner
from prefixcap.encoders import load_encoder
from prefixcap.language import load_language_model


class Result(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Result]

QUICK = ("--decode", "greedy", "--set", "max_tokens=4")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `prefixcap` with these words."""

    def run(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["prefixcap", *map(str, words)])
        status = 0
        try:
            commands.main()
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture
def mistaken(command: Command) -> Callable[..., str]:
    """Run `prefixcap` with a mistake; give the one line on stderr."""

    def run(*words: object) -> str:
        status, out, err = command(*words)
        assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return run


@pytest.fixture(scope="session")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a run's folder, what training writes of a captioner with random weights and the small world's encoder."""
    torch.manual_seed(0)
    lm, encoder = load_language_model("demo"), load_encoder("demo")
    captioner = Captioner(lm, encoder.identity, {"name": "mlp", "prefix_length": 4}, trained_on={"data": "test"})
    file = tmp_path_factory.mktemp("run") / "checkpoints" / "best.ckpt"
    file.parent.mkdir()
    weights = {f"captioner.{name}": weight for name, weight in captioner.checkpoint_state_dict().items()}
    state = {"prefixcap": captioner.describe(), "state_dict": weights, "epoch": 1, "global_step": 2000}
    torch.save(state, file)
    return file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of five pictures in two folders, with names that tools stumble over, and other files."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    names = ("a b.png", "line\nbreak.png", "naïve 写真.jpg", "more/UPPER.JPG", "more/[x] tab\t.png")
    for number, name in enumerate(names):
        Image.radial_gradient("L").rotate(36 * number).convert("RGB").save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes((folder / "a b.png").read_bytes())
    return folder
