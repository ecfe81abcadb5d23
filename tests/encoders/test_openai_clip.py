import builtins
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import clip
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from prefixcap.demo import ASSETS
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.errors import InputError

TEXTS = ["a red circle", "Two dogs run.", ""]
PARTS = [*" aA.'-_|<>&;\n\t", "  ", "Zebra", "n't", "'RE", "1984", "&lt", "<|endoftext|>", "\x1b[1m", "\x7f", "café"]


@pytest.fixture(scope="module")
def encoder(clip_file: Path) -> Encoder:
    return load_encoder(f"clip:{clip_file}")


@pytest.fixture(scope="module")
def oracle(clip_file: Path) -> nn.Module:
    return clip.load(str(clip_file), device="cpu")[0]


def test_images_and_texts_equal_clips_own(encoder: Encoder, oracle: nn.Module, pixels: Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(encoder.encode_images(pixels), oracle.encode_image(pixels))
        torch.testing.assert_close(encoder.encode_texts(TEXTS), oracle.encode_text(clip.tokenize(TEXTS)))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(texts=st.lists(st.lists(st.sampled_from(PARTS) | st.text(max_size=5), max_size=8).map("".join), max_size=4))
def test_tokens_equal_clips_own(encoder: Encoder, texts: list[str]) -> None:
    assert encoder.text_tower is not None
    assert encoder.text_tower.tokenize(texts) == [clip.clip._tokenizer.encode(text) for text in texts]


def test_preprocessing_of_rgb_equals_clips_own(encoder: Encoder, clip_file: Path, photograph: Image.Image) -> None:
    transform = clip.load(str(clip_file), device="cpu")[1]
    pixels = encoder.preprocess(photograph)
    assert pixels.dtype == torch.uint8
    assert torch.equal(encoder.normalize(pixels[None])[0], transform(photograph))


@torch.no_grad()
def plain_vision_transformer(visual: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """A ViT from its equations: (batch, 1 + patches, dim) projected tokens, and the last layer's attention
    (batch, heads, 1 + patches, 1 + patches)."""
    batch, width = len(pixels), visual.class_embedding.shape[0]
    x = nn.functional.unfold(pixels, 8, stride=8).transpose(1, 2) @ visual.conv1.weight.flatten(1).T
    x = torch.cat([visual.class_embedding.repeat(batch, 1, 1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x)
    for block in visual.transformer.resblocks:
        projected = block.ln_1(x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        heads = projected.reshape(batch, -1, 3, block.attn.num_heads, 64)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attention = (query @ key.transpose(-1, -2) / 8).softmax(dim=-1)
        x = x + block.attn.out_proj((attention @ value).transpose(1, 2).reshape(batch, -1, width))
        x = x + block.mlp(block.ln_2(x))
    return visual.ln_post(x) @ visual.proj, attention


@torch.no_grad()
def test_patches_equal_a_plain_vision_transformer(encoder: Encoder, oracle: nn.Module, pixels: Tensor) -> None:
    tokens, attention = plain_vision_transformer(oracle.visual, pixels)
    features = encoder.encode_patches(pixels)
    assert features.patches.shape == (4, 16, 48)
    assert torch.equal(features.embedding, encoder.encode_images(pixels))
    torch.testing.assert_close(features.embedding, tokens[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.patches, tokens[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.attention, attention.mean(dim=1)[:, 0, 1:])
    torch.testing.assert_close(features.patch_attention, attention.mean(dim=1)[:, 1:])
    assert features.hidden is not None and features.hidden.shape[:2] == (4, 1 + 16)
    torch.testing.assert_close(
        oracle.visual.ln_post(features.hidden) @ oracle.visual.proj, tokens, rtol=1e-4, atol=1e-4
    )


def test_a_resnet_has_no_patches(resnet_file: Path, pixels: Tensor) -> None:
    encoder = load_encoder(f"clip:{resnet_file}")
    with torch.no_grad():
        expected = clip.load(str(resnet_file), device="cpu")[0].encode_image(pixels)
    assert torch.equal(encoder.encode_images(pixels), expected)
    with pytest.raises(InputError, match=r"has a ResNet image tower: .* need a ViT") as caught:
        encoder.encode_patches(pixels)
    assert encoder.identity.name in str(caught.value)


def test_a_long_text_is_cut(encoder: Encoder) -> None:
    long = "a red circle " * 40
    assert torch.equal(encoder.encode_texts([long]), encoder.encode_texts([long + " and more"]))


def test_no_texts_give_no_embeddings(encoder: Encoder) -> None:
    assert encoder.encode_texts([]).shape == (0, 48)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes(clip_file: Path, encoder: Encoder, pixels: Tensor, dtype: torch.dtype) -> None:
    narrow = load_encoder(f"clip:{clip_file}", dtype=dtype)
    features, wide = narrow.encode_patches(pixels), encoder.encode_patches(pixels)
    most = 20 * torch.finfo(dtype).eps  # of a vector's length
    for name in ("embedding", "patches", "attention"):
        found, expected = getattr(features, name), getattr(wide, name)
        assert found.dtype == dtype
        assert ((found.float() - expected).norm(dim=-1) < most * expected.norm(dim=-1)).all()
    assert narrow.encode_images(pixels).dtype == narrow.encode_texts(TEXTS).dtype == dtype
    assert narrow.identity == encoder.identity


def test_identity(clip_file: Path, encoder: Encoder, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt"
    state = torch.load(clip_file)
    torch.save({name: state[name].float() for name in sorted(state)}, copy)
    same = load_encoder(f"clip:{copy}").identity
    assert same.name == f"clip:{copy}" and encoder.identity.name == f"clip:{clip_file}"
    assert (same.digest, same.dim) == (encoder.identity.digest, 48)
    assert same.preprocessing == encoder.identity.preprocessing and "32" in same.preprocessing

    state["logit_scale"] = state["logit_scale"] + 1
    torch.save(state, copy)
    assert load_encoder(f"clip:{copy}").identity.digest != encoder.identity.digest


def test_demo_is_the_packaged_checkpoint() -> None:
    demo, packaged = load_encoder("demo"), load_encoder(f"clip:{ASSETS / 'clip.pt'}")
    assert demo.identity.name == "demo"
    assert demo.identity == replace(packaged.identity, name="demo")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither a file nor one of OpenAI's models \(RN50, .*check"):
        load_encoder(f"clip:{tmp_path}/none.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", {"state_dict": {}}, {}, [1.0]])
def test_what_is_no_checkpoint_is_told_in_one_line(tmp_path: Path, content: object) -> None:
    path = tmp_path / "bad.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=r"bad\.pt' cannot be loaded \(.*give a CLIP state dict") as caught:
        load_encoder(f"clip:{path}")
    assert "\n" not in str(caught.value)


def test_a_clip_without_text_tower_is_told(clip_file: Path, tmp_path: Path) -> None:
    weights = torch.load(clip_file, weights_only=True)
    torch.save({name: x for name, x in weights.items() if name.startswith("visual.")}, tmp_path / "vision.pt")
    with pytest.raises(InputError, match=r"it lacks 'text_projection'\): give .* with image and text tower"):
        load_encoder(f"clip:{tmp_path}/vision.pt")


def test_no_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(InputError, match=r"'clip:ViT-B/32' cannot be loaded .*no route.*network"):
        load_encoder("clip:ViT-B/32")


def test_unsuitable_setuptools_is_told(clip_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_clip(name: str, *args: object, **kwargs: object) -> object:
        if name == "clip":
            raise ImportError("cannot import name 'packaging' from 'pkg_resources'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_clip)
    with pytest.raises(InputError, match=r"'packaging' from .*'setuptools>=71\.0\.1,<82'"):
        load_encoder(f"clip:{clip_file}")


def test_any_image_mode(encoder: Encoder, photograph: Image.Image) -> None:
    for mode in (
        "1",
        "L",
        "P",
        "RGBA",
        "CMYK",
        "YCbCr",
        "HSV",
        "LAB",
        "I",
        "F",
        "LA",
        "PA",
        "La",
        "RGBa",
        "RGBX",
    ):
        image = photograph.convert(mode) if mode in ("1", "L", "P", "RGBA", "CMYK") else Image.new(mode, (40, 50))
        assert encoder.preprocess(image).shape == (3, 32, 32), mode
    assert torch.isfinite(encoder.encode_images(encoder.preprocess(photograph.convert("L"))[None])).all()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bit_grey_is_scaled_not_clipped(encoder: Encoder, mode: str) -> None:
    levels = np.arange(0, 65536, 13, dtype=np.uint16)[:4096].reshape(64, 64)
    if mode == "I":
        image = Image.fromarray(levels.astype(np.int32))
    else:
        image = Image.frombytes(mode, (64, 64), levels.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert image.mode == mode
    grey = Image.fromarray((levels / 257).round().astype(np.uint8))
    assert torch.equal(encoder.preprocess(image), encoder.preprocess(grey.convert("RGB")))


def test_a_palette_is_resized_in_its_colours(encoder: Encoder, recwarn: pytest.WarningsRecorder) -> None:
    palette = Image.new("P", (64, 64))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([(x // 3) % 2 for x in range(64 * 64)])
    assert torch.equal(encoder.preprocess(palette), encoder.preprocess(palette.convert("RGB")))
    palette.putpalette([255, 127, 127, 0, 0, 255])
    expected = encoder.preprocess(palette.convert("RGB"))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.info["transparency"] = b"\x80\xff"  # half of the red is the white behind it
    assert torch.equal(encoder.preprocess(palette), expected)
    assert not [warning for warning in recwarn if "Palette" in str(warning.message)]
