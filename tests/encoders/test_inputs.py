"""What is given as images: taken, or told in a line, by everyone who takes some."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prefixcap.captioner import Captioner
from prefixcap.encoders import embed_images, load_encoder
from prefixcap.errors import InputError
from prefixcap.interpretation import interpret
from prefixcap.language import load_language_model
from prefixcap.zeroshot.magic import Magic
from tests.conftest import small_captioner

PICTURE = Image.new("RGB", (32, 32), (200, 30, 30))
ENCODER = load_encoder("demo")
LM = load_language_model("demo")
CAPTIONER = Captioner(LM, ENCODER.identity, {"name": "mlp", "prefix_length": 2})
MAGIC = Magic(ENCODER, LM, max_tokens=2, top_k=3)

WAYS: dict[str, Callable[[Any], object]] = {
    "caption": lambda images: CAPTIONER.caption(images, "greedy", max_tokens=2),
    "interpret": lambda images: [token for image in interpret(CAPTIONER, images) for row in image for token, _ in row],
    "magic": MAGIC.caption,
}
BYTES = io.BytesIO()
PICTURE.save(BYTES, "PNG")
NO_IMAGES = {
    "one path": "photo.jpg",
    "one picture": PICTURE,
    "bytes": BYTES.getvalue(),
    "open file": BYTES,
    "generator": (PICTURE for _ in range(2)),
    "dictionary": {"image": PICTURE},
    "set": {"photo.jpg"},
    "number": 3,
    "nothing": None,
    "list of bytes": [PICTURE, BYTES.getvalue()],
    "list of files": [BYTES],
    "list of arrays": [np.asarray(PICTURE), np.asarray(PICTURE)],
    "list of tensors": [PICTURE, torch.zeros(128)],
    "list of lists": [[PICTURE]],
    "list of nothing": [None],
    "one embedding": np.ones(128, np.float32),
    "one embedding, torch": torch.ones(128),
    "a number in an array": np.float32(3.0).reshape(()),
    "a picture as an array": np.asarray(PICTURE),
    "a picture as a tensor": torch.zeros(3, 32, 32, dtype=torch.uint8),
    "texts in an array": np.array(["photo.jpg", "b.jpg"]),
    "objects in an array": np.array([PICTURE, None], dtype=object),
    "truths": np.ones((2, 128), bool),
    "truths, torch": torch.ones(2, 128, dtype=torch.bool),
    "complex": np.ones((2, 128), complex),
    "complex, torch": torch.ones(2, 128, dtype=torch.complex64),
    "NaN": torch.full((2, 128), torch.nan),
    "more than float32 holds": np.full((2, 128), 1e300),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_list_of_images_is_told(kind: str, way: str) -> None:
    with pytest.raises(InputError) as error:
        WAYS[way](NO_IMAGES[kind])
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


NUMBERS = np.random.default_rng(0).normal(size=(3, 128)).round(1)
READ_ONLY = NUMBERS.astype(np.float32)
READ_ONLY.flags.writeable = False
EMBEDDINGS: dict[str, Any] = {
    "float64": NUMBERS,
    "float32": NUMBERS.astype(np.float32),
    "big-endian": NUMBERS.astype(">f4"),
    "long double": NUMBERS.astype(np.longdouble),
    "columns first": np.asfortranarray(NUMBERS),
    "every second": np.repeat(NUMBERS, 2, axis=0)[::2],
    "backwards": NUMBERS[::-1].copy()[::-1],
    "read only": READ_ONLY,
    "torch": torch.from_numpy(NUMBERS),
    "torch, transposed": torch.from_numpy(NUMBERS.T.copy()).T,
    "torch, with gradient": torch.from_numpy(NUMBERS).requires_grad_(),
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embeddings_of_any_kind_of_numbers(kind: str) -> None:
    expected = torch.from_numpy(NUMBERS.astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for way in WAYS.values():
            assert way(EMBEDDINGS[kind]) == way(expected)


def test_whole_numbers_and_half_precision_are_read() -> None:
    whole = np.random.default_rng(0).integers(-3, 4, (3, 128))
    expected = WAYS["caption"](torch.from_numpy(whole.astype(np.float32)))
    for kind in (np.int64, np.int8, np.float16):
        assert WAYS["caption"](whole.astype(kind)) == expected
    for dtype in (torch.int32, torch.bfloat16):
        assert WAYS["caption"](torch.from_numpy(whole).to(dtype)) == expected
    assert WAYS["caption"]([]) == WAYS["caption"](()) == WAYS["caption"](np.empty((0, 128))) == []


def test_a_mixed_list_is_told_before_anything_is_written(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "red.png")
    assert CAPTIONER.caption([tmp_path / "red.png", PICTURE, str(tmp_path / "red.png")], "greedy", max_tokens=2)
    read: list[object] = []
    CAPTIONER.embed, before = lambda *given: read.append(given) or before(*given), CAPTIONER.embed  # type: ignore[method-assign, func-returns-value, assignment]
    try:
        with pytest.raises(InputError, match=r"an image is given as an array of shape \(128,\): give a path or a PIL"):
            CAPTIONER.caption([PICTURE, torch.ones(128)], "greedy", batch_size=1)  # type: ignore[list-item]
    finally:
        del CAPTIONER.embed
    assert not read
    with pytest.raises(InputError, match="an image is given as None"):
        embed_images(ENCODER, [None])  # type: ignore[list-item]


def test_embeddings_to_compare_with_must_be_of_the_images() -> None:
    images = torch.randn(3, 128)
    for wrong in (
        torch.randn(2, 128),
        torch.randn(3, 64),
        torch.randn(128),
        np.full((3, 128), np.nan),
        np.ones(3, bool),
    ):
        with pytest.raises(InputError, match="embeddings"):
            CAPTIONER.candidates(images, 2, by_similarity=True, embeddings=wrong, max_tokens=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, not -1"),
        ({"batch_size": True}, "batch_size must be an integer of at least 1, not True"),
        ({"batch_size": 1.5}, "batch_size must be an integer of at least 1, not 1.5"),
        ({"rerank": -1}, "rerank must be at least 0, not -1"),
        ({"rerank": 10}, "captions must lie between 1 and beams=5, not 10: set beams=10"),
        ({"rerank": 10, "beams": 6, "groups": 3}, "captions must lie between 1 and beams=6, not 10: set beams=12"),
        ({"decode": "clipcap", "rerank": 10}, "captions must lie between 1 and beams=5, not 10: set beams=10"),
        (
            {"decode": "clipcap", "beams": 500},
            "beams must lie between 1 and 470, the size of the vocabulary, not 500",
        ),
        ({"decode": "contrastive", "top_k": 500}, "top_k must lie between 1 and 470, the size of the vocabulary"),
        ({"decode": ["beam"]}, "unknown decoder '['beam']'"),
        ({"beams": "three"}, "decoder 'beam': beams must be an integer between 1 and 10000, not 'three'"),
        ({"beams": 10**30}, "decoder 'beam': beams must be between 1 and 10000, not 1000"),
        ({"captions": 2}, "decoder 'beam' has no option 'captions': the number of captions is count"),
        ({"count": 2}, "caption returns one caption for each image and takes no count: call candidates"),
        ({"prefix": 2}, "decoder 'beam': multiple values for argument 'prefix'"),
        ({"seed": 3}, "seed is for random sampling, and 'beam' does not draw"),
        ({"decode": "nucleus", "seed": -1}, "seed must be at least 0 and below 9223372036854775808, not -1"),
        ({"decode": "nucleus", "seed": 2**63}, "seed must be at least 0 and below"),
        ({"decode": "nucleus", "seed": 0.5}, "seed must be an integer of at least 0 and below"),
        ({"decode": "nucleus", "seed": True}, "seed must be an integer of"),
        ({"noise": float("nan")}, "noise must be a finite number between 0.0 and 100.0, not nan"),
        ({"noise": 1e300}, "noise must be between 0.0 and 100.0, not 1e+300"),
        ({"length_penalty": float("inf")}, "decoder 'beam': length_penalty must be a finite number"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must be a finite number between 0.01 and 100.0"),
        ({"prompt": ["a", "b"]}, "prompt must be one text, not ['a', 'b']"),
    ],
)
def test_options_out_of_range_are_told_before_an_image_is_read(options: dict[str, Any], message: str) -> None:
    for images in ([], torch.ones(2, 128)):
        if not len(images) and "must lie between" in message:
            continue  # which is known once the language model has been asked
        with pytest.raises(InputError) as error:
            CAPTIONER.caption(images, **options)  # type: ignore[arg-type]
        assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_the_same_seed_in_any_kind_of_integer() -> None:
    captioner, images = small_captioner(), torch.randn(4, 16)
    drawn = captioner.caption(images, "nucleus", seed=3, max_tokens=5)
    for seed in (np.int64(3), np.uint8(3), torch.Generator().manual_seed(3)):
        assert captioner.caption(images, "nucleus", seed=seed, max_tokens=np.int32(5)) == drawn  # type: ignore[arg-type]
    assert captioner.caption(images, "nucleus", seed=2**63 - 1, max_tokens=5)


@pytest.mark.parametrize("batch_size", [0, -1, True, 1.5])
def test_batches_of_no_size_in_zero_shot_captioning(batch_size: Any) -> None:
    with pytest.raises(InputError, match="batch_size must be"):
        MAGIC.caption([PICTURE], batch_size)
