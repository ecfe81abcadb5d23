"""Experiments of papers: every published value, and how many parameters they train."""

from typing import Any, cast

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from transformers import GPT2Config, GPT2LMHeadModel

from data_prep.readers import READERS
from data_prep.readers.coco import read_coco
from prefixcap.captioner import Captioner
from prefixcap.features import EncoderIdentity
from prefixcap.language import LanguageModel, load_tokenizer
from prefixcap.mappers import build_mapper
from prefixcap.noise import Noise
from prefixcap.training import trainable_parameters
from tests.conftest import ROOT

WIDTH = 768  # of GPT-2
# A layer of the transformer mapper: attention without bias but on its output, an MLP twice as wide, two norms.
LAYER = (4 * WIDTH * WIDTH + WIDTH) + (4 * WIDTH * WIDTH + 2 * WIDTH + WIDTH) + 2 * 2 * WIDTH
VIECAP = {  # train_coco.sh, and main.py where it says nothing
    "encoder.name": "clip:ViT-B/32",
    "lm.name": "gpt2",
    "data.name": "coco_text",
    "data.reader.max_words": None,
    "model.learns_from": "text",
    "model.lm_tuning": "full",
    "model.normalize_embeddings": True,
    "model.noise.variance": 0.016,
    "model.mapper.prefix_length": 10,  # continuous_prompt_length
    "model.mapper.clip_length": 10,
    "model.mapper.layers": 8,
    "model.mapper.heads": 8,
    "prompts.template": "There are {} in image.",
    "prompts.nothing": "something",
    "prompts.masked": 0.4,
    "batch_size": 80,
    "optimizer.learning_rate": 2e-5,
    "optimizer.weight_decay": 0.0,  # of the AdamW of transformers
    "optimizer.warmup_steps": 5000,
    "trainer.gradient_clip_val": None,
}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides))


def test_the_web_captioner_has_the_values_of_its_paper() -> None:
    """Jing and Wu 2025, by section; * marks what is in the released code alone."""
    config = composed("experiment=clip_gpt2_web")
    published = {
        "encoder.name": "clip:RN50x4",  # 2.1: ResNet *
        "lm.name": "gpt2",
        "data.reader.val_share": 0.1,  # 3.1.1
        "data.reader.test_share": 0.1,
        "model.normalize_embeddings": True,  # 3.1.3
        "model.noise.kind": "dimensions",
        "model.noise.share": 0.1,
        "model.noise.variance": 0.01**2,  # *
        "model.learns_from": "images",
        "model.lm_tuning": "full",  # 3.1.4
        "model.objective": "cross_entropy",  # 3.2
        "model.mapper.name": "transformer",
        "model.mapper.prefix_length": 40,  # 4.1
        "model.mapper.layers": 8,
        "model.mapper.clip_length": 40,  # *
        "model.mapper.heads": 8,  # *
        "trainer.max_epochs": 12,
        "trainer.limit_val_batches": 2000 / 40,
        "optimizer.learning_rate": 5e-5,
        "optimizer.weight_decay": 0.0,
        "optimizer.warmup_steps": 5000,  # *
        "trainer.gradient_clip_val": 1.0,  # *
        "batch_size": 40,  # *
    }
    assert {name: OmegaConf.select(config, name) for name in published} == published
    reader = cast(dict[str, Any], OmegaConf.to_container(config.data.reader, resolve=True))
    assert READERS[reader.pop("name")] is read_coco
    assert config.data.name != "coco", "its store is another one"


def test_the_web_captioner_trains_as_many_parameters_as_its_parts_have() -> None:
    config = composed("experiment=clip_gpt2_web")
    expected = (640 * 40 * WIDTH + 40 * WIDTH) + 40 * WIDTH + 8 * LAYER
    with torch.device("meta"):
        mapper = build_mapper(embedding_dim=640, lm_dim=WIDTH, **config.model.mapper)
        gpt2 = GPT2LMHeadModel(GPT2Config())
    assert sum(weight.numel() for weight in mapper.parameters()) == expected
    trained = expected + sum(weight.numel() for weight in gpt2.parameters())
    assert round(trained / 1e6, 1) == 182.0


def test_its_noise_is_on_a_tenth_of_the_features_of_each_image() -> None:
    noise = Noise(**composed("experiment=clip_gpt2_web").model.noise, normalize_after=False)
    embeddings = torch.nn.functional.normalize(torch.randn(50, 640, generator=torch.Generator().manual_seed(0)), dim=-1)
    change = noise(7 * embeddings, torch.Generator().manual_seed(1)) - embeddings
    moved = change.abs() > 1e-6
    assert ((moved.sum(1) >= 60) & (moved.sum(1) <= 64)).all()
    assert (moved[0] != moved[1]).any()
    assert 0.0095 < change[moved].std() < 0.0105


def test_viecap_has_the_values_of_its_code() -> None:
    config = composed("experiment=viecap")
    own = {
        "model.mapper.name": "transformer",
        "prompts.name": "clip_entities",
        "prompts.top_k": 3,
        "prompts.threshold": 0.4,  # eval_coco.sh
        "prompts.temperature": 0.01,
        "trainer.max_epochs": 15,
    }
    published = VIECAP | own
    assert {name: OmegaConf.select(config, name) for name in published} == published
    assert OmegaConf.is_missing(config.prompts, "vocabulary"), "it is a file of the user's"


def test_viecap_trains_as_many_parameters_as_its_parts_have() -> None:
    """Counted from the sizes that main.py and ClipCap.py of its code name; GPT-2 is tuned, too."""
    expected = (512 * 10 * WIDTH + 10 * WIDTH) + 10 * WIDTH + 8 * LAYER
    with torch.device("meta"):
        mapper = build_mapper(embedding_dim=512, lm_dim=WIDTH, **composed("experiment=viecap").model.mapper)
        gpt2 = GPT2LMHeadModel(GPT2Config())
    assert sum(weight.numel() for weight in mapper.parameters()) == expected
    trained = expected + sum(weight.numel() for weight in gpt2.parameters())
    assert round(trained / 1e6, 1) == 166.2


def test_ifcap_has_the_values_of_its_code() -> None:
    """Its code is ViECap's, with these changes: train_coco.sh, image_like_retrieval.py, and the README for K."""
    config = composed("experiment=ifcap")
    own = {
        "model.mapper.name": "fusion",
        "model.mapper.retrieved": 5,
        "model.retrieval.noise": 0.04,
        "prompts.name": "retrieved_entities",
        "prompts.k": 9,
        "prompts.least": 5,
        "trainer.max_epochs": 5,
    }
    published = VIECAP | own
    assert {name: OmegaConf.select(config, name) for name in published} == published


def test_ifcap_trains_a_fusion_layer_more() -> None:
    with torch.device("meta"):
        sizes = [
            sum(
                weight.numel()
                for weight in build_mapper(
                    embedding_dim=512, lm_dim=WIDTH, **composed(f"experiment={name}").model.mapper
                ).parameters()
            )
            for name in ("viecap", "ifcap")
        ]
    assert sizes[1] - sizes[0] == (512 * WIDTH + WIDTH) + LAYER
    assert round((sizes[1] + 124_439_808) / 1e6, 1) == 171.3


def test_smallcap_has_the_values_of_its_released_code() -> None:
    """Ramos et al. 2023: `train.py` and `src/utils.py` of RitaRamo/smallcap, and transformers' defaults."""
    config = composed("experiment=smallcap")
    published = {
        "encoder.name": "clip:ViT-B/32",
        "lm.name": "gpt2",
        "data.name": "coco",
        "data.reader.split_file": "dataset_coco.json",
        "model.learns_from": "images",
        "model.normalize_embeddings": False,
        "model.lm_tuning": "frozen",
        "model.mapper.name": "cross_attention",
        "model.mapper.features": "hidden",
        "model.mapper.input_dim": 768,
        "model.mapper.head_dim": 64 // 4,  # attention_size 7: GPT-2's heads, reduced by four
        "prompts.name": "retrieved_captions",
        "prompts.k": 4,
        "prompts.separator": "\n\n",
        "prompts.template": "Similar images show\n\n{}\n\nThis image shows",
        "max_caption_tokens": 25 + 1,
        "batch_size": 64,
        "optimizer.learning_rate": 1e-4,
        "optimizer.weight_decay": 0.0,
        "optimizer.warmup_steps": 0,
        "trainer.max_epochs": 10,
        "trainer.gradient_clip_val": 1.0,
    }
    assert {name: OmegaConf.select(config, name) for name in published} == published


@pytest.mark.parametrize(("lm", "head_dim", "trained"), [("gpt2", 16, 7.1), ("gpt2", 4, 1.8), ("gpt2_large", 16, 47.3)])
def test_smallcap_trains_as_many_parameters_as_its_page_says(lm: str, head_dim: int, trained: float) -> None:
    config = composed("experiment=smallcap", f"lm={lm}", f"model.mapper.head_dim={head_dim}")
    sizes = {"gpt2": {}, "gpt2-large": {"n_embd": 1280, "n_layer": 36, "n_head": 20}}
    with torch.device("meta"):
        gpt2 = GPT2LMHeadModel(GPT2Config(**sizes[config.lm.name]))
        model = LanguageModel(gpt2, load_tokenizer("demo"), config.lm.name, config.model.lm_tuning)
        mapper = cast(dict[str, Any], OmegaConf.to_container(config.model.mapper))
        encoder = EncoderIdentity(config.encoder.name, "", "", 512)
        captioner = Captioner(model, encoder, mapper, start_token=config.model.start_token)
    assert round(trainable_parameters(captioner)[0] / 1e6, 1) == trained
    page = (ROOT / "docs/reproduce/smallcap.md").read_text(encoding="utf-8")
    assert f"| {trained}M |" in page
