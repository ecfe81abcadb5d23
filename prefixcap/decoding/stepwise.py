"""Greedy decoding and nucleus sampling: one token after another, the likeliest one or a random one.

Shapes: R captions that have not ended, V vocabulary, M most tokens of a caption.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from prefixcap import renamed
from prefixcap.decoding.captured import run
from prefixcap.decoding.padded import PaddedPrefix
from prefixcap.decoding.rules import GenerationLimits
from prefixcap.decoding.search import Search, write
from prefixcap.language import LanguageModel
from prefixcap.utils.options import Count

__getattr__ = renamed.attributes(__name__)


@torch.inference_mode()
def greedy(
    language_model: LanguageModel, prefix: Tensor | PaddedPrefix, limits: GenerationLimits
) -> list[list[list[int]]]:
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
    prefix: Tensor | PaddedPrefix,
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
    count = len(prefix) * num_captions
    # All random numbers are drawn at once, one for each caption and step, so that none depends on the batches.
    uniform = draw(count, limits.max_tokens, generator).to(prefix.device)
    eos = language_model.eos_token_id
    search = _Nucleus(count, limits, eos, uniform, top_p, top_k, temperature)
    generated = [_strip_end(caption, eos) for caption in _generated(language_model, prefix, search)]
    return [generated[first : first + num_captions] for first in range(0, len(generated), num_captions)]


def draw(captions: int, max_tokens: int, generator: torch.Generator | None) -> Tensor:
    """The (captions, max_tokens) random numbers, from 0 to 1, that `nucleus` draws: as many for every caption."""
    return torch.rand(captions, max_tokens, generator=generator)


def divide(logits: Tensor, temperature: float) -> Tensor:
    """(…, n) logits divided by any temperature above 0.0, after their maximum is subtracted, so that none overflows."""
    limits = torch.finfo(torch.float32)  # smaller temperatures would round to 0, larger ones to infinity
    return (logits - logits.amax(-1, keepdim=True)) / min(max(temperature, limits.tiny), limits.max)


def argmax_token(logits: Tensor, rows: Tensor, step: int) -> Tensor:
    """(R, V) logits -> (R,) the likeliest tokens."""
    return logits.argmax(-1)


def generate(
    language_model: LanguageModel,
    prefix: Tensor | PaddedPrefix,
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
    count, device = len(prefix) * captions, prefix.device
    is_greedy = choose is argmax_token
    search = _Stepwise(count, limits, end, device) if is_greedy else _Chosen(count, limits, end, device, choose)
    return _generated(language_model, prefix, search)


def _generated(language_model: LanguageModel, prefix: Tensor | PaddedPrefix, search: "_Stepwise") -> list[list[int]]:
    """The captions of a search, each with the token that ends it."""
    run(language_model, prefix, search)
    captions, lengths = search.in_order(search.tokens.squeeze(1)), search.in_order(search.lengths)
    return [tokens[:length] for tokens, length in zip(captions.tolist(), lengths.tolist(), strict=True)]


class _Stepwise(Search):
    """Captions of which each goes on with its likeliest token, in a row of its own. Arguments as of `Search`.

    Attributes:
        lengths: (R,) tokens of each caption.
    """

    def __init__(self, captions: int, limits: GenerationLimits, end: int, device: torch.device) -> None:
        super().__init__(captions, (1,), limits, end, device)
        self.lengths = torch.zeros_like(self.images)
        self.capturable = not limits.may_rule_out_all

    def advance(self, logits: Tensor) -> Tensor:
        allowed = self.allowed(logits)
        self.limits.check_choice(allowed)
        chosen = self.choose(allowed)  # (R,)
        tokens = self.tokens.index_copy(2, self.length.view(1), chosen.view(-1, 1, 1))
        write(self.tokens, self.running, tokens)
        self.length += 1
        write(self.lengths, self.running, self.length)
        self.running &= (chosen != self.end) & ~self.is_last()
        return torch.zeros_like(chosen).unsqueeze(1)

    def choose(self, logits: Tensor) -> Tensor:
        """(R, V) logits -> (R,) the next tokens."""
        return logits.argmax(-1)


class _Chosen(_Stepwise):
    """Captions of which each goes on with the token that a function chooses, see `generate`."""

    def __init__(
        self,
        captions: int,
        limits: GenerationLimits,
        end: int,
        device: torch.device,
        function: Callable[[Tensor, Tensor, int], Tensor],
    ) -> None:
        super().__init__(captions, limits, end, device)
        self.function, self.capturable = function, False

    def choose(self, logits: Tensor) -> Tensor:
        return self.function(logits, self.images, int(self.length))


class _Nucleus(_Stepwise):
    """Captions of which each goes on with a token drawn at random: (R, M) `uniform` numbers, and the options of
    `nucleus`."""

    def __init__(
        self,
        captions: int,
        limits: GenerationLimits,
        end: int,
        uniform: Tensor,
        top_p: float,
        top_k: int,
        temperature: float,
    ) -> None:
        super().__init__(captions, limits, end, uniform.device)
        self.uniform, self.top_p, self.top_k, self.temperature = uniform, top_p, top_k, temperature

    def choose(self, logits: Tensor) -> Tensor:
        from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

        warpers = LogitsProcessorList()
        warpers += [TopKLogitsWarper(self.top_k)] if self.top_k else []
        warpers += [TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []
        # Inverse transform sampling: the first token whose cumulative probability exceeds a uniform number.
        cumulative = warpers(None, divide(logits, self.temperature)).softmax(-1).cumsum(-1)  # (R, V)
        threshold = self.uniform.index_select(1, self.length.view(1)) * cumulative[:, -1:]  # (R, 1)
        return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


def _strip_end(caption: list[int], end: int) -> list[int]:
    return caption[:-1] if caption[-1] == end else caption
