"""The two decoders of ClipCap's published code (`generate_beam` and `generate2`), batched and with a cache.

They return the same tokens as that code, which reads the entire sequence again for every token, one image at a time.
They differ from the usual searches: a caption ends with a full stop, which is kept, and a beam that has ended keeps its
place among the beams.

Shapes: B images still being searched, W beams of an image, V vocabulary, T tokens generated so far, R beams that have
not ended, of all images.
"""

import math

import torch
from torch import Tensor

from prefixcap.decoding.beam import require_beams
from prefixcap.decoding.cache import KeyValueCache
from prefixcap.decoding.rules import GenerationLimits
from prefixcap.decoding.stepwise import argmax_token, generate
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel
from prefixcap.utils.options import Count


@torch.inference_mode()
def clipcap(
    language_model: LanguageModel,
    prefix: Tensor,
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
    finished: list[list[list[int]]] = [[] for _ in prefix]
    images = torch.arange(len(prefix), device=prefix.device)  # (B,) those with a beam that has not ended
    cache = KeyValueCache(prefix.shape[1] + limits.max_tokens)
    log_probs = _log_probs(language_model, prefix, cache)  # (B, V)
    if beams > log_probs.shape[1]:
        raise InputError(f"beams must lie between 1 and {log_probs.shape[1]}, the size of the vocabulary, not {beams}")
    # The first token of each beam: the likeliest ones.
    scores, token = limits.apply(images.new_empty(len(images), 0), log_probs, stop_token).topk(beams)  # (B, W)
    tokens = token.unsqueeze(-1)  # (B, W, T)
    lengths = torch.ones_like(scores)  # (B, W) tokens of each beam, up to its stop
    stopped = token == stop_token
    rows = images.unsqueeze(1).expand(-1, beams)  # (B, W) the row of the cache that each beam continues
    for length in range(1, limits.max_tokens + 1):
        # Images whose beams have all ended leave the batch.
        closed = stopped.all(dim=1) | (length == limits.max_tokens)
        if closed.any():
            for image, means, captions_of_image, ends in zip(
                *(values[closed].tolist() for values in (images, scores / lengths, tokens, lengths)), strict=True
            ):
                order = sorted(range(beams), key=means.__getitem__, reverse=True)
                possible = [beam for beam in order if means[beam] > -math.inf]
                finished[image] = [captions_of_image[beam][: int(ends[beam])] for beam in possible[:num_captions]]
            if closed.all():
                break
            images, scores, tokens, lengths, stopped, rows = (
                values[~closed] for values in (images, scores, tokens, lengths, stopped, rows)
            )
        # The language model reads the newest token of the beams that have not ended.
        running = ~stopped  # (B, W), R of them true
        cache.select(rows[running])
        log_probs = _log_probs(language_model, language_model.embed(tokens[running][:, -1:]), cache)  # (R, V)
        # The W best continuations of all beams are among the W best of each.
        best_of_beam, token_of_beam = limits.apply(tokens[running], log_probs, stop_token).topk(beams)  # (R, W)
        # Candidates: W continuations of each beam by their mean log-probability. A beam that has ended has one, token 0
        # at no cost.
        lengths = lengths + running
        means = torch.full((*stopped.shape, beams), -torch.inf, device=scores.device)  # (B, W, W)
        means[..., 0] = scores / lengths
        means[running] = (scores[running].unsqueeze(1) + best_of_beam) / lengths[running].unsqueeze(1)
        candidates = token_of_beam.new_zeros(means.shape).masked_scatter(running.unsqueeze(-1), token_of_beam)
        # New beams: the best W of an image's W * W candidates.
        means, best = means.flatten(1).topk(beams)  # (B, W)
        parent = best // beams  # (B, W) the beam that each new beam extends
        token = candidates.flatten(1).gather(1, best)
        lengths = lengths.gather(1, parent)
        scores = means * lengths
        tokens = torch.cat((tokens.gather(1, parent.unsqueeze(-1).expand_as(tokens)), token.unsqueeze(-1)), dim=-1)
        stopped = stopped.gather(1, parent) | (token == stop_token)
        # The cache has R rows now: number them by beam, and take those of the parents.
        row_of_beam = torch.zeros_like(parent).masked_scatter(
            running, torch.arange(len(token_of_beam), device=parent.device)
        )
        rows = row_of_beam.gather(1, parent)
    return finished


@torch.inference_mode()
def clipcap_greedy(
    language_model: LanguageModel, prefix: Tensor, limits: GenerationLimits, stop: str = "."
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


def _log_probs(language_model: LanguageModel, embeddings: Tensor, cache: KeyValueCache) -> Tensor:
    return language_model.step(embeddings, cache).log_softmax(-1)


def _stop_token(language_model: LanguageModel, stop: str) -> int:
    tokens = language_model.tokenizer.encode(stop, add_special_tokens=False)
    if len(tokens) != 1:
        raise InputError(f"{stop!r} is not one token of language model '{language_model.name}': give another stop")
    return int(tokens[0])
