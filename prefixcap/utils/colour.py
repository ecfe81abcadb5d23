"""Images of any mode as 8-bit RGB: transparency, 16-bit grey, floating-point grey."""

import math
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    import numpy as np  # imported where it is used: the command's help must not wait for it
    from numpy.typing import NDArray

# White, in a file that does not say: the largest integer of so many bits; for floating-point numbers, a usual one.
WHITE_IN_BITS = [2**bits - 1 for bits in (8, 10, 12, 14, 16)]
WHITE_AS_FLOAT = [1, 255, 65535]

FEW = 0.01  # the share of pixels that may lie outside the levels that a file states

# TIFF's tags
_BITS, _PHOTOMETRIC, _LOWEST, _HIGHEST, _LEAST_SAMPLE, _LARGEST_SAMPLE = 258, 262, 280, 281, 340, 341
_WHITE_IS_ZERO = 0


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any PIL mode -> 8-bit RGB; an RGB image is returned as it is.

    Transparency is composited onto white. Grey of more than 8 bits, or in floating-point numbers, is scaled from black
    to white as a TIFF states them: its least and largest sample, its bits. Where it does not, black is 0, or the
    darkest pixel if that is less, and white the smallest of 2**8 - 1, 2**10 - 1, 2**12 - 1, 2**14 - 1 and 2**16 - 1
    that no pixel exceeds; for floating-point numbers the smallest of 1, 255 and 65535, or the lightest pixel if that is
    less than an eighth of it. Where integers are negative, white is the lightest pixel.
    Colour profiles are not applied, as in the published CLIP preprocessing.

    Examples:
        >>> to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 51))).getpixel((0, 0))
        (255, 204, 204)
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scaled_grey(image).convert("RGB")
    if image.mode == "LAB":
        from PIL import ImageCms  # here, as hardly any image needs it

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image  # PIL knows no other way out of it
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def scale(levels: "NDArray[Any]", black: float, white: float) -> "NDArray[np.uint8]":
    """Levels from black to white -> 0 to 255; NaN becomes black."""
    import numpy as np

    shares = np.nan_to_num((levels.astype(np.float32) - black) / (white - black), nan=0, posinf=1, neginf=0)
    shades: NDArray[np.uint8] = (shares.clip(0, 1) * 255).round().astype(np.uint8)
    return shades


def white_level(highest: float, usual: list[int]) -> float:
    """White, where the file does not state it, see `to_rgb`.

    Args:
        highest: the highest level.
        usual: the values that white may have.
    """
    white = next((level for level in usual if highest <= level), highest)
    return highest if usual is WHITE_AS_FLOAT and white > 1 and highest < white / 8 else white


def _scaled_grey(image: Image.Image) -> Image.Image:
    """Grey levels of any type -> 8 bits; a PNG's transparent level becomes white."""
    import numpy as np

    levels = np.asarray(image)
    shades = scale(levels, *_black_and_white(image, levels[np.isfinite(levels)]))
    if image.mode != "I" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        shades = 255 - shades
    if isinstance(clear := image.info.get("transparency"), int):
        shades[levels == clear] = 255
    return Image.fromarray(shades)


def _black_and_white(image: Image.Image, levels: "NDArray[Any]") -> tuple[float, float]:
    """The levels of black and white, as the file states them if its pixels lie between them."""
    import numpy as np

    lowest, highest = float(levels.min(initial=0)), float(levels.max(initial=0))
    tags: Any = getattr(image, "tag_v2", {})
    black, white = _number(tags, _LEAST_SAMPLE, _LOWEST), _number(tags, _LARGEST_SAMPLE, _HIGHEST)
    bits = _number(tags, _BITS)
    if white is None and bits and 8 < bits < 16:
        white = 2**bits - 1
    if white is None or np.mean(levels > white) > FEW:
        usual = WHITE_AS_FLOAT if image.mode == "F" else WHITE_IN_BITS if lowest >= 0 else []
        white = white_level(highest, usual)
    if black is None or black >= white or np.mean(levels < black) > FEW:
        black = lowest
    return black, white


def _number(tags: Any, *names: int) -> float | None:
    """The first of some TIFF tags that is a finite number."""
    for name in names:
        value = tags.get(name)
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    return None
