"""Language models with random weights for the tests of decoders."""

from typing import Any

import torch
import transformers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from prefixcap.language import LanguageModel, load_language_model


def random_lm(kind: str, seed: int, words: int = 40, width: int = 32) -> LanguageModel:
    """A language model of so many words that has strong opinions."""
    torch.manual_seed(seed)
    common: dict[str, Any] = {"vocab_size": words, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model: PreTrainedModel
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**common, n_embd=width, n_layer=2, n_head=2, n_positions=64))
    elif kind == "opt":
        options = {"ffn_dim": 64, "num_attention_heads": 2, "max_position_embeddings": 64, "word_embed_proj_dim": width}
        model = OPTForCausalLM(OPTConfig(**common, hidden_size=width, num_hidden_layers=2, **options))
    else:
        options = {"intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
        model = LlamaForCausalLM(LlamaConfig(**common, hidden_size=width, num_hidden_layers=2, **options))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # far from uniform, so that nothing hangs on rounding
    return LanguageModel(model.eval(), load_language_model("demo").tokenizer, "random")


def stateful_lm(kind: str, words: int) -> LanguageModel:
    """A language model with random weights that keeps states: in all layers (mamba, rwkv), in some, where others keep
    keys and values (lfm2), or beside these (falcon_h1)."""
    common: dict[str, Any] = {"vocab_size": words, "hidden_size": 32, "num_hidden_layers": 2}
    attends: dict[str, Any] = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    scan = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
    model: PreTrainedModel
    if kind == "mamba":
        model = transformers.MambaForCausalLM(transformers.MambaConfig(**common, state_size=4))
    elif kind == "rwkv":
        model = transformers.RwkvForCausalLM(transformers.RwkvConfig(**common, context_length=128))
    elif kind == "lfm2":
        model = transformers.Lfm2ForCausalLM(
            transformers.Lfm2Config(**common, **attends, layer_types=["full_attention", "conv"])
        )
    else:
        model = transformers.FalconH1ForCausalLM(transformers.FalconH1Config(**common, **attends, **scan))
    return LanguageModel(model.eval(), load_language_model("demo").tokenizer, kind)
