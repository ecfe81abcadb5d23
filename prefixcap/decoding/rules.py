"""Limits that every decoder observes: how long a caption may become, and what it may repeat."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Interval

from prefixcap import renamed
from prefixcap.errors import InputError
from prefixcap.utils.options import Positive, check_fields

if TYPE_CHECKING:
    from torch import Tensor

    from prefixcap.language import LanguageModel

__getattr__ = renamed.attributes(__name__)


@dataclass(frozen=True)
class GenerationLimits:
    """Limits of a caption, each as in `transformers.generate`.

    Attributes:
        max_tokens: maximum number of tokens, the end token included (`max_new_tokens`).
        min_tokens: minimum number of tokens before the end token (`min_new_tokens`).
        repetition_penalty: above 1.0, tokens that occur already become less likely (Keskar et al. 2019).
        no_repeat_ngram: no n-gram of this length occurs twice; 0: repetition is allowed (`no_repeat_ngram_size`).

    Raises:
        InputError: a value is out of range.

    Examples:
        >>> GenerationLimits(max_tokens=20).min_tokens
        0
        >>> GenerationLimits(max_tokens=0)
        Traceback (most recent call last):
        ...
        prefixcap.errors.InputError: max_tokens must be at least 1, not 0
    """

    max_tokens: Positive = 67
    min_tokens: Annotated[int, Ge(0)] = 0
    repetition_penalty: Annotated[float, Interval(ge=0.01, le=100.0)] = 1.0
    no_repeat_ngram: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.min_tokens > self.max_tokens:
            raise InputError(f"min_tokens must lie between 0 and max_tokens={self.max_tokens}, not {self.min_tokens}")

    def check_context_length(self, language_model: "LanguageModel", prefix: "Tensor") -> None:
        """Raise InputError if a (batch, length, dim) prefix and `max_tokens` exceed the language model's context."""
        context, length = language_model.context, prefix.shape[1]
        if context is not None and length + self.max_tokens > context:
            advice = f"set max_tokens to at most {context - length}" if length < context else "shorten the prompt"
            raise InputError(
                f"a prefix of {length}, with the prompt, and max_tokens={self.max_tokens} exceed the context of "
                f"language model '{language_model.name}' ({context}): {advice}"
            )

    def apply(self, tokens: "Tensor", scores: "Tensor", eos_token_id: int) -> "Tensor":
        """Apply the limits to the scores of the next token.

        Args:
            tokens: (rows, length) generated so far.
            scores: (rows, vocabulary) logits or log-probabilities.
            eos_token_id: the end token.

        Returns:
            (rows, vocabulary) scores, -inf for tokens that are not allowed.
        """
        from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

        if self.repetition_penalty != 1.0:
            scores = RepetitionPenaltyLogitsProcessor(self.repetition_penalty)(tokens, scores)
        if self.no_repeat_ngram:
            scores = NoRepeatNGramLogitsProcessor(self.no_repeat_ngram)(tokens, scores)
        if tokens.shape[1] < self.min_tokens:
            scores = scores.clone()
            scores[:, eos_token_id] = -float("inf")
        return scores

    def check_choice(self, scores: "Tensor") -> None:
        """Raise InputError if a row of (rows, vocabulary) scores allows no token at all."""
        if self.no_repeat_ngram and self.min_tokens and not scores.isfinite().any(-1).all():
            raise InputError(
                f"no_repeat_ngram={self.no_repeat_ngram} and min_tokens={self.min_tokens} leave no possible token: "
                "lower min_tokens"
            )
