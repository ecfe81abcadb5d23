"""The CLIPs that were published for PAC-S, from small files of the same form, and the metric computed with them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clip
import numpy as np
import pytest
import torch
from clip.model import CLIP
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Normalize

from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.metrics import MetricInputs, score_captions
from prefixcap.metrics.pac_score import pac_scores_of_texts

CAPTIONS = ["a dog runs on the beach", "two birds", "the cat sleeps"]
REFERENCES = [["a wet dog", "a dog on sand"], ["a pair of birds"], ["a sleeping cat", "a cat on a bed", "a sofa"]]


def trained_clip(patch: int) -> CLIP:
    """A CLIP in fp32, whose weights no rounding to fp16 survives, as PAC-S's training left them."""
    torch.manual_seed(patch)
    model = CLIP(32, 2 * patch, 2, 64, patch, 77, 49408, 64, 1, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape)
    return model.eval()


def published(model: CLIP, path: Path) -> Path:
    """As the authors' code reads it: `torch.load(path)["state_dict"]`."""
    torch.save({"epoch": 7, "state_dict": model.state_dict()}, path)
    return path


def photographs(size: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (size, size + 6, 3), np.uint8)) for _ in CAPTIONS]


def by_the_published_code(
    model: CLIP, transform: Callable[[Image.Image], Tensor], images: list[Image.Image]
) -> tuple[list[float], list[float]]:
    """PAC-S and RefPAC-S as the paper defines them, with clip's own functions, one image at a time."""

    def embed(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        vector = model.encode_text(clip.tokenize("A photo depicts " + text))[0].double().numpy()
        return np.asarray(vector / np.linalg.norm(vector))

    scores, with_references = [], []
    for image, caption, references in zip(images, CAPTIONS, REFERENCES, strict=True):
        picture = model.encode_image(transform(image)[None])[0].double().numpy()
        score = 2 * max(0, float(picture @ embed(caption) / np.linalg.norm(picture)))
        nearest = max(0, *(float(embed(caption) @ embed(text)) for text in references))
        scores.append(score)
        with_references.append(2 * score * nearest / (score + nearest) if score * nearest else 0)
    return scores, with_references


@pytest.mark.parametrize("patch", [16, 14])
def test_scores_are_those_of_the_published_code(patch: int, tmp_path: Path) -> None:
    """Patches of 14 pixels are OpenCLIP's ViT-L/14, which has another activation and other means of pixels."""
    model = trained_clip(patch)
    encoder = load_encoder(f"pac-s:{published(model, tmp_path / 'clip.pth')}")
    transform = clip.clip._transform(2 * patch)
    if patch == 14:
        for block in (*model.visual.transformer.resblocks, *model.transformer.resblocks):
            block.mlp.gelu = nn.GELU()
        transform.transforms[-1] = Normalize([0.5] * 3, [0.5] * 3)
    images = photographs(2 * patch)
    with torch.inference_mode():
        expected, with_references = by_the_published_code(model, transform, images)
    assert max(expected) > 0.02 and max(with_references) > 0.02

    embeddings = encoder.encode_images(torch.stack([encoder.preprocess(image) for image in images]))
    scores = pac_scores_of_texts(encoder, embeddings, CAPTIONS, REFERENCES, batch_size=2)

    assert scores["PAC-S"].tolist() == pytest.approx(expected, abs=2e-5)
    assert scores["RefPAC-S"].tolist() == pytest.approx(with_references, abs=2e-5)
    assert pac_scores_of_texts(encoder, embeddings, CAPTIONS).keys() == {"PAC-S"}
    inputs = MetricInputs(embeddings, encoder)
    evaluated = score_captions(dict(enumerate(CAPTIONS)), dict(enumerate(REFERENCES)), ["PAC-S"], inputs)
    assert list(evaluated.per_image["PAC-S pac-s:clip.pth"].values()) == pytest.approx(expected, abs=2e-5)
    assert ("0.5" in encoder.identity.preprocessing) == (patch == 14)


def test_weights_are_not_rounded(tmp_path: Path) -> None:
    model = trained_clip(16)
    path = published(model, tmp_path / "clip.pth")
    plain = tmp_path / "plain.pt"
    torch.save(copy.deepcopy(model.state_dict()), plain)
    ours, rounded = load_encoder(f"pac-s:{path}"), load_encoder(f"clip:{plain}")
    with torch.inference_mode():
        exact = model.encode_text(clip.tokenize(CAPTIONS))
    torch.testing.assert_close(ours.encode_texts(CAPTIONS), exact, rtol=1e-4, atol=1e-4)
    assert (rounded.encode_texts(CAPTIONS) - exact).abs().max() > 5 * (ours.encode_texts(CAPTIONS) - exact).abs().max()
    assert ours.identity.name == f"pac-s:{path}" and ours.identity.digest != rounded.identity.digest


def _without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: {"state_dict": {key: value for key, value in content["state_dict"].items() if key != name}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content["state_dict"], "it has no entry 'state_dict'"),
        (lambda content: [1.0], "it has no entry 'state_dict'"),
        (lambda content: {"state_dict": 3}, "its weights are a int, not a state dict"),
        (lambda content: {"state_dict": {"a": "b"}}, "weight 'a' is not a dense tensor"),
        (_without("visual.proj"), "it has no weight 'visual.proj'"),
        (_without("text_projection"), "it lacks 'text_projection'"),
        (_without("visual.ln_pre.bias"), "Error"),
        (lambda content: content | {"optimizer": Path("code")}, "Weights only load failed"),
    ],
)
def test_wrong_files_are_told_in_one_line(
    change: Callable[[dict[str, Any]], object], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "clip.pth"
    torch.save(change({"state_dict": trained_clip(16).state_dict()}), path)
    with pytest.raises(InputError) as caught:
        load_encoder(f"pac-s:{path}")
    message = str(caught.value)
    assert reason in message and str(path) in message and "give a file that was published for PAC-S" in message
    assert "\n" not in message


def test_a_missing_file_and_one_that_is_no_weights_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*none\.pth: give clip_ViT-B-32\.pth"):
        load_encoder(f"pac-s:{tmp_path}/none.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(InputError, match="was published for PAC-S"):
        load_encoder(f"pac-s:{tmp_path}/text.pth")
