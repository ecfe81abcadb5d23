"""CLIP back ends behind one protocol. `load_encoder` opens one by name."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from prefixcap.demo import ASSETS
from prefixcap.encoders.inputs import check_image
from prefixcap.encoders.protocol import Encoder, PatchFeatures
from prefixcap.encoders.regions import aggregate_regions
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.utils.hardware import usable_device
from prefixcap.utils.images import open_image

__all__ = ["BACKENDS", "Encoder", "EncoderIdentity", "PatchFeatures", "embed_images", "encode_feature", "load_encoder"]


# Each back end is imported only here: who uses one need not have the others, nor wait for them.
def _clip(checkpoint: str, name: str, device: torch.device, dtype: torch.dtype) -> Encoder:
    from prefixcap.encoders.openai_clip import OpenAIClipEncoder

    return OpenAIClipEncoder(checkpoint or str(ASSETS / "clip.pt"), name, device, dtype)


def _transformers(checkpoint: str, name: str, device: torch.device, dtype: torch.dtype) -> Encoder:
    from prefixcap.encoders.hf import TransformersEncoder

    return TransformersEncoder(checkpoint, name, device, dtype)


# By how their encoders' names begin; what follows a colon is the checkpoint.
BACKENDS: dict[str, Callable[[str, str, torch.device, torch.dtype], Encoder]] = {
    "demo": _clip,
    "clip:": _clip,
    "transformers:": _transformers,
}


def load_encoder(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Encoder:
    """Open a CLIP, in eval mode.

    Args:
        name: one of

            - "clip:ViT-B/32": any model that `clip.available_models()` lists; `clip` downloads it;
            - "clip:/path/to/state_dict.pt": a state dict in OpenAI's layout, or a file that OpenAI published;
            - "transformers:openai/clip-vit-base-patch32" or "transformers:/path/to/folder": a CLIP or SigLIP
              checkpoint with its image processor and tokenizer;
            - "demo": the small CLIP that comes with this package;

            or a name that begins as one of `BACKENDS`.
        device: where the weights live and the embeddings come out.
        dtype: of the weights and the embeddings. The digest of the identity does not depend on it.

    Raises:
        InputError: the name has none of these forms, the device cannot be used, or the checkpoint cannot be
            loaded (it is missing, cannot be downloaded, or is neither a CLIP nor a SigLIP).

    Examples:
        >>> encoder = load_encoder("demo")                      # or "clip:ViT-B/32", which gives (1, 512)
        >>> encoder.encode_images(encoder.preprocess(Image.new("RGB", (640, 480)))[None]).shape
        torch.Size([1, 128])
    """
    device = usable_device(device)
    backend, colon, checkpoint = name.partition(":")
    if backend + colon in BACKENDS and bool(colon) == bool(checkpoint):
        return BACKENDS[backend + colon](checkpoint, name, device, dtype)
    raise InputError(
        f"unknown encoder {name!r}: give 'clip:MODEL' (e.g. clip:ViT-B/32), 'clip:PATH' (a state dict), "
        "'transformers:MODEL' or 'transformers:FOLDER' (CLIP or SigLIP), or 'demo'"
    )


def encode_feature(encoder: Encoder, pixels: Tensor, name: str) -> Tensor:
    """What a feature store holds of images as "images/embedding", "images/patches" or "images/regions".

    Args:
        encoder: makes it.
        pixels: (batch, 3, height, width), as its `preprocess` gives them.
        name: of the feature.

    Returns:
        (batch, dim); or (batch, patches, dim), or (batch, regions, dim).

    Raises:
        InputError: the encoder has no patches or regions.
    """
    if name == "images/embedding":
        return encoder.encode_images(pixels)
    features = encoder.encode_patches(pixels)
    return features.patches if name == "images/patches" else aggregate_regions(features)


def embed_images(
    encoder: Encoder, images: Sequence[str | Path | Image.Image], feature: str = "images/embedding"
) -> Tensor:
    """What an encoder makes of images, by the feature's name in a store, see `encode_feature`.

    Raises:
        InputError: an image cannot be read, or the encoder has no such feature.
    """
    opened = [image if isinstance(image, Image.Image) else open_image(image) for image in map(check_image, images)]
    return encode_feature(encoder, torch.stack([encoder.preprocess(image) for image in opened]), feature)
