"""Opening image files, and small pictures of them."""

import base64
import io
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from prefixcap.errors import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MOST_PIXELS = 100_000_000  # a file of some kilobytes can be an image of any size, which would fill the memory
MOST_OBLONG = 500  # the longer side over the shorter, which encoders make some hundreds of pixels: so would that


class TooManyPixels(InputError):
    """An image is larger than `MOST_PIXELS`."""


def open_image(path: str | Path, scaled_size: int | None = None) -> Image.Image:
    """The image at `path`, decoded, turned as its EXIF data says; of an animation, the first frame.

    Args:
        path: of the file.
        scaled_size: let a JPEG decoder halve the image, up to three times, while both sides keep so many pixels: it is
            quicker, but the pixels are not those of a whole image that is then made smaller. None: whole.

    Raises:
        InputError: there is no such file, or it cannot be read as an image; the message is "PATH: reason".
    """
    try:
        with Path(path).open("rb") as file:
            return decode_image(file, scaled_size)
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing file") from error
    except (OSError, InputError) as error:
        raise InputError(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from error


def thumbnail(path: Path | None, side: int) -> Image.Image | None:
    """The image at `path`, RGB, made small enough for a square of `side` pixels; None if there is none to be read."""
    if path is None:
        return None
    try:
        image = open_image(path, scaled_size=side).convert("RGB")
    except InputError:
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def data_url(image: Image.Image) -> str:
    """A small image as a JPEG within a URL, for pages that open from disk."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=65)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def decode_image(file: BinaryIO, scaled_size: int | None = None, formats: tuple[str, ...] | None = None) -> Image.Image:
    """The image in an open file, as `open_image` gives it.

    Args:
        file: that can be read and sought in.
        scaled_size: as of `open_image`.
        formats: that it may have, by Pillow's names; None: all that Pillow reads, some of them with other programs.

    Raises:
        TooManyPixels: it has more than `MOST_PIXELS`; none of them was decoded.
        InputError: it cannot be read as an image; the message is the reason.
    """
    image: Image.Image
    try:
        with Image.open(file, formats=formats) as image:
            if image.width * image.height > MOST_PIXELS:
                raise TooManyPixels(f"{image.width} x {image.height} pixels are too many, the most are {MOST_PIXELS:,}")
            if max(image.size) > MOST_OBLONG * min(image.size):
                raise InputError(f"{image.width} x {image.height} pixels are too oblong, the most is 1 x {MOST_OBLONG}")
            if scaled_size is not None:
                image.draft(None, (scaled_size, scaled_size))  # does nothing but to a JPEG
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # which leaves a copy out
        return image
    except UnidentifiedImageError as error:
        file.seek(0)
        raise InputError("not an image" if file.read(1) else "empty file") from error
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, about twice ours
        raise TooManyPixels(f"too many pixels, the most are {MOST_PIXELS:,}") from error
    except Exception as error:  # decoders raise anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot be read: {reason}") from error
