"""Training on captions alone: what is read in place of images, and what a captioner of it writes for images."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel, load_language_model
from prefixcap.noise import Noise
from prefixcap.store import ImageRecord, StoreWriter, join
from prefixcap.training import CaptionTraining
from tests.conftest import IDENTITY, small_lm

WORDS = ("star", "ring", "heart", "circle", "cross")


def make_store(path: Path, images: bool = False) -> Path:
    """Captions with random embeddings, one for each word, and images with nearly the same, in another modality."""
    generator = np.random.default_rng(0)
    of_word = generator.normal(size=(len(WORDS), IDENTITY.dim))
    records, of_captions, of_images = [], [], []
    for number in range(60):
        word = number % len(WORDS)
        split = "train" if number < 50 else "val"
        records.append(ImageRecord(number, "", split, (f"A red {WORDS[word]}.", f"A blue {WORDS[word]}.")))
        of_captions += [of_word[word] + 0.05 * generator.normal(size=IDENTITY.dim) for _ in range(2)]
        of_images.append(2 * of_word[word] + 0.3 * generator.normal(size=IDENTITY.dim))
    columns = {"captions/embedding": np.array(of_captions, np.float16)}
    if images:
        columns["images/embedding"] = np.array(of_images, np.float16)
        columns["images/regions"] = np.repeat(columns["images/embedding"][:, None], 3, 1)
    writer = StoreWriter(path, IDENTITY, "test", path, job="test", shards=1)
    writer.write_piece(0, 0, 1, records, columns, [])
    join(path)
    return path


def captioner(mapper: str = "mlp", lm: LanguageModel | None = None) -> Captioner:
    torch.manual_seed(0)
    return Captioner(lm or small_lm(), IDENTITY, {"name": mapper, "prefix_length": 4}, normalize_embeddings=True)


def test_each_caption_is_read_by_its_own_embedding(tmp_path: Path) -> None:
    data = CaptionData(make_store(tmp_path / "store"), captioner(), batch_size=7, from_text=True)
    embeddings = data.train_split.feature("captions/embedding")
    seen = []
    for batch in data.train_dataloader():
        expected = torch.from_numpy(embeddings[np.array(batch.caption_rows)]).float()
        torch.testing.assert_close(batch.embeddings, expected, rtol=0, atol=0)
        seen += batch.caption_rows
    assert sorted(seen) == list(range(100))
    own = data.val_split.feature("captions/embedding")
    for batch in data.val_dataloader():  # an image by its first caption
        firsts = torch.from_numpy(own[2 * np.array(batch.image_rows)]).float()
        torch.testing.assert_close(batch.embeddings, firsts, rtol=0, atol=0)


@pytest.mark.parametrize(("mapper", "noise"), [("mlp", Noise()), ("mlp", Noise("ball")), ("mlp", None)])
def test_a_captioner_that_learned_from_text_captions_images(mapper: str, noise: Noise | None, tmp_path: Path) -> None:
    store, model = make_store(tmp_path / "store", images=True), captioner(mapper)
    model.language_model.model.requires_grad_(True)  # a random language model writes no words
    data = CaptionData(store, model, batch_size=10, from_text=True)
    validated: list[dict[str, float]] = []

    class Keep(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            validated.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    torch.manual_seed(0)
    trainer = L.Trainer(
        max_epochs=12, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[Keep()],
    )  # fmt: skip
    training = CaptionTraining(model, data.val_split, 5e-3, warmup_steps=5, max_tokens=12, noise=noise)
    trainer.fit(training, data)
    trainer.validate(training, data, verbose=False)
    assert validated[-1]["val_loss"] == pytest.approx(validated[-2]["val_loss"])  # the noise is the same
    split = data.val_split
    written = model.caption(split.feature(model.features)[:], "greedy", max_tokens=12)
    right = [WORDS[image_id % len(WORDS)] in caption for image_id, caption in zip(split.ids, written, strict=True)]
    assert np.mean(right) > 0.8, written


class Lengths:
    """An encoder by which texts point along the axis of their length."""

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        return torch.stack([torch.eye(16)[len(text) % 16] for text in texts])


def ranked(captions: list[list[str]], embeddings: torch.Tensor) -> list[list[str]]:
    """By `Lengths`, one image after the other."""
    return [
        sorted(of_image, key=lambda text: -embedding[len(text) % 16].item())
        for of_image, embedding in zip(captions, embeddings, strict=True)
    ]


def test_candidates_are_written_with_noise_and_the_closest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, embeddings = captioner(lm=load_language_model("demo")), torch.randn(3, 16)
    with torch.no_grad():
        for weight in model.mapper.parameters():
            weight.mul_(8)  # so that a little more noise is another caption
    options: dict[str, Any] = {"decode": "greedy", "noise": 0.5, "seed": 1, "max_tokens": 9}
    found = model.candidates(embeddings, 4, **options)
    noisy = F.normalize(embeddings, dim=-1).repeat_interleave(4, 0)
    noisy = noisy + 0.5**0.5 * torch.randn(noisy.shape, generator=torch.Generator().manual_seed(1))
    alone = [model.caption(row[None], "greedy", max_tokens=9)[0] for row in noisy]
    assert found == [alone[first : first + 4] for first in (0, 4, 8)] and len(set(alone)) > 6
    assert model.candidates(embeddings, 4, batch_size=4, **options) == found
    monkeypatch.setattr(Captioner, "encoder", lambda self: Lengths())
    assert model.candidates(embeddings, 4, by_similarity=True, **options) == ranked(found, embeddings)


def test_who_reads_regions_compares_captions_with_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    model = captioner("adaptor", load_language_model("demo"))
    regions, embeddings = torch.randn(3, 5, 16), torch.randn(3, 16)
    options: dict[str, Any] = {"decode": "nucleus", "seed": 1, "max_tokens": 9}
    found = model.candidates(regions, 4, **options)
    monkeypatch.setattr(Captioner, "encoder", lambda self: Lengths())
    assert model.candidates(regions, 4, embeddings=embeddings, by_similarity=True, **options) == ranked(
        found, embeddings
    )
    with pytest.raises(InputError, match="give embeddings, too"):
        model.caption(regions, "greedy", rerank=4)


def test_stores_of_the_other_kind_are_told(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    with pytest.raises(InputError, match="has sentences and no images: give a store with images/embedding"):
        CaptionData(store, captioner())
    with pytest.raises(InputError, match=r"group_captions is for captions that share"):
        CaptionData(store, captioner(), group_captions=True, from_text=True)
