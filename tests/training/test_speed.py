"""What makes training quick leaves its course as it is: losses over 50 steps beside fp32, eager and unfused."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.packing import pack
from prefixcap.training import CaptionTraining
from prefixcap.training.nan_guard import FiniteLoss
from tests.conftest import plain_loss, small_captioner
from tests.training.test_training import make_store

STEPS = 50


def captions(step: int) -> tuple[torch.Tensor, list[list[int]], list[int]]:
    """Embeddings, tokens and images of a batch. What is to be learned: the sum of the embedding decides the words."""
    generator = torch.Generator().manual_seed(step)
    embeddings = torch.randn(4, 16, generator=generator)
    owners = [image for image in range(4) for _ in range(2)]
    lengths = torch.randint(3, 12, (8,), generator=generator).tolist()
    words = np.where(embeddings.numpy().sum(1) > 0, 10, 20)[owners].tolist()
    return (
        embeddings,
        [[word + place % 5 for place in range(n)] for word, n in zip(words, lengths, strict=True)],
        owners,
    )


def course(step_loss: Callable[[Captioner, int], torch.Tensor], tuning: str, fused: bool = True) -> torch.Tensor:
    captioner = small_captioner(tuning, "mlp").eval()  # type: ignore[arg-type]  # without dropout
    trained = [weight for weight in captioner.parameters() if weight.requires_grad]
    optimizer = AdamW(trained, lr=3e-3, fused=fused)
    losses = []
    for step in range(STEPS):
        loss = step_loss(captioner, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def plain(captioner: Captioner, step: int) -> torch.Tensor:
    embeddings, tokens, owners = captions(step)
    of_each = [plain_loss(captioner, embeddings[image], row) for image, row in zip(owners, tokens, strict=True)]
    return torch.stack(of_each).sum() / sum(map(len, tokens))


def ours(captioner: Captioner, step: int) -> torch.Tensor:
    batch = pack(*captions(step), captioner.prefix_length)
    return captioner.loss(batch) / len(batch.targets)


def mixed(precision: torch.dtype) -> Callable[[Captioner, int], torch.Tensor]:
    def step_loss(captioner: Captioner, step: int) -> torch.Tensor:
        with torch.autocast("cpu", precision):
            return ours(captioner, step)

    return step_loss


def test_modes_of_compilation_are_told() -> None:
    with pytest.raises(InputError, match=r"unknown compile 'quick': choose one of default, .*reduce-overhead"):
        small_captioner().language_model.compile_training("quick")


def compiled(captioner: Captioner, step: int) -> torch.Tensor:
    if step == 0:
        captioner.language_model.compile_training("default")
    return ours(captioner, step)


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_the_course_of_training_stays_as_it_is(tuning: str) -> None:
    expected = course(plain, tuning, fused=False)
    assert tuning == "frozen" or expected[-5:].mean() < 0.5 * expected[0]  # a frozen random model cannot learn it
    torch.testing.assert_close(course(ours, tuning), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(course(mixed(torch.bfloat16), tuning), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(course(mixed(torch.float16), tuning), expected, rtol=0.01, atol=0.01)


@pytest.mark.slow
def test_compiled_training_takes_the_same_course_without_compiling_for_ever() -> None:
    """Slow because the layers are compiled, by a C++ compiler on a CPU."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.testing.assert_close(course(compiled, "full"), course(ours, "full"), rtol=1e-3, atol=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


class Syncs(TorchDispatchMode):
    """Counts what makes the program wait for a GPU: a number that is asked for, a shape that depends on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing(tmp_path: Path) -> None:
    """From the batch to the optimizer, with the progress bar, logging, and the look for losses that are no number."""
    captioner, syncs, losses = small_captioner("full"), Syncs(), []
    data = CaptionData(make_store(tmp_path / "store"), captioner, batch_size=4, group_captions=True)

    class Watch(L.Callback):
        """From the first batch to the end of the last, with what comes between them."""

        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 0:
                syncs.__enter__()

        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
            losses.append(outputs["train_loss"])
            if trainer.global_step == 3:
                syncs.__exit__(None, None, None)

    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[Watch(), FiniteLoss()], logger=CSVLogger(tmp_path),
        log_every_n_steps=2, gradient_clip_val=1.0, enable_checkpointing=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(CaptionTraining(captioner, data.val_split, max_tokens=4), data)
    assert trainer.global_step == 3 and syncs.found == []
    with (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        logged = [(row["step"], float(row["train_loss"])) for row in csv.DictReader(file) if row["train_loss"]]
    assert logged == [("1", pytest.approx(losses[1]))]
    with syncs:
        ours(captioner, 0).item()
    assert syncs.found == ["aten._local_scalar_dense.default"]
