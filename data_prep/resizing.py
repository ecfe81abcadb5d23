"""Pillow's bicubic resizing and the crop of an encoder by matrix products, for a GPU: the same pixels, to the last bit.

Shapes: n images of one size, h x w their height and width, H x W those that the encoder takes, c = 3 colours.

Pillow resizes 8-bit images along the width, rounds to 8 bits, and does the same along the height. Each new pixel is a
weighted mean of old ones, with weights that are multiples of 2^-22 (`precompute_coeffs`, `normalize_coeffs_8bpc` and
`ImagingResampleHorizontal_8bpc` in https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c). Here
a weight is split into two whole numbers of 11 bits: these are exact in float16 and TF32, and where an image shrinks,
all sums of their products with pixels stay below 2^24, up to which float32 is exact.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear

from prefixcap.encoders.protocol import ImageGeometry

BITS = 22  # of Pillow's weights after the point
SUPPORT = 2  # of the bicubic filter, in pixels of the smaller image
MOST_PIXELS = 1 << 24  # resized together: in float32 they take 200 MB
MOST_SHRUNK = 7.5  # at this ratio 31 pixels have a weight: 31 * 255 * 2047 < 2^24


def is_supported(geometry: ImageGeometry) -> bool:
    """Whether `resize_and_crop` can do what `geometry` says, and leaves images of the encoder's size as they are."""
    resize, crop = geometry.resize, geometry.crop
    target = (resize, resize) if isinstance(resize, int) else resize
    return geometry.resample == "bicubic" and (crop == target or (crop is None and resize == target))


def is_resizable(height: int, width: int, geometry: ImageGeometry) -> bool:
    """Whether an image of this size is shrunk, and not so much that sums would be inexact."""
    rows, columns = _resized(height, width, geometry.resize)
    return rows <= height <= MOST_SHRUNK * rows and columns <= width <= MOST_SHRUNK * columns


def resize_and_crop(images: Sequence[Tensor], geometry: ImageGeometry) -> Tensor:
    """Images of any sizes to the size of the encoder, as its `preprocess` does.

    Args:
        images: each (height, width, 3) uint8, for which `is_resizable`.
        geometry: of the encoder, for which `is_supported`.

    Returns:
        (images, 3, H, W) uint8, on the images' device.

    Examples:
        >>> geometry = ImageGeometry(resize=2, resample="bicubic", crop=(2, 2), crop_rounds_down=False)
        >>> image = torch.arange(8, dtype=torch.uint8)[:, None, None].expand(8, 8, 3)
        >>> resize_and_crop([image], geometry)[0, 0]
        tensor([[2, 2],
                [5, 5]], dtype=torch.uint8)
    """
    groups: dict[tuple[int, ...], list[int]] = {}  # of images of one size, which are resized together
    for position, image in enumerate(images):
        groups.setdefault(image.shape, []).append(position)
    parts = [
        group[start : start + step]
        for (height, width, _), group in groups.items()
        for step in [max(1, MOST_PIXELS // (height * width))]
        for start in range(0, len(group), step)
    ]
    resized = torch.cat([_resize([images[position] for position in part], geometry) for part in parts])
    order = np.argsort([position for part in parts for position in part])
    return resized[_on_device(order, resized.device)]


def _resize(images: list[Tensor], geometry: ImageGeometry) -> Tensor:
    """The same for images of one size."""
    height, width, _ = images[0].shape
    rows, columns = _resized(height, width, geometry.resize)
    out_rows, out_columns = geometry.crop or (rows, columns)
    device, down = images[0].device, geometry.crop_rounds_down
    across = _weights(width, columns, out_columns, down, device)  # (2W, w)
    along = _weights(height, rows, out_rows, down, device)  # (2H, h)
    pixels = torch.stack(images).permute(0, 3, 1, 2)  # (n, c, h, w)
    pixels = _rounded(linear(pixels.float(), across.float()))  # (n, c, h, W)
    pixels = _rounded(linear(pixels.mT.float(), along.float()))  # (n, c, W, H)
    return pixels.mT.to(torch.uint8)  # (n, c, H, W)


def _rounded(sums: Tensor) -> Tensor:
    """(..., 2k) sums with the upper and with the lower half of each weight -> (..., k) int32 pixels of 0 to 255."""
    upper, lower = sums.int().chunk(2, dim=-1)
    return ((upper << BITS // 2) + lower + (1 << BITS - 1) >> BITS).clamp_(0, 255)


@lru_cache(maxsize=512)  # sizes, of some hundred kilobytes each
def _weights(size: int, resized: int, cropped: int, rounds_down: bool, device: torch.device) -> Tensor:
    """(2 * cropped, size) float16 weights of old pixels in each new one within the crop: upper halves, then lower."""
    start = (resized - cropped) // 2 if rounds_down else round((resized - cropped) / 2)
    scale = size / resized
    stretch = max(scale, 1.0)
    centers = (np.arange(start, start + cropped) + 0.5) * scale  # (cropped,)
    first = (centers - SUPPORT * stretch + 0.5).astype(int).clip(0)
    last = (centers + SUPPORT * stretch + 0.5).astype(int).clip(max=size)
    taps = (last - first).max()
    old = first[:, None] + np.arange(taps)  # (cropped, taps) positions of old pixels
    weights = _bicubic((old - centers[:, None] + 0.5) * (1 / stretch)) * (old < last[:, None])
    weights /= weights.cumsum(axis=1)[:, -1:]  # added one after the other, as Pillow does
    whole = (weights * (1 << BITS) + np.copysign(0.5, weights)).astype(int)  # rounded half away from zero
    dense = np.zeros((2, cropped, size + taps), np.float16)
    np.put_along_axis(dense[0], old, whole >> BITS // 2, axis=1)
    np.put_along_axis(dense[1], old, whole & (1 << BITS // 2) - 1, axis=1)
    return _on_device(dense[..., :size].reshape(2 * cropped, size), device)


def _on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor; nothing waits until a GPU has done its earlier work."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _bicubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution with a = -0.5, Pillow's bicubic filter."""
    x = np.abs(distance)
    near = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _resized(height: int, width: int, resize: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width after resizing: the shorter side is given, or both are."""
    if not isinstance(resize, int):
        return resize
    longer = int(resize * max(height, width) / min(height, width))
    return (resize, longer) if height <= width else (longer, resize)
