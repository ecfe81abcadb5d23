import shutil
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from prefixcap.encoders import Encoder, load_encoder
from prefixcap.encoders.hf import _PIL
from prefixcap.errors import InputError
from tests.encoders.conftest import randomise

TEXTS = ["a red circle", "A red circle on the left, and two dogs: run!", "", "dog " * 100]


@pytest.fixture(scope="module")
def clip_encoder(clip_folder: Path) -> Encoder:
    return load_encoder(f"transformers:{clip_folder}")


@pytest.fixture(scope="module")
def siglip_encoder(siglip_folder: Path) -> Encoder:
    return load_encoder(f"transformers:{siglip_folder}")


def as_tensor(features: object) -> Tensor:
    """What get_*_features returns: a tensor in transformers 4, an output object in 5."""
    return features if isinstance(features, Tensor) else features.pooler_output


@torch.no_grad()
def test_clip_embeddings_equal_transformers_own(clip_encoder: Encoder, clip_folder: Path, pixels: Tensor) -> None:
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    torch.testing.assert_close(clip_encoder.encode_images(pixels), as_tensor(model.get_image_features(pixels)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    expected = as_tensor(model.get_text_features(**tokens))
    torch.testing.assert_close(clip_encoder.encode_texts(TEXTS), expected)


@torch.no_grad()
def test_clip_patches_equal_eager_attention(clip_encoder: Encoder, clip_folder: Path, pixels: Tensor) -> None:
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    model.set_attn_implementation("eager")
    output = model.vision_model(pixels, output_attentions=True)
    tokens = model.visual_projection(model.vision_model.post_layernorm(output.last_hidden_state))
    features = clip_encoder.encode_patches(pixels)
    assert features.patches.shape == (4, 16, 48)
    torch.testing.assert_close(features.embedding, tokens[:, 0])
    torch.testing.assert_close(features.patches, tokens[:, 1:])
    torch.testing.assert_close(features.attention, output.attentions[-1].mean(dim=1)[:, 0, 1:])
    torch.testing.assert_close(features.patch_attention, output.attentions[-1].mean(dim=1)[:, 1:])
    torch.testing.assert_close(features.hidden, output.last_hidden_state, rtol=1e-4, atol=1e-4)
    # What SmallCap's published code reads.
    alone = transformers.CLIPVisionModel.from_pretrained(clip_folder).eval()(pixels).last_hidden_state
    torch.testing.assert_close(features.hidden, alone, rtol=1e-4, atol=1e-4)


def test_both_back_ends_agree_on_the_same_weights(
    clip_encoder: Encoder, clip_file: Path, pixels: Tensor, photograph: Image.Image
) -> None:
    openai = load_encoder(f"clip:{clip_file}")
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(clip_encoder.encode_texts(TEXTS), openai.encode_texts(TEXTS), **close)
    torch.testing.assert_close(clip_encoder.encode_images(pixels), openai.encode_images(pixels), **close)
    ours, theirs = clip_encoder.encode_patches(pixels), openai.encode_patches(pixels)
    torch.testing.assert_close(ours.patches, theirs.patches, **close)
    torch.testing.assert_close(ours.attention, theirs.attention, **close)
    torch.testing.assert_close(ours.patch_attention, theirs.patch_attention, **close)
    torch.testing.assert_close(ours.hidden, theirs.hidden, **close)
    square = photograph.resize((40, 40))  # where the crops of the two do not differ by rounding
    assert torch.equal(clip_encoder.preprocess(square), openai.preprocess(square))
    batch = openai.preprocess(square)[None]
    torch.testing.assert_close(clip_encoder.encode_images(batch), openai.encode_images(batch), **close)


@torch.no_grad()
def test_siglip_embeddings_equal_transformers_own(siglip_encoder: Encoder, siglip_folder: Path, pixels: Tensor) -> None:
    model = transformers.SiglipModel.from_pretrained(siglip_folder).eval()
    expected = as_tensor(model.get_image_features(pixels))
    torch.testing.assert_close(siglip_encoder.encode_images(pixels), expected)
    tokens = torch.tensor([[3, 4, 5, 1] + 12 * [0], [3, 4, 5, 6, 7, 8] + [1] + 9 * [0], [1] + 15 * [0]])
    expected = as_tensor(model.get_text_features(tokens))
    actual = siglip_encoder.encode_texts(["a red circle", "A red Circle on the left", ""])
    torch.testing.assert_close(actual, expected)
    assert siglip_encoder.encode_texts(["red " * 100]).shape == (1, 32)


@torch.no_grad()
def test_siglip_patches_equal_the_pooling_head_by_hand(
    siglip_encoder: Encoder, siglip_folder: Path, pixels: Tensor
) -> None:
    vision = transformers.SiglipModel.from_pretrained(siglip_folder).eval().vision_model
    tokens, head = vision(pixels).last_hidden_state, vision.head  # (4, 16, 32)
    query, key, value = (
        nn.functional.linear(x, weight, bias).unflatten(-1, (4, 8)).transpose(1, 2)
        for x, weight, bias in zip(
            (head.probe, tokens, tokens),
            head.attention.in_proj_weight.chunk(3),
            head.attention.in_proj_bias.chunk(3),
            strict=True,
        )
    )
    attention = (query @ key.transpose(-1, -2) / 8**0.5).softmax(dim=-1)  # (4, heads, 1, 16)
    alone = head.attention.out_proj(value.transpose(1, 2).flatten(2))
    features = siglip_encoder.encode_patches(pixels)
    assert torch.equal(features.embedding, siglip_encoder.encode_images(pixels))
    torch.testing.assert_close(features.attention, attention.mean(dim=1)[:, 0])
    torch.testing.assert_close(features.attention.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(features.patches, alone + head.mlp(head.layernorm(alone)))


@pytest.mark.parametrize("fixture", ["clip_folder", "siglip_folder"])
def test_pixels_are_those_of_the_checkpoints_processor(
    fixture: str, photograph: Image.Image, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(fixture)
    encoder = load_encoder(f"transformers:{folder}")
    pixels = encoder.preprocess(photograph)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **_PIL)
    expected = processor(images=photograph, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(encoder.normalize(pixels[None]), expected)
    for mode in ("1", "L", "P", "RGBA", "CMYK", "LA", "I;16"):
        assert encoder.preprocess(Image.new(mode, (50, 40))).shape == (3, 32, 32), mode

    if fixture == "siglip_folder":  # what SigLIP does is short enough to do here: resize, then -1 to 1
        resized = photograph.resize((32, 32), Image.Resampling.BICUBIC)
        expected = torch.tensor(list(resized.tobytes())).reshape(32, 32, 3).permute(2, 0, 1) / 127.5 - 1
        torch.testing.assert_close(encoder.normalize(pixels[None])[0], expected)


def test_identity(clip_encoder: Encoder, siglip_encoder: Encoder, clip_folder: Path, tmp_path: Path) -> None:
    assert clip_encoder.identity.name == f"transformers:{clip_folder}"
    assert (clip_encoder.identity.dim, siglip_encoder.identity.dim) == (48, 32)
    assert clip_encoder.identity.preprocessing == (
        "resize to shortest_edge 32 (bicubic), centre crop height 32 width 32, "
        "mean [0.48145466, 0.4578275, 0.40821073], deviation [0.26862954, 0.26130258, 0.27577711]"
    )
    assert siglip_encoder.identity.preprocessing == (
        "resize to height 32 width 32 (bicubic), mean [0.5, 0.5, 0.5], deviation [0.5, 0.5, 0.5]"
    )
    # The weights are fp16 numbers, so that a file of half the size holds the same ones.
    half = tmp_path / "half"
    shutil.copytree(clip_folder, half)
    model = transformers.CLIPModel.from_pretrained(clip_folder)
    in_half = {name: tensor.half().float() for name, tensor in model.state_dict().items()}
    model.load_state_dict(in_half)
    model.save_pretrained(tmp_path / "rounded")
    model.half().save_pretrained(half)
    for name in ("preprocessor_config.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(clip_folder / name, tmp_path / "rounded" / name)
    rounded = load_encoder(f"transformers:{tmp_path / 'rounded'}")
    in_half_file = load_encoder(f"transformers:{half}", dtype=torch.bfloat16)
    assert in_half_file.identity.digest == rounded.identity.digest
    assert rounded.identity.digest != clip_encoder.identity.digest


@pytest.mark.parametrize("fixture", ["clip_folder", "siglip_folder"])
def test_narrow_dtypes(fixture: str, pixels: Tensor, request: pytest.FixtureRequest) -> None:
    name = f"transformers:{request.getfixturevalue(fixture)}"
    wide, narrow = load_encoder(name), load_encoder(name, dtype=torch.bfloat16)
    features, expected = narrow.encode_patches(pixels), wide.encode_patches(pixels)
    for attribute in ("embedding", "patches", "attention"):
        actual = getattr(features, attribute)
        assert actual.dtype == torch.bfloat16
        torch.testing.assert_close(actual.float(), getattr(expected, attribute), rtol=0.1, atol=0.3)
    assert narrow.encode_images(pixels).dtype == narrow.encode_texts(TEXTS).dtype == torch.bfloat16
    assert narrow.identity == wide.identity


@torch.no_grad()
def test_siglip2_is_read_as_it_was_trained(siglip_folder: Path, tmp_path: Path, pixels: Tensor) -> None:
    """A SigLIP to transformers, with Gemma's tokenizer, and texts in a width of their own."""
    tokenizer_class = getattr(transformers, "Siglip2Tokenizer", None)
    if tokenizer_class is None:
        pytest.skip("this version of transformers has no Siglip2Tokenizer")
    letters = "▁abcdeghilnorst"
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters, "re", "red"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = tokenizer_class(vocabulary, [("r", "e"), ("re", "d")], padding_side="right", add_eos_token=True)
    config = transformers.SiglipConfig.from_pretrained(siglip_folder)
    config.text_config.vocab_size, config.text_config.hidden_size = len(tokens), 16
    config.text_config.projection_size = config.vision_config.hidden_size
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(siglip_folder / "preprocessor_config.json", tmp_path)

    encoder = load_encoder(f"transformers:{tmp_path}")
    assert encoder.identity.dim == 32
    torch.testing.assert_close(encoder.encode_images(pixels), as_tensor(model.get_image_features(pixels)))
    ids = tokenizer(["a red circle", "<unk>"], padding="max_length", max_length=16)["input_ids"]
    assert ids[0][:2] == [vocabulary["a"], vocabulary["▁"]] and vocabulary["red"] in ids[0] and len(ids[0]) == 16
    expected = as_tensor(model.get_text_features(torch.tensor(ids)))
    torch.testing.assert_close(encoder.encode_texts(["A RED circle", "<unk>"]), expected)
    assert encoder.encode_patches(pixels).patches.shape == (4, 16, 32)


def test_a_siglip2_of_any_size_is_told(tmp_path: Path) -> None:
    transformers.Siglip2Config().save_pretrained(tmp_path)
    assert "NaFlex" in refused(tmp_path) and "google/siglip2-base-patch16-224" in refused(tmp_path)


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_encoder(f"transformers:{folder}")
    message = str(caught.value)
    assert "\n" not in message and f"'transformers:{folder}'" in message
    return message


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    assert "save_pretrained" in refused(tmp_path / "none")


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    assert "save_pretrained" in refused(tmp_path)


def test_another_model_type_is_told(tmp_path: Path) -> None:
    transformers.GPT2Config().save_pretrained(tmp_path)
    assert "is a 'gpt2' model, neither 'clip' nor 'siglip'" in refused(tmp_path)


def test_damaged_weights_are_told(siglip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(siglip_folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"no weights")
    assert "cannot be loaded" in refused(tmp_path / "damaged")


def test_missing_weights_are_told(siglip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(siglip_folder, tmp_path / "vision")
    model = transformers.SiglipModel.from_pretrained(siglip_folder)
    vision = {name: x for name, x in model.state_dict().items() if name.startswith("vision_model")}
    model.save_pretrained(tmp_path / "vision", state_dict=vision)
    assert "lacks weights, logit_bias for one" in refused(tmp_path / "vision")


@pytest.mark.parametrize("pattern", ["preprocessor_config.json", "tokenizer*"])
def test_a_missing_processor_is_told(siglip_folder: Path, tmp_path: Path, pattern: str) -> None:
    shutil.copytree(siglip_folder, tmp_path / "bare")
    for path in (tmp_path / "bare").glob(pattern):
        path.unlink()
    assert "cannot be loaded" in refused(tmp_path / "bare")
