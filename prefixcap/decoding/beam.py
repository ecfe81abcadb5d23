"""Beam search for the captions with the highest mean log-probability, and diverse beam search.

With one group and at least two beams this is the search of `transformers.generate(num_beams=...)` with its defaults,
and it finds the same captions. With one beam transformers decodes greedily, whereas this search may still find a
likelier caption. It does less work: the prefix is read once per image instead of once per beam, and an image whose
search has ended leaves the batch. With several groups it is the diverse beam search of Vijayakumar et al. 2018: groups
of beams search separately, and a token is penalized for every beam of an earlier group that chose it at the same step
(Hamming diversity).

Shapes: B images still being searched, W beams of an image in a group, V vocabulary, T tokens generated so far, C
candidates of an image at a step.
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

_NEVER = -math.inf  # the score of a candidate that must not be chosen


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

    The search for an image ends at `limits.max_tokens`, or earlier, as soon as there are as many finished captions as
    beams and the best unfinished one, at its present length, scores no higher than the worst of them.

    Args:
        language_model: the model to decode with.
        prefix: (batch, length, dim) embeddings that every caption of an image continues.
        limits: limits of a caption.
        num_captions: how many to return for each image, the best first; of several groups, first the best of each.
        beams: how many unfinished captions of an image to keep at each step, all groups together.
        length_penalty: 1.0 ranks by the mean log-probability, 0.0 by the sum; higher values favour long captions.
        groups: separate searches for each image; must divide `beams`.
        diversity: subtracted from a token's log-probability for each beam of an earlier group that chose it at this
            step.

    Returns:
        For each image the token ids of its captions, without the end token.

    Raises:
        InputError: there are fewer beams than captions, or `groups` does not divide `beams`.

    Examples:
        >>> from prefixcap.language import load_language_model
        >>> lm = load_language_model("demo")
        >>> prefix = lm.embed(torch.tensor([lm.tokenize_prompt("A red")]))  # (1, tokens, dim)
        >>> captions = beam(lm, prefix, GenerationLimits(max_tokens=8), num_captions=2, beams=3)
        >>> len(captions), len(captions[0])
        (1, 2)
    """
    if beams % groups:
        raise InputError(f"beams must be a multiple of groups={groups}, not {beams}")
    require_beams(num_captions, beams, groups)
    eos, batch = language_model.eos_token_id, len(prefix)
    cache = KeyValueCache(prefix.shape[1] + limits.max_tokens)
    logits = language_model.step(prefix, cache)  # (batch, V)
    searches = [_Search(logits, beams // groups, limits.max_tokens, length_penalty, eos) for _ in range(groups)]
    # The logits that each search continues from, and the row of the cache where its beams begin. Before the first token
    # all searches share the rows of the prefix.
    group_logits, first_rows = [logits] * groups, [0] * groups
    for length in range(1, limits.max_tokens + 1):
        # (batch, V) how many beams of an image chose each token at this step, in the groups so far.
        times_chosen = logits.new_zeros(batch, logits.shape[-1]) if groups > 1 else None
        rows = []
        for search, logits_of_group, first_row in zip(searches, group_logits, first_rows, strict=True):
            if not len(search.images):
                continue
            log_probs = limits.apply(search.tokens.flatten(0, 1), logits_of_group.log_softmax(-1), eos)  # (B * W, V)
            log_probs = log_probs.view(*search.scores.shape, -1)  # (B, W, V)
            if times_chosen is not None:
                log_probs = log_probs - diversity * times_chosen[search.images].unsqueeze(1)
            images, tokens, parents = search.advance(log_probs, length)
            rows.append(first_row + parents)
            if times_chosen is not None:
                times_chosen.index_put_((images, tokens), times_chosen.new_ones(()), accumulate=True)
        cache_rows = torch.cat(rows)
        if not len(cache_rows):
            break
        # Each beam takes over the keys and values of the beam that it extends, and the model reads the new tokens of
        # all groups together.
        cache.select(cache_rows)
        newest = torch.cat([search.tokens[..., -1].flatten() for search in searches])  # (beams of all groups,)
        logits = language_model.step(language_model.embed(newest.unsqueeze(1)), cache)
        sizes = [search.scores.numel() for search in searches]
        group_logits, first_rows = list(torch.split(logits, sizes)), [0, *itertools.accumulate(sizes[:-1])]
    return [_merge_groups([search.finished[image] for search in searches])[:num_captions] for image in range(batch)]


def require_beams(captions: int, beams: int, groups: int = 1) -> None:
    """Raise OptionError if a search with this many beams cannot return this many captions."""
    if captions > beams:
        enough = math.ceil(captions / groups) * groups
        raise OptionError(f"captions must lie between 1 and beams={beams}, not {captions}", beams=enough)


class _Search:
    """The search of one group of beams, for all images of a batch.

    Attributes:
        images: (B,) the images that are still being searched, as rows of the batch.
        scores: (B, W) sums of log-probabilities of the unfinished captions, descending.
        tokens: (B, W, T) their tokens.
        finished: for each image of the batch whose search has ended, the score and the tokens of its captions, the best
            first.
    """

    def __init__(self, logits: Tensor, beams: int, max_tokens: int, length_penalty: float, eos: int) -> None:
        batch, device = len(logits), logits.device
        self.beams, self.max_tokens, self.length_penalty, self.eos = beams, max_tokens, length_penalty, eos
        self.images = torch.arange(batch, device=device)
        self.scores = torch.zeros(batch, 1, device=device)  # one empty beam of each image
        self.tokens = torch.empty(batch, 1, 0, dtype=torch.long, device=device)
        self.finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(batch)]
        # The best finished captions of each image so far, padded with end tokens, and their final scores, descending.
        self._finished_scores = torch.full((batch, beams), _NEVER, device=device)  # (B, beams)
        self._finished_tokens = torch.full((batch, beams, max_tokens), eos, device=device)  # (B, beams, max_tokens)

    def advance(self, log_probs: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Extend the beams by one token.

        Args:
            log_probs: (B, W, V) of the next token.
            length: T + 1, tokens of a caption with this one.

        Returns:
            The image and the chosen token of every new beam, each (B * new W,); and, for the beams of images whose
            search continues, the row of the flattened (B * W, V) `log_probs` that each of them extends.
        """
        width, vocabulary = log_probs.shape[1:]
        # Candidates: the best C pairs of beam and token. C is twice the number of beams, so that enough are left to
        # continue even if half of them end with this token. The best C of all are among the best C of each beam.
        count = min(2 * self.beams, width * vocabulary)
        best_of_beam, token_of_beam = log_probs.topk(min(count, vocabulary))  # (B, W, at most C)
        scores, best = (self.scores.unsqueeze(-1) + best_of_beam).flatten(1).topk(count)  # (B, C)
        parent = best // token_of_beam.shape[-1]  # (B, C) the beam that a candidate extends
        token = token_of_beam.flatten(1).gather(1, best)  # (B, C)
        candidates = torch.cat((_gather_rows(self.tokens, parent), token.unsqueeze(-1)), dim=-1)  # (B, C, T + 1)

        # Finished captions: only the best candidates, as many as there are beams, may end here.
        ends, is_last = token == self.eos, length == self.max_tokens
        may_end = (ends | is_last) & (torch.arange(count, device=ends.device) < self.beams)
        final_scores = torch.where(may_end, scores / length**self.length_penalty, _NEVER)
        padded = F.pad(candidates, (0, self.max_tokens - length), value=self.eos)  # (B, C, max_tokens)
        # They compete with those that finished earlier for the places of the best.
        self._finished_scores, best = torch.cat((self._finished_scores, final_scores), dim=1).topk(self.beams)
        self._finished_tokens = _gather_rows(torch.cat((self._finished_tokens, padded), dim=1), best)

        # New beams: the best candidates that do not end.
        self.scores, kept = torch.where(ends, _NEVER, scores).topk(min(self.beams, count))  # (B, new W)
        self.tokens, parent, token = _gather_rows(candidates, kept), parent.gather(1, kept), token.gather(1, kept)
        images = self.images.repeat_interleave(kept.shape[1])

        # A search continues while its best beam could still displace the worst finished caption.
        reachable = self.scores[:, 0] / length**self.length_penalty  # (B,)
        continues = (self._finished_scores[:, -1] <= _NEVER) | (reachable > self._finished_scores[:, -1])
        continues &= (self.scores[:, 0] > _NEVER) & (not is_last)
        rows = torch.arange(len(continues), device=continues.device).unsqueeze(1) * width + parent  # (B, new W)
        if not continues.all():
            self._close(continues)
        return images, token.flatten(), rows[continues].flatten()

    def _close(self, continues: Tensor) -> None:
        """Store the captions of the images whose search has ended, and drop these images. `continues`: (B,) bool."""
        ended = ~continues
        for image, scores, captions in zip(
            self.images[ended].tolist(),
            self._finished_scores[ended].tolist(),
            self._finished_tokens[ended].tolist(),
            strict=True,
        ):
            self.finished[image] = [
                (score, tokens[: tokens.index(self.eos)] if self.eos in tokens else tokens)
                for score, tokens in zip(scores, captions, strict=True)
                if score > _NEVER
            ]
        self.images, self.scores, self.tokens = self.images[continues], self.scores[continues], self.tokens[continues]
        self._finished_scores = self._finished_scores[continues]
        self._finished_tokens = self._finished_tokens[continues]


def _merge_groups(groups: list[list[tuple[float, list[int]]]]) -> list[list[int]]:
    """The captions of an image's groups in one list: first the best of each group, then the second best, and so on."""
    ranks = itertools.zip_longest(*groups)
    by_score = [sorted(filter(None, rank), key=lambda caption: -caption[0]) for rank in ranks]
    return [tokens for rank in by_score for _, tokens in rank]


def _gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """values (B, n, T) at index (B, m) -> (B, m, T)."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
