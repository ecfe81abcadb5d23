"""The folder in which the documentation's examples run (see CONTRIBUTING.md): a small captioner, pictures, a store."""

import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefixcap.demo.scenes import DOMAINS
from tests.conftest import ROOT

Run = Callable[..., None]
SHORT = ("trainer.max_epochs=1", "val_max_tokens=20", "optimizer.warmup_steps=1")  # options of a training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """That folder, as the working directory."""
    folder = tmp_path_factory.mktemp("documents")
    sizes = {"train": {"in-domain": 40}, "val": {"in-domain": 6}, "test": dict.fromkeys(DOMAINS, 3)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefixcap.demo.world.SPLITS", sizes)
        patch.chdir(folder)
        run_file(ROOT / "train.py", "model=mlp", "run_dir=runs/first", *SHORT)
        shutil.copy("runs/first/checkpoints/best.ckpt", "best.ckpt")
        shutil.copy("data/demo/images/000001.jpg", "photo.jpg")
        shutil.copy("data/demo/images/000002.jpg", "another.png")
        yield folder


def run_file(path: Path, *options: str) -> None:
    """Run a file as a script, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *options])
        runpy.run_path(str(path), run_name="__main__")
