"""Search for captions over a language model that has read a prefix, with a key/value cache, batched."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from prefixcap.decoding.beam import beam
from prefixcap.decoding.clipcap import clipcap, clipcap_greedy
from prefixcap.decoding.contrastive import contrastive
from prefixcap.decoding.rules import Rules
from prefixcap.decoding.stepwise import greedy, nucleus
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel

DECODERS: dict[str, Callable[..., list[list[list[int]]]]] = {
    "greedy": greedy,
    "beam": beam,
    "nucleus": nucleus,
    "contrastive": contrastive,
    "clipcap": clipcap,
    "clipcap_greedy": clipcap_greedy,
}

__all__ = ["DECODERS", "Rules", "decode", "decoder_options"]


def decoder_options(method: str) -> dict[str, type]:
    """The options of the decoder called `method`, its own and those of `Rules`: the kind of each one's value, by name.

    Raises:
        InputError: no decoder has this name.
    """
    own = {name: of.annotation for name, of in _parameters(method).items() if of.annotation in (int, float, str)}
    own.pop("captions", None)  # an argument of `decode`
    return own | {field.name: type(field.default) for field in fields(Rules)}


def _parameters(method: str) -> Mapping[str, inspect.Parameter]:
    if method not in DECODERS:
        raise InputError(f"unknown decoder '{method}': choose one of {', '.join(DECODERS)}")
    return inspect.signature(DECODERS[method]).parameters


def decode(
    language_model: LanguageModel, prefix: Tensor, method: str, captions: int = 1, **options: Any
) -> list[list[list[int]]]:
    """Captions for each image, by the decoder called `method`.

    Every decoder works on all images of the batch at once, keeps the keys and values of what was read, and ends when
    every caption has ended.

    Args:
        language_model: writes.
        prefix: (batch, length, dim) what it reads first.
        method: "greedy", "beam", "nucleus", "contrastive", "clipcap" or "clipcap_greedy".
        captions: how many to give for each image, which greedy and contrastive decoders have one of.
        options: limits of a caption, see `Rules`, and the decoder's own.

    Returns:
        For each image the token ids of its captions, the best first, without the end token.

    Raises:
        InputError: no decoder has this name, it does not take one of the options, the longest caption that it may
            write does not fit the language model's context, or that keeps something else than keys and values.
    """
    parameters = _parameters(method)
    if not len(prefix):
        return []
    if captions != 1:
        if "captions" not in parameters:
            raise InputError(f"decoder '{method}' writes one caption of an image, not captions={captions}")
        options["captions"] = captions
    try:
        rules = Rules(**{field.name: options.pop(field.name) for field in fields(Rules) if field.name in options})
        rules.check_room(language_model, prefix)
        return DECODERS[method](language_model, prefix, rules, **options)
    except TypeError as error:
        raise InputError(f"decoder '{method}': {error}") from error
