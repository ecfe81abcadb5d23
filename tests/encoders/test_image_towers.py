"""What exports take of an encoder, its image tower and the geometry of its images, against the encoder itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.export import Dim

from data_prep.resizing import is_resizable, is_supported, resize_and_crop
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.sharing.caption_example import read_pixels
from tests.encoders.conftest import SIZE


@pytest.fixture(params=["clip", "resnet", "transformers", "siglip", "open_clip", "photo"])
def name(
    request: pytest.FixtureRequest,
    clip_file: Path,
    resnet_file: Path,
    clip_folder: Path,
    siglip_folder: Path,
    open_clip_folder: Path,
) -> str:
    return {
        "clip": f"clip:{clip_file}",
        "resnet": f"clip:{resnet_file}",
        "transformers": f"transformers:{clip_folder}",
        "siglip": f"transformers:{siglip_folder}",
        "open_clip": f"open_clip:{open_clip_folder}",
        "photo": "photo",
    }[str(request.param)]


def side_of(encoder: Encoder) -> int:
    """Pixels a side of the images that it takes."""
    return encoder.preprocess(Image.new("RGB", (8, 8))).shape[-1]


def test_an_image_by_its_geometry_alone(name: str, tmp_path: Path) -> None:
    encoder = load_encoder(name)
    geometry = encoder.geometry
    crop = None if geometry.crop is None else list(geometry.crop)
    numbers = np.random.default_rng(0)
    for width, height in ((SIZE, SIZE), (33, 32), (35, 32), (32, 37), (53, 37), (97, 251), (20, 31)):
        image = Image.fromarray(numbers.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(tmp_path / "image.png")
        pixels = read_pixels(
            str(tmp_path / "image.png"), geometry.resize, geometry.resample, crop, geometry.crop_rounds_down
        )
        np.testing.assert_array_equal(pixels[0], encoder.preprocess(image).numpy(), err_msg=f"{width} x {height}")


def test_a_device_resizes_to_the_same_pixels(name: str) -> None:
    encoder = load_encoder(name)
    assert is_supported(encoder.geometry)
    numbers = np.random.default_rng(0)
    sizes = [(32, 32), (33, 32), (35, 32), (32, 37), (53, 37), (97, 151), (200, 240), (53, 37), (240, 240)]
    larger = side_of(encoder) / SIZE
    sizes = [(round(larger * height), round(larger * width)) for height, width in sizes]
    assert all(is_resizable(*size, encoder.geometry) for size in sizes)
    images = [numbers.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    images[-1] = 255 * (images[-1] > 127).astype(np.uint8)  # where rounding and overshooting matter most
    resized = resize_and_crop([torch.from_numpy(image) for image in images], encoder.geometry)
    expected = torch.stack([encoder.preprocess(Image.fromarray(image)) for image in images])
    assert torch.equal(resized, expected)
    once_more = [image.permute(1, 2, 0) for image in expected]
    assert torch.equal(resize_and_crop(once_more, encoder.geometry), expected)


def test_a_traced_tower_gives_the_embeddings_of_any_batch(name: str) -> None:
    encoder = load_encoder(name)
    pixels = torch.randn(4, 3, *[side_of(encoder)] * 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        traced = torch.export.export(encoder.image_tower, (pixels,), dynamic_shapes=({0: Dim.DYNAMIC},))
    program = traced.module(check_guards=False)
    for batch in (1, 3, 4):
        embeddings = encoder.encode_images(pixels[:batch])
        torch.testing.assert_close(program(pixels[:batch]), embeddings, atol=1e-5, rtol=1e-4)
