"""CLIP and SigLIP checkpoints through transformers.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021 (CLIP);
Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023 (SigLIP);
Tschannen et al., "SigLIP 2: Multilingual Vision-Language Encoders", 2025: to transformers, those of one image size are
SigLIPs.

Only the towers are called, never `get_image_features` or `get_text_features`, whose return values differ between
transformers 4 and 5.
"""

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from prefixcap.encoders.common import normalized, weights_digest
from prefixcap.encoders.missing import missing_encoder
from prefixcap.encoders.protocol import ImageGeometry, PatchFeatures
from prefixcap.encoders.text_tower import TextLayer, TextTower
from prefixcap.errors import InputError, first_line
from prefixcap.features import EncoderIdentity
from prefixcap.utils.colour import to_rgb
from prefixcap.utils.hub import model_folder, read_config, require_no_adapter

# CLIP was trained on images resized by PIL; torchvision resizes tensors slightly differently.
_PIL = {"backend": "pil"} if find_spec("transformers.image_processing_backends") else {"use_fast": False}


class TransformersEncoder:
    """A CLIP or SigLIP of transformers; see `Encoder` for the methods.

    SigLIP has no class token: in its pooling head, a learned probe attends to the patches, and an MLP follows. Its
    `PatchFeatures.attention` is the attention of the probe, averaged over the heads, and sums to one; the embedding of
    a patch is the output of the head if the probe attends only to that patch, so that it is in the joint space.

    Args:
        checkpoint: a folder, or a model's name on the Hugging Face hub.
        name: for the identity and for error messages.
        device: of the model.
        dtype: of the weights.

    Raises:
        InputError: the checkpoint cannot be found, downloaded or read, lacks weights, or is neither CLIP nor SigLIP.
    """

    def __init__(self, checkpoint: str, name: str, device: torch.device, dtype: torch.dtype) -> None:
        model, self._processor, self._tokenizer = _load(checkpoint, name)
        self._siglip = model.config.model_type == "siglip"
        vision_width = model.config.vision_config.hidden_size
        self.identity = EncoderIdentity(
            name=name,
            digest=weights_digest(model),
            preprocessing=_describe(self._processor),
            dim=vision_width if self._siglip else model.config.projection_dim,
        )
        self.geometry = _geometry(self._processor)
        self.device, self.dtype = device, dtype
        self._model = model.eval().to(device, dtype)
        # SigLIP's towers already end in the joint space.
        self.image_tower: nn.Module = _ImageTower(
            model.vision_model, nn.Identity() if self._siglip else model.visual_projection
        )
        self._text_projection = nn.Identity() if self._siglip else model.text_projection

    def preprocess(self, image: Image.Image) -> Tensor:
        geometry = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
        pixels: Tensor = self._processor(images=to_rgb(image), **geometry)["pixel_values"][0]
        return pixels.to(torch.uint8)

    def normalize(self, pixels: Tensor) -> Tensor:
        return normalized(pixels, self._processor.image_mean, self._processor.image_std, self.device)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self.image_tower(self.normalize(pixels).to(self.dtype))
        return embeddings

    @torch.inference_mode()
    def encode_patches(self, pixels: Tensor) -> PatchFeatures:
        pixels = self.normalize(pixels).to(self.dtype)
        return _siglip_patches(self._model, pixels) if self._siglip else _clip_patches(self._model, pixels)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(
            # SigLIP was trained on lower-case text padded to full length, with padding attended to; not every
            # tokenizer of its checkpoints converts to lower case.
            [text.lower() if self._siglip else text for text in texts],
            padding="max_length" if self._siglip else True,
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.device)
        mask = None if self._siglip else tokens["attention_mask"]
        text = self._model.text_model(input_ids=tokens["input_ids"], attention_mask=mask)
        embeddings: Tensor = self._text_projection(text.pooler_output)
        return embeddings

    @cached_property
    def text_tower(self) -> TextTower | None:
        if self._siglip:
            return None
        text, tokenizer = self._model.text_model, self._tokenizer

        def text_layer(block: Any) -> TextLayer:
            attention = block.self_attn
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            weight, bias = (torch.cat([getattr(one, name) for one in projections]) for name in ("weight", "bias"))
            return TextLayer(block.layer_norm1, weight, bias, attention.out_proj, block.layer_norm2, block.mlp)

        return TextTower(
            layers=[text_layer(block) for block in text.encoder.layers],
            heads=text.encoder.layers[0].self_attn.num_heads,
            token_embedding=text.embeddings.token_embedding,
            positions=text.embeddings.position_embedding.weight,
            head=lambda states: self._text_projection(text.final_layer_norm(states)),
            start=tokenizer.bos_token_id,
            end=tokenizer.eos_token_id,
            tokenize=lambda texts: tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else [],
        )


class _ImageTower(nn.Module):
    def __init__(self, vision_model: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.vision_model, self.projection = vision_model, projection

    def forward(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self.projection(self.vision_model(pixel_values=pixels).pooler_output)
        return embeddings


def _clip_patches(model: Any, pixels: Tensor) -> PatchFeatures:
    tower = model.vision_model
    vision = tower(pixel_values=pixels, output_hidden_states=True)
    # The attention is computed here, because the model may use SDPA, which does not return it.
    layer = tower.encoder.layers[-1]
    heads = (layer.self_attn.num_heads, -1)
    tokens = layer.layer_norm1(vision.hidden_states[-2])  # (batch, 1 + patches, width)
    query = layer.self_attn.q_proj(tokens).unflatten(-1, heads).transpose(1, 2)  # (batch, heads, tokens, head width)
    key = layer.self_attn.k_proj(tokens).unflatten(-1, heads).transpose(1, 2)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (batch, heads, tokens, tokens)
    attention = scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype).mean(dim=1)
    return PatchFeatures(
        embedding=model.visual_projection(vision.pooler_output),
        patches=model.visual_projection(tower.post_layernorm(vision.last_hidden_state[:, 1:])),
        attention=attention[:, 0, 1:],
        patch_attention=attention[:, 1:],
        hidden=vision.last_hidden_state,
    )


def _siglip_patches(model: Any, pixels: Tensor) -> PatchFeatures:
    vision = model.vision_model(pixel_values=pixels)
    head, tokens = model.vision_model.head, vision.last_hidden_state  # (batch, patches, width)
    _, attention = head.attention(head.probe.expand(len(tokens), -1, -1), tokens, tokens)
    patches = head(tokens.flatten(0, 1).unsqueeze(1))  # each patch as a sequence of length 1
    return PatchFeatures(
        embedding=vision.pooler_output,
        patches=patches.unflatten(0, tokens.shape[:2]),
        attention=attention[:, 0],
        patch_attention=None,
    )


def _load(checkpoint: str, name: str) -> tuple[Any, Any, Any]:
    """The model in fp32 on the CPU, its image processor and its tokenizer."""
    problem, missing = f"encoder {name!r} cannot be loaded", missing_encoder(name)
    source = model_folder(checkpoint, problem, missing, weights=False)
    try:
        config = read_config(source)
        require_no_adapter(source)
    except Exception as error:  # a malformed folder makes transformers raise almost anything
        raise _cannot_load(name, error) from error
    if config.model_type == "siglip2":
        raise InputError(
            f"encoder {name!r} is a NaFlex SigLIP 2, which reads each image in a size of its own, and an encoder has "
            "one size: take a SigLIP 2 that has one, e.g. transformers:google/siglip2-base-patch16-224"
        )
    if config.model_type not in ("clip", "siglip"):
        raise InputError(
            f"encoder {name!r} is a {config.model_type!r} model, neither 'clip' nor 'siglip': "
            "give a checkpoint of CLIPModel or SiglipModel"
        )
    source = model_folder(checkpoint, problem, missing)
    try:
        # transformers 5 would take the checkpoint's dtype.
        model, report = AutoModel.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False, **_PIL)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise _cannot_load(name, error) from error
    if report["missing_keys"]:  # transformers only warns, and initializes them at random
        raise InputError(
            f"encoder {name!r} lacks weights, {min(report['missing_keys'])} for one: "
            "give a complete checkpoint, with image and text tower"
        )
    return model, processor, tokenizer


def _cannot_load(name: str, error: Exception) -> InputError:
    return InputError(
        f"encoder {name!r} cannot be loaded ({first_line(error)}): give a folder written by "
        "save_pretrained, with image processor and tokenizer, or the name of a model on the hub"
    )


def _describe(processor: Any) -> str:
    """How pixels are prepared, in one line that does not depend on the version of transformers."""
    settings = processor.to_dict()
    steps = []
    if settings.get("do_resize"):
        steps.append(f"resize to {_size(settings['size'])} ({Image.Resampling(settings['resample']).name.lower()})")
    if settings.get("do_center_crop"):
        steps.append(f"centre crop {_size(settings['crop_size'])}")
    if settings.get("do_normalize"):
        steps.append(f"mean {list(settings['image_mean'])}, deviation {list(settings['image_std'])}")
    return ", ".join(steps)


def _geometry(processor: Any) -> ImageGeometry:
    settings = processor.to_dict()
    size, crop = dict(settings["size"]), dict(settings.get("crop_size") or {})
    return ImageGeometry(
        resize=size.get("shortest_edge") or (size["height"], size["width"]),
        resample=Image.Resampling(settings["resample"]).name.lower(),
        crop=(crop["height"], crop["width"]) if settings.get("do_center_crop") else None,
        crop_rounds_down=True,
    )


def _size(size: Any) -> str:
    return " ".join(f"{side} {pixels}" for side, pixels in sorted(dict(size).items()) if pixels is not None)
