"""The table of docs/use/encoders.md, which says what works with which encoder: every cell is tried."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.export import Dim

from prefixcap.captioner import Captioner
from prefixcap.encoders import Encoder, encode_feature, load_encoder
from prefixcap.encoders.protocol import ExportableEncoder
from prefixcap.errors import InputError
from prefixcap.interpretation import interpret
from prefixcap.language import load_language_model
from prefixcap.textonly.memory import MemoryBank
from prefixcap.zeroshot.continuations import Continuations
from tests.encoders.conftest import open_clip_model, timm_network

PAGE = Path(__file__).resolve().parents[2] / "docs/use/encoders.md"
CAPTIONS = ["a red circle", "a blue star in the snow", "two dogs"]


def table() -> tuple[list[str], dict[str, list[str]]]:
    """The methods, and what the table says of them by encoder."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| encoder |"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[first:] if line.startswith("|")]
    return rows[0][1:], {row[0]: row[1:] for row in rows[2:]}


METHODS, ROWS = table()


@pytest.fixture(scope="module")
def open_encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Encoder]:
    """Open a small model of the kind that a row of the table is about."""
    fixtures = {
        "`clip:`, ViT": ("clip", "clip_file"),
        "`clip:`, ResNet": ("clip", "resnet_file"),
        "`transformers:`, CLIP": ("transformers", "clip_folder"),
        "`transformers:`, SigLIP and SigLIP 2": ("transformers", "siglip_folder"),
        "`heads:`, with a network of timm": ("heads", "heads_folder"),
    }
    made = {
        "`open_clip:`, ViT that reads its class token": ("open_clip", open_clip_model, "vit"),
        "`open_clip:`, ViT that reads the mean of its patches": ("open_clip", open_clip_model, "mean"),
        "`open_clip:`, network of timm": ("open_clip", open_clip_model, "timm"),
        "`open_clip:`, ResNet": ("open_clip", open_clip_model, "resnet"),
        "`open_clip:`, CoCa": ("open_clip", open_clip_model, "coca"),
        "`timm:`, ViT, as DINOv2 and DINOv3": ("timm", timm_network, "dinov2"),
        "`timm:`, CNN": ("timm", timm_network, "cnn"),
    }

    def opened(row: str) -> Encoder:
        if row in fixtures:
            kind, fixture = fixtures[row]
            return load_encoder(f"{kind}:{request.getfixturevalue(fixture)}")
        if row in made:
            kind, make, which = made[row]
            return load_encoder(f"{kind}:{make(which, tmp_path_factory.mktemp(kind))}")
        return load_encoder(row.strip("`"))

    return opened


def pixels_of(encoder: Encoder) -> Tensor:
    return torch.stack([encoder.preprocess(Image.effect_noise((60, 40), 90).convert("RGB")) for _ in range(2)])


def try_memory(encoder: Encoder) -> None:
    memory = MemoryBank(encoder.encode_texts(CAPTIONS), CAPTIONS)
    assert memory.project(encoder.encode_images(pixels_of(encoder)).float()).shape == (2, encoder.identity.dim)


def try_zero_shot(encoder: Encoder) -> None:
    read = Continuations(encoder).encode(["a red", "a blue"], [0, 1], [" circle", " star"])
    assert read.shape == (2, encoder.identity.dim)


def try_to_interpret(encoder: Encoder) -> None:
    captioner = Captioner(load_language_model("demo"), encoder.identity, {"name": "mlp", "prefix_length": 2})
    assert len(interpret(captioner, encoder.encode_images(pixels_of(encoder)).clone(), 3)) == 2


def try_to_export(encoder: Encoder) -> None:
    assert isinstance(encoder, ExportableEncoder)
    pixels = encoder.normalize(pixels_of(encoder))
    with torch.no_grad():
        program = torch.export.export(encoder.image_tower, (pixels,), dynamic_shapes=({0: Dim.DYNAMIC},))
    embeddings = program.module(check_guards=False)(pixels[:1])
    torch.testing.assert_close(embeddings, encoder.encode_images(pixels[:1]), atol=1e-4, rtol=1e-3)


TRIALS: dict[str, Callable[[Encoder], object]] = {
    "supervised": lambda encoder: encode_feature(encoder, pixels_of(encoder), "image"),
    "patches": lambda encoder: encode_feature(encoder, pixels_of(encoder), "patches"),
    "text only": lambda encoder: encoder.encode_texts(CAPTIONS),
    "CLIPRe, DeCap": try_memory,
    "zero-shot": try_zero_shot,
    "regions": lambda encoder: encode_feature(encoder, pixels_of(encoder), "regions"),
    "hidden states": lambda encoder: encode_feature(encoder, pixels_of(encoder), "hidden"),
    "interpret": try_to_interpret,
    "export": try_to_export,
}


@pytest.mark.parametrize("row", ROWS)
def test_the_table_is_true(row: str, open_encoder: Callable[[str], Encoder]) -> None:
    encoder = open_encoder(row)
    works = {}
    for method in METHODS:
        try:
            TRIALS[method](encoder)
            works[method] = "yes"
        except InputError as error:
            assert ("\n" not in str(error) and encoder.identity.name in str(error)) or method == "regions"
            works[method] = "no"
    assert works == dict(zip(METHODS, ROWS[row], strict=True))


def test_the_table_has_every_method() -> None:
    assert list(TRIALS) == METHODS
