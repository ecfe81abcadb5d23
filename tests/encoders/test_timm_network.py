"""Networks of timm, tiny ones with random weights, against timm called directly."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefixcap.encoders import encode_feature, load_encoder
from prefixcap.encoders.timm_network import missing_checkpoint
from prefixcap.errors import InputError
from prefixcap.utils.hub import Unreachable
from tests.encoders.conftest import SIZE, timm_network


@pytest.fixture(scope="session", params=["cnn", "mean", "dinov2", "dinov3", "swin"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return timm_network(str(request.param), tmp_path_factory.mktemp("timm"))


def theirs(folder: Path) -> tuple[Any, Any]:
    """The network without classifier, and its transform, by timm itself."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    network.reset_classifier(0)
    return network, transform


@torch.no_grad()
def test_embeddings_equal_those_of_timm(folder: Path, photograph: Image.Image) -> None:
    encoder, (network, transform) = load_encoder(f"timm:{folder}"), theirs(folder)
    pixels = encoder.preprocess(photograph)[None]
    assert pixels.dtype == torch.uint8
    torch.testing.assert_close(encoder.normalize(pixels)[0], transform(photograph))
    expected = network(transform(photograph)[None])
    torch.testing.assert_close(encoder.encode_images(pixels), expected)
    assert encoder.identity.dim == expected.shape[1]
    narrow = load_encoder(f"timm:{folder}", dtype=torch.bfloat16)
    assert narrow.identity == encoder.identity and narrow.encode_images(pixels).dtype == torch.bfloat16
    assert torch.cosine_similarity(narrow.encode_images(pixels).float(), expected).min() > 0.98


@torch.no_grad()
def test_a_place_is_an_image_whose_places_are_all_like_it(folder: Path) -> None:
    encoder, (network, _) = load_encoder(f"timm:{folder}"), theirs(folder)
    pixels = torch.randn(2, 3, SIZE, SIZE)
    patches = encoder.encode_patches(pixels)
    torch.testing.assert_close(patches.embedding, encoder.encode_images(pixels))
    assert patches.attention is None and patches.hidden is None
    features = network.forward_features(pixels)
    for row, place in enumerate(places_of(network, features)):
        torch.testing.assert_close(patches.patches[:, row], network.forward_head(place), rtol=1e-4, atol=1e-5)
    assert patches.patches.shape[1] == row + 1


def places_of(network: Any, features: Tensor) -> list[Tensor]:
    """Last feature maps, or sequences of tokens, of the same size, that have one place everywhere."""
    if features.ndim == 3:
        first = network.num_prefix_tokens
        return [features[:, [token]].expand_as(features) for token in range(first, features.shape[1])]
    rows, columns = (1, 2) if getattr(network, "output_fmt", "") == "NHWC" else (2, 3)
    size = features.shape
    return [
        features.select(rows, row).select(columns - 1, column).unsqueeze(rows).unsqueeze(columns).expand(size)
        for row in range(size[rows])
        for column in range(size[columns])
    ]


@torch.no_grad()
def test_patches_of_dinov2_are_its_tokens(tmp_path: Path) -> None:
    folder = timm_network("dinov2", tmp_path)
    encoder, (network, _) = load_encoder(f"timm:{folder}"), theirs(folder)
    pixels = torch.randn(2, 3, SIZE, SIZE)
    patches = encoder.encode_patches(pixels)
    (tokens, prefix) = network.get_intermediate_layers(pixels, n=1, return_prefix_tokens=True, norm=True)[0]
    torch.testing.assert_close(patches.patches, tokens)
    torch.testing.assert_close(patches.embedding, prefix[:, 0])


@torch.no_grad()
def test_images_of_another_size(tmp_path: Path) -> None:
    """Position embeddings are resized, as timm resizes those of published weights."""
    folder = timm_network("dinov2", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["img_size"] = 2 * SIZE
    config["pretrained_cfg"]["input_size"] = [3, 2 * SIZE, 2 * SIZE]
    (folder / "config.json").write_text(json.dumps(config))
    encoder, (network, _) = load_encoder(f"timm:{folder}"), theirs(folder)
    pixels = encoder.preprocess(Image.effect_noise((90, 70), 90).convert("RGB"))[None]
    assert encoder.encode_patches(pixels).patches.shape == (1, 64, 48)
    torch.testing.assert_close(encoder.encode_images(pixels), network(encoder.normalize(pixels)))


def test_a_network_without_one_feature_map_is_told() -> None:
    from prefixcap.encoders.timm_network import encode_places

    network = timm.create_model("crossvit_9_240", depth=((1, 1, 0),) * 3, num_classes=0)
    with pytest.raises(InputError, match="encoder 'timm:crossvit' has no patches") as caught:
        encode_places(network, torch.zeros(1, 3, 240, 240), "timm:crossvit")
    assert "\n" not in str(caught.value)


def test_no_texts_and_no_regions(timm_folder: Path) -> None:
    encoder = load_encoder(f"timm:{timm_folder}")
    with pytest.raises(InputError, match=f"'timm:{timm_folder}' reads no texts") as caught:
        encoder.encode_texts(["a"])
    assert "\n" not in str(caught.value)
    for feature, what in {"regions": "attention of a class token", "hidden": "has no hidden states"}.items():
        with pytest.raises(InputError, match=what):
            encode_feature(encoder, encoder.preprocess(Image.new("RGB", (9, 9)))[None], feature)


def test_weights_of_a_file_fetch_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network by its name, with weights in either format, with and without a classifier."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    network = timm.create_model("resnet10t")
    save_file(network.state_dict(), "weights.safetensors")
    network.reset_classifier(0)
    torch.save({"state_dict": network.state_dict()}, "weights.pt")
    torch.save(network, "pickled.pt")
    first = load_encoder("timm:resnet10t/weights.safetensors").identity
    second = load_encoder(f"timm:resnet10t.c3_in1k/{tmp_path}/weights.pt").identity
    assert first.digest == second.digest and first.dim == 512
    assert "cannot be loaded (" in refused("timm:resnet10t/pickled.pt")
    weights = load_file("weights.safetensors")
    save_file({key: weight for key, weight in weights.items() if key != "conv1.0.weight"}, "incomplete.safetensors")
    assert "cannot be loaded (it lacks weight 'conv1.0.weight')" in refused("timm:resnet10t/incomplete.safetensors")
    save_file({**weights, "conv9.weight": torch.zeros(1)}, "more.safetensors")
    assert "cannot be loaded (it has the unknown weight 'conv9.weight')" in refused("timm:resnet10t/more.safetensors")


def refused(name: str) -> str:
    with pytest.raises(InputError) as caught:
        load_encoder(name)
    message = str(caught.value)
    assert "\n" not in message and repr(name) in message
    return message


def test_names_that_are_no_networks_are_told(tmp_path: Path, timm_folder: Path) -> None:
    assert "no network 'resnet51': take one of its list_models(), e.g. resnet5" in refused("timm:resnet51")
    assert "there is no file w.pt" in refused("timm:resnet50/w.pt")
    assert "has no config.json or no model.safetensors" in refused(f"timm:{tmp_path}")
    (tmp_path / "config.json").write_text((timm_folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    assert "cannot be loaded (" in refused(f"timm:{tmp_path}")
    config = json.loads((timm_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": "hf-hub:nobody/nothing"}))
    assert "cannot be loaded (" in refused(f"timm:{tmp_path}")


def test_published_weights_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"):
        with pytest.raises(Unreachable, match=r"timm/resnet18\.a1_in1k/resolve/main/") as caught:
            load_encoder(f"timm:{name}")
        assert "\n" not in str(caught.value)
    assert missing_checkpoint("resnet18/weights.pt") is None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert 'pip install "prefixcap[timm]"' in refused("timm:resnet18")
