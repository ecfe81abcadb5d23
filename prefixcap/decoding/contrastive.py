"""Contrastive search (Su et al. 2022): likely tokens whose hidden states are unlike those before them.

Shapes: B images whose caption has not ended, K candidates, V vocabulary, T tokens generated so far, L positions of
prefix and tokens, H width of the hidden states.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.decoding.cache import KeyValueCache
from prefixcap.decoding.padded import PaddedPrefix
from prefixcap.decoding.rules import GenerationLimits
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel
from prefixcap.utils.options import Positive, Proportion


@torch.inference_mode()
def contrastive(
    language_model: LanguageModel,
    prefix: Tensor | PaddedPrefix,
    limits: GenerationLimits,
    top_k: Positive = 4,
    penalty: Proportion = 0.6,
    guide: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> list[list[list[int]]]:
    """Contrastive search: likely tokens that do not repeat what was said.

    Of the likeliest tokens it chooses the one with the highest (1 - penalty) * probability - penalty * similarity.
    The similarity of a token is the highest cosine between its hidden state and those of all positions before it, the
    prefix included (equation 5).

    Args:
        language_model: the model to decode with.
        prefix: (batch, length, dim) embeddings that every caption continues.
        limits: limits of a caption.
        top_k: how many tokens to choose from.
        penalty: weight of the similarity; 0.0 is greedy decoding.
        guide: returns (B, K) scores to add to those of the candidates, given the rows of `prefix` whose captions have
            not ended (B,), their tokens so far (B, T) and the candidates (B, K). None: nothing is added.

    Returns:
        For each image a list with the token ids of one caption, without the end token.

    Raises:
        InputError: the vocabulary has fewer tokens than `top_k`.

    Examples:
        >>> from prefixcap.decoding.stepwise import greedy
        >>> from prefixcap.language import load_language_model
        >>> lm = load_language_model("demo")
        >>> prefix = lm.embed(torch.tensor([lm.tokenize_prompt("A red")]))  # (1, tokens, dim)
        >>> contrastive(lm, prefix, GenerationLimits(), penalty=0.0) == greedy(lm, prefix, GenerationLimits())
        True
    """
    eos, device = language_model.eos_token_id, prefix.device
    cache = KeyValueCache(prefix.shape[1] + limits.max_tokens)
    logits, hidden = language_model.step_with_states(prefix, cache)  # (B, V), (B, L, H)
    if top_k > logits.shape[1]:
        raise InputError(f"top_k must lie between 1 and {logits.shape[1]}, the size of the vocabulary, not {top_k}")
    earlier_states = F.normalize(hidden, dim=-1)  # (B, L, H)
    padding = None if isinstance(prefix, Tensor) else prefix.padding  # (B,)
    images = torch.arange(len(prefix), device=device)  # (B,)
    rows = images  # (B,) the row of the cache that each caption continues
    tokens = torch.empty(len(prefix), 0, dtype=torch.long, device=device)  # (B, T)
    captions: list[list[int]] = [[] for _ in range(len(prefix))]
    for length in range(1, limits.max_tokens + 1):
        # Candidates: the K likeliest tokens.
        allowed = limits.apply(tokens, logits, eos)
        limits.check_choice(allowed)
        probabilities, candidates = allowed.softmax(-1).topk(top_k)  # (B, K)
        # The language model reads all of them, so that the chosen one's logits and states are there for the next step.
        cache.select(rows.repeat_interleave(top_k))
        logits, hidden = language_model.step_with_states(language_model.embed(candidates.reshape(-1, 1)), cache)
        states = F.normalize(hidden, dim=-1).view(len(candidates), top_k, -1)  # (B, K, H)
        # Equation 5.
        similarities = states @ earlier_states.transpose(1, 2)  # (B, K, L)
        if padding is not None:
            is_padding = torch.arange(similarities.shape[2], device=device) < padding.view(-1, 1, 1)
            similarities = similarities.masked_fill(is_padding, -torch.inf)
        similarity = similarities.amax(-1)  # (B, K)
        scores = (1 - penalty) * probabilities - penalty * similarity
        if guide is not None:
            scores = scores + guide(images, tokens, candidates)
        scores = scores.masked_fill(allowed.gather(1, candidates) == -torch.inf, -torch.inf)
        best = scores.argmax(-1, keepdim=True)  # (B, 1)
        chosen = candidates.gather(1, best)
        tokens = torch.cat((tokens, chosen), dim=1)
        # Captions that end here leave the batch.
        ended = (chosen.squeeze(1) == eos) | (length == limits.max_tokens)
        for image, caption in zip(images[ended].tolist(), tokens[ended].tolist(), strict=True):
            captions[image] = caption[:-1] if caption[-1] == eos else caption
        if ended.all():
            break
        running = (~ended).nonzero().squeeze(1)
        best = best[running].squeeze(1)
        rows = running * top_k + best  # the cache has a row for each candidate
        earlier_states = torch.cat((earlier_states[running], states[running, best].unsqueeze(1)), dim=1)
        images, tokens, logits = images[running], tokens[running], logits[rows]
        padding = None if padding is None else padding[running]
    return [[caption] for caption in captions]
