"""Trackers, read back by their own tools: a run that is tracked by all of them, and goes on after it ended."""

import csv
import io
import json
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from lightning.pytorch.loggers import MLFlowLogger
from PIL import Image

from prefixcap.commands.common.trainer import open_loggers
from prefixcap.store import FeatureStore
from prefixcap.utils.images import thumbnail
from tests.conftest import ROOT
from tests.e2e.conftest import Script

NAMES = ("train_loss", "val_loss", "val_cider", "lr-AdamW")
Points = dict[str, list[tuple[int, float]]]  # by name: steps, and values there


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What anyone asked a proxy for, which the environment names while the module's tests run."""
    heard: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    heard.append(connection.recv(200).decode(errors="replace"))

        threading.Thread(target=listen, daemon=True).start()
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            patch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        patch.setenv("WANDB_MODE", "offline")  # Lightning sets it, and would leave it behind
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield heard


def logged(run: Path) -> Points:
    """What metrics.csv has."""
    points: Points = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name in NAMES:
                if row[name]:
                    points.setdefault(name, []).append((int(row["step"]), float(row[name])))
    return points


def assert_has(found: Points, run: Path) -> None:
    """All that metrics.csv has, once."""
    expected = logged(run)
    assert expected.keys() == set(NAMES)
    for name, points in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        assert np.allclose([value for _, value in found[name]], [value for _, value in points]), name


def wandb_records(file: Path) -> list[Any]:
    """The records of a file of Weights & Biases: a head of 7 bytes, then blocks of 32 KB, in which each piece of a
    record has a checksum, a length and a kind (whole, first, middle, last)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, records, record = file.read_bytes(), [], b""
    place = 7
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            records.append(Record.FromString(record))
            record = b""
    return records


@pytest.mark.slow
def test_all_trackers_at_once_and_again_when_the_run_goes_on(script: Script, folder: Path, asked: list[str]) -> None:
    options = ["model=mlp", "model.lm_tuning=frozen", "trainer.max_epochs=1", "trainer.log_every_n_steps=1"]
    options += ["optimizer.warmup_steps=2", "+trainer.enable_progress_bar=false", "val_max_tokens=12", "run_dir=runs/a"]
    script("train", *options, "logger=[csv,tensorboard,wandb,trackio,mlflow]")
    run = folder / "runs" / "a"
    first = len(logged(run)["train_loss"])
    script("train", "ckpt=runs/a/checkpoints/last.ckpt", "trainer.max_epochs=2")
    assert len(logged(run)["train_loss"]) == 2 * first
    assert asked == [], "nothing of the run is sent anywhere"
    assert (run / "curves.png").stat().st_size > 10_000

    pages = sorted((run / "samples").glob("*.html"))
    samples = [json.loads(page.with_suffix(".json").read_text()) for page in pages]
    assert [len(of) for of in samples] == [6, 6]
    ids = [sample["image_id"] for sample in samples[0]]
    captions = [[sample["caption"] for sample in of] for of in samples]
    split = FeatureStore(folder / "stores" / "demo-demo").split("val")
    pictures = [np.array(thumbnail(split.files[split.ids.index(image_id)], 224)) for image_id in ids]
    steps = [first - 1, 2 * first - 1]

    check_tensorboard(run, ids, captions, pictures, steps)
    check_wandb(run, captions, pictures)
    check_trackio(run, captions, steps)
    check_mlflow(run, [page.read_text() for page in pages], steps)


def check_tensorboard(
    run: Path, ids: list[int], captions: list[list[str]], pictures: list[Any], steps: list[int]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), {"images": 0, "scalars": 0, "tensors": 0}).Reload()
    assert_has({name: [(of.step, of.value) for of in events.Scalars(name)] for name in NAMES}, run)
    for place, image_id in enumerate(ids):
        images = events.Images(f"samples/{image_id}")
        assert [image.step for image in images] == steps
        assert np.array_equal(Image.open(io.BytesIO(images[0].encoded_image_string)), pictures[place])
        texts = events.Tensors(f"samples/{image_id}/text_summary")
        assert [text.tensor_proto.string_val[0].decode() for text in texts] == [of[place] for of in captions]


def check_wandb(run: Path, captions: list[list[str]], pictures: list[Any]) -> None:
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    assert len(files) == 2 and len({file.name for file in files}) == 1, "the same run, in two sittings"
    points: Points = {}
    shown = []
    for file in files:
        records = wandb_records(file)
        (started,) = [record.run for record in records if record.HasField("run")][:1]
        assert (started.project, started.display_name) == ("prefixcap", "runs/a")
        for record in records:
            item = {"/".join(of.nested_key): json.loads(of.value_json) for of in record.history.item}
            for name in NAMES:
                if name in item:
                    points.setdefault(name, []).append((item["trainer/global_step"], item[name]))
            if "samples/captions" in item:
                shown.append(item["samples/captions"])
                for name, picture in zip(item["samples/filenames"], pictures, strict=True):
                    assert np.array_equal(Image.open(file.parent / "files" / name), picture)
    assert_has(points, run)
    assert shown == captions


def check_trackio(run: Path, captions: list[list[str]], steps: list[int]) -> None:
    import trackio.utils

    with sqlite3.connect(trackio.utils.TRACKIO_DIR / "prefixcap.db") as store:
        rows = store.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        (config,) = store.execute("SELECT config FROM configs").fetchone()
    assert {name for name, _, _ in rows} == {"runs/a"}
    assert json.loads(config)["optimizer"]["warmup_steps"] == 2 and json.loads(config)["trainer"]["max_epochs"] == 2
    points: Points = {}
    shown = []
    for _, step, text in rows:
        metrics = json.loads(text)
        for name in NAMES:
            if name in metrics:
                points.setdefault(name, []).append((step, metrics[name]))
        if "samples/1" in metrics:
            shown.append((step, [metrics[f"samples/{number}"]["caption"] for number in range(1, 7)]))
    assert_has(points, run)
    assert shown == list(zip(steps, captions, strict=True))


def check_mlflow(run: Path, pages: list[str], steps: list[int]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("prefixcap")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "runs/a" and found.info.status == "FINISHED"
    assert found.data.params["optimizer/warmup_steps"] == "2" and found.data.params["trainer/max_epochs"] == "1"
    history = {name: client.get_metric_history(found.info.run_id, name) for name in NAMES}
    assert_has({name: [(of.step, of.value) for of in values] for name, values in history.items()}, run)
    for step, page in zip(steps, pages, strict=True):
        file = client.download_artifacts(found.info.run_id, f"samples/step-{step:07d}.html")
        assert Path(file).read_text() == page


def test_each_training_of_a_sweep_is_a_run_of_its_own(script: Script, folder: Path, asked: list[str]) -> None:
    printed = script(
        "train", "--multirun", "model=mlp", "model.lm_tuning=frozen", "+trainer.max_steps=2", "run_dir=runs/${seed}",
        "seed=1,2", "logger=wandb", "+trainer.enable_progress_bar=false",
    )  # fmt: skip
    assert "best checkpoint" not in printed
    files = list(folder.glob("runs/[12]/wandb/offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == len(files) == 2


def test_a_run_that_mlflow_does_not_know_begins_anew_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", ["logger=mlflow", f"run_dir={tmp_path / 'run'}"])
    saved = {"prefixcap": {}, "epoch": 0, "global_step": 3, "state_dict": {}}
    saved["callbacks"] = {"Trackers": {"MLFlowLogger": "0" * 32}}
    torch.save(saved, tmp_path / "last.ckpt")
    before = open_loggers(config, str(tmp_path / "last.ckpt"))[1]
    before.log_metrics({"val_cider": 0.5}, 4)
    saved["callbacks"] = {"Trackers": {"MLFlowLogger": before.version}}
    torch.save(saved, tmp_path / "last.ckpt")
    after = open_loggers(config, str(tmp_path / "last.ckpt"))[1]
    assert isinstance(after, MLFlowLogger) and after.version == before.version
    assert [of.value for of in after.experiment.get_metric_history(str(after.version), "val_cider")] == [0.5]
    assert asked == []


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_tracker_that_is_not_installed_is_told_in_one_line(
    tracker: str, mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if tracker == "trackio":
        monkeypatch.setitem(sys.modules, "trackio", None)
    elif tracker == "tensorboard":
        monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
        monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    else:
        monkeypatch.setattr(f"lightning.pytorch.loggers.{tracker}._{tracker.upper()}_AVAILABLE", False)
    message = mistake("train", f"logger=[csv,{tracker}]")
    assert f'logger={tracker} needs a package that is not installed: pip install "prefixcap[{tracker}]"' in message


@pytest.mark.parametrize(
    ("group", "plugin", "option", "extra"),
    [
        ("sweeper", "optuna", "hydra/sweeper=optuna", "sweep"),
        ("launcher", "submitit_slurm", "hydra/launcher=slurm", "slurm"),
    ],
)
def test_a_plugin_of_hydra_that_is_not_installed_is_told_in_one_line(
    group: str, plugin: str, option: str, extra: str, mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Plugins.instance()  # registers what is installed
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"][group], f"{plugin}.yaml")
    message = mistake("train", "--multirun", option)
    assert message == (
        f'error: hydra/{group}/{plugin} needs a package that is not installed: pip install "prefixcap[{extra}]"\n'
    )


def test_without_matplotlib_a_run_says_so_and_has_no_curves(
    script: Script, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest))
    printed = script("train", "model=mlp", "trainer.max_epochs=1", "run_dir=runs/plain", "val_max_tokens=5")
    assert 'no curves.png: drawing needs matplotlib: pip install "prefixcap[plot]"\n' in printed
    assert (folder / "runs/plain/metrics.csv").exists() and not (folder / "runs/plain/curves.png").exists()


@pytest.mark.slow
def test_trackers_are_imported_only_where_one_is_chosen() -> None:
    code = "import prefixcap.commands.common.trainer, sys; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"wandb", "mlflow", "trackio", "tensorboard"} & set(printed.stdout.split())
    for name in ("tensorboard", "wandb", "trackio", "mlflow"):
        config = yaml.safe_load((ROOT / "conf" / "logger" / f"{name}.yaml").read_text())
        assert list(config) == ["defaults", name] and config["defaults"] == ["csv"]
