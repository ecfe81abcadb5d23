"""What is distributed: the sdist and the wheel hold what the repository holds, and their commands find `conf/`."""

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import prefixcap
from tests import processes
from tests.conftest import ROOT

PACKAGES = ("prefixcap", "data_prep")
EXPERIMENTS = sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml"))
COMPOSE = """
import sys
from hydra import compose, initialize_config_dir
from prefixcap.commands.common.conf import config_folder
print(config_folder())
with initialize_config_dir(str(config_folder()), version_base="1.3"):
    for experiment in sys.argv[1:]:
        print(experiment, compose("train", [f"experiment={experiment}"]).model.mapper.name)
"""


def python(*arguments: str, **options: object) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert not done.returncode, done.stdout + done.stderr
    return str(done.stdout)


def files_below(folder: Path) -> set[str]:
    """Tracked or new files, as a zip download of the repository has them."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this repository and the wheel that is built from that sdist."""
    folder = tmp_path_factory.mktemp("built")
    python("-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (file,) = built.glob("*.whl")
    return zipfile.ZipFile(file)


@pytest.fixture(scope="module")
def sdist(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (file,) = built.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


def test_the_wheel_holds_the_packages_and_the_configuration(wheel: zipfile.ZipFile) -> None:
    expected = set().union(*(files_below(ROOT / package) for package in PACKAGES))
    expected |= {f"prefixcap/{name}" for name in files_below(ROOT / "conf")}
    assert {"prefixcap/py.typed", "prefixcap/conf/train.yaml", "prefixcap/demo/assets/clip.pt"} <= expected
    captioner = {f"prefixcap/photos/assets/captioner/{name}" for name in ("config.json", "README.md", "SHA256SUMS")}
    assert captioner <= expected and "prefixcap/photos/assets/heads.safetensors" in expected
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_the_sdist_holds_what_the_tests_need(sdist: Path) -> None:
    expected = set().union(
        *(files_below(ROOT / name) for name in (*PACKAGES, "conf", "tests", "benchmarks", "studies"))
    )
    expected |= {"pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt", "train.py", "eval.py"}
    assert not {name for name in expected if not (sdist / name).is_file()}


def test_the_metadata(wheel: zipfile.ZipFile) -> None:
    described = f"prefixcap-{prefixcap.__version__}.dist-info"
    metadata = email.message_from_bytes(wheel.read(f"{described}/METADATA"))
    assert metadata["Version"] == prefixcap.__version__
    assert metadata["License-File"] == "LICENSE" and wheel.read(f"{described}/licenses/LICENSE").startswith(b"MIT")
    assert b"prefixcap = prefixcap.commands:main" in wheel.read(f"{described}/entry_points.txt")


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_every_experiment_is_composed_from_what_is_distributed(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kind == "wheel":
        request.getfixturevalue("wheel").extractall(tmp_path / "installed")
    root = tmp_path / "installed" if kind == "wheel" else request.getfixturevalue("sdist")
    (tmp_path / "elsewhere").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(root)}
    printed = python("-c", COMPOSE, *EXPERIMENTS, env=environment, cwd=tmp_path / "elsewhere").splitlines()
    assert Path(printed[0]) == root / ("prefixcap/conf" if kind == "wheel" else "conf")
    assert [line.split()[0] for line in printed[1:]] == EXPERIMENTS and len(EXPERIMENTS) >= 20


def test_conf_is_the_real_folder_and_nothing_is_a_symbolic_link() -> None:
    """A zip download on Windows has a small text file where the repository has a symbolic link."""
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not [line for line in listed.stdout.splitlines() if line.startswith("120000")]
    assert (ROOT / "conf" / "train.yaml").is_file() and not (ROOT / "prefixcap" / "conf").exists()


def test_a_configuration_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    own = (
        "# @package _global_\ndefaults:\n  - override /model: mlp\nname: of-mine\nmodel: {mapper: {prefix_length: 7}}\n"
    )
    (tmp_path / "experiment" / "mine.yaml").write_text(own)
    words = ("--config-dir", tmp_path, "experiment=mine", "--cfg", "job")
    done = processes.python(ROOT / "train.py", *words, cwd=tmp_path)
    assert not done.returncode, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["name"] == "of-mine" and config["model"]["mapper"]["prefix_length"] == 7


def test_pre_commit_runs_the_ruff_of_the_constraints() -> None:
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert f"ruff=={hooks['rev'].removeprefix('v')}" in (ROOT / "constraints.txt").read_text().splitlines()
