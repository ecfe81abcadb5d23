"""The two decoders of ClipCap's published code (`generate_beam` and `generate2`), batched and with a cache.

They give the same tokens as that code, which reads the whole sequence again for every token, one image at a time, and
differ from the usual searches: a caption ends with a full stop, which stays, and a beam that has ended keeps its place.
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

    Beams are ranked by mean log-probability, and one that has ended keeps its place (`generate_beam` of its code).

    Args:
        language_model: writes.
        prefix: (batch, length, dim) what it reads first.
        limits: limits of a caption.
        num_captions: how many to return for each image, the best first.
        beams: how many captions to keep at every step.
        stop: a caption ends with this token, and keeps it.

    Raises:
        InputError: there are fewer beams than captions, or more than the language model has tokens, or `stop` is not
            one of these.
    """
    require_beams(num_captions, beams)
    stop_token = _token(language_model, stop)
    found: list[list[list[int]]] = [[] for _ in prefix]
    images = torch.arange(len(prefix), device=prefix.device)  # those with a beam that has not ended
    cache = KeyValueCache(prefix.shape[1] + limits.max_tokens)
    log_probs = _log_probs(language_model, prefix, cache)
    if beams > log_probs.shape[1]:
        raise InputError(
            f"beams must lie between 1 and {log_probs.shape[1]}, the tokens of the language model, not {beams}"
        )
    scores, words = limits.apply(images.new_empty(len(images), 0), log_probs, stop_token).topk(beams)
    tokens = words.unsqueeze(-1)  # (open, beams, length)
    lengths = torch.ones_like(scores)
    stopped = words == stop_token
    rows = images.unsqueeze(1).expand(-1, beams)  # (open, beams): the row of the cache that each beam goes on from
    for length in range(1, limits.max_tokens + 1):
        closed = stopped.all(dim=1) | (length == limits.max_tokens)
        if closed.any():
            of_closed = (values[closed].tolist() for values in (images, scores / lengths, tokens, lengths))
            for image, means, written, ends in zip(*of_closed, strict=True):
                order = sorted(range(beams), key=means.__getitem__, reverse=True)
                possible = [beam for beam in order if means[beam] > -math.inf]
                found[image] = [written[beam][: int(ends[beam])] for beam in possible[:num_captions]]
            if closed.all():
                break
            images, scores, tokens, lengths, stopped, rows = (
                values[~closed] for values in (images, scores, tokens, lengths, stopped, rows)
            )
        writing = ~stopped
        cache.select(rows[writing])
        log_probs = _log_probs(language_model, language_model.embed(tokens[writing][:, -1:]), cache)
        # The five best of all beams are among the five best of each.
        highest, words = limits.apply(tokens[writing], log_probs, stop_token).topk(beams)
        lengths = lengths + writing
        ranks = torch.full((*stopped.shape, beams), -torch.inf, device=scores.device)  # (open, beams, beams)
        ranks[..., 0] = scores / lengths  # a beam that has ended goes on with token 0 at no cost
        ranks[writing] = (scores[writing].unsqueeze(1) + highest) / lengths[writing].unsqueeze(1)
        candidates = words.new_zeros(ranks.shape).masked_scatter(writing.unsqueeze(-1), words)
        ranks, best = ranks.flatten(1).topk(beams)
        source = best // beams
        word = candidates.flatten(1).gather(1, best)
        lengths = lengths.gather(1, source)
        scores = ranks * lengths
        tokens = torch.cat((tokens.gather(1, source.unsqueeze(-1).expand_as(tokens)), word.unsqueeze(-1)), dim=-1)
        stopped = stopped.gather(1, source) | (word == stop_token)
        read = torch.zeros_like(source).masked_scatter(writing, torch.arange(len(words), device=source.device))
        rows = read.gather(1, source)
    return found


@torch.inference_mode()
def clipcap_greedy(
    language_model: LanguageModel, prefix: Tensor, limits: GenerationLimits, stop: str = "."
) -> list[list[list[int]]]:
    """ClipCap's greedy search: the likeliest token, until a full stop.

    Args:
        language_model, prefix, limits: as those of `clipcap`.
        stop: a caption ends with this token, and keeps it.

    Raises:
        InputError: `stop` is not one token of the language model.
    """
    return [
        [caption] for caption in generate(language_model, prefix, limits, argmax_token, _token(language_model, stop))
    ]


def _log_probs(language_model: LanguageModel, embeddings: Tensor, cache: KeyValueCache) -> Tensor:
    return language_model.step(embeddings, cache).log_softmax(-1)


def _token(language_model: LanguageModel, text: str) -> int:
    tokens = language_model.tokenizer.encode(text, add_special_tokens=False)
    if len(tokens) != 1:
        raise InputError(f"{text!r} is not one token of language model '{language_model.name}': give another stop")
    return int(tokens[0])
