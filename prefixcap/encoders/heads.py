"""An encoder of an image network and a sentence encoder, with a head on each that puts its features into one space.

Both networks stay as they were, as the image network in LiT (Zhai et al., "LiT: Zero-Shot Transfer with Locked-image
text Tuning", CVPR 2022). `prefixcap/training/heads.py` trains heads by CLIP's loss.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from prefixcap.encoders import Encoder, load_encoder
from prefixcap.encoders.common import weights_digest
from prefixcap.encoders.protocol import ExportableEncoder, ImageGeometry, PatchFeatures
from prefixcap.errors import InputError, first_line
from prefixcap.features import EncoderIdentity
from prefixcap.utils.files import atomic_write, atomic_write_folder, read_json
from prefixcap.utils.hub import read_config, require_no_adapter

DESCRIPTION, HEADS = "encoder.json", "heads.safetensors"  # in the folder
LONGEST_TEXT = 256  # tokens, as sentence-transformers configures MiniLM
TEXT = "text"  # the sentence encoder's folder, where this module writes it
SENTENCE_ENCODER = "config.json, model.safetensors and tokenizer.json"  # its files that are read
COPIED = ("config.json", "model*.safetensors*", "tokenizer.json", "LICENSE*", "README.md")
CPU_TEXTS = 64  # read together: of thousands at a time, a processor reads two thirds as many a second


class HeadsEncoder:
    """An image network and a sentence encoder with trained heads; see `Encoder` for the methods.

    Args:
        checkpoint: a folder with encoder.json, `{"image": "timm:vit_small_patch14_dinov2.lvd142m", "text": "minilm"}`,
            the name of the image encoder and the folder of the sentence encoder, and with heads.safetensors. Paths are
            those below the folder, where there are any.
        name: for the identity and for error messages.
        device: of the model.
        dtype: of the weights.

    Raises:
        InputError: a file is missing or damaged, an encoder cannot be loaded, or the heads are not for these encoders.
    """

    geometry: ImageGeometry  # these two are missing if the image encoder cannot be exported
    image_tower: nn.Module
    text_tower = None

    def __init__(self, checkpoint: str, name: str, device: torch.device, dtype: torch.dtype) -> None:
        folder = Path(checkpoint).expanduser()
        described = _read_description(folder / DESCRIPTION, name)
        image_head, text_head = read_heads(folder / HEADS, name)
        self._image = _open_image_encoder(described["image"], folder, name, device, dtype)
        texts = load_sentence_encoder(folder / described["text"], text_head, f"encoder {name!r}: its")
        for head, width, what in (
            (image_head, self._image.identity.dim, "image encoder"),
            (text_head, texts.network.config.hidden_size, "sentence encoder"),
        ):
            if head.up.in_features != width:
                raise InputError(
                    f"encoder {name!r}: its {what} gives {width} features, and {HEADS} is for {head.up.in_features}: "
                    "train heads for it"
                )
        digests = (self._image.identity.digest, weights_digest(image_head), weights_digest(texts))
        self.identity = EncoderIdentity(
            name=name,
            digest=hashlib.sha256(" ".join(digests).encode()).hexdigest(),
            preprocessing=self._image.identity.preprocessing,
            dim=image_head.down.out_features,
        )
        self.device, self.dtype = device, dtype
        self._head, self._texts = image_head.to(device, dtype), texts.to(device, dtype)
        if isinstance(self._image, ExportableEncoder):
            self.geometry = self._image.geometry
            self.image_tower = nn.Sequential(self._image.image_tower, self._head)

    def preprocess(self, image: Image.Image) -> Tensor:
        return self._image.preprocess(image)

    def normalize(self, pixels: Tensor) -> Tensor:
        return self._image.normalize(pixels)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self._head(self._image.encode_images(pixels))
        return embeddings

    @torch.inference_mode()
    def encode_patches(self, pixels: Tensor) -> PatchFeatures:
        features = self._image.encode_patches(pixels)
        return PatchFeatures(
            embedding=self._head(features.embedding),
            patches=self._head(features.patches),
            attention=features.attention,
            patch_attention=features.patch_attention,
            hidden=features.hidden,
        )

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        return self._texts.encode(texts)


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


class SentenceTower(nn.Module):
    """A sentence encoder of transformers, whose tokens' mean is of length one, and its head.

    Args:
        folder: with config.json, model.safetensors and tokenizer.json.
        head: of the sentence encoder's features; None: texts are encoded as these.

    Attributes:
        dim: of what texts are encoded as.

    Raises:
        Exception: whatever transformers raises for a folder that is no such model; InputError if weights are missing.
    """

    def __init__(self, folder: Path, head: Head | None = None) -> None:
        super().__init__()
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # as in load_language_model
        require_no_adapter(str(folder))
        config = read_config(str(folder), local_files_only=True)
        self.network, report = AutoModel.from_pretrained(
            str(folder), config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True,
            trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
        # transformers only warns, and initializes them at random; the pooler is not read.
        if missing := [key for key in report["missing_keys"] if not key.startswith("pooler.")]:
            raise InputError(f"it lacks weight {min(missing)!r}")
        self.head = head or nn.Identity()
        self.dim: int = head.down.out_features if head else config.hidden_size
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(min(LONGEST_TEXT, config.max_position_embeddings))
        self._tokenizer.no_padding()  # not to the length that its file may name
        self._padding = config.pad_token_id or 0

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(batch, length) token ids, and 1 for each but padding -> (batch, dim)."""
        states = self.network(input_ids=tokens, attention_mask=mask).last_hidden_state  # (batch, length, width)
        token_mask = mask.unsqueeze(2).to(states.dtype)
        mean = (states * token_mask).sum(dim=1) / token_mask.sum(dim=1)
        embeddings: Tensor = self.head(F.normalize(mean, dim=-1))
        return embeddings

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (texts, dim)."""
        if not texts:
            return torch.empty(0, self.dim, device=self.network.device, dtype=self.network.dtype)
        sentences = [torch.tensor(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        # Those of about the same length are read together, so that there is little padding.
        by_length = sorted(range(len(sentences)), key=lambda number: len(sentences[number]))
        at_once = CPU_TEXTS if self.network.device.type == "cpu" else len(texts)
        embeddings = [
            self._read([sentences[number] for number in by_length[start : start + at_once]])
            for start in range(0, len(texts), at_once)
        ]
        return torch.cat(embeddings)[torch.tensor(by_length).argsort()]

    def _read(self, sentences: list[Tensor]) -> Tensor:
        """(texts, dim) of the token ids of texts that the network reads together."""
        tokens = pad_sequence(sentences, batch_first=True, padding_value=self._padding)
        mask = pad_sequence([torch.ones_like(ids) for ids in sentences], batch_first=True)
        embeddings: Tensor = self(tokens.to(self.network.device), mask.to(self.network.device))
        return embeddings


def load_sentence_encoder(folder: Path, head: Head | None = None, whose: str = "the") -> SentenceTower:
    """A sentence encoder, in eval mode.

    Args:
        folder, head: as `SentenceTower` takes them.
        whose: for error messages.

    Raises:
        InputError: it cannot be loaded, or encodes no texts.
    """
    try:
        tower = SentenceTower(folder, head).eval()
        tower.encode(["a"])
    except Exception as error:  # a malformed folder makes transformers raise almost anything
        raise InputError(
            f"{whose} sentence encoder {folder} cannot be loaded ({first_line(error)}): give a folder with "
            f"{SENTENCE_ENCODER}"
        ) from error
    return tower


def read_heads(file: Path, name: str, remedy: str = "restore the two heads") -> tuple[Head, Head]:
    """The heads of images and of texts, in float32.

    Args:
        file: their weights, whose names begin with "image." and "text.".
        name: of the encoder, for error messages.
        remedy: for error messages, too.

    Raises:
        InputError: the file is missing or damaged, or has no such heads.
    """
    try:
        weights = load_file(file)
        image_head, text_head = (Head(_below(part, weights)).requires_grad_(False) for part in ("image", "text"))
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise InputError(f"encoder {name!r}: {file} is damaged ({first_line(error)}): {remedy}") from error
    return image_head, text_head


def write_heads(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Write what `read_heads` reads. Raises InputError as `atomic_write` does."""
    with atomic_write(file) as temporary:
        save_file(dict(weights), temporary)


def write_encoder(folder: Path, image: str, texts: Path, weights: Mapping[str, Tensor]) -> None:
    """Write what "heads:FOLDER" reads, in one step; the files of the sentence encoder are copied.

    Args:
        folder: to write; a folder in its place is replaced.
        image: the name of the image encoder.
        texts: the folder of the sentence encoder.
        weights: of both heads, as `read_heads` reads them.

    Raises:
        InputError: as `atomic_write_folder`.
    """
    with atomic_write_folder(folder) as temporary:
        (temporary / TEXT).mkdir(parents=True)
        for pattern in COPIED:
            for file in filter(Path.is_file, texts.glob(pattern)):
                shutil.copyfile(file, temporary / TEXT / file.name)
        save_file(dict(weights), temporary / HEADS)
        (temporary / DESCRIPTION).write_text(json.dumps({"image": image, "text": TEXT}, indent=1) + "\n", "utf-8")


def _below(part: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights whose names begin with a part, by the rest of their names, in float32."""
    return {key.partition(".")[2]: weight.float() for key, weight in weights.items() if key.startswith(f"{part}.")}


def _read_description(file: Path, name: str) -> dict[str, str]:
    described: Any = read_json(file)
    if (
        not isinstance(described, dict)
        or described.keys() != {"image", "text"}
        or not all(isinstance(value, str) for value in described.values())
    ):
        raise InputError(
            f'encoder {name!r}: {file} must say {{"image": ENCODER, "text": FOLDER}}, the name of an image encoder and '
            "the folder of a sentence encoder"
        )
    return described


def _open_image_encoder(described: str, folder: Path, name: str, device: torch.device, dtype: torch.dtype) -> Encoder:
    kind, _, checkpoint = described.partition(":")
    if kind == "heads":
        raise InputError(f"encoder {name!r}: its image encoder {described!r} has heads of its own: name one without")
    inside = bool(checkpoint) and (folder / checkpoint).exists()
    return load_encoder(f"{kind}:{folder / checkpoint}" if inside else described, device, dtype)
