"""Limits that every decoder observes: how long a caption may become, and what it may repeat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Interval

from prefixcap import renamed
from prefixcap.errors import InputError
from prefixcap.utils.options import Positive, check_fields

if TYPE_CHECKING:
    from torch import Tensor

    from prefixcap.decoding.padded import PaddedPrefix
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
        bad_words_ids: sequences of tokens that do not occur, see `prefixcap.language.tokens.bad_words_ids`.

    Raises:
        InputError: a value is out of range, or a sequence has no token.

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
    bad_words_ids: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if not all(self.bad_words_ids):
            raise InputError("bad_words_ids has a sequence without a token: leave it out")
        if self.min_tokens > self.max_tokens:
            raise InputError(f"min_tokens must lie between 0 and max_tokens={self.max_tokens}, not {self.min_tokens}")

    def check_context_length(self, language_model: "LanguageModel", prefix: "Tensor | PaddedPrefix") -> None:
        """Raise InputError if a (batch, length, dim) prefix and `max_tokens` exceed the language model's context."""
        context, length = language_model.context, prefix.shape[1]
        if context is not None and length + self.max_tokens > context:
            advice = f"set max_tokens to at most {context - length}" if length < context else "shorten the prompt"
            raise InputError(
                f"a prefix of {length}, with the prompt, and max_tokens={self.max_tokens} exceed the context of "
                f"language model '{language_model.name}' ({context}): {advice}"
            )

    def apply(
        self, tokens: "Tensor", scores: "Tensor", eos_token_id: int, length: "Tensor | int | None" = None
    ) -> "Tensor":
        """Apply the limits to the scores of the next token, without asking the host.

        Args:
            tokens: (rows, at least length) generated so far, and anything behind.
            scores: (rows, vocabulary) logits or log-probabilities.
            eos_token_id: the end token.
            length: () tokens generated so far; None: all.

        Returns:
            (rows, vocabulary) scores, -inf for tokens that are not allowed.
        """
        import torch

        length = tokens.shape[1] if length is None else length
        if self.repetition_penalty != 1.0:
            position = torch.arange(tokens.shape[1], device=tokens.device)  # (tokens,)
            occurs = _marked(tokens, (position < length).expand_as(tokens), scores)
            penalty = self.repetition_penalty
            scores = torch.where(occurs, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
        size = self.no_repeat_ngram
        if 0 < size <= tokens.shape[1]:
            ngrams = tokens.unfold(1, size, 1)  # (rows, n-grams, size)
            # The next token would end an n-gram: which n-grams begin as this one does?
            begun = torch.arange(size - 1, device=tokens.device) + (length - size + 1)
            same = (ngrams[..., :-1] == tokens[:, begun.clamp(min=0)].unsqueeze(1)).all(-1)  # (rows, n-grams)
            position = torch.arange(ngrams.shape[1], device=tokens.device)  # of the first token of each n-gram
            repeated = _marked(ngrams[..., -1], same & (position + size <= length), scores)
            scores = scores.masked_fill(repeated, -float("inf"))
        if self.bad_words_ids:
            scores = self._without_bad_words(tokens, scores, length)
        if self.min_tokens:
            is_end = torch.arange(scores.shape[1], device=scores.device) == eos_token_id  # (vocabulary,)
            scores = scores.masked_fill(is_end & (length < self.min_tokens), -float("inf"))
        return scores

    def _without_bad_words(self, tokens: "Tensor", scores: "Tensor", length: "Tensor | int") -> "Tensor":
        """(rows, vocabulary) scores, -inf for a token that would end a sequence of `bad_words_ids`."""
        import torch

        scores = scores.clone()
        for *start, last in self.bad_words_ids:
            if not start:
                scores[:, last] = -float("inf")
            elif len(start) <= tokens.shape[1]:
                # Where the sequence would have begun, if there are as many tokens.
                position = torch.arange(len(start), device=tokens.device) + (length - len(start))  # (start,)
                before = tokens.index_select(1, position.clamp(min=0))  # (rows, start)
                begun = (position[0] >= 0).expand(len(tokens))  # (rows,)
                for place, token in enumerate(start):
                    begun = begun & (before[:, place] == token)
                scores[:, last] = scores[:, last].masked_fill(begun, -float("inf"))
        return scores

    @property
    def may_rule_out_all(self) -> bool:
        """Whether a caption may come to where no token is allowed."""
        return bool(self.no_repeat_ngram and self.min_tokens)

    def check_choice(self, scores: "Tensor") -> None:
        """Raise InputError if a row of (rows, vocabulary) scores allows no token at all."""
        if self.may_rule_out_all and not scores.isfinite().any(-1).all():
            raise InputError(
                f"no_repeat_ngram={self.no_repeat_ngram} and min_tokens={self.min_tokens} leave no possible token: "
                "lower min_tokens"
            )


def _marked(tokens: "Tensor", where: "Tensor", scores: "Tensor") -> "Tensor":
    """(rows, vocabulary) bool, as `scores`: the tokens among the (rows, n) `tokens` where (rows, n) `where` is true."""
    import torch

    rows, vocabulary = scores.shape
    marked = torch.zeros(rows, vocabulary + 1, dtype=torch.bool, device=scores.device)  # the last column: the others
    return marked.scatter_(1, tokens.where(where, vocabulary), True)[:, :vocabulary]
