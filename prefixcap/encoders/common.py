"""What the CLIP back ends share."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


def weights_digest(model: nn.Module) -> str:
    """SHA-256 (hex) over the sorted names, the shapes and the fp32 bytes of a model's state dict.

    It depends neither on the device nor on the file, but on rounding: compute it before casting to a narrower dtype.
    """
    return state_dict_digest(model.state_dict())


def state_dict_digest(state_dict: Mapping[str, Tensor]) -> str:
    """The same of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.to("cpu", torch.float32).flatten().numpy().data)
    return digest.hexdigest()


def normalized(pixels: Tensor, mean: Sequence[float], deviation: Sequence[float], device: torch.device) -> Tensor:
    """(batch, 3, height, width) pixels of 0 to 255 (uint8) -> float32 with that mean and deviation, on `device`.

    Floating-point pixels are returned unchanged.
    """
    pixels = pixels.to(device, non_blocking=True)
    if pixels.is_floating_point():
        return pixels
    pinned = device.type == "cuda"  # so that nothing waits until the GPU has done its earlier work
    values = torch.tensor([mean, deviation], pin_memory=pinned).to(device, non_blocking=True)
    scale = values[:, :, None, None]
    return pixels.float().div_(255).sub_(scale[0]).div_(scale[1])


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image -> (3, height, width) uint8."""
    # With NumPy: images are prepared in a separate thread, where torch's threads would slow down the encoder.
    return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))
