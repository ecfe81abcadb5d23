"""Beam search over the likeliest captions, ranked by mean log-probability, and its diverse kind.

With one group and two beams or more it is the search of `transformers.generate(num_beams=…)` with its defaults, and
finds the same captions; with one beam that is greedy, where this may find a likelier caption. It differs in what it
computes: the prefix is read once for an image, not once for a beam, and an image whose search has ended leaves the
batch. With more groups it is the diverse beam search of Vijayakumar et al. 2018: the beams of an image are searched in
groups, and what an earlier group wrote at the same step counts against a token (Hamming diversity).
"""

import itertools
import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from prefixcap.decoding.cache import KeyValueCache
from prefixcap.decoding.rules import GenerationLimits
from prefixcap.errors import InputError, OptionError
from prefixcap.language import LanguageModel
from prefixcap.utils.options import Count

_NEVER = -math.inf  # the score of what cannot be written


@torch.inference_mode()
def beam(
    language_model: LanguageModel,
    prefix: Tensor,
    limits: GenerationLimits,
    num_captions: Count = 1,
    beams: Count = 5,
    length_penalty: Annotated[float, Interval(ge=-10.0, le=10.0)] = 1.0,
    groups: Count = 1,
    diversity: Annotated[float, Interval(ge=0.0, le=1000.0)] = 0.5,
) -> list[list[list[int]]]:
    """Beam search: the likeliest captions.

    They are those with the highest sum of log-probabilities / length ** `length_penalty` that the search finds.

    A search ends when as many captions have ended as it has beams, and the best one still being written could not
    overtake the worst of them at its present length, or at `limits.max_tokens`. See `prefixcap.decoding.decode`.

    Args:
        language_model: writes.
        prefix: (batch, length, dim) what it reads first.
        limits: limits of a caption.
        num_captions: how many to return for each image, the best first; of several groups, first the best of each.
        beams: how many captions to keep at every step, of all groups together.
        length_penalty: 1.0 ranks by mean log-probability, 0.0 by its sum; higher favours long captions.
        groups: searches of an image that are kept apart; `beams` is a multiple.
        diversity: what a token's log-probability loses for each beam of an earlier group that takes it at this step.

    Raises:
        InputError: there are fewer beams than captions, or they are no multiple of `groups`.
    """
    if beams % groups:
        raise InputError(f"beams must be a multiple of groups={groups}, not {beams}")
    require_beams(num_captions, beams, groups)
    end, batch = language_model.eos_token_id, len(prefix)
    cache = KeyValueCache(prefix.shape[1] + limits.max_tokens)
    logits = language_model.step(prefix, cache)
    searches = [_Search(logits, beams // groups, limits.max_tokens, length_penalty, end) for _ in range(groups)]
    parts, starts = [logits] * groups, [0] * groups  # what each search goes on from, and its first row in the cache
    for length in range(1, limits.max_tokens + 1):
        # How many beams of an image took each token at this step.
        taken = logits.new_zeros(batch, logits.shape[-1]) if groups > 1 else None
        rows = []
        for search, part, start in zip(searches, parts, starts, strict=True):
            if not len(search.images):
                continue
            log_probs = limits.apply(search.tokens.flatten(0, 1), part.log_softmax(-1), end)
            log_probs = log_probs.view(*search.scores.shape, -1)
            if taken is not None:
                log_probs = log_probs - diversity * taken[search.images].unsqueeze(1)
            images, tokens, own_rows = search.advance(log_probs, length)
            rows.append(start + own_rows)
            if taken is not None:
                taken.index_put_((images, tokens), taken.new_ones(()), accumulate=True)
        cache_rows = torch.cat(rows)
        if not len(cache_rows):
            break
        cache.select(cache_rows)
        newest = torch.cat([search.tokens[..., -1].flatten() for search in searches])
        logits = language_model.step(language_model.embed(newest.unsqueeze(1)), cache)
        sizes = [search.scores.numel() for search in searches]
        parts, starts = list(torch.split(logits, sizes)), [0, *itertools.accumulate(sizes[:-1])]
    return [_ranked([search.found[image] for search in searches])[:num_captions] for image in range(batch)]


def require_beams(captions: int, beams: int, groups: int = 1) -> None:
    """Raise OptionError where a search with so many beams cannot end with so many captions."""
    if captions > beams:
        enough = math.ceil(captions / groups) * groups
        raise OptionError(f"captions must lie between 1 and beams={beams}, not {captions}", "beams", enough)


class _Search:
    """One group of beams for each image.

    Attributes:
        images: (open,) the images that are still searched.
        scores: (open, width) sums of log-probabilities of the captions that are being written.
        tokens: (open, width, length) their tokens.
        found: for each image whose search has ended, the score and the tokens of its captions, the best first.
    """

    def __init__(self, logits: Tensor, beams: int, max_tokens: int, length_penalty: float, end: int) -> None:
        batch, device = len(logits), logits.device
        self.beams, self.max_tokens, self.length_penalty, self.end = beams, max_tokens, length_penalty, end
        self.images = torch.arange(batch, device=device)
        self.scores = torch.zeros(batch, 1, device=device)
        self.tokens = torch.empty(batch, 1, 0, dtype=torch.long, device=device)
        self.found: list[list[tuple[float, list[int]]]] = [[] for _ in range(batch)]
        self._ended_scores = torch.full((batch, beams), _NEVER, device=device)  # of the best that have ended
        self._ended_tokens = torch.full((batch, beams, max_tokens), end, device=device)

    def advance(self, log_probs: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Write the next token, the `length`-th.

        Args:
            log_probs: (open, width, vocabulary) of the next token.
            length: of the captions with it.

        Returns:
            The image and the token of each beam that was written on; and, of those whose image is still searched, the
            row of `log_probs`, flattened, that each goes on from.
        """
        width, vocabulary = log_probs.shape[1:]
        # Twice as many candidates as beams: even if half of them end here, enough are left to go on with.
        count = min(2 * self.beams, width * vocabulary)
        likeliest, words = log_probs.topk(min(count, vocabulary))  # (open, width, at most count)
        candidate_scores, best = (self.scores.unsqueeze(-1) + likeliest).flatten(1).topk(count)  # (open, count)
        source, token = best // words.shape[-1], words.flatten(1).gather(1, best)
        candidates = torch.cat((_rows(self.tokens, source), token.unsqueeze(-1)), dim=-1)  # (open, count, length)
        ends, is_last = token == self.end, length == self.max_tokens

        # Only the best candidates, as many as beams, may end; the rest are there to go on with.
        may_end = (ends | is_last) & (torch.arange(count, device=ends.device) < self.beams)
        finals = torch.where(may_end, candidate_scores / length**self.length_penalty, _NEVER)
        padded = F.pad(candidates, (0, self.max_tokens - length), value=self.end)
        self._ended_scores, best = torch.cat((self._ended_scores, finals), dim=1).topk(self.beams)
        self._ended_tokens = _rows(torch.cat((self._ended_tokens, padded), dim=1), best)

        self.scores, kept = torch.where(ends, _NEVER, candidate_scores).topk(min(self.beams, count))
        self.tokens, source, token = _rows(candidates, kept), source.gather(1, kept), token.gather(1, kept)
        images = self.images.repeat_interleave(kept.shape[1])
        reachable = self.scores[:, 0] / length**self.length_penalty
        goes_on = (self._ended_scores[:, -1] <= _NEVER) | (reachable > self._ended_scores[:, -1])
        goes_on &= (self.scores[:, 0] > _NEVER) & (not is_last)
        rows = torch.arange(len(goes_on), device=goes_on.device).unsqueeze(1) * width + source
        if not goes_on.all():
            self._close(goes_on)
        return images, token.flatten(), rows[goes_on].flatten()

    def _close(self, goes_on: Tensor) -> None:
        """Keep what was found of the images whose search has ended, and go on with the others."""
        ended = ~goes_on
        of_images = zip(
            self.images[ended].tolist(),
            self._ended_scores[ended].tolist(),
            self._ended_tokens[ended].tolist(),
            strict=True,
        )
        for image, scores, captions in of_images:
            self.found[image] = [
                (score, tokens[: tokens.index(self.end)] if self.end in tokens else tokens)
                for score, tokens in zip(scores, captions, strict=True)
                if score > _NEVER
            ]
        self.images, self.scores, self.tokens = self.images[goes_on], self.scores[goes_on], self.tokens[goes_on]
        self._ended_scores, self._ended_tokens = self._ended_scores[goes_on], self._ended_tokens[goes_on]


def _ranked(found: list[list[tuple[float, list[int]]]]) -> list[list[int]]:
    """The captions of an image's groups: the best of each group, then the second best, and so on."""
    rounds = itertools.zip_longest(*found)
    ranked = [sorted(filter(None, of_groups), key=lambda caption: -caption[0]) for of_groups in rounds]
    return [tokens for of_groups in ranked for _, tokens in of_groups]


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """values (batch, n, length) at index (batch, m) -> (batch, m, length)."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
