"""An image network and a sentence encoder that heads join, against timm and sentence-transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer

from prefixcap.encoders import load_encoder
from prefixcap.encoders.heads import Head, load_sentence_encoder
from prefixcap.encoders.protocol import ExportableEncoder
from prefixcap.errors import InputError

TEXTS = ["a red circle", "the left", "a circle on the left " * 90, "a"]


def head_of(folder: Path, part: str) -> Head:
    weights = load_file(folder / "heads.safetensors")
    return Head({key.removeprefix(f"{part}."): weight for key, weight in weights.items() if key.startswith(part)})


@torch.no_grad()
def test_both_sides_are_the_heads_of_the_networks(heads_folder: Path) -> None:
    encoder, network = load_encoder(f"heads:{heads_folder}"), load_encoder(f"timm:{heads_folder / 'network'}")
    pixels = encoder.preprocess(Image.effect_noise((60, 40), 90).convert("RGB"))[None]
    assert encoder.identity.dim == 16
    head = head_of(heads_folder, "image")
    torch.testing.assert_close(encoder.encode_images(pixels), head(network.encode_images(pixels)))
    patches = encoder.encode_patches(pixels).patches
    torch.testing.assert_close(patches, head(network.encode_patches(pixels).patches))
    assert isinstance(encoder, ExportableEncoder)
    torch.testing.assert_close(encoder.image_tower(encoder.normalize(pixels)), encoder.encode_images(pixels))

    transformer = Transformer(str(heads_folder / "text"), max_seq_length=64)
    sentences = SentenceTransformer(modules=[transformer, Pooling(24, "mean"), Normalize()], device="cpu")
    features = sentences.encode(TEXTS, convert_to_tensor=True)
    without_head = load_sentence_encoder(heads_folder / "text")
    torch.testing.assert_close(without_head.encode(TEXTS), features, rtol=1e-4, atol=1e-5)
    assert without_head.encode([]).shape == (0, without_head.dim) == (0, 24)
    expected = head_of(heads_folder, "text")(features)
    torch.testing.assert_close(encoder.encode_texts(TEXTS), expected, rtol=1e-4, atol=1e-5)
    assert encoder.encode_texts([]).shape == (0, 16) and encoder.text_tower is None
    narrow = load_encoder(f"heads:{heads_folder}", dtype=torch.bfloat16)
    assert narrow.identity == encoder.identity and narrow.encode_texts(TEXTS).dtype == torch.bfloat16


@pytest.fixture
def copied(heads_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(heads_folder, tmp_path / "copied"))


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_encoder(f"heads:{folder}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("description", "told"),
    [
        ({"image": "timm:network"}, "must say"),
        (["timm:network", "text"], "must say"),
        ({"image": "heads:.", "text": "text"}, "has heads of its own"),
        ({"image": "timm:network", "text": "nowhere"}, "cannot be loaded"),
        ({"image": "nothing", "text": "text"}, "unknown encoder 'nothing'"),
        ({"image": "demo", "text": "text"}, "its image encoder gives 128 features, and heads.safetensors is for 48"),
    ],
)
def test_wrong_descriptions_are_told(description: Any, told: str, copied: Path) -> None:
    (copied / "encoder.json").write_text(json.dumps(description))
    assert told in refused(copied)


def test_damaged_and_other_heads(heads_folder: Path, copied: Path, tmp_path: Path) -> None:
    heads = load_file(copied / "heads.safetensors")
    save_file(heads | {"text.skip.bias": heads["text.skip.bias"] + 1}, copied / "heads.safetensors")
    own, other = (load_encoder(f"heads:{each}").identity for each in (heads_folder, copied))
    assert not other.agrees_with(own)
    bert = load_file(copied / "text/model.safetensors")
    lacking = {key: weight for key, weight in bert.items() if "layer.1.output.dense.weight" not in key}
    save_file(lacking, copied / "text/model.safetensors", metadata={"format": "pt"})
    assert "it lacks weight" in refused(copied)
    del heads["image.up.weight"]
    save_file(heads, copied / "heads.safetensors")
    assert "heads.safetensors is damaged" in refused(copied)
    (copied / "heads.safetensors").unlink()
    assert "heads.safetensors is damaged" in refused(copied)
    assert "encoder.json" in refused(tmp_path / "nowhere")
