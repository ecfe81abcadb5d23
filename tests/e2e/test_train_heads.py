"""`prefixcap train-heads`: from pictures with captions to an encoder with a text side, and to a captioner on it."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from prefixcap.encoders import load_encoder
from prefixcap.encoders.heads import read_heads
from prefixcap.features import EncoderIdentity, Feature
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join
from tests.commands.conftest import Command
from tests.commands.conftest import command as command
from tests.commands.conftest import mistaken as mistaken
from tests.conftest import IDENTITY
from tests.e2e.conftest import Script
from tests.encoders.conftest import heads_folder as heads_folder
from tests.encoders.conftest import timm_folder as timm_folder
from tests.training.test_training import make_store

WORDS = ("red", "circle", "on", "left")  # that the small sentence encoder knows
SHORT = ("trainer.max_steps=2", "trainer.val_check_interval=2", "val_max_tokens=8", "batch_size=8")


def draw_pictures(folder: Path) -> None:
    """Of four parts, each bright if its word is in the caption: all 16, many times for training and once for val."""
    folder.mkdir(parents=True)
    random, rows = np.random.default_rng(0), ["image,caption,split"]
    for split, times in (("train", 12), ("val", 1)):
        for number in range(16 * times):
            shown = [bool(number % 16 >> place & 1) for place in range(4)]
            levels = np.where(np.reshape(shown, (2, 2)), 200, 60).repeat(16, 0).repeat(16, 1)
            noisy = levels[..., None] + random.integers(-25, 26, (32, 32, 3))
            Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{split}{number}.png")
            words = [word for word, is_shown in zip(WORDS, shown, strict=True) if is_shown]
            for _ in range(1 + number % 3):
                rows.append(f"{split}{number}.png,{' '.join(['a', *random.permutation(words)])},{split}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")


def test_from_pictures_to_a_captioner_that_learns_from_captions_alone(
    script: Script, folder: Path, timm_folder: Path, heads_folder: Path, command: Command
) -> None:
    """Five commands, one after another, which takes up to half a minute."""
    draw_pictures(folder / "pictures")
    data, joined = (
        ("data=folder", "data.root=pictures"),
        ("encoder.name=heads:encoders/joined", "data.store=stores/joined"),
    )
    script("embed", *data, f"encoder.name=timm:{timm_folder}", "data.store=stores/images")
    options = ("--texts", heads_folder / "text", "--out", "encoders/joined", "--epochs", 40, "--batch-size", 64)
    status, out, _ = command("train-heads", "stores/images", *options)
    assert status == 0 and "learning from 192 images" in out
    row = next(line for line in out.splitlines() if line.startswith("val, 16 images"))
    to_text, to_image = (float(number) for number in re.findall(r"to \w+ ([\d.]+)", row))
    assert min(to_text, to_image) > 0.7, row  # by chance 1 in 16

    described = json.loads((folder / "encoders/joined/encoder.json").read_text())
    assert described == {"image": f"timm:{timm_folder.resolve()}", "text": "text"}
    encoder = load_encoder("heads:encoders/joined")
    image_head, _ = read_heads(folder / "encoders/joined/heads.safetensors", "joined")
    script("embed", *data, *joined, "features=[image,caption]", "store_dtype=float32")
    split = FeatureStore("stores/joined").split("val")
    alone = torch.from_numpy(FeatureStore("stores/images").split("val").embeddings[:]).float()
    embeddings = torch.from_numpy(split.embeddings[:])
    torch.testing.assert_close(embeddings, image_head(alone), rtol=1e-2, atol=1e-2)  # of features in float16
    texts = torch.from_numpy(split.feature(Feature.CAPTION)[:])
    torch.testing.assert_close(texts, encoder.encode_texts(split.captions[:]), rtol=1e-4, atol=1e-4)

    script("train", *data, *joined, *SHORT, "model=capdec", "lm=demo", "run_dir=runs/capdec")
    ckpt = folder / "runs/capdec/checkpoints/best.ckpt"
    captioning = ("--ckpt", ckpt, "--decode", "greedy", "--set", "max_tokens=4", "--format", "json")
    (entry,) = json.loads(command("caption", "pictures/val3.png", *captioning).out)
    assert len(entry["captions"]) == 1

    again = ("--texts", heads_folder / "text", "--epochs", 1, "--out")
    assert "is there already" in command("train-heads", "stores/images", *again, "encoders/joined").err
    assert "which has heads" in command("train-heads", "stores/joined", *again, "new").err


def test_an_encoder_with_a_text_side_gets_another(tmp_path: Path, heads_folder: Path, command: Command) -> None:
    store, out = make_store(tmp_path / "store", load_encoder("demo").identity), tmp_path / "out"
    texts = ("--texts", heads_folder / "text")
    status, printed, err = command("train-heads", store, *texts, "--out", out, "--epochs", 1)
    assert status == 0 and "demo reads texts itself" in printed, err
    encoder = load_encoder(f"heads:{out}")
    assert encoder.identity.dim == 512 and encoder.encode_texts(["a red circle"]).shape == (1, 512)
    (other := tmp_path / "other").mkdir()  # an empty folder is as good as none; the same seed gives the same weights
    command("train-heads", store, *texts, "--out", other, "--epochs", 1)
    assert (other / "heads.safetensors").read_bytes() == (out / "heads.safetensors").read_bytes()
    damaged = shutil.copytree(heads_folder / "text", tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"no weights")
    status, _, err = command("train-heads", store, "--texts", damaged, "--out", tmp_path / "new")
    assert status == 2 and err.count("\n") == 1 and "damaged cannot be loaded" in err
    assert not (tmp_path / "new").exists()


def stored(path: Path, column: str = Feature.IMAGE, split: str = "train", normalized: bool = False) -> Path:
    """A store of one image, with two vectors of it unless they are its embedding."""
    shape = (1, IDENTITY.dim) if column == Feature.IMAGE else (1, 2, IDENTITY.dim)
    writer = StoreWriter(path, IDENTITY, "test", path, job="test", shards=1)
    writer.made_with = {"normalized": normalized}
    record = ImageRecord(0, "0.jpg", split, ("A star.",))
    writer.write_piece(0, 0, 1, [record], {column: np.ones(shape, np.float16)}, [])
    join(path)
    return path


def test_what_heads_cannot_learn_from_is_told(
    tmp_path: Path, heads_folder: Path, timm_folder: Path, mistaken: Callable[..., str]
) -> None:
    def told(store: Path, *options: object) -> str:
        return mistaken("train-heads", store, "--out", tmp_path / "new", *options)

    assert "has no images/embedding; it has images/patches" in told(stored(tmp_path / "patches", Feature.PATCHES))
    assert "has no captions in its split 'train'" in told(make_store(tmp_path / "silent", IDENTITY, ((), ())))
    assert "has no split 'train' to learn from; it has val" in told(stored(tmp_path / "val", split="val"))
    assert "have unit length" in told(stored(tmp_path / "normalized", normalized=True))
    store = make_store(tmp_path / "store")
    assert "as it has no config.json: give a folder" in told(store, "--texts", tmp_path)
    assert "as it has no tokenizer.json: give a folder" in told(store, "--texts", timm_folder)
    assert "--learning-rate must be above 0" in told(store, "--texts", heads_folder / "text", "--learning-rate", 0)
    other = make_store(tmp_path / "other", replace(load_encoder("demo").identity, digest="0" * 64))
    assert "was made with the encoder demo (weights 00000000)" in told(other, "--texts", heads_folder / "text")
    gone = make_store(tmp_path / "gone", EncoderIdentity(f"timm:{tmp_path}", "0" * 64, "none", 16))
    assert "give a folder timm saved" in told(gone, "--texts", heads_folder / "text")
