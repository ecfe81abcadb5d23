"""Opening image files."""

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from prefixcap.errors import InputError


def open_image(path: str | Path) -> Image.Image:
    """The image at `path`, decoded, turned as its EXIF data says; of an animation, the first frame.

    Raises:
        InputError: there is no such file, or it cannot be read as an image; the message is "PATH: reason".
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: empty file")
        image: Image.Image
        with Image.open(path) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # which leaves a copy out
        return image
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing file") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: not an image") from error
    except InputError:
        raise
    except Exception as error:  # decoders raise anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read: {reason}") from error
