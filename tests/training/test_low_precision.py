"""Frozen weights in 16 bits: bit for bit what autocast computes from float32 ones."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.language import LanguageModel
from prefixcap.language.lora import Lora
from prefixcap.language.low_precision import cast_frozen_layers
from prefixcap.packing import pack
from prefixcap.training import CaptionTraining
from prefixcap.training.low_precision import LowPrecisionWeights
from tests.conftest import small_captioner
from tests.decoding import random_lm
from tests.language_models import KINDS, captioner_of
from tests.training.test_training import fit, make_store


def random_captioner(kind: str, adapters: bool) -> Captioner:
    language_model = random_lm(kind, 0)
    language_model.requires_grad_(False)
    if adapters:
        torch.manual_seed(2)
        language_model = LanguageModel(language_model.model, language_model.tokenizer, "random", "lora", Lora())
        for name, weight in language_model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    return captioner_of(language_model)


def loss_and_gradients(captioner: Captioner, dtype: torch.dtype) -> list[Tensor]:
    embeddings = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    batch = pack(embeddings, [[5, 6, 7, 0], [8, 0], [9, 30, 0], [1, 2, 3, 4, 0]], [0, 0, 1, 2], 4)
    captioner.zero_grad()
    with torch.autocast("cpu", dtype):
        loss = captioner.loss(batch)
    loss.backward()
    return [loss.detach(), *(w.grad.clone() for w in captioner.parameters() if w.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_bit_for_bit_those_of_autocast(kind: str, adapters: bool, dtype: torch.dtype) -> None:
    captioner = random_captioner(kind, adapters)
    model = captioner.language_model.model
    before, weights = loss_and_gradients(captioner, dtype), {n: w.clone() for n, w in model.named_parameters()}
    restore = cast_frozen_layers(model, dtype)
    for name, weight in model.named_parameters():
        stays = any(part in name for part in ("wte", "wpe", "ln_", "norm", "embed", "lora_"))
        assert weight.dtype == (torch.float32 if stays else dtype), name
    assert len(before) > 4 + 4 * adapters
    for one, other in zip(before, loss_and_gradients(captioner, dtype), strict=True):
        assert one.equal(other)
    restore()
    assert all(weight.equal(weights[name]) for name, weight in model.named_parameters())


def test_training_takes_the_same_course_and_gives_the_weights_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seen = make_store(tmp_path / "store"), []
    trained = {}
    monkeypatch.setattr(
        CaptionTraining, "on_train_batch_start",
        lambda self, *_: seen.append({w.dtype for w in self.captioner.language_model.parameters()}),
    )  # fmt: skip
    for name in ("cast", "plain"):
        captioner = small_captioner("frozen", "mlp")
        if name == "plain":
            monkeypatch.setattr(LowPrecisionWeights, "on_train_start", lambda *_: None)
        before = [weight.clone() for weight in captioner.language_model.parameters()]
        fit(captioner, store, tmp_path / name, 2, precision="bf16-mixed")
        trained[name] = list(captioner.mapper.parameters())
        pairs = zip(before, captioner.language_model.parameters(), strict=True)
        assert all(one.equal(other) for one, other in pairs)
    assert seen[0] == {torch.float32, torch.bfloat16} and seen[-1] == {torch.float32}
    assert all(one.equal(other) for one, other in zip(*trained.values(), strict=True))


def test_weights_come_back_when_training_fails(tmp_path: Path) -> None:
    captioner = small_captioner("frozen", "mlp")
    data = CaptionData(make_store(tmp_path / "store"), captioner, batch_size=4)

    class Fails(L.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            assert torch.bfloat16 in {weight.dtype for weight in captioner.parameters()}
            raise RuntimeError("on purpose")

    trainer = L.Trainer(
        accelerator="cpu", precision="bf16-mixed", max_epochs=1, callbacks=[Fails()], logger=False,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(CaptionTraining(captioner, data.val_split, max_tokens=4), data)
    assert {weight.dtype for weight in captioner.parameters()} == {torch.float32}
