"""Small models with random weights, saved in the formats that the back ends read."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from clip.model import CLIP, convert_weights
from clip.simple_tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

SIZE = 32  # pixels, in patches of 8
VOCABULARY = 49408

# The processor that resizes with PIL is called *Pil in transformers 5, and has the plain name before.
CLIPImageProcessor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
SiglipImageProcessor = getattr(transformers, "SiglipImageProcessorPil", transformers.SiglipImageProcessor)


def randomise(model: nn.Module) -> None:
    """Fresh weights make attention almost even and biases zero; these would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)


def small_clip(vision_layers: int | tuple[int, ...], vision_width: int) -> CLIP:
    torch.manual_seed(0)
    model = CLIP(
        embed_dim=48,
        image_resolution=SIZE,
        vision_layers=vision_layers,
        vision_width=vision_width,
        vision_patch_size=8,
        context_length=77,
        vocab_size=VOCABULARY,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=2,
    )
    randomise(model)
    convert_weights(model)  # as clip.load does: weights that survive its rounding to fp16
    return model.eval()


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "vit.pt"
    torch.save(small_clip(vision_layers=3, vision_width=128).state_dict(), path)  # width 128: two heads
    return path


@pytest.fixture(scope="session")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "resnet.pt"
    torch.save(small_clip(vision_layers=(1, 1, 1, 1), vision_width=8).state_dict(), path)
    return path


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's state dict -> the names and shapes of transformers' CLIPModel."""
    renamed = {}
    for name, tensor in state.items():
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        name = name.removeprefix("visual.")
        if name == "logit_scale":
            renamed[name] = tensor
        elif name in ("proj", "text_projection"):
            renamed[{"proj": "visual_projection"}.get(name, name) + ".weight"] = tensor.T.contiguous()
        elif name == "positional_embedding":
            renamed[f"{tower}.embeddings.position_embedding.weight"] = tensor
        elif name.startswith(("conv1", "class_embedding", "token_embedding")):
            renamed[f"{tower}.embeddings.{name.replace('conv1', 'patch_embedding')}"] = tensor
        elif ".attn.in_proj_" in name:
            layer, _, kind = name.removeprefix("transformer.resblocks.").partition(".attn.in_proj_")
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{tower}.encoder.layers.{layer}.self_attn.{part}_proj.{kind}"] = chunk.clone()
        else:
            for old, new in [
                ("transformer.resblocks", "encoder.layers"),
                ("attn.out_proj", "self_attn.out_proj"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("ln_pre", "pre_layrnorm"),
                ("ln_post", "post_layernorm"),
                ("ln_final", "final_layer_norm"),
            ]:
                name = name.replace(old, new)
            renamed[f"{tower}.{name}"] = tensor
    return renamed


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, clip_file: Path) -> Path:
    """The weights of `clip_file` as a CLIPModel, with CLIP's own tokenizer."""
    folder = tmp_path_factory.mktemp("transformers-clip")
    config = transformers.CLIPConfig(
        projection_dim=48,
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "max_position_embeddings": 77,
            "bos_token_id": VOCABULARY - 2,
            "eos_token_id": VOCABULARY - 1,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": 8,
        },
    )
    model = transformers.CLIPModel(config)
    state = {name: tensor.float() for name, tensor in torch.load(clip_file).items()}
    model.load_state_dict(to_transformers(state))
    model.save_pretrained(folder)
    crop = {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=crop).save_pretrained(folder)

    tokenizer = SimpleTokenizer()
    merges = [" ".join(pair) for pair in tokenizer.bpe_ranks]
    (folder / "vocab.json").write_text(json.dumps(tokenizer.encoder), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return folder


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    words = ["<pad>", "</s>", "<unk>", "a", "red", "circle", "on", "the", "left"]
    towers = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    torch.manual_seed(0)
    model = transformers.SiglipModel(
        transformers.SiglipConfig(
            text_config={**towers, "vocab_size": len(words), "max_position_embeddings": 16},
            vision_config={**towers, "image_size": SIZE, "patch_size": 8},
        )
    )
    randomise(model)
    model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)

    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photograph() -> Image.Image:
    """Neither square nor of the encoders' size."""
    levels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.fixture(scope="session")
def pixels() -> Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


OPEN_CLIP_VIT = {"image_size": SIZE, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
OPEN_CLIP_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
POOLER = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2, "output_tokens": True}
OPEN_CLIP_MODELS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 48, "vision_cfg": OPEN_CLIP_VIT, "text_cfg": OPEN_CLIP_TEXT, "quick_gelu": True},
    # As CLIPA: the mean of the patches.
    "mean": {
        "embed_dim": 48,
        "vision_cfg": {**OPEN_CLIP_VIT, "pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True},
        "text_cfg": {**OPEN_CLIP_TEXT, "context_length": 32, "pool_type": "last", "no_causal_mask": True},
        "custom_text": True,
    },
    "resnet": {
        "embed_dim": 48,
        "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": OPEN_CLIP_TEXT,
    },
    "coca": {
        "embed_dim": 48,
        "vision_cfg": {**OPEN_CLIP_VIT, **POOLER},
        "text_cfg": {**OPEN_CLIP_TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**OPEN_CLIP_TEXT, "context_length": 76, "attn_pooler_heads": 2},
        "custom_text": True,
    },
    "timm": {
        "embed_dim": 48,
        "vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": SIZE},
        "text_cfg": OPEN_CLIP_TEXT,
    },
}


def open_clip_model(kind: str, folder: Path, **preprocess: Any) -> Path:
    """A model with random weights in the form that open_clip's models have on the hub."""
    import open_clip  # takes seconds

    torch.manual_seed(0)
    options = json.loads(json.dumps(OPEN_CLIP_MODELS[kind]))
    custom = options.pop("custom_text", False)
    kinds = {"coca": open_clip.CoCa}
    model = kinds.get(kind, open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**options)
    randomise(model)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": OPEN_CLIP_MODELS[kind], "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_clip_model("vit", tmp_path_factory.mktemp("open_clip"))


TIMM_SIZES = {"img_size": SIZE, "embed_dim": 48, "depth": 2, "num_heads": 3}
TIMM_NETWORKS: dict[str, tuple[str, dict[str, Any], str]] = {  # architecture, arguments, name of the classifier
    "cnn": ("mobilenetv3_small_050", {}, "classifier"),  # which has a layer between pooling and classifier
    "mean": ("vit_base_patch16_gap_224", {**TIMM_SIZES, "patch_size": 8}, "head"),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {**TIMM_SIZES, "patch_size": 8}, "head"),
    "dinov3": ("vit_small_patch16_dinov3", {**TIMM_SIZES, "patch_size": 8}, "head"),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": SIZE, "window_size": 2, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2)},
        "head.fc",
    ),
}


def timm_network(kind: str, folder: Path) -> Path:
    """A network with random weights and a classifier, in the form that timm's have on the hub."""
    import timm

    architecture, options, classifier = TIMM_NETWORKS[kind]
    torch.manual_seed(0)
    network = timm.create_model(architecture, num_classes=7, **options)
    randomise(network)
    save_file(network.state_dict(), folder / "model.safetensors")
    pretrained = {
        "input_size": [3, SIZE, SIZE],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "num_classes": 7,
        "classifier": classifier,
    }
    config = {"architecture": architecture, "num_classes": 7, "model_args": options, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return timm_network("dinov2", tmp_path_factory.mktemp("timm"))


@pytest.fixture(scope="session")
def heads_folder(tmp_path_factory: pytest.TempPathFactory, timm_folder: Path) -> Path:
    """A small DINOv2 and a small BERT with random weights and heads."""
    folder = tmp_path_factory.mktemp("heads")
    shutil.copytree(timm_folder, folder / "network")
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "red", "circle", "on", "the", "left"]
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **sizes, max_position_embeddings=64))
    randomise(bert)
    bert.save_pretrained(folder / "text")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_max_length=64,
    ).save_pretrained(folder / "text")  # fmt: skip
    weights: dict[str, Tensor] = {}
    for part, features in {"image": 48, "text": 24}.items():
        layers = {"up": (20, features), "down": (16, 20), "skip": (16, features)}
        for layer, shape in layers.items():
            weights[f"{part}.{layer}.weight"] = torch.randn(shape) / 4
            weights[f"{part}.{layer}.bias"] = torch.randn(shape[0]) / 4
        weights |= {f"{part}.norm.weight": torch.randn(features), f"{part}.norm.bias": torch.randn(features)}
    weights |= {"image.mean": torch.randn(48), "image.std": 1 + torch.rand(48)}
    save_file(weights, folder / "heads.safetensors")
    (folder / "encoder.json").write_text(json.dumps({"image": "timm:network", "text": "text"}))
    return folder
