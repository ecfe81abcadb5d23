"""Pictures of every kind, told by hand what they show; and damaged ones, which are told in a line."""

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from prefixcap.errors import InputError
from prefixcap.utils.colour import to_rgb
from prefixcap.utils.images import decode_image, open_image

RAMP = np.tile(np.linspace(0, 1, 64), (8, 1))  # (8, 64), black to white
GREY = (RAMP * 255).round().astype(np.uint8)


def saved(image: Image.Image, form: str, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    return io.BytesIO(file.getvalue())


def png(samples: np.ndarray, colour_type: int, *chunks: tuple[bytes, bytes]) -> io.BytesIO:
    """A PNG of (height, width, channels) samples of 16 bits, written by hand."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def tiff(samples: np.ndarray, order: str = "<", bits: int | None = None, **tags: float) -> io.BytesIO:
    """A TIFF without compression, written by hand: (height, width) or (height, width, channels) samples."""
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    if bits == 12:  # two samples in three bytes
        first, second = samples.reshape(-1, 2).T
        packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
        data = packed.astype(np.uint8).tobytes()
    kinds = {"u": 1, "i": 2, "f": 3}
    entries: dict[int, tuple[int, list[float]]] = {
        256: (3, [samples.shape[1]]), 257: (3, [samples.shape[0]]), 258: (3, [bits or samples.itemsize * 8] * channels),
        259: (3, [1]), 262: (3, [tags.pop("photometric", 1 if channels == 1 else 2)]), 273: (4, [8]),
        277: (3, [channels]), 278: (3, [samples.shape[0]]), 279: (4, [len(data)]),
        339: (3, [kinds[samples.dtype.kind]] * channels),
    }  # fmt: skip
    names = {"lowest": 280, "highest": 281, "least_sample": 340, "largest_sample": 341}
    for name, value in tags.items():
        entries[names[name]] = (11, [value]) if names[name] >= 340 else (3, [value])
    start = 8 + len(data)
    more, fields = b"", b""
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(order + {3: "H", 4: "I", 11: "f"}[kind] * len(values), *values)
        if len(packed) > 4:
            place = start + 2 + 12 * len(entries) + 4 + len(more)
            more += packed
            packed = struct.pack(order + "I", place)
        fields += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return io.BytesIO(head + data + struct.pack(order + "H", len(entries)) + fields + bytes(4) + more)


def grey_of(file: io.BytesIO) -> np.ndarray:
    image = decode_image(file)
    assert image.mode == "RGB"
    pixels = np.asarray(image).astype(int)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """By the equation: alpha * colour + (1 - alpha) * white."""
    share = alpha[..., None] / 255
    return share * colour + (1 - share) * 255


def translucent() -> np.ndarray:
    """(16, 16, 4), every degree of transparency, and black where nothing is to be seen."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4)).astype(np.uint8)
    pixels[..., 3] = np.arange(256).reshape(16, 16)
    pixels[:2, :, :3] = 0
    return pixels


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparent_colour_is_laid_on_white(form: str) -> None:
    pixels = translucent()
    file = saved(Image.fromarray(pixels), form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    found = np.asarray(decode_image(file))
    assert np.abs(found - on_white(pixels[..., :3], pixels[..., 3])).max() <= 1
    assert (found[0, 0] == 255).all()


@pytest.mark.parametrize("mode", ["LA", "PA", "La", "RGBa", "RGBA"])
def test_transparency_in_every_mode(mode: str) -> None:
    pixels = translucent()
    grey = Image.fromarray(pixels[..., 0])
    image = Image.merge("LA", [grey, Image.fromarray(pixels[..., 3])])
    for step in {"PA": ["RGBA", "PA"], "La": ["La"], "RGBa": ["RGBA", "RGBa"], "RGBA": ["RGBA"]}.get(mode, []):
        image = image.convert(step)
    assert image.mode == mode
    expected = on_white(np.repeat(pixels[..., :1], 3, axis=2), pixels[..., 3])
    tolerance = 1 if mode in ("LA", "RGBA", "PA") else 256 / 20  # premultiplied, dark colours have few levels
    visible = pixels[..., 3] >= 20
    assert np.abs(np.asarray(to_rgb(image)) - expected)[visible].max() <= tolerance


def test_transparency_by_palette_and_by_colour() -> None:
    palette = Image.new("P", (4, 1))
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette.putdata([0, 1, 2, 3])
    found = np.asarray(decode_image(saved(palette, "PNG", transparency=bytes([0, 51, 255, 255]))))[0]
    assert found.tolist() == [[255, 255, 255], [244, 204, 204], [0, 200, 0], [0, 0, 200]]
    assert np.asarray(decode_image(saved(palette, "GIF", transparency=0)))[0, 0].tolist() == [255] * 3
    grey = Image.fromarray(np.array([[0, 7, 255]], np.uint8))
    assert grey_of(saved(grey, "PNG", transparency=7)).tolist() == [[0, 255, 255]]
    red = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8))
    file = saved(red, "PNG", transparency=(0, 0, 0))
    assert np.asarray(decode_image(file))[0].tolist() == [[255, 0, 0], [255, 255, 255]]
    deep = png(np.array([[[0], [7000], [65535]]]), 0, (b"tRNS", struct.pack(">H", 7000)))
    assert grey_of(deep).tolist() == [[0, 255, 255]]


def test_an_opaque_picture_is_as_it_was() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    opaque = Image.fromarray(np.dstack([pixels, np.full((16, 16), 255, np.uint8)]))
    assert np.array_equal(np.asarray(decode_image(saved(opaque, "PNG"))), pixels)
    photograph = saved(Image.fromarray(pixels), "JPEG", quality=80)
    image = decode_image(photograph)
    photograph.seek(0)
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(photograph)))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("form", ["png", "rgb png", "rgba png", "la png", "tiff", ">tiff", "rgb tiff", ">rgb tiff"])
def test_bits_in_two_bytes(bits: int, form: str) -> None:
    levels = (RAMP * (2**bits - 1)).round().astype(np.uint16)
    several = np.repeat(levels[..., None], 3, axis=2)
    full = np.full_like(levels, 65535)
    makers: dict[str, Callable[[], io.BytesIO]] = {
        "png": lambda: png(levels[..., None], 0),
        "rgb png": lambda: png(several, 2),
        "rgba png": lambda: png(np.dstack([several, full]), 6),
        "la png": lambda: png(np.dstack([levels, full]), 4),
        "tiff": lambda: tiff(levels),
        ">tiff": lambda: tiff(levels, ">"),
        "rgb tiff": lambda: tiff(several),
        ">rgb tiff": lambda: tiff(several, ">"),
    }
    found = grey_of(makers[form]())
    assert np.abs(found - RAMP * 255).max() <= 1, "of 16 bits in colours, the upper byte is taken"
    if form in ("png", "tiff", ">tiff"):
        assert np.array_equal(found, GREY)


def test_a_compressed_tiff_of_twelve_bits() -> None:
    levels = (RAMP * 4095).round().astype(np.uint16)
    file = saved(Image.fromarray(levels), "TIFF", compression="tiff_lzw")
    assert np.array_equal(grey_of(file), GREY)


def test_a_tiff_says_what_is_white() -> None:
    dark = (RAMP * 900).round().astype(np.uint16)
    assert np.abs(grey_of(tiff(dark, bits=12)) - RAMP * 900 / 4095 * 255).max() <= 0.6
    dark = (RAMP * 3000).round().astype(np.uint16)
    expected = {"highest": 4095, "largest_sample": 6000}
    for name, white in expected.items():
        assert np.abs(grey_of(tiff(dark, **{name: white})) - RAMP * 3000 / white * 255).max() <= 0.51
    assert np.abs(grey_of(tiff(dark, highest=65535)) - RAMP * 3000 / 65535 * 255).max() <= 0.51
    shifted = (1000 + RAMP * 2000).round().astype(np.uint16)
    assert np.abs(grey_of(tiff(shifted, lowest=1000, highest=3000)) - RAMP * 255).max() <= 0.6
    wrong = tiff((RAMP * 65535).astype(np.uint16), highest=1)  # nearly all pixels are lighter
    assert np.abs(grey_of(wrong) - RAMP * 255).max() <= 0.51
    assert np.array_equal(grey_of(tiff((RAMP * 65535).round().astype(np.uint16), photometric=0)), 255 - GREY)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("levels", "tags", "expected"),
    [
        (RAMP, {}, RAMP),
        (RAMP * 0.5, {}, RAMP * 0.5),
        (RAMP * 255, {}, RAMP),
        (RAMP * 200, {}, RAMP * 200 / 255),
        (RAMP * 65535, {}, RAMP),
        (RAMP * 1.3, {}, RAMP),
        (RAMP * 2 - 1, {}, RAMP),
        (RAMP * 1e6, {}, RAMP),
        (RAMP * 0.5, {"largest_sample": 0.5}, RAMP),
        (RAMP * 10, {"least_sample": 0.0, "largest_sample": 20.0}, RAMP / 2),
        (RAMP, {"largest_sample": float("nan")}, RAMP),
        (RAMP, {"photometric": 0}, 1 - RAMP),
    ],
)
def test_floating_point(order: str, levels: np.ndarray, tags: dict[str, float], expected: np.ndarray) -> None:
    found = grey_of(tiff(levels.astype(np.float32), order, **tags))
    assert np.abs(found - expected * 255).max() <= 0.51


def test_floating_point_that_is_no_number() -> None:
    levels = RAMP.astype(np.float32)
    levels[0, :3] = [np.nan, np.inf, -np.inf]
    found = grey_of(tiff(levels))
    assert found[0, :3].tolist() == [0, 255, 0]
    assert np.array_equal(found[1:], GREY[1:])
    assert (grey_of(tiff(np.full((4, 4), np.nan, np.float32))) == 0).all()


def test_signed_and_long_numbers() -> None:
    assert np.abs(grey_of(tiff((RAMP * 65535 - 32768).astype(np.int16))) - RAMP * 255).max() <= 1
    assert np.abs(grey_of(tiff((RAMP * 2e9).astype(np.int32))) - RAMP * 255).max() <= 0.51
    assert np.abs(grey_of(tiff((RAMP * 65535).astype(np.int32))) - RAMP * 255).max() <= 0.51


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "I;16B"]
)
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = to_rgb(Image.new(mode, (5, 4)))
    assert (image.mode, image.size) == ("RGB", (5, 4))


def test_lab_keeps_its_colours() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4], pixels[4:] = (200, 40, 40), (40, 40, 200)
    lab = ImageCms.profileToProfile(
        Image.fromarray(pixels), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    assert np.abs(np.asarray(decode_image(saved(lab, "TIFF"))).astype(int) - pixels).max() <= 8


def test_no_program_is_run_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript is a program; Pillow would let Ghostscript run it."""
    called = tmp_path / "called"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {called}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", str(ghostscript))
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(InputError, match=r"a\.jpg: not an image"):
        open_image(tmp_path / "a.jpg")
    assert not called.exists()
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(OSError):
        image.load()
    assert called.exists()  # so the file would have done it


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg: a pipe"):
        open_image(tmp_path / "a.jpg")


def test_what_cannot_be_decoded_says_what_it_is() -> None:
    heic = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(100)
    with pytest.raises(InputError, match="HEIC: convert it to JPEG"):
        decode_image(io.BytesIO(heic))


def samples() -> dict[str, bytes]:
    """A small picture in each of many forms."""
    colour = Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 16, 3)).astype(np.uint8))
    levels = Image.fromarray((RAMP * 4095).astype(np.uint16))
    frames = {"save_all": True, "append_images": [colour.rotate(180)]}
    exif = Image.Exif()
    exif[0x0112] = 6
    forms = {
        "jpeg": saved(colour, "JPEG", exif=exif),
        "cmyk jpeg": saved(colour.convert("CMYK"), "JPEG"),
        "png": saved(colour, "PNG"),
        "palette png": saved(colour.convert("P"), "PNG", transparency=3),
        "deep png": png(np.asarray(levels)[..., None], 0),
        "deep rgb png": png(np.repeat(np.asarray(levels)[..., None], 3, axis=2), 2),
        "animated png": saved(colour, "PNG", **frames),
        "gif": saved(colour, "GIF", **frames),
        "webp": saved(colour.convert("RGBA"), "WEBP"),
        "bmp": saved(colour, "BMP"),
        "tiff": saved(colour, "TIFF", compression="tiff_lzw"),
        "float tiff": tiff(RAMP.astype(np.float32), largest_sample=1.0),
        "deep rgb tiff": tiff(np.repeat(np.asarray(levels)[..., None], 3, axis=2)),
        "ppm": saved(colour, "PPM"),
        "jpeg 2000": saved(colour, "JPEG2000"),
        "ico": saved(colour, "ICO", sizes=[(16, 12)]),
    }
    return {name: file.getvalue() for name, file in forms.items()}


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A copy with some bytes changed, cut away, doubled or set to what lies at a limit."""
    data = bytearray(content)
    for _ in range(draw.choice([1, 2, 8])):
        place = draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(min(64, len(data)))
        how = draw.randrange(5)
        if how == 0:
            data[place] ^= 1 << draw.randrange(8)
        elif how == 1:
            data[place : place + 4] = draw.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\x80"])
        elif how == 2:
            data = data[: place + 1]
        elif how == 3:
            data[place:place] = data[place : place + draw.randrange(40)]
        else:
            del data[place : min(place + draw.randrange(40), len(data) - 1)]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of much that is damaged
@pytest.mark.parametrize("name", samples())
def test_damaged_images_are_read_or_told_in_a_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefixcap.utils.images.MOST_PIXELS", 1_000_000)  # larger ones take long, and nothing else
    monkeypatch.setattr(TiffImagePlugin, "DEBUG", False, raising=False)
    content = samples()[name]
    assert decode_image(io.BytesIO(content)).mode == "RGB"
    draw, told = random.Random(f"{name} 0"), 0
    for _ in range(100):
        try:
            image = decode_image(io.BytesIO(damaged(content, draw)))
        except InputError as error:
            assert "\n" not in str(error) and str(error).strip()
            told += 1
        else:
            assert image.mode == "RGB" and min(image.size) > 0
    assert told > 10  # what is told shows that the damage is
