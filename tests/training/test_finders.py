"""The finders of a learning rate and a batch size, on a small model with random weights."""

import csv
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.packing import Batch
from prefixcap.training import CaptionTraining
from prefixcap.training.finders import find_batch_size, find_learning_rate
from tests.conftest import small_captioner
from tests.training.test_training import CAPTIONS, make_store


def parts(folder: Path, of: type[CaptionTraining], copies: int) -> tuple[L.Trainer, CaptionTraining, CaptionData]:
    """What training so many times 12 captions of 9 images needs; its schedule would begin with a long warm-up."""
    L.seed_everything(3, verbose=False)
    captioner = small_captioner("full", "mlp")
    data = CaptionData(make_store(folder / "store", captions=CAPTIONS * copies), captioner, batch_size=8)
    trainer = L.Trainer(
        max_epochs=1, limit_val_batches=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, accelerator="cpu", default_root_dir=folder,
    )  # fmt: skip
    return trainer, of(captioner, data.val_split, warmup_steps=5000, max_tokens=4), data


def test_the_learning_rate_is_where_the_loss_falls_fastest(tmp_path: Path) -> None:
    trainer, training, data = parts(tmp_path, CaptionTraining, 30)
    before = {name: weight.clone() for name, weight in training.captioner.checkpoint_state_dict().items()}
    found = find_learning_rate(trainer, training, data, tmp_path / "lr_find.csv")
    with (tmp_path / "lr_find.csv").open() as file:
        rows = [(float(row["learning_rate"]), float(row["loss"])) for row in csv.DictReader(file)]
    rates, losses = np.array(rows).T
    assert 50 < len(rates) <= 100
    np.testing.assert_allclose(rates[2:] / rates[1:-1], 1e8 ** (1 / 100), rtol=1e-6)  # no schedule in it
    assert losses[40] == pytest.approx(np.log(len(training.captioner.language_model.tokenizer)), rel=0.1)  # untrained
    assert losses[40:].min() < losses[40] - 0.5  # these rates were those of the optimizer
    falls = {rate: losses[row - 5] - losses[row + 5] for row, rate in enumerate(rates) if 15 <= row < len(rates) - 5}
    assert found == max(falls, key=lambda rate: falls[rate])
    assert 1e-5 < found < 1e-1
    for name, weight in training.captioner.checkpoint_state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)


class Broken(CaptionTraining):
    """Has a loss that is NaN."""

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, torch.Tensor]:
        return {"loss": super().training_step(batch, batch_index)["loss"] * float("nan")}


def test_a_loss_that_is_nan_gives_no_learning_rate(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NaN within 100 steps"):
        find_learning_rate(*parts(tmp_path, Broken, 2), tmp_path / "lr_find.csv")


class Small(CaptionTraining):
    """Stands in for a GPU whose memory is too small for more than 37 captions."""

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, torch.Tensor]:
        if len(batch.caption_rows) > 37:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().training_step(batch, batch_index)


def test_the_batch_size_is_the_largest_that_fits_less_a_margin(tmp_path: Path) -> None:
    assert find_batch_size(*parts(tmp_path, Small, 10)) == int(0.95 * 37)


def test_the_batch_size_ends_at_the_size_of_the_data(tmp_path: Path) -> None:
    assert find_batch_size(*parts(tmp_path, CaptionTraining, 5)) == int(0.95 * 64)  # the first power of 2 above 60
