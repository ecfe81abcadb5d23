"""Checks of a language model that need no forward pass; `prefixcap.training.reading_check` runs the model."""

import inspect
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from prefixcap.errors import InputError, OptionError, listed
from prefixcap.utils.options import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from prefixcap.language.model import LanguageModel

Tuning = Literal["frozen", "lora", "full"]

ADVICE = "a decoder such as GPT-2, OPT or LLaMA"

# Types of layers whose only state is keys and values.
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def word_embeddings(model: "PreTrainedModel", name: str) -> Tensor:
    """The (vocabulary, dim) word embeddings of a model.

    Raises:
        InputError: it has none.
    """
    try:
        weight: Tensor = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError) as error:
        raise InputError(
            f"language model '{name}' ({type(model).__name__}) has no word embeddings to put a prefix before: "
            f"take another, {ADVICE}"
        ) from error
    return weight


def require_embedded_tokens(language_model: "LanguageModel") -> None:
    """Check that a model embeds its end token and the tokens that were added to its tokenizer.

    Raises:
        InputError: it does not.
    """
    tokenizer, count = language_model.tokenizer, len(word_embeddings(language_model.model, language_model.name))
    added = tokenizer.get_added_vocab()
    # Captions have no special token but the end token.
    used = {token: number for token, number in added.items() if token not in tokenizer.all_special_tokens}
    used[tokenizer.eos_token] = tokenizer.eos_token_id
    if outside := [f"{token!r} ({number})" for token, number in used.items() if number >= count]:
        raise InputError(
            f"the tokenizer of language model '{language_model.name}' has {listed('token', outside)}, but the model "
            f"embeds only {count} tokens: save it after model.resize_token_embeddings(len(tokenizer))"
        )


def ids_without_token(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Tensor | None:
    """(vocabulary,) bool, the output ids of a model that its tokenizer has no token for; None: there are none."""
    head = model.get_output_embeddings()
    if not isinstance(getattr(head, "weight", None), Tensor):
        return None
    unknown = torch.ones(len(head.weight), dtype=torch.bool, device="cpu")
    unknown[[number for number in tokenizer.get_vocab().values() if number < len(unknown)]] = False
    return unknown if unknown.any() else None


def keeps_keys_and_values(model: "PreTrainedModel") -> bool:
    """Whether a model has a key/value cache and no other state.

    Layers of Mamba, Jamba or LFM2 have other states, and GPT-1 has no cache.
    """
    layer_types = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    return cache_argument(model) is not None and not model._is_stateful and set(layer_types) <= _ATTENTION


def cache_argument(model: "PreTrainedModel") -> str | None:
    """How `forward` calls the key/value cache that it takes: cache since transformers 5.24; None: it takes none."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in parameters), None)


def takes_positions(model: "PreTrainedModel") -> bool:
    """Whether a model reads tokens at the positions that it is told."""
    config = model.config.get_text_config(decoder=True)
    is_told = "position_ids" in inspect.signature(model.base_model.forward).parameters
    return is_told and not getattr(config, "alibi", False)


def require_positions(model: "PreTrainedModel", name: str) -> None:
    """Raise InputError if a model cannot read prefixes of different lengths in one batch."""
    if not takes_positions(model):
        raise InputError(
            f"language model '{name}' computes its positions itself, and prefixes of different lengths must set them: "
            f"caption images whose prompts are equally long, e.g. one by one, or take another, {ADVICE}"
        )


def capture_problem(language_model: "LanguageModel") -> str | None:
    """Why a step of decoding cannot be captured in a CUDA graph, as far as the configuration says; None: it can."""
    model = language_model.model
    attention = model.config._attn_implementation
    if language_model.quantization is not None:
        return f"its weights are quantized ({language_model.quantization})"
    if not takes_positions(model):
        return "it computes its positions itself"
    if attention not in ("sdpa", "eager"):
        return f"attention '{attention}' takes no mask for each row, only 'sdpa' and 'eager' do"
    if not model._can_compile_fullgraph:
        return f"transformers cannot run {type(model).__name__} without the host"
    return None


def check_trainable(language_model: "LanguageModel") -> None:
    """See `LanguageModel.check_trainable`."""
    model, name = language_model.model, language_model.name
    config: Any = model.config.get_text_config(decoder=True)
    if not takes_positions(model):
        raise InputError(
            f"language model '{name}' computes its positions itself, and training must set them: take another, {ADVICE}"
        )
    for changed in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, changed, None) not in (None, 1.0):
            raise InputError(
                f"language model '{name}' has {changed}, which training does not support: take another, {ADVICE}"
            )
    if not isinstance(getattr(model.get_output_embeddings(), "weight", None), Tensor):
        raise InputError(
            f"language model '{name}' has no output embeddings that training can read: take another, {ADVICE}"
        )
    if not keeps_keys_and_values(model):
        raise no_cache(name)
    require_embedded_tokens(language_model)
    if language_model.tuning == "full" and language_model.dtype != "float32":
        raise OptionError(
            f"full tuning takes steps too small for {language_model.dtype} weights (mixed precision, bf16-mixed, keeps "
            "them in float32)",
            dtype="float32",
            tuning="lora",
        )


def no_cache(name: str) -> InputError:
    """The error for a model that would have to read everything again for each token."""
    return InputError(
        f"language model '{name}' has no key/value cache in every layer, which decoding needs: take another transformer"
    )


def check_tuning(tuning: Tuning, quantization: Quantization | None) -> None:
    """Raise InputError if there is no such tuning, or if such weights cannot be tuned like this."""
    if tuning not in get_args(Tuning):
        raise InputError(f"unknown tuning '{tuning}': choose one of {', '.join(get_args(Tuning))}")
    if tuning == "full" and quantization is not None:
        raise OptionError(f"{quantization} weights cannot be trained, only adapters beside them", tuning="lora")
