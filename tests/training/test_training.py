"""Batches, the schedule, and runs of the Lightning module on a store of random embeddings."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.language import load_language_model
from prefixcap.noise import Noise
from prefixcap.packing import pack
from prefixcap.store import ImageRecord, StoreWriter, join
from prefixcap.training import CaptionTraining
from prefixcap.training.checkpoints import LastCheckpoint, RandomState, best_and_last
from prefixcap.training.min_steps import ReachMinSteps
from prefixcap.training.optimizer import adamw
from tests.conftest import IDENTITY, plain_loss, small_captioner

CAPTIONS = (("A red star.", "A star at night."), ("A blue ring in the snow.",), ("A large green heart on the left.",))


def make_store(
    path: Path, identity: EncoderIdentity = IDENTITY, captions: tuple[tuple[str, ...], ...] = CAPTIONS
) -> Path:
    """A store with random embeddings: each image three times in train, once in val."""
    images = [
        ImageRecord(number, f"{number}.jpg", split, own)
        for number, (split, own) in enumerate(
            [("train", own) for own in captions * 3] + [("val", own) for own in captions]
        )
    ]
    embeddings = np.random.default_rng(0).normal(size=(len(images), identity.dim)).astype(np.float16)
    writer = StoreWriter(path, identity, "test", path, job="test", shards=1)
    writer.write_piece(0, 0, 1, images, {"images/embedding": embeddings}, [])
    join(path)
    return path


def test_tokens_are_counted_in_float32_whatever_the_precision_of_a_batch() -> None:
    """bfloat16, to which Lightning casts batches with bf16-true, has no 501."""
    captioner = small_captioner()
    batch = pack(torch.randn(1, 16), [[5, 0]] * 250 + [[0]], [0] * 251, captioner.prefix_length)
    half = HalfPrecision("bf16-true").convert_input(batch)
    _, tokens = CaptionTraining(captioner, None).total_loss(replace(batch, weights=half.weights))  # type: ignore[arg-type]
    assert half.weights.dtype == torch.bfloat16 and tokens.item() == 501


def test_a_caption_beyond_the_context_is_named_or_cut(tmp_path: Path) -> None:
    captioner = small_captioner()  # context 96, prefix 4
    store = make_store(tmp_path / "store", captions=(("A star.",), ("many stars " * 60,)))
    with pytest.raises(
        InputError, match=r"'many stars .* of image 1 \(train\) has \d+ tokens; .* takes 92.*max_caption"
    ):
        CaptionData(store, captioner)
    data = CaptionData(store, captioner, max_caption_tokens=9)
    tokens = data.train_tokens[np.arange(len(data.train_split.captions))]
    assert max(map(len, tokens)) == 9
    assert all(row[-1] == captioner.language_model.eos_token_id for row in tokens)


def test_a_store_of_another_encoder_is_refused_with_both_names(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", EncoderIdentity("clip:ViT-B/32", "1" * 64, "", 16))
    with pytest.raises(InputError, match=r"clip:ViT-B/32.*clip:nowhere\.pt"):
        CaptionData(store, small_captioner())


def test_the_learning_rate_rises_and_falls_linearly(tmp_path: Path) -> None:
    split = CaptionData(make_store(tmp_path / "store"), small_captioner()).val_split
    training = CaptionTraining(small_captioner(), split, learning_rate=2.0, warmup_steps=7)
    training.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=107)
    schedule = training.configure_optimizers()["lr_scheduler"]["scheduler"]
    for step in range(110):
        factor = step / 7 if step < 7 else max(0.0, (107 - step) / 100)
        assert schedule.get_last_lr()[0] == pytest.approx(2.0 * factor)
        schedule.optimizer.step()
        schedule.step()


def fit(
    captioner: Captioner,
    store: Path,
    run: Path,
    epochs: int,
    resume: Path | None = None,
    total_epochs: int = 4,
    precision: Any = "32-true",
) -> tuple[Captioner, L.Trainer]:
    """Train; the schedule is that of `total_epochs`, of which `epochs` are done."""

    class StopAfter(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch + 1 >= epochs

    L.seed_everything(3, verbose=False)
    data = CaptionData(store, captioner, batch_size=4)
    training = CaptionTraining(captioner, data.val_split, 1e-2, warmup_steps=2, max_tokens=10, samples=run / "samples")
    trainer = L.Trainer(
        max_epochs=total_epochs, callbacks=[*best_and_last(run), RandomState(), StopAfter()], logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, gradient_clip_val=1.0,
        accelerator="cpu", precision=precision,
    )  # fmt: skip
    trainer.fit(training, data, ckpt_path=resume, weights_only=True)
    return captioner, trainer


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_training_learns_saves_and_resumes(tuning: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")

    def fresh() -> Captioner:
        torch.manual_seed(1)
        lm = load_language_model("demo", tuning)  # type: ignore[arg-type]
        return Captioner(lm, IDENTITY, {"name": "mlp", "prefix_length": 4})

    whole, trainer = fit(fresh(), store, tmp_path / "whole", 4)
    assert trainer.callback_metrics["train_loss"] < 3.5  # of about 5 before
    fit(fresh(), store, tmp_path / "parts", 2)
    parts, trainer = fit(fresh(), store, tmp_path / "parts", 4, tmp_path / "parts" / "last.ckpt")
    assert trainer.global_step == 12
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other)  # tests/test_reliability.py asks for more, on one thread

    checkpoint = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    names = checkpoint["state_dict"].keys()
    assert any(name.startswith("captioner.language_model.") for name in names) == (tuning == "full")
    loaded = prefixcap.load(tmp_path / "whole" / "last.ckpt")
    embeddings = torch.randn(4, 16)
    assert loaded.caption(embeddings, max_tokens=12) == whole.caption(embeddings, max_tokens=12)
    samples = json.loads(sorted((tmp_path / "whole" / "samples").iterdir())[-1].read_text())
    assert [sample["references"] for sample in samples] == [list(own) for own in CAPTIONS]


def test_bf16_training_learns_and_keeps_full_weights(tmp_path: Path) -> None:
    captioner = small_captioner("full", "mlp")
    _, trainer = fit(captioner, make_store(tmp_path / "store"), tmp_path / "run", 4, precision="bf16-mixed")
    assert trainer.callback_metrics["train_loss"] < 5.5  # of 6.9 before
    loaded = prefixcap.load(tmp_path / "run" / "last.ckpt")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_what_cannot_be_trained_well_is_told(tmp_path: Path) -> None:
    split = CaptionData(make_store(tmp_path / "store"), small_captioner()).val_split
    coarse = Captioner(load_language_model("demo", "full", "bfloat16"), IDENTITY, {"name": "mlp", "prefix_length": 4})
    with pytest.raises(InputError, match=r"too small for bfloat16 weights \(mixed .*: set dtype='float32' or tuning="):
        CaptionTraining(coarse, split)
    training = CaptionTraining(small_captioner(), split, warmup_steps=400)
    training.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=100)
    with pytest.warns(UserWarning, match=r"100 steps, and warmup_steps=400: .* at 25% of its peak"):
        training.configure_optimizers()
    training.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=99)
    with pytest.warns(UserWarning, match=r"too few steps \(99\) to learn .* min_steps"):
        training.configure_optimizers()


@pytest.mark.parametrize(("steps", "warmup"), [(200, 20), (49_990, 4999), (60_000, 5000), (900_000, 5000)])
def test_warm_up_takes_at_most_a_tenth_of_the_steps(tmp_path: Path, steps: int, warmup: int) -> None:
    training = CaptionTraining(small_captioner(), CaptionData(make_store(tmp_path / "s"), small_captioner()).val_split)
    training.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=steps)
    rate = training.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert max(range(steps), key=rate) == warmup and rate(warmup) == 1.0 and rate(warmup // 2) < 0.51


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"epsilon": 1e-6}, "AdamW has no option 'epsilon': it has betas, eps, "),
        ({"lr": 1e-6}, "AdamW has no option 'lr'"),
        ({"betas": [0.9, 2.0]}, "AdamW: Invalid beta parameter"),
        ({"betas": 0.9}, "AdamW: "),
        ({"betas": [0.9]}, "AdamW: "),
        ({"eps": -1.0}, "AdamW: Invalid epsilon value"),
        ({"eps": "small"}, "AdamW: "),
        ({"fused": True, "foreach": True}, "AdamW: "),
    ],
)
def test_arguments_that_adamw_does_not_take(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=f"^{problem}.*$"):
        adamw([torch.nn.Parameter(torch.zeros(2))], 1e-3, 0.0, **options)


@pytest.mark.parametrize(
    ("options", "epochs", "validations"),
    [
        ({"max_epochs": 2, "min_steps": 20}, 8, 2),  # of three steps each
        ({"max_epochs": 2, "min_steps": 6}, 2, 2),
        ({"max_epochs": 2, "min_steps": 7}, 4, 2),
        ({"max_epochs": 3, "min_steps": 10, "limit_train_batches": 1}, 12, 3),
        ({"max_epochs": 3, "min_steps": 10, "accumulate_grad_batches": 3}, 12, 3),
        ({"max_epochs": 4, "min_steps": 30, "check_val_every_n_epoch": 2}, 12, 2),
        ({"max_epochs": 2, "max_steps": 5, "min_steps": 20}, 2, 1),
        ({"max_epochs": 2}, 2, 2),
    ],
)
def test_few_images_are_gone_through_more_often(
    tmp_path: Path, options: dict[str, int], epochs: int, validations: int
) -> None:
    captioner = small_captioner(mapper="mlp")
    data = CaptionData(make_store(tmp_path / "store"), captioner, batch_size=5)  # 12 captions
    training = CaptionTraining(captioner, data.val_split, max_tokens=2)
    seen: list[float] = []

    class Seen(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            seen.append(float(trainer.callback_metrics["val_distinct"]))

    trainer = L.Trainer(
        callbacks=[ReachMinSteps(), Seen(), LastCheckpoint(tmp_path / "last.ckpt")], logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        **options,  # type: ignore[arg-type]
    )  # fmt: skip
    trainer.fit(training, data)
    assert (trainer.current_epoch, len(seen)) == (epochs, validations)
    assert trainer.global_step >= min(options.get("min_steps", 0), options.get("max_steps", 10**9))
    assert all(round(share * 3) in (1, 2, 3) for share in seen)  # captions of three images
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == trainer.global_step


def test_validation_captions_that_are_all_the_same_are_counted(tmp_path: Path) -> None:
    captioner = small_captioner(mapper="mlp")
    data = CaptionData(make_store(tmp_path / "store"), captioner, batch_size=2)
    trainer = L.Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")
    training = CaptionTraining(captioner, data.val_split, max_tokens=5)
    for parameter in captioner.mapper.parameters():
        parameter.data.zero_()  # every image has the same prefix
    logged = trainer.validate(training, data, verbose=False)[0]
    assert logged["val_distinct"] == pytest.approx(1 / 3) and training.same_captions


def test_validation_loss_is_the_mean_over_all_caption_tokens(tmp_path: Path) -> None:
    captioner = small_captioner().eval()
    data = CaptionData(make_store(tmp_path / "store"), captioner, batch_size=2)
    noise = Noise(variance=9.0)
    training = CaptionTraining(captioner, data.val_split, max_tokens=5, noise=noise, noise_in_validation=False)
    trainer = L.Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")
    logged = trainer.validate(training, data, verbose=False)[0]
    total, count = 0.0, 0
    for caption, text in enumerate(data.val_split.captions[:]):
        tokens = captioner.language_model.tokenize([text])[0]
        row = data.val_split.caption_images[caption]
        embedding = torch.from_numpy(data.val_split.embeddings[row : row + 1]).float()
        with torch.no_grad():
            total += plain_loss(captioner, embedding, tokens).item()
        count += len(tokens)
    assert logged["val_loss"] == pytest.approx(total / count, rel=1e-5)
