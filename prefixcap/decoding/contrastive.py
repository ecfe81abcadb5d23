"""Contrastive search (Su et al. 2022): likely tokens that do not repeat what the language model has in mind already."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.decoding.cache import KeyValueCache
from prefixcap.decoding.rules import GenerationLimits
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel
from prefixcap.utils.options import Positive, Proportion


@torch.inference_mode()
def contrastive(
    language_model: LanguageModel,
    prefix: Tensor,
    limits: GenerationLimits,
    top_k: Positive = 4,
    penalty: Proportion = 0.6,
    guide: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> list[list[list[int]]]:
    """Contrastive search: likely tokens that do not repeat what was said.

    Of the likeliest tokens it takes the one with the highest (1 - penalty) * probability - penalty * similarity.

    The similarity is the highest cosine between the hidden state that the token would have and those of all positions
    before it, prefix included (equation 5). See `prefixcap.decoding.decode`.

    Args:
        language_model: writes.
        prefix: (batch, length, dim) what it reads first.
        limits: limits of a caption.
        top_k: how many tokens to choose from.
        penalty: on similarity to the tokens before, 0.0 to 1.0; 0.0 is greedy decoding.
        guide: gives what is added to the scores, (open, top_k), of the rows of `prefix` whose captions have not ended
            (open,), what they have written (open, length), and the tokens to choose from (open, top_k). None: nothing.

    Raises:
        InputError: the language model has fewer tokens than `top_k`.
    """
    end, device = language_model.eos_token_id, prefix.device
    cache = KeyValueCache(prefix.shape[1] + limits.max_tokens)
    logits, hidden = language_model.step_with_states(prefix, cache)
    if top_k > logits.shape[1]:
        raise InputError(
            f"top_k must lie between 1 and {logits.shape[1]}, the tokens of the language model, not {top_k}"
        )
    before = F.normalize(hidden, dim=-1)  # (open, length, dim) of all positions so far
    images = torch.arange(len(prefix), device=device)  # those whose caption has not ended
    rows = images
    tokens = torch.empty(len(prefix), 0, dtype=torch.long, device=device)
    captions: list[list[int]] = [[] for _ in prefix]
    for length in range(1, limits.max_tokens + 1):
        allowed = limits.apply(tokens, logits, end)
        limits.check_choice(allowed)
        likeliest, words = allowed.softmax(-1).topk(top_k)  # (open, top_k)
        # All candidates are read: what the chosen one leaves behind is what the next step goes on from.
        cache.select(rows.repeat_interleave(top_k))
        logits, hidden = language_model.step_with_states(language_model.embed(words.reshape(-1, 1)), cache)
        states = F.normalize(hidden, dim=-1).view(len(words), top_k, -1)
        similarity = (states @ before.transpose(1, 2)).amax(-1)  # (open, top_k)
        scores = (1 - penalty) * likeliest - penalty * similarity
        if guide is not None:
            scores = scores + guide(images, tokens, words)
        scores = scores.masked_fill(allowed.gather(1, words) == -torch.inf, -torch.inf)
        best = scores.argmax(-1, keepdim=True)
        chosen = words.gather(1, best)
        tokens = torch.cat((tokens, chosen), dim=1)
        ended = (chosen.squeeze(1) == end) | (length == limits.max_tokens)
        for image, caption in zip(images[ended].tolist(), tokens[ended].tolist(), strict=True):
            captions[image] = caption[:-1] if caption[-1] == end else caption
        if ended.all():
            break
        open_rows = (~ended).nonzero().squeeze(1)
        rows = open_rows * top_k + best[open_rows].squeeze(1)
        before = torch.cat((before[open_rows], states[open_rows, best[open_rows].squeeze(1)].unsqueeze(1)), dim=1)
        images, tokens, logits = images[open_rows], tokens[open_rows], logits[rows]
    return [[caption] for caption in captions]
