"""Any causal language model of transformers: frozen, with adapters, or tuned; in less memory, if wanted."""

from prefixcap.language.checks import Tuning
from prefixcap.language.loading import count_parameters, load_language_model, load_tokenizer, rebuild_language_model
from prefixcap.language.model import LanguageModel
from prefixcap.language.tokens import tokenize_captions, tokenize_texts
from prefixcap.utils.options import Dtype

__all__ = [
    "Dtype",
    "LanguageModel",
    "Tuning",
    "count_parameters",
    "load_language_model",
    "load_tokenizer",
    "rebuild_language_model",
    "tokenize_captions",
    "tokenize_texts",
]
