"""OpenAI's CLIP through clip-anytorch.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

import hashlib
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn

from prefixcap.encoders.common import normalized, to_tensor, weights_digest
from prefixcap.encoders.protocol import ImageGeometry, PatchFeatures
from prefixcap.encoders.text_tower import TextTower, layers_of_clip
from prefixcap.errors import InputError, first_line
from prefixcap.features import EncoderIdentity
from prefixcap.utils.colour import to_rgb
from prefixcap.utils.hub import Unreachable
from prefixcap.weights import open_weights, require_tensors


class OpenAIClipEncoder:
    """A CLIP of clip-anytorch; see `Encoder` for the methods.

    Args:
        checkpoint: one of `clip.available_models()`, or the path of a state dict, or of a file that OpenAI published.
            Other TorchScript programs are not opened, as they could write files while being loaded.
        name: for the identity and for error messages.
        device: of the model.
        dtype: of the weights. LayerNorm and BatchNorm stay in fp32, as in OpenAI's fp16 models.

    Raises:
        InputError: `clip` cannot be imported, or the checkpoint cannot be found, downloaded or read.
    """

    def __init__(self, checkpoint: str, name: str, device: torch.device, dtype: torch.dtype) -> None:
        clip = _import_clip()
        # On the CPU clip converts the weights to fp32, so that the digest is the same for every device.
        model, transform = self._load(clip, checkpoint, name)
        *self._geometry, _, _, self._normalization = transform.transforms  # between them: to RGB, to tensor
        size = model.visual.input_resolution
        self.identity = EncoderIdentity(
            name=name,
            digest=weights_digest(model),
            preprocessing=f"shorter side to {size} (bicubic), centre crop {size}, {self._mean_and_deviation}",
            dim=model.text_projection.shape[1],
        )
        self.geometry = ImageGeometry(size, "bicubic", (size, size), crop_rounds_down=False)
        self.device, self.dtype = device, dtype
        self._tokenizer = clip.clip._tokenizer
        _cast(model, dtype)
        self._model = model.to(device)
        self.image_tower: nn.Module = model.visual

    _mean_and_deviation = "CLIP's mean and deviation"

    def _load(self, clip: Any, checkpoint: str, name: str) -> tuple[Any, Any]:
        """The model in fp32 on the CPU, and the transform of its images."""
        return _load(clip, checkpoint, name)

    def preprocess(self, image: Image.Image) -> Tensor:
        image = to_rgb(image)
        for step in self._geometry:
            image = step(image)
        return to_tensor(image)

    def normalize(self, pixels: Tensor) -> Tensor:
        return normalized(pixels, self._normalization.mean, self._normalization.std, self.device)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self.image_tower(self.normalize(pixels).to(self.dtype))
        return embeddings

    @torch.inference_mode()
    def encode_patches(self, pixels: Tensor) -> PatchFeatures:
        visual = self._model.visual
        if not hasattr(visual, "transformer"):
            raise InputError(
                f"encoder {self.identity.name!r} has a ResNet image tower: "
                "patch features and class-token attention need a ViT, e.g. clip:ViT-B/32"
            )
        # As clip's VisionTransformer.forward, which returns only the class token and discards the attention.
        x = visual.conv1(self.normalize(pixels).to(self._model.dtype)).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([class_token, x], dim=1) + visual.positional_embedding.to(x.dtype)
        x = visual.ln_pre(x).transpose(0, 1)  # (1 + patches, batch, width)
        *earlier, last = visual.transformer.resblocks
        for block in earlier:
            x = block(x)
        normed = last.ln_1(x)
        _, attention = last.attn(normed, normed, normed)  # (batch, 1 + patches, 1 + patches), mean over the heads
        x = last(x).transpose(0, 1)  # (batch, 1 + patches, width)
        return PatchFeatures(
            embedding=visual.ln_post(x[:, 0]) @ visual.proj,
            patches=visual.ln_post(x[:, 1:]) @ visual.proj,
            attention=attention[:, 0, 1:],
            patch_attention=attention[:, 1:],
            hidden=x,
        )

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.empty(0, self.identity.dim, dtype=self.dtype, device=self.device)
        tower = self.text_tower
        return tower.encode(tower.sentences(texts))

    @cached_property
    def text_tower(self) -> TextTower:
        model = self._model
        return TextTower(
            layers=layers_of_clip(model.transformer),
            heads=model.transformer.resblocks[0].attn.num_heads,
            token_embedding=model.token_embedding,
            positions=model.positional_embedding.to(model.dtype),
            head=lambda states: model.ln_final(states).to(model.dtype) @ model.text_projection,
            start=self._tokenizer.encoder["<|startoftext|>"],
            end=self._tokenizer.encoder["<|endoftext|>"],
            tokenize=_Tokenizer(self._tokenizer),
        )


class _Tokenizer:
    """Tokenizes like clip's `SimpleTokenizer`, many texts in a twentieth of the time, with the `tokenizers` library.

    clip cleans texts before it splits them (ftfy, HTML), which the library does not: texts other than plain ASCII go to
    clip's own tokenizer.
    """

    def __init__(self, simple: Any) -> None:
        self._simple = simple
        self._fast = Tokenizer(models.BPE(simple.encoder, list(simple.bpe_ranks), end_of_word_suffix="</w>"))
        self._fast.normalizer = normalizers.Lowercase()
        pattern = Regex(simple.pat.pattern)
        self._fast.pre_tokenizer = pre_tokenizers.Split(pattern, "removed", invert=True)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        plain = [text for text in texts if _plain(text)]
        encodings = self._fast.encode_batch_fast(plain)
        known = {text: encoding.ids for text, encoding in zip(plain, encodings, strict=True)}
        return [known[text] if text in known else self._simple.encode(text) for text in texts]


def _plain(text: str) -> bool:
    """Whether clip splits a text without changing it first."""
    return text.isascii() and text.isprintable() and "&" not in text and "<|" not in text


def _import_clip() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # clip imports pkg_resources, which is deprecated
            import clip
    except ImportError as error:
        raise InputError(
            f"cannot import clip ({first_line(error)}): pip install clip-anytorch 'setuptools>=71.0.1,<82'"
        ) from error
    return clip


def published_file(model: str) -> tuple[str, Path] | None:
    """The URL of one of OpenAI's models, and where `clip` stores the download; None: there is no such model."""
    url = _import_clip().clip._MODELS.get(model)
    return None if url is None else (url, Path("~/.cache/clip").expanduser() / url.rpartition("/")[2])


def missing_checkpoint(model: str) -> str | None:
    """How to fetch one of OpenAI's checkpoints by hand; None if it is here, or none of theirs."""
    url, file = published_file(model) or ("", Path(model))
    if not url or file.is_file():
        return None
    return f"for encoder 'clip:{model}', fetch {url} as {file}"


def _load(clip: Any, checkpoint: str, name: str) -> tuple[Any, Any]:
    """The model in fp32 on the CPU, and the transform of its images."""
    published = checkpoint in clip.available_models()
    path = Path(checkpoint).expanduser()
    if not published and not path.is_file():
        raise InputError(
            f"encoder {name!r}: {checkpoint} is neither a file nor one of OpenAI's models "
            f"({', '.join(clip.available_models())}): check the spelling"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # clip opens OpenAI's files by torch.jit.load, which is deprecated
            if published or _is_published(clip, path):
                return clip.load(checkpoint if published else str(path), device="cpu", jit=False)  # type: ignore[no-any-return]
            model = clip.model.build_model(require_tensors(open_weights(path), path)).float()
            return model, clip.clip._transform(model.visual.input_resolution)
    except Exception as error:  # a malformed file makes torch and clip raise almost anything
        reason = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        what = f"encoder {name!r} cannot be loaded ({reason})"
        if published and isinstance(error, OSError) and (missing := missing_checkpoint(checkpoint)):
            raise Unreachable(f"{what}: connect to the network; or {missing}") from error
        if published:
            raise InputError(f"{what}: connect to the network, or put its file into ~/.cache/clip by hand") from error
        raise InputError(f"{what}: give a CLIP state dict in OpenAI's layout, with image and text tower") from error


def _is_published(clip: Any, file: Path) -> bool:
    """Whether a file is one of OpenAI's TorchScript programs, by its SHA-256, which is part of the URL."""
    digests = {url.rpartition("/")[2]: url.split("/")[-2] for url in clip.clip._MODELS.values()}
    return file.name in digests and hashlib.sha256(file.read_bytes()).hexdigest() == digests[file.name]


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    for module in model.modules():
        # clip's LayerNorm computes in fp32 for any input, so its weights must stay fp32.
        if not isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
