"""Search for captions with a language model that continues a prefix, batched, with a key/value cache."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from prefixcap import renamed
from prefixcap.decoding.rules import GenerationLimits
from prefixcap.errors import InputError
from prefixcap.utils.deferred import deferred
from prefixcap.utils.options import Count, Option, Seed, check_options, check_value, declared_options, summary

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from prefixcap.decoding.padded import PaddedPrefix
    from prefixcap.language import LanguageModel

# Imported when they are called: names and options are known without torch. A decoder of one's own is any function.
DECODERS: dict[str, Callable[..., list[list[list[int]]]]] = {
    "greedy": deferred("prefixcap.decoding.stepwise.greedy"),
    "beam": deferred("prefixcap.decoding.beam.beam"),
    "nucleus": deferred("prefixcap.decoding.stepwise.nucleus"),
    "contrastive": deferred("prefixcap.decoding.contrastive.contrastive"),
    "clipcap": deferred("prefixcap.decoding.clipcap.clipcap"),
    "clipcap_greedy": deferred("prefixcap.decoding.clipcap.clipcap_greedy"),
}
"""A decoder is a function `f(language_model, prefix, limits, **options)`, see `decode`. The first line of its docstring
is its label, and the `Args` describe its options: the command line, the web page and the HTTP API show them."""

__all__ = [
    "DECODERS",
    "GenerationLimits",
    "check_decoder",
    "decode",
    "decoder_label",
    "decoder_options",
    "draws",
    "limits",
    "own_options",
    "random_generator",
    "takes_num_captions",
]

__getattr__ = renamed.attributes(__name__)

_LEADING = 3  # parameters of a decoder before its options: language model, prefix, limits
_NUM_CAPTIONS, _OLD_NUM_CAPTIONS = "num_captions", "captions"


def own_options(method: str) -> dict[str, Option]:
    """A decoder's own parameters, without those of `GenerationLimits`, by name.

    Raises:
        InputError: no decoder has this name.

    Examples:
        >>> list(own_options("contrastive"))
        ['top_k', 'penalty', 'guide']
    """
    if not isinstance(method, str) or method not in DECODERS:
        raise InputError(f"unknown decoder '{method}': choose one of {', '.join(DECODERS)}")
    return declared_options(DECODERS[method], _LEADING)


def decoder_options(method: str) -> dict[str, Option]:
    """The options of a decoder that are numbers, texts or truth values: its own, then those of `GenerationLimits`.

    How many captions to return is none of them, see `takes_num_captions`.

    Raises:
        InputError: no decoder has this name.

    Examples:
        >>> beams = decoder_options("beam")["beams"]
        >>> beams.kind, beams.default, beams.bounds
        (<class 'int'>, 5, {'ge': 1, 'le': 10000})
    """
    hidden = (_NUM_CAPTIONS, _OLD_NUM_CAPTIONS)
    return {name: option for name, option in _settable(own_options(method)).items() if name not in hidden} | limits()


def limits() -> dict[str, Option]:
    """The options of every decoder that are numbers, texts or truth values: those of `GenerationLimits`.

    Examples:
        >>> list(limits())
        ['max_tokens', 'min_tokens', 'repetition_penalty', 'no_repeat_ngram']
    """
    return _settable(declared_options(GenerationLimits))


def _settable(options: dict[str, Option]) -> dict[str, Option]:
    return {name: option for name, option in options.items() if option.kind is not None}


def decoder_label(method: str) -> str:
    """What a decoder is called where users choose one: the first line of its docstring, or else its name.

    Raises:
        InputError: no decoder has this name.

    Examples:
        >>> decoder_label("beam")
        'Beam search: the likeliest captions'
    """
    own_options(method)
    return summary(DECODERS[method]) or method


def draws(method: str) -> bool:
    """Whether the decoder called `method` draws at random: it then takes a `generator`. Raises as `decoder_options`."""
    return "generator" in own_options(method)


def takes_num_captions(method: str) -> bool:
    """Whether the decoder called `method` can return several captions for an image. Raises as `decoder_options`."""
    return bool({_NUM_CAPTIONS, _OLD_NUM_CAPTIONS} & own_options(method).keys())


def random_generator(seed: "int | torch.Generator | None") -> "torch.Generator | None":
    """The generator that decoders draw from, for a seed; a generator is returned as it is.

    Raises:
        InputError: the seed is not an integer of at least 0 and below 2**63, or the generator is not on the CPU.
    """
    if seed is None:
        return None
    import torch

    if not isinstance(seed, torch.Generator):
        return torch.Generator().manual_seed(check_value("seed", seed, Seed))
    if seed.device.type != "cpu":
        raise InputError(f"seed is a generator on {seed.device}: give one on the CPU")
    return seed


def check_decoder(method: str, num_captions: int, options: dict[str, Any]) -> tuple[GenerationLimits, dict[str, Any]]:
    """Check the arguments of `decode` before a language model is needed.

    Returns:
        The limits of a caption, and the decoder's own options, `num_captions` among them if it takes that.

    Raises:
        InputError: no decoder has this name, it has no such option, or a value is of another type or out of its range.
    """
    own, options = own_options(method), dict(options)
    name = f"decoder '{method}'"
    if "force_words_ids" in options and "force_words_ids" not in own:
        raise InputError(f"{name} takes no force_words_ids: only beam search forces words, decoder 'beam'")
    for given in (_NUM_CAPTIONS, _OLD_NUM_CAPTIONS):
        if given in options:
            raise InputError(f"{name} has no option '{given}': the number of captions is count")
    common = {field.name: options.pop(field.name) for field in fields(GenerationLimits) if field.name in options}
    num_captions = check_value(_NUM_CAPTIONS, num_captions, Count)
    if _NUM_CAPTIONS in own:
        options[_NUM_CAPTIONS] = num_captions
    elif _OLD_NUM_CAPTIONS in own:
        renamed.warn(f"the parameter '{_OLD_NUM_CAPTIONS}' of {name}", _NUM_CAPTIONS)
        options[_OLD_NUM_CAPTIONS] = num_captions
    elif num_captions != 1:
        raise InputError(f"{name} returns one caption for each image, not {num_captions}")
    return GenerationLimits(**common), check_options(name, DECODERS[method], options, _LEADING, decoder_options(method))


def decode(
    language_model: "LanguageModel",
    prefix: "Tensor | PaddedPrefix",
    method: str,
    num_captions: int = 1,
    **options: Any,
) -> list[list[list[int]]]:
    """Captions for each image, by the decoder called `method`.

    Every decoder searches for the captions of all images of a batch at once, reuses the keys and values of the tokens
    before, and ends when every caption has ended.

    Args:
        language_model: the model to decode with.
        prefix: (batch, length, dim) embeddings that the captions continue; or a `PaddedPrefix`, see
            `prefixcap.decoding.padded.pad_left`, where some are shorter than others.
        method: a name in `DECODERS`: "greedy", "beam", "nucleus", "contrastive", "clipcap" or "clipcap_greedy".
        num_captions: how many to return for each image; "greedy", "contrastive" and "clipcap_greedy" have only one.
        options: limits of a caption, see `GenerationLimits`, and the decoder's own options.

    Returns:
        For each image the token ids of its captions, the best first, without the end token.

    Raises:
        InputError: no decoder has this name, it does not take one of the options, the longest caption allowed does not
            fit the language model's context, the model's cache holds more than keys and values, the prefix is padded
            and the model computes positions itself, or the decoder returned another number of captions.

    Examples:
        >>> from prefixcap.language import load_language_model
        >>> language_model = load_language_model("demo")
        >>> import torch
        >>> prefix = torch.randn(3, 10, language_model.dim)  # three images, ten prefix vectors each
        >>> token_ids = decode(language_model, prefix, "beam", num_captions=2, beams=4, max_tokens=12)
        >>> [len(captions) for captions in token_ids]
        [2, 2, 2]
    """
    if _OLD_NUM_CAPTIONS in options:
        renamed.warn(f"the argument '{_OLD_NUM_CAPTIONS}' of decode", _NUM_CAPTIONS)
        num_captions = options.pop(_OLD_NUM_CAPTIONS)
    limits, own = check_decoder(method, num_captions, options)
    if not len(prefix):
        return []
    limits.check_context_length(language_model, prefix)
    token_ids = DECODERS[method](language_model, prefix, limits, **own)
    _check_returned(method, token_ids, len(prefix), num_captions)
    return token_ids


def _check_returned(method: str, token_ids: Sequence[Sequence[list[int]]], images: int, num_captions: int) -> None:
    """Raise InputError unless a decoder returned `num_captions` lists of token ids for each image."""
    if len(token_ids) != images:
        raise InputError(f"decoder '{method}' returned captions for {len(token_ids)} images, not for {images}")
    for captions in token_ids:
        if len(captions) != num_captions:
            raise InputError(
                f"decoder '{method}' returned {len(captions)} of {num_captions} captions for an image: ask for "
                f"{len(captions)}, or let it find more, e.g. longer ones with max_tokens"
            )
        if wrong := [type(tokens).__name__ for tokens in captions if not isinstance(tokens, list)]:
            raise InputError(f"decoder '{method}' returned a {wrong[0]} in place of a list of token ids")
