"""Tiny models with random weights of many architectures of transformers."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

from prefixcap.language import LanguageModel, Tuning, load_tokenizer

_SIZES = (
    dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size"), 32)
    | dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2)
    | dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4)
    | dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "moe_intermediate_size", "dff"), 64)
    | dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 256)
    | dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "rotary_dim", "state_size"), 4)
    | {"num_key_value_heads": 2, "head_dim": 8, "num_experts_per_tok": 2, "intermediate_size_mlp": 64}
)
WINDOW: dict[str, Any] = {"sliding_window": 7}
MIXED = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
SWITCHED = WINDOW | {"use_sliding_window": True, "max_window_layers": 1}
LOCAL: dict[str, Any] = {"attention_types": [[["global", "local"], 1]]}
DECODER: dict[str, Any] = {"is_decoder": True}

# By a name of each: the architecture, and what is said of it beside sizes.
ACCEPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt_neo, a window as wide as a row": ("gpt_neo", LOCAL | {"window_size": 256}),
    "gptj": ("gptj", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "codegen": ("codegen", {}),
    "ctrl": ("ctrl", {}),
    "opt": ("opt", {}),
    "xglm": ("xglm", {}),
    "biogpt": ("biogpt", {}),
    "llama": ("llama", {}),
    "llama, scaled": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "mistral": ("mistral", {}),
    "mistral, window": ("mistral", WINDOW),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "mixtral, window": ("mixtral", WINDOW),
    "ministral, mixed": ("ministral", MIXED),
    "starcoder2, window": ("starcoder2", WINDOW),
    "gemma": ("gemma", {}),
    "gemma2, mixed": ("gemma2", MIXED | {"final_logit_softcapping": None}),
    "gemma3, mixed": ("gemma3_text", MIXED),
    "gemma3, window": ("gemma3_text", WINDOW),
    "phi": ("phi", {}),
    "phi3, window": ("phi3", WINDOW),
    "qwen2, mixed": ("qwen2", SWITCHED),
    "qwen2, window": ("qwen2", SWITCHED | {"max_window_layers": 0}),
    "qwen3, mixed": ("qwen3", SWITCHED),
    "qwen3_moe, window": ("qwen3_moe", SWITCHED),
    "falcon": ("falcon", {}),
    "cohere": ("cohere", {"logit_scale": 1.0}),
    "cohere2, mixed": ("cohere2", MIXED | {"logit_scale": 1.0}),
    "granite": ("granite", {}),
    "stablelm": ("stablelm", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3, mixed": ("olmo3", MIXED),
    "olmoe": ("olmoe", {}),
    "smollm3, mixed": ("smollm3", MIXED | {"use_sliding_window": True}),
    "exaone4, mixed": ("exaone4", MIXED),
    "gpt_oss, mixed": ("gpt_oss", MIXED),
    "persimmon": ("persimmon", {}),
    "bert-generation": ("bert-generation", DECODER),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt_neo": ("gpt_neo", LOCAL | {"window_size": 30}, "in one row, up to 60.*its window of 30 counts along the row"),
    "moshi, a window that its masks lack": ("moshi", WINDOW, "reads captions in one row"),
    "bert, which sees all words": ("bert", {}, "keys and values"),
    "bert, a transform before its head": ("bert", DECODER, "reads captions in one row"),
    "electra, a transform before its head": ("electra", DECODER, "reads captions in one row"),
    "roberta": ("roberta", DECODER, "keys and values"),
    "modernbert-decoder, a transform before its head": ("modernbert-decoder", {}, "reads captions in one row"),
    "rembert, an embedding of another width than its head": ("rembert", DECODER, "fails at what training asks"),
    "llama4, no last hidden state": ("llama4_text", {}, "fails at .*no attribute 'last_hidden_state'"),
    "falcon, alibi": ("falcon", {"alibi": True}, "computes its positions itself"),
    "bloom": ("bloom", {}, "computes its positions itself"),
    "mpt": ("mpt", {}, "computes its positions itself"),
    "xlnet": ("xlnet", {"d_inner": 64}, "computes its positions itself"),
    "bart": ("bart", {}, "computes its positions itself"),
    "mamba": ("mamba", {}, "computes its positions itself"),
    "rwkv": ("rwkv", {"context_length": 64, "attention_hidden_size": 32}, "computes its positions itself"),
    "jamba": ("jamba", {}, "has no key/value cache"),
    "qwen3_next": ("qwen3_next", {}, "has no key/value cache"),
    "gpt, which keeps nothing": ("openai-gpt", {}, "has no key/value cache"),
    "cohere": ("cohere", {}, "has logit_scale"),
    "granite": ("granite", {"logits_scaling": 8.0}, "has logits_scaling"),
    "gemma2": ("gemma2", {}, "has final_logit_softcapping"),
    "gemma3, nested": ("gemma3", {}, "has final_logit_softcapping"),
}  # fmt: skip


def tiny_model(kind: str, options: dict[str, Any], tuning: Tuning = "full", seed: int = 0) -> LanguageModel:
    """A causal LM of that kind, with the words of the small world."""
    tokenizer = load_tokenizer("demo")
    torch.manual_seed(seed)
    end = tokenizer.eos_token_id
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": 0}
    config = _config(kind, {"vocab_size": len(tokenizer)} | options | ends)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if weight.ndim > 1 else 1)  # words depend on each other
    return LanguageModel(model, tokenizer, kind, tuning).eval()


def _config(kind: str, options: dict[str, Any]) -> PretrainedConfig:
    maker = CONFIG_MAPPING[kind]
    if kind == "gemma3":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = _config("gemma3_text", options | {"final_logit_softcapping": 30.0}).to_dict()
        return maker(text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14})
    computed = {"falcon": {"num_layers", "head_dim"}, "xlnet": {"max_position_embeddings"}}.get(kind, set())
    default = maker()
    sizes = {name: size for name, size in _SIZES.items() if name not in computed and hasattr(default, name)}
    return maker(**sizes | options)
