"""Opening image files."""

from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from prefixcap.errors import InputError


def open_image(path: str | Path) -> Image.Image:
    """The image at `path`, decoded, turned as its EXIF data says; of an animation, the first frame.

    Raises:
        InputError: there is no such file, or it cannot be read as an image; the message is "PATH: reason".
    """
    try:
        with Path(path).open("rb") as file:
            return decode_image(file)
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing file") from error
    except (OSError, InputError) as error:
        raise InputError(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from error


def decode_image(file: BinaryIO) -> Image.Image:
    """The image in an open file, as `open_image` gives it.

    Raises:
        InputError: it cannot be read as an image; the message is the reason.
    """
    image: Image.Image
    try:
        with Image.open(file) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # which leaves a copy out
        return image
    except UnidentifiedImageError as error:
        file.seek(0)
        raise InputError("not an image" if file.read(1) else "empty file") from error
    except Exception as error:  # decoders raise anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot be read: {reason}") from error
