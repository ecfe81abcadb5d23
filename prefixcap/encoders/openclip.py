"""The models of open_clip (Ilharco et al., "OpenCLIP", 2021; Cherti et al., "Reproducible Scaling Laws for Contrastive
Language-Image Learning", CVPR 2023): CLIP, SigLIP, CoCa, EVA, MobileCLIP and others."""

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from prefixcap.encoders.common import normalized, weights_digest
from prefixcap.encoders.protocol import ImageGeometry, PatchFeatures
from prefixcap.encoders.text_tower import TextTower, layers_of_clip
from prefixcap.encoders.transforms import Preprocessing
from prefixcap.errors import InputError, first_line
from prefixcap.features import EncoderIdentity
from prefixcap.utils.hub import Unreachable, by_hand, is_here, is_unreachable

ON_THE_HUB, FOLDER = "hf-hub:", "local-dir:"  # what open_clip's names of models may begin with
CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # in repositories of the model hub


class OpenClipEncoder:
    """A model of open_clip; see `Encoder` for the methods.

    Patches are those of open_clip's own ViT, with attention, regions and hidden states if it reads a class token; or of
    a network of timm, see `encode_places`. ResNets and CoCa have none.

    Args:
        checkpoint: "MODEL/TAG", a pair that `open_clip.list_pretrained()` lists, whose weights open_clip downloads;
            "MODEL/FILE", with weights in a file; a folder with open_clip_config.json and the weights; or
            "hf-hub:OWNER/NAME", such a folder on the model hub.
        name: for the identity and for error messages.
        device: of the model.
        dtype: of the weights.

    Raises:
        InputError: open_clip is not installed, there is no such model, or it cannot be loaded.
    """

    geometry: ImageGeometry  # missing where it is more than to resize and crop

    def __init__(self, checkpoint: str, name: str, device: torch.device, dtype: torch.dtype) -> None:
        open_clip = _import_open_clip(name)
        model, self._tokenizer = _load(open_clip, checkpoint, name)
        config = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
        self.preprocess = Preprocessing.read(open_clip.transform.image_transform_v2(config, is_train=False))
        if geometry := self.preprocess.geometry:
            self.geometry = geometry
        self._model = model.eval().requires_grad_(False)
        self.image_tower: nn.Module = _ImageTower(self._model)
        blank = torch.zeros(1, 3, *self.preprocess(Image.new("RGB", (8, 8))).shape[1:])
        self.identity = EncoderIdentity(
            name=name,
            digest=_digest(open_clip, model),
            preprocessing=str(self.preprocess),
            dim=self.image_tower(blank).shape[1],
        )
        self.device, self.dtype = device, dtype
        self._model.to(device, dtype)

    def normalize(self, pixels: Tensor) -> Tensor:
        return normalized(pixels, self.preprocess.mean, self.preprocess.deviation, self.device)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self.image_tower(self.normalize(pixels).to(self.dtype))
        return embeddings

    @torch.inference_mode()
    def encode_patches(self, pixels: Tensor) -> PatchFeatures:
        visual = self._model.visual
        if hasattr(visual, "trunk") and not hasattr(visual.head, "pool"):
            from prefixcap.encoders.timm_network import encode_places

            pixels = self.normalize(pixels).to(self.dtype)
            embedding, patches = map(visual.head, encode_places(visual.trunk, pixels, self.identity.name))
            return PatchFeatures(embedding, patches, attention=None, patch_attention=None)
        if not _is_plain_vit(visual):
            raise InputError(
                f"encoder {self.identity.name!r} has no patches in the space of its embeddings, as its image tower "
                "pools by attention: take the embedding of the image, or another encoder, e.g. clip:ViT-B/32"
            )
        # As open_clip's VisionTransformer.forward, which discards the attention.
        *earlier, last = visual.transformer.resblocks
        x = visual._embeds(self.normalize(pixels).to(self.dtype))  # (batch, 1 + patches, width)
        for block in earlier:
            x = block(x)
        normed = last.ln_1(x)
        _, attention = last.attn(normed, normed, normed)  # (batch, 1 + patches, 1 + patches), mean over the heads
        x = last(x)
        pooled, _ = visual._pool(x)
        pools_class_token = visual.pool_type == "tok"
        return PatchFeatures(
            embedding=pooled @ visual.proj,
            patches=visual.ln_post(x[:, 1:]) @ visual.proj,
            attention=attention[:, 0, 1:] if pools_class_token else None,
            patch_attention=attention[:, 1:] if pools_class_token else None,
            hidden=x if pools_class_token else None,
        )

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.empty(0, self.identity.dim, dtype=self.dtype, device=self.device)
        if (tower := self.text_tower) is not None:
            return tower.encode(tower.sentences(texts))
        input_ids = self._tokenizer(list(texts)).to(self.device)
        embeddings: Tensor = self._model.encode_text(input_ids, normalize=False)
        return embeddings

    @cached_property
    def text_tower(self) -> TextTower | None:
        text, tokenizer = getattr(self._model, "text", self._model), self._tokenizer
        if not _reads_as_openai_clip(text, tokenizer):
            return None
        return TextTower(
            layers=layers_of_clip(text.transformer),
            heads=text.transformer.resblocks[0].attn.num_heads,
            token_embedding=text.token_embedding,
            positions=text.positional_embedding,
            head=lambda states: text.ln_final(states) @ text.text_projection,
            start=tokenizer.sot_token_id,
            end=tokenizer.eot_token_id,
            tokenize=lambda texts: [tokenizer.encode(each) for each in texts],
        )


class _ImageTower(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual = model.visual

    def forward(self, pixels: Tensor) -> Tensor:
        output = self.visual(pixels)
        embeddings: Tensor = output[0] if isinstance(output, tuple) else output  # CoCa's comes with its patches
        return embeddings


def _digest(open_clip: Any, model: nn.Module) -> str:
    """Of the weights, and of the activation, by which models of the same shapes differ: theirs is GELU or QuickGELU."""
    digest = weights_digest(model)
    if any(isinstance(module, open_clip.transformer.QuickGELU) for module in model.modules()):
        return hashlib.sha256(f"{digest} QuickGELU".encode()).hexdigest()
    return digest


def _is_plain_vit(visual: Any) -> bool:
    """Whether an image tower is a ViT whose patches can be projected as its pooled output is."""
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    return (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks)
    )


def _reads_as_openai_clip(text: Any, tokenizer: Any) -> bool:
    """Whether a text tower is causal, reads at the end token, and has layers as `TextLayer` describes them."""
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.transformer import ResidualAttentionBlock

    pool = getattr(text, "pool_type", getattr(text, "text_pool_type", None))
    return (
        isinstance(tokenizer, SimpleTokenizer)
        and tokenizer.reduction_fn is None
        and pool == "argmax"
        and getattr(text, "attn_mask", None) is not None
        and getattr(text, "cls_emb", None) is None
        and isinstance(text.text_projection, nn.Parameter)
        and all(
            type(block) is ResidualAttentionBlock and isinstance(block.ls_1, nn.Identity)
            for block in text.transformer.resblocks
        )
    )


def _import_open_clip(name: str) -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise InputError(
            f'encoder {name!r} needs open_clip ({first_line(error)}): pip install "prefixcap[open-clip]"'
        ) from error
    return open_clip


def _load(open_clip: Any, checkpoint: str, name: str) -> tuple[Any, Any]:
    """The model in fp32 on the CPU, and its tokenizer."""
    model_name, weights = _source(open_clip, checkpoint, name)
    local = model_name.startswith(FOLDER) or (weights is not None and Path(weights).is_file())
    try:
        with _silent():
            config = open_clip.get_model_config(model_name)
            if local:
                _require_nothing_remote(config)
            # The tokenizer first: it is small.
            options = {"local_files_only": local, "trust_remote_code": False}
            is_huggingface = "hf_tokenizer_name" in config["text_cfg"]
            tokenizer = open_clip.get_tokenizer(model_name, **options if is_huggingface else {})
            model = open_clip.create_model(
                model_name, weights, pretrained_text=False, require_pretrained=True, weights_only=True
            )
    except Exception as error:  # a malformed folder makes open_clip raise almost anything
        if is_unreachable(error) and (missing := missing_checkpoint(checkpoint)):
            raise Unreachable(
                f"encoder {name!r} cannot be loaded, as the model hub cannot be reached: {missing}"
            ) from error
        raise InputError(
            f"encoder {name!r} cannot be loaded ({first_line(error)}): give open_clip:MODEL/TAG, open_clip:MODEL/FILE "
            f"with all weights of that model, or a folder with {CONFIG}, the weights and the tokenizer, if it has one"
        ) from error
    return model, tokenizer


def missing_checkpoint(checkpoint: str) -> str | None:
    """How to fetch a model of the hub by hand; None: it is on this machine, or not on the hub."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip import get_pretrained_cfg

    model, _, tag = checkpoint.partition("/")
    if checkpoint.startswith(ON_THE_HUB):
        repository, then = checkpoint.removeprefix(ON_THE_HUB), "open_clip:FOLDER"
        files = f"{CONFIG}, {WEIGHTS[0]} (or {WEIGHTS[1]}) and the tokenizer, if it has one"
    elif published := get_pretrained_cfg(model, tag):
        owner, repository, file = published["hf_hub"].split("/")
        repository, then = f"{owner}/{repository}", f"open_clip:{model}/FILE"
        files = file or f"{WEIGHTS[0]} (or {WEIGHTS[1]})"
    else:
        return None
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in (*WEIGHTS, files)):
        return None
    return f"for encoder 'open_clip:{checkpoint}', fetch {by_hand(repository, files)} (then its name is {then})"


def _source(open_clip: Any, checkpoint: str, name: str) -> tuple[str, str | None]:
    """A checkpoint as open_clip calls it: the model's name, and the tag or the file of its weights."""
    folder = Path(checkpoint.removeprefix(FOLDER)).expanduser()
    if checkpoint.startswith(FOLDER) or folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise InputError(
                f"encoder {name!r}: there is no file {folder / CONFIG}: give a folder with open_clip's model"
            )
        return f"{FOLDER}{folder}", None
    if checkpoint.startswith(ON_THE_HUB):
        return checkpoint, None
    model, _, weights = checkpoint.partition("/")
    if model not in (models := open_clip.list_models()):
        near = ", ".join(get_close_matches(model, models, n=4, cutoff=0.5) or models[:4])
        raise InputError(
            f"encoder {name!r}: open_clip has no model {model!r}: take one of its list_models(), e.g. {near}"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    file = Path(weights).expanduser()
    if weights not in tags and not file.is_file():
        what = f"there is no file {weights}, and {model} has no such weights" if weights else "it names no weights"
        raise InputError(f"encoder {name!r}: {what}: give open_clip:{model}/FILE or one of {', '.join(tags) or 'none'}")
    return model, weights if weights in tags else str(file)


def _require_nothing_remote(config: Any) -> None:
    """Refuse a model whose towers would be configured from the model hub, where all was to be on this machine."""
    timm_model = config["vision_cfg"].get("timm_model_name") or ""
    if ":" in timm_model:
        raise InputError(f"its image tower {timm_model} is elsewhere")
    text_model = config["text_cfg"].get("hf_model_name")
    if text_model and not is_here(text_model):
        raise InputError(f"its text tower {text_model} is configured on the model hub, and not on this machine")


@contextmanager
def _silent() -> Iterator[None]:
    """Keep open_clip from logging, which would also set up the root logger; its warnings about activations raise."""
    root = logging.getLogger()
    before, handler = root.manager.disable, logging.NullHandler()
    root.addHandler(handler)
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)
