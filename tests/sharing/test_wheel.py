"""The wheel: it holds what the source tree holds, and its commands find their configuration elsewhere."""

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import prefixcap
from tests.conftest import ROOT

PACKAGES = ("prefixcap", "data_prep")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built of a copy, as building leaves folders in the source tree."""
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(source / "dist"),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    (file,) = (source / "dist").iterdir()
    return zipfile.ZipFile(file)


def test_every_file_of_the_packages_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    expected = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {"prefixcap/py.typed", "prefixcap/conf/train.yaml", "prefixcap/demo/assets/clip.pt"} <= expected
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected


def test_the_version_is_that_of_the_package(wheel: zipfile.ZipFile) -> None:
    described = f"prefixcap-{prefixcap.__version__}.dist-info"
    metadata = email.message_from_bytes(wheel.read(f"{described}/METADATA"))
    assert metadata["Version"] == prefixcap.__version__
    assert metadata["License-File"] == "LICENSE" and wheel.read(f"{described}/licenses/LICENSE").startswith(b"MIT")
    assert b"prefixcap = prefixcap.cli:main" in wheel.read(f"{described}/entry_points.txt")


def test_commands_work_outside_the_repository(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "installed")
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-m", "prefixcap.scripts.train", "--cfg", "job", "experiment=clipcap_coco_mlp"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(command, env=environment, cwd=tmp_path / "elsewhere", capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert "prefix_length: 10" in done.stdout and "name: coco" in done.stdout
    code = "import prefixcap; print(prefixcap.__file__)"
    where = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert Path(where.stdout.strip()).is_relative_to(tmp_path)  # not the source tree, where it is found otherwise
