"""Export captioners as ONNX models or programs of torch.export, which run without this package.

Three models: pixels -> embedding, embedding -> prefix, and a step of the language model with a key/value cache.
"""

import importlib.util
import io
import json
import logging
import shutil
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from tqdm import tqdm
from transformers import DynamicCache

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.encoders.protocol import ExportableEncoder
from prefixcap.errors import InputError
from prefixcap.features import Feature
from prefixcap.language import LanguageModel
from prefixcap.language.checks import cache_argument
from prefixcap.language.lora import merged
from prefixcap.sharing import caption_example
from prefixcap.utils.files import atomic_write_folder

ABOUT = "export.json"


@dataclass
class Part:
    """One of the models.

    Attributes:
        name: of its file.
        module: tensors in, tensors out.
        inputs: by name, an example and the names of its dynamic axes.
        outputs: by name, a description.
    """

    name: str
    module: nn.Module
    inputs: dict[str, tuple[Tensor, dict[int, str]]]
    outputs: dict[str, str]


def export_onnx(captioner: Captioner, folder: Path, progress: bool = False) -> None:
    """Write a captioner as `image_encoder.onnx`, `mapper.onnx` and `language_model.onnx`, in float32, with its
    `tokenizer.json`, `export.json`, a README, and `caption.py`, which captions with them. Adapters are merged.

    Args:
        captioner: on the CPU.
        folder: replaces an earlier export.
        progress: show a progress bar on stderr.

    Raises:
        InputError: onnx or onnxscript is not installed; the captioner reads patches or regions, its language model is
            quantized or has no key/value cache, it is not on the CPU, or torch.export cannot trace it; the folder holds
            something else, or cannot be written to.
    """
    if not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise InputError("an export to ONNX needs onnx and onnxscript: pip install 'prefixcap[onnx]'")
    _export(captioner, folder, _save_onnx, progress)


def export_program(captioner: Captioner, folder: Path, progress: bool = False) -> None:
    """Like `export_onnx`, but as programs for `torch.export.load`, in files named `*.pt2`."""
    _export(captioner, folder, _save_program, progress)


def _export(
    captioner: Captioner, folder: Path, save: Callable[[Part, ExportedProgram, Path], None], progress: bool
) -> None:
    encoder = _require_exportable(captioner)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT).exists()):
        raise InputError(f"{folder} holds something else than an export: name a new folder")
    training = captioner.training
    captioner.eval()
    try:
        with atomic_write_folder(folder) as temporary:
            temporary.mkdir(parents=True)
            tokenizer = captioner.language_model.tokenizer.backend_tokenizer
            tokenizer.save(str(temporary / "tokenizer.json"))
            parts = [_image_encoder(encoder), _mapper(captioner), _language_model(captioner)]
            for part in tqdm(parts, unit=" models", disable=not progress):
                with torch.no_grad(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # tracing warns of what it does not need
                    save(part, _traced(part), temporary)
            about = _about(captioner, encoder, parts)
            (temporary / ABOUT).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            (temporary / "README.md").write_text(_readme(about), encoding="utf-8")
            shutil.copyfile(caption_example.__file__, temporary / "caption.py")
    finally:
        captioner.train(training)


def _require_exportable(captioner: Captioner) -> ExportableEncoder:
    """The captioner's encoder. Raises InputError if captioner or encoder cannot be exported."""
    lm = captioner.language_model
    if captioner.features is not Feature.IMAGE:
        raise InputError(
            f"this captioner reads {captioner.features}, and only those that read an image's one embedding can be "
            "exported: share it with save_pretrained"
        )
    if captioner.mapper.retrieved:
        raise InputError(
            "this captioner reads captions that it retrieves, and an export has no datastore: share it with "
            "save_pretrained"
        )
    if lm.quantization is not None:
        raise InputError(
            f"language model '{lm.name}' is quantized ({lm.quantization}), which cannot be exported: share the "
            "captioner with save_pretrained, or train it without quantization"
        )
    if captioner.device.type != "cpu":
        raise InputError(f"the captioner is on {captioner.device}: load it on the CPU to export it")
    if not hasattr(lm.tokenizer, "backend_tokenizer"):
        raise InputError(
            f"the tokenizer of language model '{lm.name}' is not one of the package tokenizers, which an export needs"
        )
    encoder = captioner.encoder()
    if not isinstance(encoder, ExportableEncoder):
        raise InputError(
            f"encoder '{encoder.identity.name}' cannot be exported: it has no image_tower and geometry; share the "
            "captioner with save_pretrained"
        )
    return encoder


class _ImageEncoder(nn.Module):
    def __init__(self, encoder: ExportableEncoder) -> None:
        super().__init__()
        self.tower, self.normalize = encoder.image_tower, encoder.normalize

    def forward(self, pixels: Tensor) -> Tensor:
        embedding: Tensor = self.tower(self.normalize(pixels))
        return embedding


class _Mapper(nn.Module):
    start: Tensor | None

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        self.mapper, self.normalize = captioner.mapper, captioner.normalize_embeddings
        lm = captioner.language_model
        start = lm.embed(torch.tensor([lm.start_token])).detach().float() if captioner.start_token else None
        self.register_buffer("start", start)  # (1, dim)

    def forward(self, embedding: Tensor) -> Tensor:
        prefix: Tensor = self.mapper(F.normalize(embedding, dim=-1) if self.normalize else embedding)
        if self.start is None:
            return prefix
        return torch.cat((prefix, self.start.expand(prefix.shape[0], -1, -1)), dim=1)  # len() would fix the batch


class _LanguageModel(nn.Module):
    """A step: reads a prefix and tokens, either of which may be empty, after the keys and values in `past`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.cache_argument = model, cache_argument(model) or ""

    def forward(self, prefix: Tensor, tokens: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        inputs = torch.cat((prefix, self.model.get_input_embeddings()(tokens)), dim=1)  # (batch, length, dim)
        batch, length = inputs.shape[:2]
        position_ids = past.shape[4] + torch.arange(length)
        causal = torch.arange(past.shape[4] + length) <= position_ids.unsqueeze(1)  # (length, past + length)
        cache = DynamicCache([(keys, values) for keys, values in past])
        logits = self.model(
            inputs_embeds=inputs,
            # as numbers to add, which every implementation of attention takes
            attention_mask=torch.where(causal, 0.0, torch.finfo(inputs.dtype).min).expand(batch, 1, -1, -1),
            position_ids=position_ids.expand(batch, -1),
            use_cache=True,
            logits_to_keep=1,
            **{self.cache_argument: cache},
        ).logits[:, -1]
        return logits, torch.stack([torch.stack((layer.keys, layer.values)) for layer in cache.layers])


def _image_encoder(encoder: ExportableEncoder) -> Part:
    return Part(
        "image_encoder",
        _ImageEncoder(encoder),
        {"pixels": (torch.stack([encoder.preprocess(Image.new("RGB", (32, 32)))] * 2), {0: "batch"})},
        {"embedding": f"float32 (batch, {encoder.identity.dim})"},
    )


def _mapper(captioner: Captioner) -> Part:
    dim, width = captioner.encoder_identity.dim, captioner.language_model.dim
    return Part(
        "mapper",
        _Mapper(captioner),
        {"embedding": (torch.randn(2, dim), {0: "batch"})},
        {"prefix": f"float32 (batch, {captioner.prefix_length}, {width})"},
    )


def _language_model(captioner: Captioner) -> Part:
    lm = captioner.language_model
    model = lm.model if lm.lora is None else merged(lm.model)
    if next(model.parameters()).dtype != torch.float32:
        model = deepcopy(model).float()
    layers, heads, width = _cache_shape(lm)
    past = torch.randn(layers, 2, 2, heads, 5, width)
    return Part(
        "language_model",
        _LanguageModel(model),
        {
            "prefix": (torch.randn(2, 3, lm.dim), {0: "batch", 1: "vectors"}),
            "tokens": (torch.zeros(2, 4, dtype=torch.long), {0: "batch", 1: "tokens"}),
            "past": (past, {2: "batch", 4: "past"}),
        },
        {
            "logits": f"float32 (batch, {len(lm.head.weight)}) of the next token",
            "present": "the past of the next step, longer by vectors + tokens",
        },
    )


def _cache_shape(language_model: LanguageModel) -> tuple[int, int, int]:
    """Layers, heads, and width of a head of a language model's key/value cache. Raises InputError if it has none."""
    cache = DynamicCache()
    with torch.no_grad():
        language_model.step(language_model.embed(torch.zeros(1, 1, dtype=torch.long)), cache)
    return len(cache.layers), cache.layers[0].keys.shape[1], cache.layers[0].keys.shape[3]


def _traced(part: Part) -> ExportedProgram:
    """The part as a program with dynamic axes.

    Raises:
        InputError: torch.export cannot trace it.
    """
    axes = tuple(dict.fromkeys(named, Dim.DYNAMIC) for _, named in part.inputs.values())
    examples = tuple(example for example, _ in part.inputs.values())
    try:
        program = torch.export.export(part.module.eval(), examples, dynamic_shapes=axes, strict=False)
    except Exception as error:  # tracing an arbitrary model can make torch raise almost anything
        kind = type(getattr(part.module, "model", part.module)).__name__
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{part.name} ({kind}) cannot be traced by torch.export: {reason}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine
    return program


def _save_program(part: Part, program: ExportedProgram, folder: Path) -> None:
    content = io.BytesIO()  # torch would abort the process on a full disk
    torch.export.save(program, content)
    (folder / f"{part.name}.pt2").write_bytes(content.getbuffer())


def _save_onnx(part: Part, program: ExportedProgram, folder: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.onnx.export(
        program,
        f=folder / f"{part.name}.onnx",
        input_names=list(part.inputs),
        output_names=list(part.outputs),
        dynamic_shapes={name: axes for name, (_, axes) in part.inputs.items()},
        verbose=False,
    )


def _about(captioner: Captioner, encoder: ExportableEncoder, parts: list[Part]) -> dict[str, Any]:
    """The content of `export.json`, for programs that caption with the models."""
    (past,) = (part.inputs["past"][0] for part in parts if "past" in part.inputs)
    layers, _, _, heads, _, width = past.shape
    described = captioner.describe()
    described["language_model"].pop("files", None)  # the tokenizer is in a file of its own
    return {
        "made_by": f"prefixcap {prefixcap.__version__}",
        "captioner": described,
        "image": asdict(encoder.geometry),
        "models": {
            part.name: {
                "inputs": {name: _described(*given) for name, given in part.inputs.items()},
                "outputs": part.outputs,
            }
            for part in parts
        },
        "empty_past": [layers, 2, 1, heads, 0, width],
        "end_token": captioner.language_model.eos_token_id,
        "context": captioner.language_model.context,
    }


def _described(example: Tensor, axes: dict[int, str]) -> str:
    """Type and shape of an input, e.g. "int64 (batch, tokens)"."""
    sizes = (axes.get(axis, str(size)) for axis, size in enumerate(example.shape))
    return f"{str(example.dtype).removeprefix('torch.')} ({', '.join(sizes)})"


def _readme(about: dict[str, Any]) -> str:
    rows = [
        f"| `{name}` | {_cells(model['inputs'])} | {_cells(model['outputs'])} |"
        for name, model in about["models"].items()
    ]
    return README.format(rows="\n".join(rows), **about)


def _cells(values: dict[str, str]) -> str:
    return "<br>".join(f"`{name}`: {value}" for name, value in values.items())


README = """# An exported captioner

    python caption.py photo.jpg

needs numpy, pillow, tokenizers, and onnxruntime for models in `.onnx` or torch for models in `.pt2`. `caption.py` shows
how they are used, with greedy decoding. Named sizes are arbitrary, but batches must agree, and `vectors` or `tokens`
may be 0.

| model | inputs | outputs |
|---|---|---|
{rows}

**Image.** RGB, resized and cropped as `image` in `export.json` says; the model itself normalizes it.

**Language model.** The first step reads the prefix and the tokens of a prompt, if there is one, after an empty past
(`empty_past`: layers, keys and values, batch, heads, past, width of a head). Each further step reads no prefix (0
vectors) and one token, after the `present` of the previous step. A caption ends with `end_token`; prefix and tokens
together may have at most `context` positions.

Made by {made_by}. The captioner is described in `export.json` under `captioner`.
"""
