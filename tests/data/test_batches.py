"""Training batches of few shapes, and those made on the device, beside the usual ones."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.data import device as device_module
from prefixcap.errors import OptionError
from prefixcap.packing import Batch
from prefixcap.store import ImageRecord, StoreSplit, StoreWriter, join
from prefixcap.training import CaptionTraining
from tests.conftest import IDENTITY, small_lm


def drawn_prompts(split: StoreSplit, rows: NDArray[np.int64], epoch: int | None) -> list[str]:
    """None to five words, others in each epoch."""
    drawn = [np.random.default_rng((7, epoch or 0, row)) for row in rows.tolist()]
    return [" ".join(generator.choice(["star", "ring", "tree"], generator.integers(6))) for generator in drawn]


KINDS: dict[str, dict[str, Any]] = {
    "alone": {},
    "grouped": {"group_captions": True},
    "cut": {"max_caption_tokens": 4},
    "text": {"from_text": True},
    "released": {"from_text": True, "released_tokens": True, "max_caption_tokens": 9},
    "patches": {"group_captions": True},
    "prompts": {"prompts": drawn_prompts},
    "grouped, prompts": {"prompts": drawn_prompts, "group_captions": True, "max_prompt_tokens": 3},
    "text, prompts": {"prompts": drawn_prompts, "from_text": True},
    "released, prompts": {
        "prompts": drawn_prompts,
        "from_text": True,
        "released_tokens": True,
        "max_caption_tokens": 9,
    },
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 40 images with none to three captions of one to eight words each, and features of all kinds."""
    path, generator = tmp_path_factory.mktemp("batches") / "store", np.random.default_rng(0)
    records = [
        ImageRecord(
            number,
            "",
            "train" if number < 40 else "val",
            tuple(" ".join(["red"] * words) for words in generator.integers(1, 9, number % 4)),
        )
        for number in range(44)
    ]
    captions = sum(len(record.captions) for record in records)
    columns = {
        "images/embedding": generator.normal(size=(44, IDENTITY.dim)).astype(np.float16),
        "images/patches": generator.normal(size=(44, 3, IDENTITY.dim)).astype(np.float16),
        "captions/embedding": generator.normal(size=(captions, IDENTITY.dim)).astype(np.float16),
    }
    writer = StoreWriter(path, IDENTITY, "test", path, job="test", shards=1)
    writer.write_piece(0, 0, 1, records, columns, [])
    join(path)
    return path


def make(kind: str) -> Captioner:
    torch.manual_seed(0)
    mapper = {"name": "query", "layers": 1, "width": 16} if kind == "patches" else {"name": "mlp"}
    lm = small_lm()
    return Captioner(lm.requires_grad_(True), IDENTITY, mapper | {"prefix_length": 4}, start_token="released" in kind)


def tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_few_shapes_have_the_losses_and_gradients_of_the_usual_ones(kind: str, store: Path) -> None:
    captioner = make(kind).eval()
    usual, padded = (CaptionData(store, captioner, 6, num_workers=0, **KINDS[kind]) for _ in range(2))
    usual_loader, padded_loader = usual.train_dataloader(), padded.train_dataloader()
    padded.fixed_shapes = True  # also when the loader is there already, as in Trainer.fit
    training = CaptionTraining(captioner, usual.val_split)
    training.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)

    def losses_and_gradients(batch: Batch) -> list[Tensor]:
        captioner.zero_grad()
        loss = training.training_step(batch, 0)["loss"]
        loss.backward()
        training._tokens = []
        return [loss.detach()] + [w.grad.clone() for w in captioner.parameters() if w.grad is not None]

    shapes = set()
    for one, other in zip(usual_loader, padded_loader, strict=True):
        assert one.caption_rows == other.caption_rows and one.image_rows == other.image_rows
        shapes.add(other.shape)
        values = [losses_and_gradients(batch) for batch in (one, other)]
        assert len(values[0]) > 10 and len(other.weights) >= int(other.weights.sum()) == len(one.targets)
        for unpadded, padded in zip(*values, strict=True):
            torch.testing.assert_close(padded, unpadded, rtol=1e-5, atol=1e-5)
    assert len(shapes) <= 4
    again = CaptionData(store, captioner, 6, num_workers=1, **KINDS[kind])
    again.fixed_shapes = True
    again.trainer = stopped_after(3)
    resumed = list(again.train_dataloader())
    rest = list(padded_loader)[3:]
    assert [batch.shape for batch in resumed] == [batch.shape for batch in rest]
    assert [batch.caption_rows for batch in resumed] == [batch.caption_rows for batch in rest]
    assert [batch.prompts for batch in resumed] == [batch.prompts for batch in rest]


def stopped_after(batches: int) -> Any:
    """A trainer of a run on a CPU that continues within an epoch."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(fit_loop=SimpleNamespace(batch_idx=batches - 1), world_size=1, strategy=strategy)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_made_on_the_device_are_the_usual_ones(
    kind: str, fixed: bool, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both epochs of a run, and the rest of one that was stopped within its first."""
    monkeypatch.setattr(device_module, "_BLOCK_BYTES", 200)
    monkeypatch.setattr(device_module, "_BLOCK_CAPTIONS", 7)
    captioner = make(kind)
    for taken in (0, 2):
        found = []
        for on_device in (False, True):
            data = CaptionData(store, captioner, 6, num_workers=0, on_device=on_device, **KINDS[kind])
            data.fixed_shapes = fixed
            data.trainer = stopped_after(taken)
            loader = data.train_dataloader()
            found.append([*loader])
            loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
            found[-1] += [*loader]
        assert len(found[0]) == len(found[1]) > 6
        for one, other in zip(*found, strict=True):
            assert one.caption_rows == other.caption_rows and one.image_rows == other.image_rows
            assert one.prompts == other.prompts
            for name, value in tensors(one).items():
                torch.testing.assert_close(tensors(other)[name], value, rtol=0, atol=0)
    copy = data._device_copy(data._dataset(data.train_split, by_image=False))
    assert copy is not None and copy.features.dtype == torch.float16  # as in the store


def test_training_data_that_cannot_be_on_the_device_are_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = make("alone")
    with pytest.raises(OptionError, match=r"tokenized as they are drawn \(keep_tokens\): set on_device=False"):
        CaptionData(store, captioner, keep_tokens=False, on_device=True).train_dataloader()
    monkeypatch.setattr("prefixcap.data.module.free_memory_bytes", lambda device: 4000)
    data = CaptionData(store, captioner, num_workers=2, on_device=True)
    with pytest.raises(OptionError, match=r"take 0\.0 GB, more than a quarter of the 0\.0 GB .* on cpu: set on_device"):
        data.train_dataloader()
    automatic = CaptionData(store, captioner, num_workers=2).train_dataloader()  # of a CPU's memory nothing is copied
    assert automatic.num_workers == 2 and automatic.dataset.dataset.copy is None  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert data.train_dataloader().num_workers == 0 and data.val_dataloader().num_workers == 2
