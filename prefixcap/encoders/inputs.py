"""Check images as users pass them to a captioner: paths and pictures, or embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from prefixcap.errors import InputError, RowsError
from prefixcap.features import Feature
from prefixcap.utils.validation import shortened

Images = Sequence[str | Path | Image.Image] | Tensor | NDArray[np.floating[Any]]

_ROWS = 1 << 14  # checked together
_READ_AS_THEY_ARE = (np.float16, np.float32, np.float64)


def check_images(images: object) -> Sequence[str | Path | Image.Image] | Tensor:
    """Images in a form to read: paths and pictures in a list, embeddings as a tensor of real numbers.

    Raises:
        InputError: it is a single image, not a list, or the list has something else than paths and pictures.

    Examples:
        >>> check_images("photo.jpg")
        Traceback (most recent call last):
        ...
        prefixcap.errors.InputError: images must be a list: give [image]
    """
    if isinstance(images, Tensor | np.ndarray):
        return as_embeddings(images)
    if isinstance(images, str | Path | Image.Image):
        raise InputError("images must be a list: give [image]")
    if isinstance(images, bytes | bytearray) or not isinstance(images, Sequence):
        raise InputError(
            f"images are given as {shortened(images)}: give a list of paths or PIL images, or embeddings as one array"
        )
    for image in images if isinstance(images, list | tuple) else ():
        check_image(image)
    return images


def check_image(image: object) -> str | Path | Image.Image:
    """Return a path or a picture. Raises InputError if it is something else."""
    if isinstance(image, str | Path | Image.Image):
        return image
    if isinstance(image, Tensor | np.ndarray):
        raise InputError(
            f"an image is given as an array of shape {tuple(image.shape)}: give a path or a PIL image, or all "
            "embeddings as one array (batch, …)"
        )
    raise InputError(f"an image is given as {shortened(image)}: give a path or a PIL image, e.g. PIL.Image.open(file)")


def as_embeddings(given: Tensor | NDArray[Any]) -> Tensor:
    """Embeddings as a tensor; it is converted to float32 when it is read.

    Raises:
        InputError: they are not real numbers, or they are the pixels of pictures.
    """
    if given.dtype in (np.uint8, torch.uint8) and given.ndim >= 3:
        raise InputError(
            f"pictures are given as an array of bytes of shape {tuple(given.shape)}: give a list of PIL images, e.g. "
            "[PIL.Image.fromarray(picture)]"
        )
    if isinstance(given, np.ndarray):
        if given.dtype.kind not in "fiu":
            raise InputError(f"embeddings of type {given.dtype}: give an array of real numbers")
        # Torch supports neither all dtypes of NumPy nor all its memory layouts.
        kind = given.dtype if given.dtype in _READ_AS_THEY_ARE else np.dtype(np.float32)
        return torch.from_numpy(np.require(given, kind, ["C", "W"]))
    if given.dtype.is_complex or given.dtype == torch.bool:
        raise InputError(f"embeddings of type {str(given.dtype).removeprefix('torch.')}: give a tensor of real numbers")
    return given


def check_finite(embeddings: Tensor) -> None:
    """Raise RowsError if a row of (batch, …) embeddings is NaN, or infinite in float32."""
    finite = [part.to(torch.float32).flatten(1).isfinite().all(1) for part in embeddings.split(_ROWS)]
    if wrong := (~torch.cat(finite)).nonzero().flatten().tolist() if finite else []:
        raise RowsError("embeddings", wrong, "NaN or infinite: embed again")


def check_embeddings(embeddings: Tensor | NDArray[Any], shape: tuple[int, int]) -> Tensor:
    """(images, dim) embeddings of entire images. Raises InputError unless they have that shape and are finite."""
    checked = as_embeddings(embeddings)
    if checked.shape != shape:
        raise InputError(f"embeddings= of shape {tuple(checked.shape)}: give {shape}, one for each image")
    check_finite(checked)
    return checked


def require_embeddings(features: Feature, known: bool, rerank: bool, divide: bool, prompts: bool) -> None:
    """Raise InputError if embeddings of entire images are needed beside what a captioner reads, and not known.

    Args:
        features: what the captioner reads.
        known: they are given, or the encoder computes them.
        rerank: captions are compared with the image.
        divide: regions are divided by it, see `prefixcap.sampling.Sampling`.
        prompts: the captioner makes a prompt of it.
    """
    if divide and features is not Feature.REGIONS:
        raise InputError(
            f"unit_parts divides regions by the image's embedding, and this captioner reads {features}: leave it out"
        )
    if known or features is Feature.IMAGE:
        return
    for needed, what in (
        (rerank, f"rerank compares captions with the image's embedding, not with {features}"),
        (divide, f"unit_parts divides regions by the image's embedding, and this captioner reads {features}"),
        (prompts, f"this captioner makes prompts of the image's embedding, and reads {features}"),
    ):
        if needed:
            raise InputError(f"{what}: give embeddings, too")
