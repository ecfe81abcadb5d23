"""One token after another: the likeliest one, or one drawn at random."""

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

    It ends with the end token; see `prefixcap.decoding.decode`.
    """
    written = generate(language_model, prefix, limits, argmax_token, language_model.eos_token_id)
    return [[_without(caption, language_model.eos_token_id)] for caption in written]


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

    See `prefixcap.decoding.decode`.

    Args:
        language_model: writes.
        prefix: (batch, length, dim) what it reads first.
        limits: limits of a caption.
        num_captions: how many to draw for each image.
        top_p: draw from the fewest tokens that have together this probability (Holtzman et al. 2020); 1.0: from all.
        top_k: draw from this many of the likeliest (Fan et al. 2018); 0: from all.
        temperature: divides the logits; below 1.0, likely tokens are drawn more often, near 0.0 only the likeliest.
        generator: of the random numbers, on the CPU; None: torch's own. The captions that a generator gives do not
            depend on the size of the batches.
    """
    from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

    warpers = LogitsProcessorList()
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    chance = torch.rand(len(prefix) * num_captions, limits.max_tokens, generator=generator).to(prefix.device)

    def draw(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        cumulative = warpers(None, divided(logits, temperature)).softmax(-1).cumsum(-1)
        wanted = chance[rows, step, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, wanted, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)

    end = language_model.eos_token_id
    written = [_without(caption, end) for caption in generate(language_model, prefix, limits, draw, end, num_captions)]
    return [written[first : first + num_captions] for first in range(0, len(written), num_captions)]


def divided(logits: Tensor, temperature: float) -> Tensor:
    """(…, n) logits over a temperature of any size, less their highest, which a low one would make infinite."""
    limits = torch.finfo(torch.float32)  # which takes what is smaller for 0 and what is larger for infinite
    return (logits - logits.amax(-1, keepdim=True)) / min(max(temperature, limits.tiny), limits.max)


def argmax_token(logits: Tensor, rows: Tensor, step: int) -> Tensor:
    """(rows, vocabulary) logits -> (rows,) tokens."""
    return logits.argmax(-1)


def generate(
    language_model: LanguageModel,
    prefix: Tensor,
    limits: GenerationLimits,
    choose: Callable[[Tensor, Tensor, int], Tensor],
    end: int,
    captions: int = 1,
) -> list[list[int]]:
    """Captions, token by token, each until `end`, which it keeps.

    Args:
        language_model: writes.
        prefix: (batch, length, dim) what it reads first.
        limits: limits of a caption.
        choose: the next token of (rows, vocabulary) logits; also given the number of each row's caption among all, and
            of the step.
        end: the token that ends a caption.
        captions: how many to write for each image.

    Returns:
        batch * captions lists of token ids, those of an image one after another.
    """
    cache = KeyValueCache(prefix.shape[1] + limits.max_tokens)
    count, device = len(prefix) * captions, prefix.device
    written: list[list[int]] = [[] for _ in range(count)]
    logits = language_model.step(prefix, cache)
    if captions > 1:
        each = torch.arange(len(prefix), device=device).repeat_interleave(captions)
        cache.select(each)
        logits = logits[each]
    writing = torch.arange(count, device=device)  # the captions that have not ended
    tokens = torch.empty(count, 0, dtype=torch.long, device=device)
    for step in range(limits.max_tokens):
        allowed = limits.apply(tokens, logits, end)
        limits.check_choice(allowed)
        chosen = choose(allowed, writing, step)
        tokens = torch.cat((tokens, chosen.unsqueeze(1)), dim=1)
        ended = (chosen == end) | (step + 1 == limits.max_tokens)
        if ended.any():
            for row, caption in zip(writing[ended].tolist(), tokens[ended].tolist(), strict=True):
                written[row] = caption
            if ended.all():
                break
            going_on = (~ended).nonzero().squeeze(1)
            cache.select(going_on)
            writing, tokens, chosen = writing[going_on], tokens[going_on], chosen[going_on]
        logits = language_model.step(language_model.embed(chosen).unsqueeze(1), cache)
    return written


def _without(caption: list[int], end: int) -> list[int]:
    return caption[:-1] if caption[-1] == end else caption
