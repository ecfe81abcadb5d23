"""Images as they come: of every mode, rotated, animated, misnamed, damaged, or made to fill the memory."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.embedding import embed
from data_prep.records import ImageRecord, dataset_from_files
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.store import FeatureStore


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("demo")


def rows(encoder: Encoder, folder: Path, *names: str) -> tuple[np.ndarray, dict[object, str]]:
    """The embeddings of some files, and the reasons for those that have none."""
    dataset = dataset_from_files([ImageRecord(name, name, "train", ()) for name in names], [], folder, "files")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        report = embed(dataset, encoder, folder / "store", progress=False)
    split = FeatureStore(folder / "store").split("train")
    return split.embeddings[:].astype(np.float32), {skip.id: skip.reason for skip in report.skipped}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_every_mode_shows_the_same_picture(encoder: Encoder, tmp_path: Path) -> None:
    grey = Image.radial_gradient("L")
    grey.convert("RGB").save(tmp_path / "rgb.png")
    grey.save(tmp_path / "grey.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    grey.convert("RGB").convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    grey.convert("RGBA").save(tmp_path / "transparent.png")
    grey.convert("P").save(tmp_path / "palette.png")
    grey.save(tmp_path / "animated.gif", save_all=True, append_images=[Image.new("L", grey.size, n) for n in (0, 255)])
    grey.convert("RGB").save(tmp_path / "misnamed.jpg", "PNG")
    grey.convert("RGB").save(tmp_path / "animated.webp", save_all=True, append_images=[Image.new("RGB", grey.size)])
    names = [file.name for file in tmp_path.iterdir() if file.name != "rgb.png"]
    found, reasons = rows(encoder, tmp_path, "rgb.png", *names)
    assert reasons == {} and len(found) == 9
    assert {name: round(cosine(found[0], row), 2) for name, row in zip(names, found[1:], strict=True)} == dict.fromkeys(
        names, 1.0
    )


def test_a_rotated_photograph_stands_upright(encoder: Encoder, tmp_path: Path) -> None:
    upright = Image.linear_gradient("L").convert("RGB")
    upright.save(tmp_path / "upright.png")
    for orientation, back in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright.transpose(back).save(tmp_path / f"{orientation}.png", exif=exif)
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png")
    found, _ = rows(encoder, tmp_path, "upright.png", "3.png", "6.png", "lying.png")
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[3])


def png(width: int, height: int) -> bytes:
    """The head of a PNG file of that size, a few bytes of pixels, and nothing else."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_bad_files_are_skipped_with_the_reason(encoder: Encoder, tmp_path: Path) -> None:
    Image.effect_noise((200, 200), 50).save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zeros.png").write_bytes(bytes(1000))
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "large.png").write_bytes(png(12_000, 10_000))
    (tmp_path / "bomb.png").write_bytes(png(60_000, 60_000))
    (tmp_path / "folder.jpg").mkdir()
    names = ["truncated.jpg", "zeros.png", "empty.jpg", "page.jpg", "large.png", "bomb.png", "folder.jpg", "absent.jpg"]
    found, reasons = rows(encoder, tmp_path, "good.jpg", *names)
    assert len(found) == 1
    assert reasons.pop("truncated.jpg").startswith("cannot be read: image file is truncated")
    assert reasons.pop("bomb.png") == "too many pixels, the most are 100,000,000"
    assert reasons == {
        "zeros.png": "not an image",
        "empty.jpg": "empty file",
        "page.jpg": "not an image",
        "large.png": "12000 x 10000 pixels are too many, the most are 100,000,000",
        "folder.jpg": "Is a directory",
        "absent.jpg": "missing file",
    }
