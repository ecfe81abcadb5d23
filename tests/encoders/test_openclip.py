"""The models of open_clip, tiny ones with random weights, against open_clip called directly."""

import json
import logging
import socket
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefixcap.encoders import load_encoder
from prefixcap.encoders.openclip import missing_checkpoint
from prefixcap.encoders.regions import aggregate_regions
from prefixcap.errors import InputError
from prefixcap.utils.hub import Unreachable
from tests.encoders.conftest import OPEN_CLIP_MODELS, SIZE, open_clip_model

TEXTS = ["a red circle", "A red circle on the left, and two dogs: run!", "caf\u00e9 &amp; caf\u00e9", "dog " * 100]


@pytest.fixture(scope="session", params=list(OPEN_CLIP_MODELS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_clip_model(str(request.param), tmp_path_factory.mktemp("open_clip"))


def theirs(folder: Path) -> tuple[Any, Any, Any]:
    """The model, its transform and its tokenizer by open_clip itself."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{folder}")


@torch.no_grad()
def test_embeddings_equal_those_of_open_clip(folder: Path, photograph: Image.Image) -> None:
    encoder = load_encoder(f"open_clip:{folder}")
    model, transform, tokenizer = theirs(folder)
    pixels = encoder.preprocess(photograph)[None]
    torch.testing.assert_close(encoder.normalize(pixels)[0], transform(photograph))
    images = model.encode_image(transform(photograph)[None], normalize=False)
    torch.testing.assert_close(encoder.encode_images(pixels), images, rtol=1e-4, atol=1e-4)
    texts = model.encode_text(tokenizer(TEXTS), normalize=False)
    torch.testing.assert_close(encoder.encode_texts(TEXTS), texts, rtol=1e-4, atol=1e-4)
    assert encoder.encode_texts([]).shape == (0, 48)
    assert encoder.identity.dim == 48 == images.shape[1] == texts.shape[1]


@torch.no_grad()
def test_patches_of_a_vit(open_clip_folder: Path, pixels: Tensor) -> None:
    encoder = load_encoder(f"open_clip:{open_clip_folder}")
    model, *_ = theirs(open_clip_folder)
    features = encoder.encode_patches(pixels)
    intermediate = model.visual.forward_intermediates(
        pixels, indices=1, output_fmt="NLC", output_extra_tokens=True, normalize_intermediates=True
    )
    torch.testing.assert_close(features.embedding, model.encode_image(pixels))
    torch.testing.assert_close(features.patches, intermediate["image_intermediates"][0] @ model.visual.proj)
    last = model.visual.transformer.resblocks[-1]
    before = model.visual._embeds(pixels)
    before = last.ln_1(model.visual.transformer.resblocks[0](before))
    query, key, _ = F.linear(before, last.attn.in_proj_weight, last.attn.in_proj_bias).chunk(3, dim=-1)
    query, key = (x.unflatten(-1, (2, 32)).transpose(1, 2) for x in (query, key))
    attention = (query @ key.transpose(-1, -2) / 32**0.5).softmax(dim=-1).mean(dim=1)
    torch.testing.assert_close(features.attention, attention[:, 0, 1:])
    torch.testing.assert_close(features.patch_attention, attention[:, 1:])
    assert features.hidden is not None
    torch.testing.assert_close(model.visual.ln_post(features.hidden[:, 0]) @ model.visual.proj, features.embedding)
    assert aggregate_regions(features, 5).shape == (4, 5, 48)


@torch.no_grad()
def test_patches_of_a_vit_that_reads_their_mean(tmp_path: Path, pixels: Tensor) -> None:
    encoder = load_encoder(f"open_clip:{open_clip_model('mean', tmp_path)}")
    features = encoder.encode_patches(pixels)
    assert features.patches.shape == (4, 16, 48)
    torch.testing.assert_close(features.embedding, encoder.encode_images(pixels))
    with pytest.raises(InputError, match="need the attention of a class token"):
        aggregate_regions(features)


@torch.no_grad()
def test_places_of_a_network_of_timm(tmp_path: Path, pixels: Tensor) -> None:
    encoder = load_encoder(f"open_clip:{open_clip_model('timm', tmp_path)}")
    features = encoder.encode_patches(pixels)
    assert features.patches.shape == (4, 1, 48)  # of 32 x 32 pixels
    torch.testing.assert_close(features.patches[:, 0], encoder.encode_images(pixels), rtol=1e-4, atol=1e-4)
    larger = encoder.encode_patches(torch.randn(2, 3, 64, 96))
    torch.testing.assert_close(
        larger.patches.mean(dim=1), larger.embedding, rtol=1e-4, atol=1e-4
    )  # 2 x 3, of which a linear layer is read


@pytest.mark.parametrize("kind", ["resnet", "coca"])
def test_other_towers_have_no_patches(kind: str, tmp_path: Path, pixels: Tensor) -> None:
    encoder = load_encoder(f"open_clip:{open_clip_model(kind, tmp_path)}")
    with pytest.raises(InputError, match="has no patches in the space of its embeddings") as caught:
        encoder.encode_patches(pixels)
    assert "\n" not in str(caught.value)


def test_texts_in_pieces(open_clip_folder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(f"open_clip:{open_clip_folder}")
    tower = encoder.text_tower
    assert tower is not None
    parts = tower.encode(tower.sentences(["a red", " circle", " star"], [0, 0], [1, 2]))
    torch.testing.assert_close(parts, encoder.encode_texts(["a red circle", "a red star"]), rtol=1e-4, atol=1e-4)
    assert load_encoder(f"open_clip:{open_clip_model('mean', tmp_path)}").text_tower is None  # it is not causal


def test_weights_of_a_file(
    open_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same model by its name and a file; nothing is fetched, and neither output nor logging is changed."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-tiny", OPEN_CLIP_MODELS["vit"])
    monkeypatch.chdir(tmp_path)
    save_file(load_file(open_clip_folder / "open_clip_model.safetensors"), tmp_path / "weights.safetensors")
    torch.save(load_file(open_clip_folder / "open_clip_model.safetensors"), tmp_path / "weights.pt")
    handlers, disabled = list(logging.getLogger().handlers), logging.root.manager.disable

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    expected = load_encoder(f"open_clip:{open_clip_folder}").identity
    for name in ("ViT-tiny/weights.pt", f"ViT-tiny/{tmp_path}/weights.safetensors", f"local-dir:{open_clip_folder}"):
        assert load_encoder(f"open_clip:{name}").identity.agrees_with(expected), name
    assert "".join(capfd.readouterr()) == ""
    assert (logging.getLogger().handlers, logging.root.manager.disable) == (handlers, disabled)


def test_identity_and_narrow_dtype(folder: Path, pixels: Tensor) -> None:
    wide, narrow = load_encoder(f"open_clip:{folder}"), load_encoder(f"open_clip:{folder}", dtype=torch.bfloat16)
    assert narrow.identity == wide.identity
    for ours, expected in (
        (narrow.encode_images(pixels), wide.encode_images(pixels)),
        (narrow.encode_texts(TEXTS), wide.encode_texts(TEXTS)),
    ):
        assert ours.dtype == torch.bfloat16
        assert torch.cosine_similarity(ours.float(), expected).min() > 0.98


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_modes_of_resizing(mode: str, tmp_path: Path, photograph: Image.Image) -> None:
    folder = open_clip_model("vit", tmp_path, resize_mode=mode, mean=[0.5, 0.5, 0.5], std=[0.4, 0.5, 0.6])
    encoder, transform = load_encoder(f"open_clip:{folder}"), theirs(folder)[1]
    for image in (photograph, photograph.rotate(90, expand=True), Image.new("RGB", (300, 20))):
        torch.testing.assert_close(encoder.normalize(encoder.preprocess(image)[None])[0], transform(image))
    assert encoder.preprocess(Image.new("RGBA", (40, 30))).shape == (3, SIZE, SIZE)
    assert hasattr(encoder, "geometry") == (mode != "longest")
    words = {"shortest": "shorter side to 32 (bicubic), centre crop 32 x 32", "squash": "resize to 32 x 32 (bicubic)"}
    if mode in words:
        expected = f"{words[mode]}, mean [0.5, 0.5, 0.5], deviation [0.4, 0.5, 0.6]"
        assert encoder.identity.preprocessing == expected


def refused(name: str) -> str:
    with pytest.raises(InputError) as caught:
        load_encoder(name)
    message = str(caught.value)
    assert "\n" not in message and repr(name) in message
    return message


def test_names_that_are_no_models_are_told(tmp_path: Path) -> None:
    assert "no model 'ViT-B-33': take one of its list_models(), e.g. ViT-B-32" in refused("open_clip:ViT-B-33/openai")
    assert "it names no weights: give open_clip:ViT-B-32/FILE or one of openai, " in refused("open_clip:ViT-B-32")
    assert "there is no file w.pt, and ViT-B-32 has no such weights" in refused("open_clip:ViT-B-32/w.pt")
    assert "there is no file" in refused(f"open_clip:{tmp_path}")


def test_damaged_and_incomplete_folders_are_told(open_clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text((open_clip_folder / "open_clip_config.json").read_text())
    assert "cannot be loaded (" in refused(f"open_clip:{tmp_path}")  # no weights
    weights = load_file(open_clip_folder / "open_clip_model.safetensors")
    file = tmp_path / "open_clip_model.safetensors"
    save_file({name: weight for name, weight in weights.items() if name != "visual.proj"}, file)
    assert "cannot be loaded (" in refused(f"open_clip:{tmp_path}")
    file.write_bytes(b"no weights")
    assert "cannot be loaded (" in refused(f"open_clip:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{")
    assert "cannot be loaded (" in refused(f"open_clip:{tmp_path}")


@pytest.mark.parametrize(
    ("tower", "option", "what"),
    [
        (
            "text_cfg",
            {"hf_model_name": "nobody/nothing"},
            "its text tower nobody/nothing is configured on the model hub",
        ),
        (
            "vision_cfg",
            {"timm_model_name": "hf-hub:nobody/nothing"},
            "its image tower hf-hub:nobody/nothing is elsewhere",
        ),
        ("text_cfg", {"hf_tokenizer_name": "nobody/nothing"}, "cannot be loaded"),
    ],
)
def test_a_folder_fetches_nothing(
    tower: str,
    option: dict[str, str],
    what: str,
    open_clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = json.loads((open_clip_folder / "open_clip_config.json").read_text())
    config["model_cfg"][tower] |= option
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_model.safetensors").symlink_to(open_clip_folder / "open_clip_model.safetensors")

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert what in refused(f"open_clip:{tmp_path}")


def test_published_weights_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, files in {
        "ViT-B-32/laion2b_s34b_b79k": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K/resolve/main/",
        "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K": "fetch open_clip_config.json, open_clip_model.safetensors (or",
    }.items():
        with pytest.raises(Unreachable, match="model hub cannot be reached") as caught:
            load_encoder(f"open_clip:{name}")
        assert files in str(caught.value) and "\n" not in str(caught.value)
    assert missing_checkpoint("ViTamin-S/datacomp1b") is not None
    assert missing_checkpoint(str(tmp_path)) is None


def test_weights_for_another_activation_are_refused(
    open_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's are for ViT-B-32-quickgelu; open_clip itself only warns."""
    file = open_clip_folder / "open_clip_model.safetensors"
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(file))
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", OPEN_CLIP_MODELS["vit"] | {"quick_gelu": False})
    assert "QuickGELU mismatch" in refused("open_clip:ViT-B-32/openai")
    assert load_encoder("open_clip:ViT-B-32/laion2b_s34b_b79k").identity.dim == 48
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32-quickgelu", OPEN_CLIP_MODELS["vit"])
    quick = load_encoder("open_clip:ViT-B-32-quickgelu/openai").identity
    assert quick.agrees_with(load_encoder(f"open_clip:{open_clip_folder}").identity)
    assert not quick.agrees_with(load_encoder("open_clip:ViT-B-32/laion2b_s34b_b79k").identity)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert 'pip install "prefixcap[open-clip]"' in refused("open_clip:ViT-B-32/openai")
