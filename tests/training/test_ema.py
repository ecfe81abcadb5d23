"""Averaged weights: against a plain loop over the weights after each step, through validation, saving and resuming."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.language import load_language_model
from prefixcap.training import CaptionTraining
from prefixcap.training.checkpoints import RandomState, best_and_last
from prefixcap.training.ema import AveragedWeights, trained_weights
from tests.conftest import IDENTITY
from tests.training.test_training import make_store

DECAY = 0.7
Weights = dict[str, torch.Tensor]


def new_captioner(tuning: Any) -> Captioner:
    torch.manual_seed(1)
    return Captioner(load_language_model("demo", tuning), IDENTITY, {"name": "mlp", "prefix_length": 4})


class Watched(L.Callback):
    """Keeps the weights after each step, and those that each validation sees; may end training after an epoch."""

    def __init__(self, last_epoch: int | None = None) -> None:
        self.last_epoch = last_epoch
        self.steps: list[Weights] = []
        self.validated: list[Weights] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.steps.append(copied(module))

    def on_validation_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.validated.append(copied(module))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch == self.last_epoch


def copied(module: torch.nn.Module) -> Weights:
    return {name: weight.clone() for name, weight in trained_weights(module).items()}


def averages(steps: list[Weights]) -> list[Weights]:
    found = [steps[0]]
    for weights in steps[1:]:
        found.append({name: DECAY * old + (1 - DECAY) * weights[name] for name, old in found[-1].items()})
    return found


def fit(
    captioner: Captioner, store: Path, run: Path, resume: Path | None = None, last_epoch: int | None = None
) -> Watched:
    L.seed_everything(3, verbose=False)
    data = CaptionData(store, captioner, batch_size=4)  # 3 steps an epoch
    training = CaptionTraining(captioner, data.val_split, 1e-2, warmup_steps=2, max_tokens=8)
    watched = Watched(last_epoch)
    trainer = L.Trainer(
        max_epochs=2, callbacks=[*best_and_last(run), RandomState(), AveragedWeights(DECAY), watched], logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(training, data, ckpt_path=resume, weights_only=True)
    return watched


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_validation_checkpoints_and_the_model_afterwards_have_the_average(tuning: Any, tmp_path: Path) -> None:
    captioner = new_captioner(tuning)
    watched = fit(captioner, make_store(tmp_path / "store"), tmp_path / "run")
    expected = averages(watched.steps)
    assert len(expected) == 6 and len(watched.validated) == 2
    for seen, average in zip(watched.validated, (expected[2], expected[5]), strict=True):
        torch.testing.assert_close(seen, average)
    torch.testing.assert_close({f"captioner.{name}": weight for name, weight in copied(captioner).items()}, expected[5])

    for file in ("best.ckpt", "last.ckpt"):
        checkpoint = torch.load(tmp_path / "run" / file, weights_only=True)
        step = checkpoint["global_step"]
        for name, weight in checkpoint["state_dict"].items():
            if name in expected[step - 1]:
                torch.testing.assert_close(weight, expected[step - 1][name])
        torch.testing.assert_close(checkpoint["weights_before_averaging"], watched.steps[step - 1])
        assert tuning == "full" or not any("language_model" in name for name in checkpoint["state_dict"])
    loaded = prefixcap.load(tmp_path / "run" / "last.ckpt")
    embeddings = torch.randn(3, 16)
    assert loaded.caption(embeddings, max_tokens=8) == captioner.eval().caption(embeddings, max_tokens=8)


def test_a_resumed_run_goes_on_from_the_weights_and_their_average(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    whole = fit(new_captioner("full"), store, tmp_path / "whole")
    fit(new_captioner("full"), store, tmp_path / "parts", last_epoch=0)
    resumed = fit(new_captioner("full"), store, tmp_path / "parts", tmp_path / "parts" / "last.ckpt")
    assert len(resumed.steps) == 3
    torch.testing.assert_close(resumed.steps, whole.steps[3:])
    torch.testing.assert_close(resumed.validated, whole.validated[1:])


def test_a_decay_that_averages_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"below 1, not 1\.0"):
        AveragedWeights(1.0)


def test_weights_that_are_spread_over_devices_are_not_averaged() -> None:
    trainer: Any = SimpleNamespace(strategy=ModelParallelStrategy())
    with pytest.raises(InputError, match="leave out AveragedWeights"):
        AveragedWeights().on_fit_start(trainer, L.LightningModule())
