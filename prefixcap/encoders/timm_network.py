"""The networks of timm (Wightman, "PyTorch Image Models", 2019), as encoders of images alone: DINOv2 and DINOv3, and
networks that learned from labels. They have no text side."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from prefixcap.encoders.common import normalized, weights_digest
from prefixcap.encoders.protocol import ImageGeometry, PatchFeatures
from prefixcap.encoders.transforms import Preprocessing
from prefixcap.errors import InputError, first_line
from prefixcap.features import EncoderIdentity
from prefixcap.utils.hub import Unreachable, by_hand, is_here, is_unreachable

ON_THE_HUB, FOLDER = "hf-hub:", "local-dir:"  # what timm's names of models may begin with
CONFIG, WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")  # in a folder that timm saved


class TimmEncoder:
    """A network of timm without its classifier; see `Encoder` for the methods.

    An image's embedding is what the classifier would read. Patches are the places of the last feature map, see
    `encode_places`; there is no attention over them, and so no regions. `encode_texts` raises InputError.

    Args:
        checkpoint: a name that `timm.list_models()` lists, with or without the tag of its weights, which timm
            downloads; "NAME/FILE", with weights in a file; a folder with timm's config.json and the weights; or
            "hf-hub:OWNER/NAME", such a folder on the model hub.
        name: for the identity and for error messages.
        device: of the network.
        dtype: of the weights.

    Raises:
        InputError: timm is not installed, there is no such network, or it cannot be loaded.
    """

    geometry: ImageGeometry  # missing where it is more than to resize and crop
    text_tower = None
    reads_texts = False

    def __init__(self, checkpoint: str, name: str, device: torch.device, dtype: torch.dtype) -> None:
        timm = _import_timm(name)
        network = _load(timm, checkpoint, name).eval().requires_grad_(False)
        config = timm.data.resolve_model_data_config(network)
        self.preprocess = Preprocessing.read(timm.data.create_transform(**config, is_training=False))
        if geometry := self.preprocess.geometry:
            self.geometry = geometry
        blank = self.preprocess(Image.new("RGB", (8, 8)))[None].float()
        self.identity = EncoderIdentity(
            name=name,
            digest=weights_digest(network),
            preprocessing=str(self.preprocess),
            dim=network(blank).shape[1],
        )
        self.device, self.dtype = device, dtype
        self.image_tower: nn.Module = network.to(device, dtype)

    def normalize(self, pixels: Tensor) -> Tensor:
        return normalized(pixels, self.preprocess.mean, self.preprocess.deviation, self.device)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self.image_tower(self.normalize(pixels).to(self.dtype))
        return embeddings

    @torch.inference_mode()
    def encode_patches(self, pixels: Tensor) -> PatchFeatures:
        pixels = self.normalize(pixels).to(self.dtype)
        embedding, patches = encode_places(self.image_tower, pixels, self.identity.name)
        return PatchFeatures(embedding, patches, attention=None, patch_attention=None)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        raise InputError(
            f"encoder {self.identity.name!r} reads no texts, so that captions cannot be compared with images, nor "
            "retrieved or learned from alone: take a CLIP for that, e.g. clip:ViT-B/32"
        )


def encode_places(network: Any, pixels: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """What a network of timm without classifier gives for images, and for each place of its last feature map.

    A place is embedded as an image would be whose places were all like it: pooling leaves it as it is, and what follows
    pooling is applied. In a ViT that reads its class token, as DINOv2, the patches are the tokens of its last layer.

    Args:
        network: of timm.
        pixels: (batch, 3, height, width), normalised.
        name: for error messages.

    Returns:
        (batch, dim) and (batch, places, dim), row by row.

    Raises:
        InputError: the network has no feature map of one resolution at its end.
    """
    features = network.forward_features(pixels)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise _no_patches(name)
    if features.ndim == 4:
        channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        places = (features if channels_last else features.permute(0, 2, 3, 1)).flatten(1, 2)  # (batch, places, width)
        alone = places.flatten(0, 1)[:, None, None]  # (batch * places, 1, 1, width)
        alone = alone if channels_last else alone.permute(0, 3, 1, 2)
    else:
        others = getattr(network, "num_prefix_tokens", 0)  # class token and registers
        places = features[:, others:]
        reduction = network.feature_info[-1]["reduction"]
        if places.shape[1] != (pixels.shape[2] // reduction) * (pixels.shape[3] // reduction):
            raise _no_patches(name)
        alone = places.flatten(0, 1).unsqueeze(1).expand(-1, others + 1, -1)  # whichever token is read, it is this
    embedding: Tensor = network.forward_head(features)
    return embedding, network.forward_head(alone).unflatten(0, places.shape[:2])


def _no_patches(name: str) -> InputError:
    return InputError(
        f"encoder {name!r} has no patches, as its network has no last feature map of one resolution: take the "
        "embedding of the image, or another network, e.g. timm:vit_small_patch14_dinov2.lvd142m"
    )


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError(f'encoder {name!r} needs timm ({first_line(error)}): pip install "prefixcap[timm]"') from error
    return timm


def _load(timm: Any, checkpoint: str, name: str) -> nn.Module:
    """The network in fp32 on the CPU, without its classifier."""
    source, file = _source(timm, checkpoint, name)
    try:
        network: nn.Module = timm.create_model(source, pretrained=file is None, num_classes=0)
        if file is not None:
            weights = timm.models.load_state_dict(str(file), weights_only=True)
            _fill(network, weights)
    except Exception as error:  # a malformed file makes timm raise almost anything
        if file is None and is_unreachable(error) and (missing := missing_checkpoint(checkpoint)):
            raise Unreachable(
                f"encoder {name!r} cannot be loaded, as the model hub cannot be reached: {missing}"
            ) from error
        raise InputError(
            f"encoder {name!r} cannot be loaded ({first_line(error)}): give timm:NAME, timm:NAME/FILE with all weights "
            f"of that network as timm names them, or a folder with timm's {CONFIG} and the weights"
        ) from error
    return network


def _source(timm: Any, checkpoint: str, name: str) -> tuple[str, Path | None]:
    """A checkpoint as timm calls it, and the file of its weights; None: those that are published by that name."""
    folder = Path(checkpoint.removeprefix(FOLDER)).expanduser()
    if checkpoint.startswith(FOLDER) or folder.is_dir():
        file = next((folder / weights for weights in WEIGHTS if (folder / weights).is_file()), None)
        if file is None or not (folder / CONFIG).is_file():
            raise InputError(f"encoder {name!r}: {folder} has no {CONFIG} or no {WEIGHTS[0]}: give a folder timm saved")
        return f"{FOLDER}{folder}", file
    if checkpoint.startswith(ON_THE_HUB):
        return checkpoint, None
    network, _, weights = checkpoint.partition("/")
    if not timm.is_model(network):
        near = get_close_matches(network, timm.list_models(), n=4, cutoff=0.5)
        raise InputError(
            f"encoder {name!r}: timm has no network {network!r}: take one of its list_models()"
            + (f", e.g. {', '.join(near)}" if near else "")
        )
    file = Path(weights).expanduser()
    if weights and not file.is_file():
        raise InputError(f"encoder {name!r}: there is no file {weights}: give the weights of {network}")
    return network, file if weights else None


def _fill(network: Any, weights: dict[str, Tensor]) -> None:
    """Load weights; those of the classifier are left out. Raises ValueError if another is missing or unknown."""
    # As timm does for published weights: renames layers, and resizes position embeddings to the size of images.
    if adapt := getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None):
        weights = adapt(weights, network)
    classifier = network.pretrained_cfg.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    own = network.state_dict()
    kept = {
        key: weight
        for key, weight in weights.items()
        if key in own or not key.startswith(tuple(f"{layer}." for layer in names))
    }
    if wrong := sorted(own.keys() ^ kept.keys()):
        raise ValueError(f"it {'lacks' if wrong[0] in own else 'has the unknown'} weight {wrong[0]!r}")
    network.load_state_dict(kept)


def missing_checkpoint(checkpoint: str) -> str | None:
    """How to fetch a network of the hub by hand; None: it is on this machine, or not on the hub."""
    from timm.models import get_pretrained_cfg

    if checkpoint.startswith(ON_THE_HUB):
        repository = checkpoint.removeprefix(ON_THE_HUB)
    else:
        published = None if "/" in checkpoint else get_pretrained_cfg(checkpoint)
        repository = (published and published.hf_hub_id) or ""
    if not repository or is_here(repository):
        return None
    files = f"{CONFIG} and {WEIGHTS[0]} (or {WEIGHTS[1]})"
    return f"for encoder 'timm:{checkpoint}', fetch {by_hand(repository, files)} (then its name is timm:FOLDER)"
