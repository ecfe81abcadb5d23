"""Beam search for the captions with the highest mean log-probability, and diverse beam search.

With one group and at least two beams this is the search of `transformers.generate(num_beams=...)` with its defaults,
and it finds the same captions. With one beam transformers decodes greedily, whereas this search may still find a
likelier caption. It does less work: the prefix is read once per image instead of once per beam, and an image whose
search has ended leaves the batch. With several groups it is the diverse beam search of Vijayakumar et al. 2018: groups
of beams search separately, and a token is penalized for every beam of an earlier group that chose it at the same step
(Hamming diversity).

Words that every caption must have make it grid beam search (Hokamp and Liu 2017): beams compete with those that lack as
many tokens of the words, a bank, so that likely beams without a word do not displace all that have it. The banks share
one beam (Post and Vilar 2018).

Shapes: B images, G groups of beams of an image, W beams of a group, V vocabulary, M most tokens of a caption, C
candidates of a group at a step, K of a bank (all of them if no words are forced).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from prefixcap.decoding.captured import run
from prefixcap.decoding.forced import ForcedWords, forced_words
from prefixcap.decoding.padded import PaddedPrefix
from prefixcap.decoding.rules import GenerationLimits
from prefixcap.decoding.search import Search, write
from prefixcap.errors import InputError, OptionError
from prefixcap.language import LanguageModel
from prefixcap.utils.options import Count

_NEVER = -math.inf  # the score of a candidate that must not be chosen


@torch.inference_mode()
def beam(
    language_model: LanguageModel,
    prefix: Tensor | PaddedPrefix,
    limits: GenerationLimits,
    num_captions: Count = 1,
    beams: Count = 5,
    length_penalty: Annotated[float, Interval(ge=-10.0, le=10.0)] = 1.0,
    groups: Count = 1,
    diversity: Annotated[float, Interval(ge=0.0, le=1000.0)] = 0.5,
    force_words_ids: Sequence[Sequence[Sequence[int]]] = (),
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
        force_words_ids: for each word that a caption must have its spellings, as token ids, of which it has at least
            one, see `prefixcap.language.tokens.force_words_ids`.

    Returns:
        For each image the token ids of its captions, without the end token.

    Raises:
        InputError: there are fewer beams than captions, or `groups` does not divide `beams`; a word to force has no
            spelling or is ruled out, all take more than `limits.max_tokens`, or no caption was found that has them.

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
    eos, device = language_model.eos_token_id, prefix.device
    forced = forced_words(language_model, force_words_ids, limits)
    search = _BeamSearch(len(prefix), groups, beams // groups, limits, eos, device, length_penalty, diversity, forced)
    run(language_model, prefix, search)
    captions = [_merge_groups(groups)[:num_captions] for groups in search.captions()]
    if forced is not None and not all(captions):
        raise InputError(
            f"no caption of at most max_tokens={limits.max_tokens} with all words of force_words_ids was found: raise "
            "max_tokens, or force fewer words"
        )
    return captions


def require_beams(captions: int, beams: int, groups: int = 1) -> None:
    """Raise OptionError if a search with this many beams cannot return this many captions."""
    if captions > beams:
        enough = math.ceil(captions / groups) * groups
        raise OptionError(f"captions must lie between 1 and beams={beams}, not {captions}", beams=enough)


class _BeamSearch(Search):
    """Searches of B images with G groups of W beams each; arguments as of `Search` and `beam`.

    Attributes:
        searching: (B, G) bool, the groups whose search has not ended.
        scores: (B, G, W) sums of log-probabilities of the unfinished captions, descending; `_NEVER`: there is none.
        finished_scores: (B, G, W) final scores of the best finished captions so far, descending.
        finished_tokens: (B, G, W, M) their tokens, padded with end tokens.
    """

    def __init__(
        self,
        images: int,
        groups: int,
        beams: int,
        limits: GenerationLimits,
        end: int,
        device: torch.device,
        length_penalty: float,
        diversity: float,
        forced: ForcedWords | None = None,
    ) -> None:
        super().__init__(images, (groups, beams), limits, end, device)
        self.forced = forced
        self.groups, self.beams, self.length_penalty, self.diversity = groups, beams, length_penalty, diversity
        self.searching = torch.ones(images, groups, dtype=torch.bool, device=device)
        self.scores = torch.full((images, groups, beams), _NEVER, device=device)
        self.scores[..., 0] = 0  # one empty caption
        self.finished_scores = torch.full_like(self.scores, _NEVER)
        self.finished_tokens = torch.full_like(self.tokens, end)

    def unread(self) -> Tensor:
        return self.searching.repeat_interleave(self.beams, dim=1)

    def advance(self, logits: Tensor) -> Tensor:
        log_probs = self.allowed(logits.log_softmax(-1)).view(len(self.images), -1, logits.shape[1])
        self.length += 1
        # (B, V) how many beams of an image chose each token at this step, in the groups so far.
        times_chosen = torch.zeros_like(log_probs[:, 0]) if self.groups > 1 else None
        parents = []
        for group in range(self.groups):
            start = group * self.beams
            own = log_probs if log_probs.shape[1] == 1 else log_probs[:, start : start + self.beams]  # (B, 1 or W, V)
            if times_chosen is not None:
                own = own - self.diversity * times_chosen.unsqueeze(1)
            parent, token, is_chosen = self._advance_group(group, own)
            parents.append(start + parent)
            if times_chosen is not None:
                times_chosen.scatter_add_(1, token, is_chosen.to(times_chosen.dtype))
        self.running.copy_(self.searching.any(1))
        return torch.cat(parents, dim=1)

    def _advance_group(self, group: int, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Extend the beams of a group by one token, given (B, W, V) log-probabilities, or (B, 1, V) of all.

        Returns:
            The beam that each new beam extends and the token that it adds, and whether it does, each (B, W).
        """
        searching, scores, tokens = self.searching[:, group], self.scores[:, group], self.tokens[:, group]
        finished_scores, finished_tokens = self.finished_scores[:, group], self.finished_tokens[:, group]
        length_factor = self.length.double() ** self.length_penalty
        # Candidates: the best K pairs of beam and token, of each bank. K is twice the number of beams, so that enough
        # are left to continue even if half of them end with this token.
        count = min(2 * self.beams, self.beams * log_probs.shape[-1])
        if self.forced is None:
            candidate_scores, parent, token = _best_candidates(scores, log_probs, count)  # (B, C)
        else:
            candidate_scores, parent, token = self._best_of_banks(self.forced, group, log_probs, count)
        rank = torch.arange(candidate_scores.shape[1], device=token.device) % count  # (C,) in its bank
        candidates = _gather_rows(tokens, parent).index_copy(2, (self.length - 1).view(1), token.unsqueeze(-1))

        # Finished captions: only the best candidates of a bank, as many as there are beams, may end here.
        ends, is_last = token == self.end, self.is_last()
        may_end = (ends | is_last) & (rank < self.beams)
        final_scores = torch.where(may_end, candidate_scores / length_factor, _NEVER)
        # They compete with those that finished earlier for the places of the best.
        best_scores, best = torch.cat((finished_scores, final_scores), dim=1).topk(self.beams)
        write(finished_tokens, searching, _gather_rows(torch.cat((finished_tokens, candidates), dim=1), best))
        write(finished_scores, searching, best_scores)

        # New beams: the best candidates that do not end.
        new_scores, kept = self._choose(torch.where(ends, _NEVER, candidate_scores), count)  # (B, W)
        parent, token = parent.gather(1, kept), token.gather(1, kept)
        write(tokens, searching, _gather_rows(candidates, kept))
        write(scores, searching, new_scores)
        is_chosen = searching.unsqueeze(1) & (new_scores > _NEVER)

        # A search continues while its best beam could still displace the worst finished caption.
        reachable = scores[:, 0] / length_factor  # (B,)
        searching &= (finished_scores[:, -1] <= _NEVER) | (reachable > finished_scores[:, -1])
        searching &= (scores[:, 0] > _NEVER) & ~is_last
        return parent, token, is_chosen

    def _best_of_banks(
        self, forced: ForcedWords, group: int, log_probs: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `_best_candidates` of each bank: first of those that lack no token of the words, then one, and so on.

        None ends before it has all words, or lacks more tokens than there is room for.
        """
        tokens = self.tokens[:, group, : log_probs.shape[1]]  # (B, 1 or W, M)
        log_probs, token, missing = forced.candidates(tokens, self.length - 1, log_probs, count)  # (B, 1 or W, N)
        is_possible = missing <= torch.where(token == self.end, 0, self.limits.max_tokens - self.length)
        bank = torch.arange(forced.most_missing + 1, device=token.device).view(-1, 1, 1)  # (banks, 1, 1)
        in_bank = is_possible.unsqueeze(1) & (missing.unsqueeze(1) == bank)  # (B, banks, 1 or W, N)
        scores = self.scores[:, group].unsqueeze(-1) + log_probs  # (B, W, N)
        scores, best = scores.unsqueeze(1).where(in_bank, _NEVER).flatten(2).topk(count)  # (B, banks, K)
        token = token.expand(-1, self.beams, -1).flatten(1).gather(1, best.flatten(1))  # (B, C)
        return scores.flatten(1), best.flatten(1) // log_probs.shape[-1], token

    def _choose(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The new beams among (B, C) scores of candidates, `count` of each bank: (B, W) their scores, descending, and
        which ones they are.

        Of several banks the best of each comes first, then the second best of each, and so on, beginning with the bank
        that lacks least: they share the beams equally, and where one has fewer candidates, others get its share.
        """
        banks = scores.shape[1] // count
        if banks == 1:
            return scores.topk(self.beams)
        is_candidate = scores.view(len(scores), banks, count) > _NEVER  # (B, banks, K)
        rank, bank = is_candidate.cumsum(-1) - 1, torch.arange(banks, device=scores.device).unsqueeze(1)
        turn = torch.where(is_candidate, rank * banks + bank, scores.shape[1] * banks).flatten(1)  # (B, C)
        kept = turn.topk(self.beams, largest=False).indices  # (B, W)
        new_scores, order = scores.gather(1, kept).sort(descending=True)
        return new_scores, kept.gather(1, order)

    def captions(self) -> list[list[list[tuple[float, list[int]]]]]:
        """For each image and group the scores and tokens of the finished captions, the best first."""
        scores, tokens = self.in_order(self.finished_scores).tolist(), self.in_order(self.finished_tokens).tolist()
        return [
            [
                [
                    (score, caption[: caption.index(self.end)] if self.end in caption else caption)
                    for score, caption in zip(*group, strict=True)
                    if score > _NEVER
                ]
                for group in zip(*image, strict=True)
            ]
            for image in zip(scores, tokens, strict=True)
        ]


def _merge_groups(groups: list[list[tuple[float, list[int]]]]) -> list[list[int]]:
    """The captions of an image's groups in one list: first the best of each group, then the second best, and so on."""
    ranks = itertools.zip_longest(*groups)
    by_score = [sorted(filter(None, rank), key=lambda caption: -caption[0]) for rank in ranks]
    return [tokens for rank in by_score for _, tokens in rank]


def _best_candidates(scores: Tensor, log_probs: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of a beam and its next token: their scores, the beam and the token, each (B, K).

    Args:
        scores: (B, W) of the beams.
        log_probs: (B, W, V) of the next token of each, or (B, 1, V) of all.
        count: K.
    """
    # The best K of all are among the best K of each beam.
    best_of_beam, token_of_beam = log_probs.topk(min(count, log_probs.shape[-1]))  # (B, 1 or W, at most K)
    token_of_beam = token_of_beam.expand(-1, scores.shape[1], -1)
    candidate_scores, best = (scores.unsqueeze(-1) + best_of_beam).flatten(1).topk(count)  # (B, K)
    parent = best // token_of_beam.shape[-1]  # the beam that a candidate extends
    return candidate_scores, parent, token_of_beam.flatten(1).gather(1, best)


def _gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """values (B, n, T) at index (B, m) -> (B, m, T)."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
