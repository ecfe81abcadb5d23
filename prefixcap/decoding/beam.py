"""Beam search over the likeliest captions, ranked by mean log-probability.

The same search as `transformers.generate(num_beams=…)` with its defaults, and the same captions. It differs in what
it computes: the prefix is read once for an image, not once for a beam, and an image whose search has ended leaves
the batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.decoding.greedy import check_room
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel

_NEVER = -1.0e9  # a score that no caption can have


@torch.inference_mode()
def beam(
    language_model: LanguageModel,
    prefix: Tensor,
    beams: int = 5,
    max_tokens: int = 67,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """The caption with the highest sum of log-probabilities / length ** `length_penalty` that the search finds.

    A search ends when `beams` captions have ended and the best one still being written could not overtake the worst
    of them at its present length, or at `max_tokens`.

    Args:
        prefix: (batch, length, dim) what the language model reads first.
        beams: how many captions to keep at every step.
        max_tokens: most tokens a caption may have, the end token included.
        length_penalty: 1.0 ranks by mean log-probability, 0.0 by its sum; higher favours long captions.

    Returns:
        The token ids of each image's best caption, without the end token.

    Raises:
        InputError: `beams` is below 1, or prefix and `max_tokens` together exceed the language model's context.
    """
    from transformers import DynamicCache

    check_room(language_model, prefix, max_tokens)
    if beams < 1:
        raise InputError(f"beams must be at least 1, not {beams}")
    device, batch, end = prefix.device, len(prefix), language_model.end_token
    captions: list[list[int]] = [[] for _ in prefix]

    cache = DynamicCache()
    log_probs = language_model.step(prefix, cache).log_softmax(-1).unsqueeze(1)  # (batch, 1, vocabulary)
    images = torch.arange(batch, device=device)  # which images are still searched
    scores = torch.zeros(batch, 1, device=device)  # sums of log-probabilities of what is being written
    tokens = torch.empty(batch, 1, 0, dtype=torch.long, device=device)
    ended_scores = torch.full((batch, beams), _NEVER, device=device)  # of the best captions that have ended
    ended_tokens = torch.full((batch, beams, max_tokens), end, device=device)

    for length in range(1, max_tokens + 1):
        width, vocabulary = log_probs.shape[1:]  # width: beams of an image that are being written
        # Twice as many candidates as beams: even if half of them end here, enough are left to go on with.
        count = min(2 * beams, width * vocabulary)
        candidate_scores, flat = (scores.unsqueeze(-1) + log_probs).flatten(1).topk(count)  # (batch, count)
        source, token = flat // vocabulary, flat % vocabulary
        candidates = torch.cat((_rows(tokens, source), token.unsqueeze(-1)), dim=-1)  # (batch, count, length)
        ends = (token == end) | (length == max_tokens)

        # Only the best `beams` candidates may end; the rest are there to go on with.
        may_end = ends & (torch.arange(count, device=device) < beams)
        finals = torch.where(may_end, candidate_scores / length**length_penalty, _NEVER)
        padded = F.pad(candidates, (0, max_tokens - length), value=end)
        ended_scores, best = torch.cat((ended_scores, finals), dim=1).topk(beams)
        ended_tokens = _rows(torch.cat((ended_tokens, padded), dim=1), best)

        scores, kept = torch.where(ends, _NEVER, candidate_scores).topk(min(beams, count))
        tokens, source, token = _rows(candidates, kept), source.gather(1, kept), token.gather(1, kept)
        reachable = scores[:, 0] / length**length_penalty
        open_images = (ended_scores[:, -1] <= _NEVER) | (reachable > ended_scores[:, -1])
        open_images &= scores[:, 0] > _NEVER
        closed = ~open_images
        if closed.any():
            for image, best_tokens in zip(images[closed].tolist(), ended_tokens[closed, 0].tolist(), strict=True):
                captions[image] = best_tokens[: best_tokens.index(end)] if end in best_tokens else best_tokens
        if closed.all():
            break
        # Row of the cache that each surviving beam of each open image goes on from.
        rows = torch.arange(len(images), device=device).unsqueeze(1) * width + source
        cache.batch_select_indices(rows[open_images].flatten())
        images, scores, tokens = images[open_images], scores[open_images], tokens[open_images]
        ended_scores, ended_tokens = ended_scores[open_images], ended_tokens[open_images]
        read = language_model.embed(token[open_images].reshape(-1, 1))
        log_probs = language_model.step(read, cache).log_softmax(-1).view(len(images), -1, vocabulary)
    return captions


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """values (batch, n, length) at index (batch, m) -> (batch, m, length)."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
