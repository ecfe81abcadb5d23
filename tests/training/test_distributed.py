"""Two processes against one: the same losses, weights and validation; sharded training; the command line.

The two processes are started once, and go through all runs in turn.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.language import Tuning, load_language_model
from prefixcap.training import CaptionTraining
from prefixcap.training.checkpoints import AtomicCheckpointIO, RandomState, best_and_last
from prefixcap.training.distributed import AtomicDeepSpeedStrategy
from prefixcap.training.nan_guard import FiniteLoss
from tests.conftest import IDENTITY, ROOT
from tests.processes import free_port, python, start
from tests.training.test_training import make_store

LONG = "A large green heart with dots, and a small red star, and a tiny blue ring at night in the snow on the left."
CAPTIONS = (("A star.", LONG, "A red star.", "A star at night."), ("A blue ring in the snow.",), (LONG,))
STEPS = 4  # an epoch


@dataclass
class Run:
    """A training run of two epochs: with one process, or over two that have half of each batch.

    Attributes:
        trainer: name of its configuration for two processes.
        grouped: whether captions are drawn by image.
        accumulated: batches a step, with two processes.
        clipped: whether gradients are, so that their scale hardly matters.
        parts: stop after each epoch, and go on from the checkpoint.
    """

    trainer: str
    tuning: Tuning = "frozen"
    grouped: bool = False
    accumulated: int = 1
    clipped: bool = True
    parts: bool = False


RUNS = {
    "ddp": Run("ddp"),
    "grouped": Run("ddp", "full", grouped=True),
    "accumulated": Run("ddp", accumulated=2, clipped=False),
    "fsdp": Run("fsdp", "full"),
    "fsdp-resumed": Run("fsdp", "lora", grouped=True, parts=True),
}


class Losses(L.Callback):
    """Writes the training losses and the validation metrics of a run."""

    def __init__(self, file: Path) -> None:
        self.file, self.found = file, json.loads(file.read_text()) if file.exists() else []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.found.append(outputs["train_loss"].item())

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.found += [trainer.callback_metrics[name].item() for name in ("val_loss", "val_cider")]
        if trainer.is_global_zero:
            self.file.write_text(json.dumps(self.found))


class StopAfterAnEpoch(L.Callback):
    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.should_stop = True


def fit(run: Run, processes: int, store: Path, folder: Path) -> None:
    """Train in `folder`."""
    accumulated = run.accumulated if processes > 1 else 1
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", ["trainer=" + (run.trainer if processes > 1 else "default")]).trainer
    for resumed in (False, True) if run.parts and processes > 1 else (False,):
        L.seed_everything(3, verbose=False)
        language_model = load_language_model("demo", run.tuning)
        for module in language_model.modules():
            if isinstance(module, torch.nn.Dropout):  # processes draw differently
                module.p = 0.0
        captioner = Captioner(language_model, IDENTITY, {"name": "mlp", "prefix_length": 4})
        data = CaptionData(store, captioner, 4 // processes // accumulated, group_captions=run.grouped)
        training = CaptionTraining(
            captioner, data.val_split, 1e-3, warmup_steps=2, max_tokens=10, samples=folder / "samples"
        )
        trainer = instantiate(
            config, accelerator="cpu", precision="32-true", devices=processes, max_epochs=2,
            limit_train_batches=STEPS * accumulated,
            accumulate_grad_batches=accumulated, gradient_clip_val=config.gradient_clip_val if run.clipped else None,
            logger=False, enable_progress_bar=False, plugins=[AtomicCheckpointIO()],
            callbacks=[
                *best_and_last(folder), FiniteLoss(), RandomState(), Losses(folder.with_suffix(".json")),
                *([StopAfterAnEpoch()] if run.parts and processes > 1 and not resumed else []),
            ],
        )  # fmt: skip
        trainer.fit(training, data, ckpt_path=folder / "last.ckpt" if resumed else None, weights_only=True)


def fit_all(folder: Path, rank: int, port: int) -> None:
    """All runs, as one of two processes."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    for name, run in RUNS.items():
        fit(run, 2, folder / "store", folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs with two processes."""
    folder = tmp_path_factory.mktemp("two")
    make_store(folder / "store", captions=CAPTIONS)
    port = free_port()
    processes = [start(fit_all, folder, rank, port) for rank in range(2)]
    for process in processes:
        process.join(200)
    ended = [process.exitcode for process in processes]
    for process in processes:
        process.kill()  # if one failed, the other may wait for it
    assert ended == [0, 0]
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    """Those in the last checkpoint."""
    found: dict[str, Tensor] = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return found


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(name: str, folder: Path, tmp_path: Path) -> None:
    """Losses, CIDEr over all validation images, and the trained weights.

    The first is slow because two processes go through all runs before it.
    """
    run = RUNS[name]
    fit(run, 1, folder / "store", tmp_path / "one")
    one, two = json.loads((tmp_path / "one.json").read_text()), json.loads((folder / f"{name}.json").read_text())
    if run.accumulated == 1:
        assert two == pytest.approx(one, rel=1e-5)
    else:
        assert [two[place] for place in (8, 9, 18, 19)] == pytest.approx([one[place] for place in (4, 5, 10, 11)])
    expected, found = weights(tmp_path / "one"), weights(folder / name)
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        # Where a gradient is zero but for rounding, Adam divides noise by noise: that of the bias of keys always is,
        # that of an adapter's A in the first step.
        if not key.endswith("c_attn.bias"):
            torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-4 if "lora_A" in key else 1e-5)
    samples = [json.loads(file.read_text()) for file in sorted((folder / name / "samples").glob("*.json"))]
    assert samples == [json.loads(file.read_text()) for file in sorted((tmp_path / "one" / "samples").glob("*.json"))]


@pytest.mark.parametrize("name", ["fsdp", "fsdp-resumed"])
def test_a_sharded_run_loads_on_one_device(name: str, folder: Path) -> None:
    """It captions the validation images as the sharded model did."""
    captioner = prefixcap.load(folder / name / "last.ckpt")
    split = CaptionData(folder / "store", captioner).val_split
    written = json.loads((folder / name / "samples" / "step-0000008.json").read_text())
    captions = captioner.caption(torch.from_numpy(split.embeddings[:]), "greedy", max_tokens=10)
    assert captions == [sample["caption"] for sample in written]


@pytest.mark.slow
def test_the_command_in_two_processes(folder: Path, tmp_path: Path) -> None:
    """One run's folder, though each process has a time of its own, and each message once.

    Slow because Lightning starts Python anew for the second process.
    """
    command = [
        ROOT / "train.py", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data=coco",
        f"data.store={folder / 'store'}", f"encoder.name={IDENTITY.name}", "lm=demo", "model=mlp", "batch_size=2",
        "+trainer.limit_train_batches=2", "trainer.max_epochs=1", f"run_dir={tmp_path}/runs/${{now:%S-%f}}",
    ]  # fmt: skip
    done = python(*command, timeout=200)
    assert done.returncode == 0, done.stderr
    assert [done.stdout.count(words) for words in ("training ", "best checkpoint: ", "evaluate it: ")] == [1, 1, 1]
    (run,) = (tmp_path / "runs").iterdir()
    names = {
        "best.ckpt",
        "last.ckpt",
        "config.yaml",
        "metrics.csv",
        "curves.png",
        "step-0000002.json",
        "step-0000002.html",
    }
    assert {file.name for file in run.rglob("*") if file.is_file()} == names
    prefixcap.load(run / "checkpoints" / "best.ckpt")


def test_deepspeed_is_asked_for_by_name(mistake: Callable[..., str], folder: Path) -> None:
    if importlib.util.find_spec("deepspeed"):
        pytest.skip("it is installed")
    options = [f"data.store={folder / 'store'}", f"encoder.name={IDENTITY.name}", "lm=demo", "model=mlp"]
    printed = mistake("train", "trainer=deepspeed", "data=coco", *options)
    assert "pip install 'prefixcap[deepspeed]'" in printed
    assert "trainer=fsdp" in mistake("train", "trainer=deepspeed", "trainer.strategy.stage=3", "data=coco", *options)


@pytest.fixture
def strategy(monkeypatch: pytest.MonkeyPatch) -> AtomicDeepSpeedStrategy:
    """One that has no DeepSpeed: its engine writes a file."""
    strategy = AtomicDeepSpeedStrategy.__new__(AtomicDeepSpeedStrategy)

    def save(self: DeepSpeedStrategy, checkpoint: dict[str, Any], folder: Path, storage_options: Any) -> None:
        folder.mkdir()
        (folder / "state").write_text(checkpoint["text"])
        if checkpoint["text"] == "killed":
            raise KeyboardInterrupt

    monkeypatch.setattr(DeepSpeedStrategy, "save_checkpoint", save)
    monkeypatch.setattr(AtomicDeepSpeedStrategy, "broadcast", lambda self, value: value)
    monkeypatch.setattr(AtomicDeepSpeedStrategy, "barrier", lambda self: None)
    monkeypatch.setattr(AtomicDeepSpeedStrategy, "is_global_zero", True)
    return strategy


def test_a_checkpoint_of_deepspeed_is_written_whole(strategy: AtomicDeepSpeedStrategy, tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    for text in ("one", "two"):
        strategy.save_checkpoint({"text": text}, last)
        assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"] and (last / "state").read_text() == text
    with pytest.raises(KeyboardInterrupt):
        strategy.save_checkpoint({"text": "killed"}, last)
    assert (last / "state").read_text() == "two"
    strategy.save_checkpoint({"text": "three"}, last)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"] and (last / "state").read_text() == "three"


def test_deepspeed_sums_no_batches_of_unlike_length(strategy: AtomicDeepSpeedStrategy, folder: Path) -> None:
    captioner = Captioner(load_language_model("demo"), IDENTITY, {"name": "mlp", "prefix_length": 4})
    training = CaptionTraining(captioner, CaptionData(folder / "store", captioner).val_split)
    training.trainer = L.Trainer(accelerator="cpu", logger=False, accumulate_grad_batches=2)
    training.on_fit_start()
    training.trainer._accelerator_connector.strategy = strategy
    with pytest.raises(InputError, match="set accumulate_grad_batches=1"):
        training.on_fit_start()


def test_a_folder_of_deepspeed_loads(folder: Path, tmp_path: Path) -> None:
    """Laid out as DeepSpeed 0.19 does with ZeRO stages 1 and 2."""
    checkpoint = torch.load(folder / "ddp" / "last.ckpt", weights_only=True)
    model = "captioner.language_model.model"
    tied = {f"{model}.lm_head.weight": f"{model}.transformer.wte.weight"}
    checkpoint["module"] = checkpoint.pop("state_dict") | dict.fromkeys(tied, torch.zeros(1))
    checkpoint["shared_params"] = tied
    (tmp_path / "last.ckpt" / "checkpoint").mkdir(parents=True)
    torch.save(checkpoint, tmp_path / "last.ckpt" / "checkpoint" / "mp_rank_00_model_states.pt")
    loaded, expected = prefixcap.load(tmp_path / "last.ckpt"), prefixcap.load(folder / "ddp" / "last.ckpt")
    torch.testing.assert_close(loaded.checkpoint_state_dict(), expected.checkpoint_state_dict(), rtol=0, atol=0)
