"""Search for captions over a language model that has read a prefix, with a key/value cache, batched."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from prefixcap import renamed
from prefixcap.decoding.beam import beam
from prefixcap.decoding.clipcap import clipcap, clipcap_greedy
from prefixcap.decoding.contrastive import contrastive
from prefixcap.decoding.rules import GenerationLimits
from prefixcap.decoding.stepwise import greedy, nucleus
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel
from prefixcap.utils.options import Count, Seed, check_options, check_value, kind_of, signature_of

DECODERS: dict[str, Callable[..., list[list[list[int]]]]] = {
    "greedy": greedy,
    "beam": beam,
    "nucleus": nucleus,
    "contrastive": contrastive,
    "clipcap": clipcap,
    "clipcap_greedy": clipcap_greedy,
}

__all__ = [
    "DECODERS",
    "GenerationLimits",
    "check_decoder",
    "decode",
    "decoder_options",
    "draws",
    "own_options",
    "random_generator",
]

__getattr__ = renamed.attributes(__name__)

_LEADING = 3  # parameters of a decoder before its options: language model, prefix, limits


def own_options(method: str) -> dict[str, Any]:
    """A decoder's own options, without those of `GenerationLimits`: the annotation of each, by name.

    Raises:
        InputError: no decoder has this name.
    """
    if not isinstance(method, str) or method not in DECODERS:
        raise InputError(f"unknown decoder '{method}': choose one of {', '.join(DECODERS)}")
    parameters = list(signature_of(DECODERS[method]).parameters.values())[_LEADING:]
    return {parameter.name: parameter.annotation for parameter in parameters}


def decoder_options(method: str) -> dict[str, type]:
    """All options of a decoder, its own and those of `GenerationLimits`: the type of each value, by name.

    Raises:
        InputError: no decoder has this name.
    """
    kinds = {name: kind_of(annotation) for name, annotation in own_options(method).items() if name != "captions"}
    own = {name: kind for name, kind in kinds.items() if kind is not None}
    return own | {field.name: type(field.default) for field in fields(GenerationLimits)}


def draws(method: str) -> bool:
    """Whether the decoder called `method` draws at random: it then takes a `generator`. Raises as `decoder_options`."""
    return "generator" in own_options(method)


def random_generator(seed: int | torch.Generator | None) -> torch.Generator | None:
    """What decoders draw from, for a seed; a generator is given back.

    Raises:
        InputError: the seed is no integer of at least 0 and below 2**63, or the generator is not on the CPU.
    """
    if seed is None:
        return None
    if not isinstance(seed, torch.Generator):
        return torch.Generator().manual_seed(check_value("seed", seed, Seed))
    if seed.device.type != "cpu":
        raise InputError(f"seed is a generator on {seed.device}: give one on the CPU")
    return seed


def check_decoder(method: str, captions: int, options: dict[str, Any]) -> tuple[GenerationLimits, dict[str, Any]]:
    """What `decode` takes, before a language model is asked: the limits of a caption, and the decoder's own options.

    Raises:
        InputError: no decoder has this name, or an option is none of its, of another kind or out of its range.
    """
    own, options = own_options(method), dict(options)
    name = f"decoder '{method}'"
    if "captions" in options:
        raise InputError(f"{name} has no option 'captions': how many to write is count")
    limits = {field.name: options.pop(field.name) for field in fields(GenerationLimits) if field.name in options}
    captions = check_value("captions", captions, Count)
    if "captions" in own:
        options["captions"] = captions
    elif captions != 1:
        raise InputError(f"{name} writes one caption of an image, not captions={captions}")
    return GenerationLimits(**limits), check_options(name, DECODERS[method], options, _LEADING, decoder_options(method))


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
        options: limits of a caption, see `GenerationLimits`, and the decoder's own.

    Returns:
        For each image the token ids of its captions, the best first, without the end token.

    Raises:
        InputError: no decoder has this name, it does not take one of the options, the longest caption that it may
            write does not fit the language model's context, or that keeps something else than keys and values; or the
            decoder gave another number of captions.
    """
    limits, own = check_decoder(method, captions, options)
    if not len(prefix):
        return []
    limits.check_context_length(language_model, prefix)
    written = DECODERS[method](language_model, prefix, limits, **own)
    _check_written(method, written, len(prefix), captions)
    return written


def _check_written(method: str, written: Sequence[Sequence[list[int]]], images: int, captions: int) -> None:
    """Raise InputError unless a decoder gave each image as many captions as it was asked for."""
    if len(written) != images:
        raise InputError(f"decoder '{method}' gave captions of {len(written)} images where {images} were given")
    for of_image in written:
        if len(of_image) != captions:
            raise InputError(
                f"decoder '{method}' gave {len(of_image)} of {captions} captions of an image: ask for {len(of_image)}, "
                "or let it find more, e.g. longer ones with max_tokens"
            )
        if wrong := [type(tokens).__name__ for tokens in of_image if not isinstance(tokens, list)]:
            raise InputError(f"decoder '{method}' gave a {wrong[0]} where a list of token ids belongs")
