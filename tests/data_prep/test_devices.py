"""The work shared by processes: Lightning's own launch, and jobs of Hydra's submitit launcher."""

import io
import tarfile
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from tests.conftest import ROOT
from tests.data_prep.test_embed import contents
from tests.e2e.test_commands import succeed


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four tars of five noisy images, as img2dataset writes them."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for image in range(5):
                file = io.BytesIO()
                Image.effect_noise((70, 60), 20 + 5 * number + image).save(file, "JPEG")
                add(tar, f"{number:05d}{image:04d}.jpg", file.getvalue())
                add(tar, f"{number:05d}{image:04d}.txt", f"noise {image}".encode())
    return folder


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.slow
def test_two_processes_and_two_jobs_make_the_same_store_as_one(shards: Path, tmp_path: Path) -> None:
    """Slow because the launchers start Python anew: Lightning for its second process, submitit for each job."""
    command = ["-m", "data_prep.embed", "data=cc3m", f"data.root={shards}", "encoder=demo", "trainer.accelerator=cpu"]
    stores = {name: tmp_path / name for name in ("alone", "processes", "jobs")}
    succeed(*command, f"data.store={stores['alone']}")
    printed = succeed(*command, f"data.store={stores['processes']}", "trainer.devices=2")
    assert printed.count("store: ") == 1 and "captions: 20" in printed
    logs = tmp_path / "logs"
    jobs = ["hydra/launcher=submitit_local", "task=range(0,2)", "tasks=2", f"hydra.sweep.dir={logs}", "--multirun"]
    succeed(*command, f"data.store={stores['jobs']}", *jobs)
    assert len(list(logs.rglob("*_result.pkl"))) == 2
    for name in ("processes", "jobs"):
        assert contents(stores[name]) == contents(stores["alone"])


def test_an_array_of_slurm_jobs() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"]
        launcher = compose("embed", overrides, return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.gpus_per_node, launcher.partition) == (1, "gpu")
