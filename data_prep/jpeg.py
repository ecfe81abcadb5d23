"""JPEG files decoded by the encoder's device: a GPU has nvJPEG, whose pixels differ slightly from libjpeg's."""

import io
import warnings
from functools import cache

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from data_prep.records import Sample
from data_prep.resizing import is_resizable
from prefixcap.encoders.protocol import ImageGeometry
from prefixcap.errors import InputError
from prefixcap.utils.images import decode_image

MOST_PIXELS = 1 << 22  # of an image: in float32, as it is resized, it takes 50 MB of a GPU's memory
END_OF_IMAGE = b"\xff\xd9"


def ordinary_jpeg(sample: Sample, geometry: ImageGeometry) -> bytes | None:
    """A sample's file, if it is a complete baseline JPEG in YCbCr, upright, and `is_resizable`; else None."""
    file = sample.read()
    if file is None or not file.endswith(END_OF_IMAGE):
        return None
    try:
        with Image.open(io.BytesIO(file), formats=["JPEG"]) as image:  # reads the header only
            ordinary = (
                image.mode == "RGB"
                and not image.info.get("progressive")
                and image.info.get("adobe_transform") != 0  # which would be RGB in the file, too
                and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
                and image.width * image.height <= MOST_PIXELS
                and is_resizable(image.height, image.width, geometry)
            )
    except Exception:  # Pillow raises anything on a damaged file
        return None
    return file if ordinary else None


def decode_jpegs(files: list[Tensor], device: torch.device) -> list[Tensor | str]:
    """Files as `ordinary_jpeg` returns them -> (height, width, 3) uint8 on the device, or why it cannot be read.

    Args:
        files: (bytes,) uint8 each, on the CPU.
        device: that decodes: a GPU by nvJPEG, a CPU by libjpeg.
    """
    if not files:
        return []
    from torchvision.io import decode_jpeg  # here, as few runs need it

    stream = _stream(device)
    try:
        with warnings.catch_warnings(), torch.cuda.stream(stream):
            warnings.simplefilter("ignore", DeprecationWarning)  # torchvision 0.29 recommends torchcodec
            images = decode_jpeg(files, mode="RGB", device=device)
        if stream is not None:
            current = torch.cuda.current_stream(device)
            current.wait_stream(stream)
            for image in images:
                image.record_stream(current)
        return [image.permute(1, 2, 0) for image in images]
    except RuntimeError as error:  # of one of them, and none is returned
        if len(files) > 1:
            return [decoded for file in files for decoded in decode_jpegs([file], device)]
        refused = str(error).partition("\n")[0]
    try:
        image = torch.from_numpy(np.array(decode_image(io.BytesIO(files[0].numpy().tobytes())))).to(device)
    except InputError as error:
        return [str(error)]
    warnings.warn(f"Pillow decodes what the fast decoder refuses, one image at a time ({refused})", stacklevel=2)
    return [image]


@cache
def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """The stream whose memory a GPU decodes to: torchvision does not wait for what works on the current one, and would
    write to memory that was given back there but is still to be read."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None
