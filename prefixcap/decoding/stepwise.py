"""Greedy decoding and nucleus sampling: one token after another, the likeliest one or a random one.

Shapes: R captions that have not ended, V vocabulary, T tokens generated so far.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from prefixcap import renamed
from prefixcap.decoding.cache import KeyValueCache
from prefixcap.decoding.rules import GenerationLimits
from prefixcap.language import LanguageModel
from prefixcap.utils.options import Count

__getattr__ = renamed.attributes(__name__)


@torch.inference_mode()
def greedy(language_model: LanguageModel, prefix: Tensor, limits: GenerationLimits) -> list[list[list[int]]]:
    """Greedy search: the likeliest token, one after another.

    A caption ends with the end token.

    Args:
        language_model: the model to decode with.
        prefix: (batch, length, dim) embeddings that every caption continues.
        limits: limits of a caption.

    Returns:
        For each image a list with the token ids of one caption, without the end token.

    Examples:
        >>> from prefixcap.language import load_language_model
        >>> lm = load_language_model("demo")
        >>> prefix = lm.embed(torch.tensor([lm.tokenize_prompt("A red")]))  # (1, tokens, dim)
        >>> ((caption,),) = greedy(lm, prefix, GenerationLimits(max_tokens=5))
        >>> lm.detokenize(caption)
        'heart in the snow.'
    """
    eos = language_model.eos_token_id
    generated = generate(language_model, prefix, limits, argmax_token, eos)
    return [[_strip_end(caption, eos)] for caption in generated]


@torch.inference_mode()
def nucleus(
    language_model: LanguageModel,
    prefix: Tensor,
    limits: GenerationLimits,
    num_captions: Count = 1,
    top_p: Annotated[float, Interval(gt=0.0, le=1.0)] = 0.9,
    top_k: Annotated[int, Ge(0)] = 0,
    temperature: Annotated[float, Gt(0.0)] = 1.0,
    generator: torch.Generator | None = None,
) -> list[list[list[int]]]:
    """Nucleus sampling: tokens drawn at random from the likeliest.

    Args:
        language_model: the model to decode with.
        prefix: (batch, length, dim) embeddings that every caption of an image continues.
        limits: limits of a caption.
        num_captions: how many to draw for each image.
        top_p: sample from the smallest set of tokens with at least this probability in total (Holtzman et al. 2020);
            1.0: from all tokens.
        top_k: sample from this many of the likeliest tokens (Fan et al. 2018); 0: from all.
        temperature: divides the logits; below 1.0, likely tokens become likelier still.
        generator: source of random numbers, on the CPU; None: torch's default. For a given generator the captions do
            not depend on the batch size.

    Returns:
        For each image the token ids of its captions, without the end token, in the order drawn.

    Examples:
        >>> from prefixcap.language import load_language_model
        >>> lm = load_language_model("demo")
        >>> prefix = lm.embed(torch.tensor([lm.tokenize_prompt("A red")]))  # (1, tokens, dim)
        >>> first, again = (
        ...     nucleus(lm, prefix, GenerationLimits(), generator=torch.Generator().manual_seed(0)) for _ in range(2)
        ... )
        >>> first == again
        True
    """
    from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

    warpers = LogitsProcessorList()
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    # All random numbers are drawn at once, one for each caption and step, so that none depends on the batches.
    uniform = torch.rand(len(prefix) * num_captions, limits.max_tokens, generator=generator).to(prefix.device)

    def sample(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        # Inverse transform sampling: the first token whose cumulative probability exceeds a uniform number.
        cumulative = warpers(None, divide(logits, temperature)).softmax(-1).cumsum(-1)  # (R, V)
        threshold = uniform[rows, step, None] * cumulative[:, -1:]  # (R, 1)
        return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)

    eos = language_model.eos_token_id
    generated = [
        _strip_end(caption, eos) for caption in generate(language_model, prefix, limits, sample, eos, num_captions)
    ]
    return [generated[first : first + num_captions] for first in range(0, len(generated), num_captions)]


def divide(logits: Tensor, temperature: float) -> Tensor:
    """(…, n) logits divided by any temperature above 0.0, after their maximum is subtracted, so that none overflows."""
    limits = torch.finfo(torch.float32)  # smaller temperatures would round to 0, larger ones to infinity
    return (logits - logits.amax(-1, keepdim=True)) / min(max(temperature, limits.tiny), limits.max)


def argmax_token(logits: Tensor, rows: Tensor, step: int) -> Tensor:
    """(R, V) logits -> (R,) the likeliest tokens."""
    return logits.argmax(-1)


def generate(
    language_model: LanguageModel,
    prefix: Tensor,
    limits: GenerationLimits,
    choose: Callable[[Tensor, Tensor, int], Tensor],
    end: int,
    captions: int = 1,
) -> list[list[int]]:
    """Generate captions token by token, each until `end`, which it keeps.

    Args:
        language_model: the model to decode with.
        prefix: (batch, length, dim) embeddings that every caption of an image continues.
        limits: limits of a caption.
        choose: returns (R,) next tokens, given (R, V) logits, the numbers of the captions among all (R,), and the step.
        end: the token that ends a caption.
        captions: how many to generate for each image.

    Returns:
        batch * captions lists of token ids, those of an image next to each other.
    """
    cache = KeyValueCache(prefix.shape[1] + limits.max_tokens)
    count, device = len(prefix) * captions, prefix.device
    generated: list[list[int]] = [[] for _ in range(count)]
    logits = language_model.step(prefix, cache)  # (batch, V)
    if captions > 1:  # a row for each caption
        image_of_caption = torch.arange(len(prefix), device=device).repeat_interleave(captions)
        cache.select(image_of_caption)
        logits = logits[image_of_caption]
    running = torch.arange(count, device=device)  # (R,) the captions that have not ended
    tokens = torch.empty(count, 0, dtype=torch.long, device=device)  # (R, T)
    for step in range(limits.max_tokens):
        allowed = limits.apply(tokens, logits, end)
        limits.check_choice(allowed)
        chosen = choose(allowed, running, step)  # (R,)
        tokens = torch.cat((tokens, chosen.unsqueeze(1)), dim=1)
        # Captions that end here leave the batch.
        ended = (chosen == end) | (step + 1 == limits.max_tokens)
        if ended.any():
            for number, caption in zip(running[ended].tolist(), tokens[ended].tolist(), strict=True):
                generated[number] = caption
            if ended.all():
                break
            rows = (~ended).nonzero().squeeze(1)
            cache.select(rows)
            running, tokens, chosen = running[rows], tokens[rows], chosen[rows]
        logits = language_model.step(language_model.embed(chosen).unsqueeze(1), cache)
    return generated


def _strip_end(caption: list[int], end: int) -> list[int]:
    return caption[:-1] if caption[-1] == end else caption
