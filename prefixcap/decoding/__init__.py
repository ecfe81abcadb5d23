"""Search for captions over a language model that has read a prefix, with a key/value cache, batched."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from prefixcap.decoding.beam import beam
from prefixcap.decoding.greedy import greedy
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel

DECODERS: dict[str, Callable[..., list[list[int]]]] = {"greedy": greedy, "beam": beam}

__all__ = ["DECODERS", "beam", "decode", "greedy"]


def decode(language_model: LanguageModel, prefix: Tensor, method: str, **options: Any) -> list[list[int]]:
    """The token ids of one caption for each of (batch, length, dim) prefixes, by the decoder called `method`.

    Raises:
        InputError: no decoder has this name, it does not take one of the options, or the longest caption that it
            may write does not fit the language model's context.
    """
    if method not in DECODERS:
        raise InputError(f"unknown decoder '{method}': choose one of {', '.join(DECODERS)}")
    if not len(prefix):
        return []
    try:
        return DECODERS[method](language_model, prefix, **options)
    except TypeError as error:
        raise InputError(f"decoder '{method}': {error}") from error
