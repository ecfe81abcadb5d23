"""The protocol that every encoder implements."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

from prefixcap.encoders.text_tower import TextTower
from prefixcap.features import EncoderIdentity


@dataclass(frozen=True)
class PatchFeatures:
    """The patches of a batch of images, as a ViT encodes them, or the places of a CNN's last feature map.

    Patches are in row-major order from the top left.

    Attributes:
        embedding: (batch, dim) global embeddings, as `Encoder.encode_images` returns them.
        patches: (batch, patches, dim) embeddings of the last layer, projected into the joint space.
        attention: (batch, patches) the class token's attention over the patches in the last layer, averaged
            over the heads; it sums to one minus the class token's attention to itself. A SigLIP has a pooling probe in
            place of the class token, whose attention sums to one. None for a CNN, which has no attention, and timm's.
        patch_attention: (batch, patches, 1 + patches) each patch's attention over the class token and all patches in
            the last layer, averaged over the heads; rows sum to one. None for a SigLIP and a CNN, which have no class
            token, and timm's networks.
        hidden: (batch, 1 + patches, width) class token and patches of the last layer, before its final norm. None where
            `patch_attention` is.
    """

    embedding: Tensor
    patches: Tensor
    attention: Tensor | None
    patch_attention: Tensor | None
    hidden: Tensor | None = None


@dataclass(frozen=True)
class ImageGeometry:
    """How `Encoder.preprocess` resizes and crops an RGB image, for programs that cannot call it.

    Attributes:
        resize: the shorter side, in pixels, or height and width.
        resample: name of PIL's filter, e.g. "bicubic".
        crop: height and width of the centre crop; None: no crop.
        crop_rounds_down: half a pixel to the left of the crop, or above it, is rounded down; False: as Python rounds.
    """

    resize: int | tuple[int, int]
    resample: str
    crop: tuple[int, int] | None
    crop_rounds_down: bool


class Encoder(Protocol):
    """A CLIP: images and texts into one joint space; or an encoder of images alone.

    Embeddings are not normalised. They are inference tensors, on `device` and in `dtype`: `clone()` one before training
    on it.

    Attributes:
        identity: name, weights and preprocessing.
        device: of the model and the embeddings; inputs may be on any device.
        dtype: of the weights and the embeddings.
    """

    identity: EncoderIdentity
    device: torch.device
    dtype: torch.dtype

    def preprocess(self, image: Image.Image) -> Tensor:
        """One image of any mode and size -> (3, height, width) uint8, resized and cropped for the encoder."""
        ...

    def normalize(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) pixels -> float32, normalised with the encoder's mean and standard deviation."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) pixels, uint8 or normalised -> (batch, dim) embeddings."""
        ...

    def encode_patches(self, pixels: Tensor) -> PatchFeatures:
        """(batch, 3, height, width) pixels, uint8 or normalised -> patch features.

        Raises:
            InputError: the encoder has no patches, as a CLIP with a ResNet.
        """
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (batch, dim) embeddings; a text longer than the encoder's context is truncated.

        Raises:
            InputError: the encoder has no text side, as a network of timm.
        """
        ...

    @property
    def text_tower(self) -> TextTower | None:
        """Its text transformer, for keys and values of shared beginnings; None if it is not causal (SigLIP, MiniLM)."""
        ...


@runtime_checkable
class ExportableEncoder(Encoder, Protocol):
    """An encoder whose image tower `prefixcap export` can export, as ONNX or a program.

    Attributes:
        geometry: how its images are resized and cropped.
        image_tower: (batch, 3, height, width) normalised pixels in `dtype` -> (batch, dim) embeddings.
    """

    geometry: ImageGeometry
    image_tower: nn.Module
