"""The two decoders of ClipCap's published code (`generate_beam` and `generate2`), batched and with a cache.

They return the same tokens as that code, which reads the entire sequence again for every token, one image at a time.
They differ from the usual searches: a caption ends with a full stop, which is kept, and a beam that has ended keeps its
place among the beams.

Shapes: B images, W beams of an image, V vocabulary, M most tokens of a caption.
"""

import math

import torch
from torch import Tensor

from prefixcap.decoding.beam import require_beams
from prefixcap.decoding.captured import run
from prefixcap.decoding.padded import PaddedPrefix
from prefixcap.decoding.rules import GenerationLimits
from prefixcap.decoding.search import Search, write
from prefixcap.decoding.stepwise import argmax_token, generate
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel
from prefixcap.utils.options import Count


@torch.inference_mode()
def clipcap(
    language_model: LanguageModel,
    prefix: Tensor | PaddedPrefix,
    limits: GenerationLimits,
    num_captions: Count = 1,
    beams: Count = 5,
    stop: str = ".",
) -> list[list[list[int]]]:
    """ClipCap's beam search: a caption ends with a full stop.

    Beams are ranked by mean log-probability, and those that have ended keep competing (`generate_beam` of its code).

    Args:
        language_model: the model to decode with.
        prefix: (batch, length, dim) embeddings that every caption of an image continues.
        limits: limits of a caption.
        num_captions: how many to return for each image, the best first.
        beams: how many captions of an image to keep at each step.
        stop: the token that ends a caption; the caption keeps it.

    Returns:
        For each image the token ids of its captions.

    Raises:
        InputError: there are fewer beams than captions or more than the vocabulary has tokens, or `stop` is not one
            token.

    Examples:
        >>> from prefixcap.language import load_language_model
        >>> lm = load_language_model("demo")
        >>> prefix = lm.embed(torch.tensor([lm.tokenize_prompt("A red")]))  # (1, tokens, dim)
        >>> caption = clipcap(lm, prefix, GenerationLimits(max_tokens=20))[0][0]
        >>> lm.detokenize(caption)[-1]
        '.'
    """
    require_beams(num_captions, beams)
    stop_token = _stop_token(language_model, stop)
    search = _ClipCapSearch(len(prefix), (beams,), limits, stop_token, prefix.device)
    run(language_model, prefix, search)
    return [captions[:num_captions] for captions in search.captions()]


class _ClipCapSearch(Search):
    """Searches of B images with W beams each; arguments as of `Search`.

    Attributes:
        scores: (B, W) sums of log-probabilities.
        lengths: (B, W) tokens of each beam, up to its stop.
        stopped: (B, W) bool, the beams that have ended.
    """

    def __init__(self, images: int, rows: tuple[int], limits: GenerationLimits, end: int, device: torch.device) -> None:
        super().__init__(images, rows, limits, end, device)
        self.scores = torch.full((images, *rows), -math.inf, device=device)
        self.scores[:, 0] = 0  # one empty beam
        self.lengths = torch.zeros_like(self.scores)
        self.stopped = torch.zeros_like(self.scores, dtype=torch.bool)

    def unread(self) -> Tensor:
        return self.running.unsqueeze(1) & ~self.stopped

    def advance(self, logits: Tensor) -> Tensor:
        beams, vocabulary = self.scores.shape[1], logits.shape[1]
        if beams > vocabulary:
            raise InputError(f"beams must lie between 1 and {vocabulary}, the size of the vocabulary, not {beams}")
        # The W best continuations of all beams are among the W best of each.
        best_of_beam, token_of_beam = self.allowed(logits.log_softmax(-1)).topk(beams)  # (B * W or B, W)
        best_of_beam = best_of_beam.view(len(self.images), -1, beams)  # (B, W or 1, W)
        token_of_beam = token_of_beam.view(best_of_beam.shape).expand(-1, beams, -1)  # (B, W, W)
        # Candidates: W continuations of each beam by their mean log-probability. A beam that has ended has one, token 0
        # at no cost.
        stopped = self.stopped.unsqueeze(2)  # (B, W, 1)
        lengths = self.lengths + ~self.stopped  # (B, W)
        is_first = torch.arange(beams, device=stopped.device) == 0  # (W,) of a beam's candidates
        costs = torch.where(stopped, torch.where(is_first, 0.0, -math.inf), best_of_beam)  # (B, W, W)
        means = (self.scores.unsqueeze(2) + costs) / lengths.unsqueeze(2)
        candidates = token_of_beam.masked_fill(stopped, 0)
        # New beams: the best W of an image's W * W candidates.
        means, best = means.flatten(1).topk(beams)  # (B, W)
        parent = best // beams  # (B, W) the beam that each new beam extends
        token = candidates.flatten(1).gather(1, best)
        lengths = lengths.gather(1, parent)
        tokens = self.tokens.gather(1, parent.unsqueeze(-1).expand_as(self.tokens))
        write(self.tokens, self.running, tokens.index_copy(2, self.length.view(1), token.unsqueeze(-1)))
        write(self.scores, self.running, means * lengths)
        write(self.lengths, self.running, lengths)
        write(self.stopped, self.running, self.stopped.gather(1, parent) | (token == self.end))
        self.length += 1
        self.running &= ~self.stopped.all(1) & ~self.is_last()
        return parent

    def captions(self) -> list[list[list[int]]]:
        """The captions of each image that are possible, by descending mean log-probability."""
        means, order = self.in_order(self.scores / self.lengths).sort(descending=True, stable=True)  # (B, W)
        tokens, lengths = self.in_order(self.tokens), self.in_order(self.lengths).long()
        tokens = tokens.gather(1, order.unsqueeze(-1).expand_as(tokens))  # (B, W, M)
        return [
            [caption[:length] for mean, caption, length in zip(*beams, strict=True) if mean > -math.inf]
            for beams in zip(means.tolist(), tokens.tolist(), lengths.gather(1, order).tolist(), strict=True)
        ]


@torch.inference_mode()
def clipcap_greedy(
    language_model: LanguageModel, prefix: Tensor | PaddedPrefix, limits: GenerationLimits, stop: str = "."
) -> list[list[list[int]]]:
    """ClipCap's greedy search: the likeliest token, until a full stop.

    Args:
        language_model, prefix, limits: as in `clipcap`.
        stop: the token that ends a caption; the caption keeps it (`generate2` of its code).

    Returns:
        For each image a list with the token ids of one caption.

    Raises:
        InputError: `stop` is not one token.
    """
    stop_token = _stop_token(language_model, stop)
    return [[caption] for caption in generate(language_model, prefix, limits, argmax_token, stop_token)]


def _stop_token(language_model: LanguageModel, stop: str) -> int:
    tokens = language_model.tokenizer.encode(stop, add_special_tokens=False)
    if len(tokens) != 1:
        raise InputError(f"{stop!r} is not one token of language model '{language_model.name}': give another stop")
    return int(tokens[0])
