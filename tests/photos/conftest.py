"""In the place of the captioner that comes with the package, a small one of the small world."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prefixcap import photos
from prefixcap.captioner import Captioner
from prefixcap.encoders import load_encoder
from prefixcap.language import load_language_model

# What tests need of the commands.
from tests.commands.conftest import command, mistaken

__all__ = ["command", "mistaken"]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    lm, encoder = load_language_model("demo", "full"), load_encoder("demo").identity
    captioner = Captioner(lm, encoder, {"name": "mlp", "prefix_length": 4}, low_similarity=0.05)
    folder = tmp_path_factory.mktemp("made") / "captioner"
    captioner.save_pretrained(folder, dtype="float16")
    photos.write_digests(folder)
    return folder


@pytest.fixture
def bundled(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the small captioner, which may be changed; the tests work in an empty folder."""
    folder = tmp_path / "package" / "captioner"
    shutil.copytree(made, folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(photos, "CAPTIONER", folder)
    photos.require_captioner.cache_clear()
    yield folder
    photos.require_captioner.cache_clear()
