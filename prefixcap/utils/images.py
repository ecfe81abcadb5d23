"""Opening image files, and thumbnails of them."""

import base64
import io
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from prefixcap.errors import InputError
from prefixcap.utils.colour import WHITE_IN_BITS, scale, to_rgb, white_level

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MOST_PIXELS = 100_000_000  # a file of some kilobytes can be an image of any size, which would fill the memory
MOST_OBLONG = 500  # the longer side over the shorter, which encoders make some hundreds of pixels: so would that
RUN_PROGRAMS = {"EPS", "WMF"}  # formats that Pillow hands to Ghostscript or to Windows: their files are programs


class TooManyPixels(InputError):
    """An image is larger than `MOST_PIXELS`."""


def open_image(path: str | Path, scaled_size: int | None = None) -> Image.Image:
    """The image at `path`, RGB (see `to_rgb`), turned as its EXIF data says; of an animation, the first frame.

    Args:
        path: of the file.
        scaled_size: let the JPEG decoder halve the image, up to three times, while both sides keep at least so many
            pixels: faster, but the pixels differ from those of the full image scaled down. None: full size.

    Raises:
        InputError: there is no such file, or it cannot be read as an image; the message is "PATH: reason".
    """
    try:
        if Path(path).is_fifo():  # opening it would wait for a writer
            raise InputError("a pipe, not a file")
        with Path(path).open("rb") as file:
            return decode_image(file, scaled_size)
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing file") from error
    except (OSError, InputError) as error:
        raise InputError(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from error


def thumbnail(path: Path | None, side: int) -> Image.Image | None:
    """The image at `path`, RGB, shrunk to fit a square of `side` pixels; None if it cannot be read."""
    if path is None:
        return None
    try:
        image = open_image(path, scaled_size=side)
    except InputError:
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def data_url(image: Image.Image) -> str:
    """A small image as a JPEG data URL, for pages that are opened from disk."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=65)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def decode_image(file: BinaryIO, scaled_size: int | None = None, formats: tuple[str, ...] | None = None) -> Image.Image:
    """The image in an open file, as `open_image` gives it.

    Args:
        file: readable and seekable.
        scaled_size: as in `open_image`.
        formats: the allowed ones, by Pillow's names; None: all that Pillow reads without another program.

    Raises:
        TooManyPixels: it has more than `MOST_PIXELS`; none of them was decoded.
        InputError: it cannot be read as an image; the message is the reason.
    """
    try:
        formats = formats or _all_formats()
        image, raw_mode = _load(file, scaled_size, formats)
        if image.mode in ("RGB", "RGBA") and ";16" in raw_mode:
            image = _all_sixteen_bits(file, image, raw_mode, formats)
        return to_rgb(image)
    except UnidentifiedImageError as error:
        raise InputError(_what_it_is(file)) from error
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, about twice ours
        raise TooManyPixels(f"too many pixels, the most are {MOST_PIXELS:,}") from error
    except Exception as error:  # decoders raise anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot be read: {reason}") from error


def _load(
    file: BinaryIO, scaled_size: int | None, formats: tuple[str, ...], swap: bool = False
) -> tuple[Image.Image, str]:
    """The image in an open file, in its own mode, and the layout of its bytes in Pillow's terms ("RGB;16B").

    With `swap`, 16-bit colours are read in the other byte order.
    """
    image: Image.Image
    with Image.open(file, formats=formats) as image:
        if image.width * image.height > MOST_PIXELS:
            raise TooManyPixels(f"{image.width} x {image.height} pixels are too many, the most are {MOST_PIXELS:,}")
        if max(image.size) > MOST_OBLONG * min(image.size):
            raise InputError(f"{image.width} x {image.height} pixels are too oblong, the most is 1 x {MOST_OBLONG}")
        if scaled_size is not None:
            image.draft(None, (scaled_size, scaled_size))  # only affects JPEGs
        tiles: list[Any] = getattr(image, "tile", [])
        raw_mode = _raw_mode(tiles[0]) if tiles else ""
        if swap:
            image.tile = [_swapped(tile) for tile in tiles]
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # which leaves a copy out
    return image, raw_mode


def _all_sixteen_bits(file: BinaryIO, image: Image.Image, raw_mode: str, formats: tuple[str, ...]) -> Image.Image:
    """An image with 16-bit colours in the file, its levels scaled as `to_rgb` scales grey ones.

    Pillow keeps only the upper byte, which holds next to nothing of 12 bits in 16. In the other byte order it keeps the
    lower one.
    """
    import numpy as np

    uppers = [np.asarray(image.getchannel(band)) for band in range(3)]
    if max(upper.max() for upper in uppers) >= 64:  # more than 14 bits are used: the upper byte will do
        return image
    file.seek(0)
    lower, _ = _load(file, None, formats, swap=True)
    places = [1, 1, 1] if raw_mode.startswith("LA") else [0, 1, 2]
    colours = [
        upper.astype(np.uint16) << 8 | np.asarray(lower.getchannel(place))
        for upper, place in zip(uppers, places, strict=True)
    ]
    white = white_level(max(int(levels.max()) for levels in colours), WHITE_IN_BITS)
    shades = scale(np.arange(1 << 14), 0, white)
    bands = [Image.fromarray(shades[levels]) for levels in colours]
    if image.mode == "RGBA":
        bands.append(image.getchannel("A"))
    return Image.merge(image.mode, bands)


def _raw_mode(tile: Any) -> str:
    """How the bytes of a tile are unpacked, e.g. "RGB;16B"."""
    args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
    return str(args[0]) if args else ""


def _swapped(tile: Any) -> Any:
    """A tile unpacked in the other byte order; of grey with alpha, all four bytes."""
    kind, _, order = _raw_mode(tile).partition(";16")
    other = "RGBA" if kind == "LA" else f"{kind};16L" if order == "B" else f"{kind};16B"
    args = (other, *tile[3][1:]) if isinstance(tile[3], tuple) else other
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)


def _all_formats() -> tuple[str, ...]:
    """All formats that Pillow and its plugins read, except those that it would hand to another program."""
    Image.init()
    return tuple(name for name in Image.ID if name not in RUN_PROGRAMS)


def _what_it_is(file: BinaryIO) -> str:
    """Why a file is not an image."""
    file.seek(0)
    head = file.read(12)
    if head[4:8] == b"ftyp":
        return "an image of a kind that cannot be read here, such as HEIC: convert it to JPEG"
    return "not an image" if head else "empty file"
