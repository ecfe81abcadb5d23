"""The architectures of the paper at their full size, with random weights: one step, save, load, the same captions."""

from pathlib import Path

import lightning as L
import pytest
import torch
from clip.model import CLIP
from PIL import Image
from transformers import GPT2Config, GPT2LMHeadModel

import prefixcap
from data_prep.embedding import embed
from data_prep.records import ImageRecord, dataset_from_files
from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.encoders import load_encoder
from prefixcap.language import load_language_model
from prefixcap.store import FeatureStore
from prefixcap.training import CaptionTraining
from prefixcap.training.checkpoints import best_and_last


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 small with random weights, in a folder, with the small world's tokenizer, which uses some of its words."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    load_language_model("demo").tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A few images through ViT-B/32 with random weights."""
    folder = tmp_path_factory.mktemp("images")
    torch.manual_seed(0)
    torch.save(CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12).state_dict(), folder / "ViT-B-32.pt")
    records = []
    for number, colour in enumerate(["red", "green", "blue", "white"]):
        Image.new("RGB", (300, 240), colour).save(folder / f"{colour}.jpg")
        split = "val" if colour == "white" else "train"
        records.append(ImageRecord(number, f"{colour}.jpg", split, (f"A {colour} picture.", f"It is {colour}.")))
    encoder = load_encoder(f"clip:{folder / 'ViT-B-32.pt'}")
    embed(dataset_from_files(records, [], folder, "test"), encoder, folder / "store", progress=False)
    return FeatureStore(folder / "store")


@pytest.mark.slow
@pytest.mark.parametrize(("mapper", "tuning"), [("transformer", "frozen"), ("mlp", "full")])
def test_one_step_save_load_and_the_same_tokens(
    mapper: str, tuning: str, gpt2: Path, store: FeatureStore, tmp_path: Path
) -> None:
    """Slow because the models have their full size: each checkpoint holds up to 1.9 GB."""
    language_model = load_language_model(str(gpt2), tuning)  # type: ignore[arg-type]
    captioner = Captioner(language_model, store.encoder, {"name": mapper, "prefix_length": 10})
    data = CaptionData(store.path, captioner, batch_size=4)
    training = CaptionTraining(captioner, data.val_split, warmup_steps=0, max_tokens=4)
    _, last = best_and_last(tmp_path)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, callbacks=[last], num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, limit_train_batches=1,
    )  # fmt: skip
    before = {name: weight.clone() for name, weight in captioner.mapper.named_parameters()}
    trainer.fit(training, data)
    assert all(not torch.equal(weight, before[name]) for name, weight in captioner.mapper.named_parameters())
    images = [path for split in store.splits for path in store.split(split).files]
    captions = captioner.caption(images, "beam", max_tokens=8)
    loaded = prefixcap.load(tmp_path / "last.ckpt")
    assert loaded.caption(images, "beam", max_tokens=8) == captions
    captioner.save_pretrained(tmp_path / "exported")
    assert prefixcap.load(tmp_path / "exported").caption(images, "beam", max_tokens=8) == captions
    size = (tmp_path / "last.ckpt").stat().st_size
    parameters = 41.7e6 if tuning == "frozen" else 155.9e6
    assert size == pytest.approx(3 * 4 * parameters, rel=0.01)  # weights, and AdamW's two averages
