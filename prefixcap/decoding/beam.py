"""Beam search for the captions with the highest mean log-probability, and diverse beam search.

With one group and at least two beams this is the search of `transformers.generate(num_beams=...)` with its defaults,
and it finds the same captions. With one beam transformers decodes greedily, whereas this search may still find a
likelier caption. It does less work: the prefix is read once per image instead of once per beam, and an image whose
search has ended leaves the batch. With several groups it is the diverse beam search of Vijayakumar et al. 2018: groups
of beams search separately, and a token is penalized for every beam of an earlier group that chose it at the same step
(Hamming diversity).

Shapes: B images, G groups of beams of an image, W beams of a group, V vocabulary, M most tokens of a caption, C
candidates of a group at a step.
"""

import itertools
import math
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from prefixcap.decoding.captured import run
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
    eos, device = language_model.eos_token_id, prefix.device
    search = _BeamSearch(len(prefix), groups, beams // groups, limits, eos, device, length_penalty, diversity)
    run(language_model, prefix, search)
    return [_merge_groups(groups)[:num_captions] for groups in search.captions()]


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
    ) -> None:
        super().__init__(images, (groups, beams), limits, end, device)
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
        vocabulary, length_factor = log_probs.shape[-1], self.length.double() ** self.length_penalty
        # Candidates: the best C pairs of beam and token. C is twice the number of beams, so that enough are left to
        # continue even if half of them end with this token. The best C of all are among the best C of each beam.
        count = min(2 * self.beams, self.beams * vocabulary)
        best_of_beam, token_of_beam = log_probs.topk(min(count, vocabulary))  # (B, 1 or W, at most C)
        token_of_beam = token_of_beam.expand(-1, self.beams, -1)
        candidate_scores, best = (scores.unsqueeze(-1) + best_of_beam).flatten(1).topk(count)  # (B, C)
        parent = best // token_of_beam.shape[-1]  # (B, C) the beam that a candidate extends
        token = token_of_beam.flatten(1).gather(1, best)  # (B, C)
        candidates = _gather_rows(tokens, parent).index_copy(2, (self.length - 1).view(1), token.unsqueeze(-1))

        # Finished captions: only the best candidates, as many as there are beams, may end here.
        ends, is_last = token == self.end, self.is_last()
        may_end = (ends | is_last) & (torch.arange(count, device=ends.device) < self.beams)
        final_scores = torch.where(may_end, candidate_scores / length_factor, _NEVER)
        # They compete with those that finished earlier for the places of the best.
        best_scores, best = torch.cat((finished_scores, final_scores), dim=1).topk(self.beams)
        write(finished_tokens, searching, _gather_rows(torch.cat((finished_tokens, candidates), dim=1), best))
        write(finished_scores, searching, best_scores)

        # New beams: the best candidates that do not end.
        new_scores, kept = torch.where(ends, _NEVER, candidate_scores).topk(self.beams)  # (B, W)
        parent, token = parent.gather(1, kept), token.gather(1, kept)
        write(tokens, searching, _gather_rows(candidates, kept))
        write(scores, searching, new_scores)
        is_chosen = searching.unsqueeze(1) & (new_scores > _NEVER)

        # A search continues while its best beam could still displace the worst finished caption.
        reachable = scores[:, 0] / length_factor  # (B,)
        searching &= (finished_scores[:, -1] <= _NEVER) | (reachable > finished_scores[:, -1])
        searching &= (scores[:, 0] > _NEVER) & ~is_last
        return parent, token, is_chosen

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


def _gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """values (B, n, T) at index (B, m) -> (B, m, T)."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
