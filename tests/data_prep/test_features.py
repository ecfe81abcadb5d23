"""What is stored beside the global embedding, and what decides how it is computed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.embedding import embed
from data_prep.features import Features
from data_prep.records import Dataset, ImageRecord, dataset_from_files
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.encoders.regions import aggregate_regions
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore
from prefixcap.utils.images import open_image


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("demo")


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Seven noisy JPEG images, two of them bad, with none to two captions each."""
    for number in range(7):
        Image.effect_noise((300, 200), 20 + 10 * number).convert("RGB").save(tmp_path / f"{number}.jpg")
    for number in (1, 4):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    records = [
        ImageRecord(
            number, f"{number}.jpg", "train", tuple(f"noise {number} {letter}" for letter in "ab"[: number % 3])
        )
        for number in range(7)
    ]
    return dataset_from_files(records, [], tmp_path, "noise", shard_size=4)


def test_all_features_equal_those_of_each_image_alone(data: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    embed(
        data,
        encoder,
        tmp_path / "store",
        ["hidden", "regions", "image", "caption", "patches"],
        batch_size=3,
        piece_size=2,
    )
    split = FeatureStore(tmp_path / "store").split("train")
    assert split.ids == [0, 2, 3, 5, 6]
    for row, image_id in enumerate(split.ids):
        pixels = encoder.preprocess(Image.open(tmp_path / f"{image_id}.jpg"))[None]
        alone = encoder.encode_patches(pixels)
        for name, expected in (
            ("images/embedding", encoder.encode_images(pixels)),
            ("images/patches", alone.patches),
            ("images/attention", alone.attention),
            ("images/regions", aggregate_regions(alone)),
            ("images/hidden", alone.hidden),
        ):
            found = torch.from_numpy(split.feature(name)[row])
            torch.testing.assert_close(found, expected[0].half(), rtol=2e-3, atol=2e-3)
    captions = split.captions[:]
    assert captions == ["noise 2 a", "noise 2 b", "noise 5 a", "noise 5 b"]
    expected = encoder.encode_texts(captions).half()
    torch.testing.assert_close(torch.from_numpy(split.feature("captions/embedding")[:]), expected, rtol=2e-3, atol=2e-3)


def test_captions_alone_open_no_image(data: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    for file in tmp_path.glob("*.jpg"):
        file.unlink()
    report = embed(data, encoder, tmp_path / "store", ["caption"])
    assert (report.written, report.skipped) == (7, [])
    split = FeatureStore(tmp_path / "store").split("train")
    assert split.feature("captions/embedding").shape == (len(split.captions), encoder.identity.dim) == (6, 128)
    with pytest.raises(InputError, match="has sentences and no images: give a store with images/embedding"):
        _ = split.embeddings


def test_a_caption_that_is_not_finite_leaves_its_image_out(
    data: Dataset, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sick(texts: list[str]) -> torch.Tensor:
        rows = torch.ones(len(texts), encoder.identity.dim)
        rows[[text == "noise 5 b" for text in texts]] = torch.inf
        return rows

    monkeypatch.setattr(encoder, "encode_texts", sick)
    report = embed(data, encoder, tmp_path / "store", ["image", "caption"])
    split = FeatureStore(tmp_path / "store").split("train")
    assert split.ids == [0, 2, 3, 6] and split.captions[:] == ["noise 2 a", "noise 2 b"]
    assert [(skip.id, skip.reason) for skip in report.skipped if skip.reason != "empty file"] == [
        (5, "embedding is not finite")
    ]


def test_a_resumed_store_goes_on_with_its_batches(
    data: Dataset, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(data, encoder, tmp_path / "store", batch_size=3, task=0, tasks=2)
    monkeypatch.setattr(Features, "largest_batch", lambda self: pytest.fail("the batch size was known"))
    embed(data, encoder, tmp_path / "store")
    assert FeatureStore(tmp_path / "store").made_with == {
        "features": "image",
        "stored_in": "float16",
        "computed_in": "float32",
        "jpeg_scaling": False,
        "batch_size": 3,
    }


def test_stored_in_full_precision(data: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    embed(data, encoder, tmp_path / "store", ["image", "caption"], torch.float32)
    split = FeatureStore(tmp_path / "store").split("train")
    pixels = torch.stack([encoder.preprocess(Image.open(tmp_path / f"{number}.jpg")) for number in split.ids])
    for found, expected in (
        (split.embeddings, encoder.encode_images(pixels)),
        (split.feature("captions/embedding"), encoder.encode_texts(split.captions[:])),
    ):
        np.testing.assert_allclose(found[:], expected.numpy(), rtol=1e-5, atol=1e-5)  # float16 would be off by 1e-3


@pytest.mark.parametrize("change", ["features", "dtype", "store_dtype", "fast_decode"])
def test_what_is_computed_otherwise_is_another_job(
    data: Dataset, encoder: Encoder, tmp_path: Path, change: str
) -> None:
    embed(data, encoder, tmp_path / "store")
    other = load_encoder("demo", dtype=torch.bfloat16) if change == "dtype" else encoder
    features = ["image", "regions"] if change == "features" else ["image"]
    store_dtype = torch.float32 if change == "store_dtype" else torch.float16
    with pytest.raises(InputError, match="another job"):
        embed(data, other, tmp_path / "store", features, store_dtype, fast_decode=change == "fast_decode")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["images"], "'images' is none of the features: choose from image, patches, regions, hidden, caption"),
        ([], "is empty"),
    ],
)
def test_features_that_do_not_exist(encoder: Encoder, features: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Features(features, encoder)


def test_the_largest_batch_that_fits(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    features = Features(["image"], encoder)
    assert features.largest_batch() == 16
    tried = list(sizes_tried(features, room=100, patch=monkeypatch))
    assert tried == [256, 128, 64]


def sizes_tried(features: Features, room: int, patch: pytest.MonkeyPatch) -> Iterator[int]:
    """As on a GPU whose memory takes `room` images."""
    tried: list[int] = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        tried.append(len(pixels))
        if len(pixels) > room:
            raise torch.OutOfMemoryError
        return torch.zeros(len(pixels), 4)

    patch.setattr(features.encoder, "encode_images", encode)
    patch.setattr(features.encoder, "device", torch.device("cuda"))
    assert features.largest_batch() == tried[-1]
    yield from tried


def test_scaled_decoding_keeps_enough_pixels(tmp_path: Path) -> None:
    Image.effect_noise((900, 700), 50).convert("RGB").resize((901, 701)).save(tmp_path / "a.jpg")
    Image.effect_noise((900, 700), 50).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.jpg", 224).size == (451, 351)  # the decoder halves, and a quarter is too small
    assert open_image(tmp_path / "a.jpg").size == (901, 701)
    assert open_image(tmp_path / "a.png", 224).size == (900, 700)


def test_scaled_decoding_gives_nearly_the_same(data: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    photograph = Image.linear_gradient("L").resize((640, 480)).convert("RGB")
    photograph.save(tmp_path / "0.jpg", quality=95)
    rows = []
    for scaling in (False, True):
        store = tmp_path / f"store{scaling}"
        embed(data, encoder, store, fast_decode=scaling)
        rows.append(FeatureStore(store).split("train").embeddings[0].astype(np.float32))
    assert not np.array_equal(*rows)
    assert rows[0] @ rows[1] / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1]) > 0.999


def test_the_old_name_of_fast_decode(data: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="'jpeg_scaling' of embed is called fast_decode now"):
        embed(data, encoder, tmp_path / "store", jpeg_scaling=True)
    assert FeatureStore(tmp_path / "store").made_with["fast_decode"] == "scaled"
