"""Greedy decoding: the likeliest token, one after another."""

import torch
from torch import Tensor

from prefixcap.errors import InputError
from prefixcap.language import LanguageModel


@torch.inference_mode()
def greedy(language_model: LanguageModel, prefix: Tensor, max_tokens: int = 67) -> list[list[int]]:
    """The likeliest next token until the end token or `max_tokens` tokens.

    Args:
        prefix: (batch, length, dim) what the language model reads first.
        max_tokens: most tokens a caption may have, the end token included.

    Returns:
        The token ids of each caption, without the end token.

    Raises:
        InputError: prefix and `max_tokens` together exceed the language model's context.
    """
    from transformers import DynamicCache

    check_room(language_model, prefix, max_tokens)
    cache = DynamicCache()
    captions: list[list[int]] = [[] for _ in prefix]
    writing = torch.arange(len(prefix), device=prefix.device)  # rows of the captions that have not ended
    read = prefix
    for _ in range(max_tokens):
        tokens = language_model.step(read, cache).argmax(-1)
        unfinished = tokens != language_model.end_token
        if not unfinished.all():
            cache.batch_select_indices(unfinished.nonzero().squeeze(1))
            writing, tokens = writing[unfinished], tokens[unfinished]
        if not len(writing):
            break
        for row, token in zip(writing.tolist(), tokens.tolist(), strict=True):
            captions[row].append(token)
        read = language_model.embed(tokens).unsqueeze(1)
    return captions


def check_room(language_model: LanguageModel, prefix: Tensor, max_tokens: int) -> None:
    """Raise InputError unless the prefix and `max_tokens` more fit the language model's context."""
    if max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, not {max_tokens}")
    if language_model.context is not None and prefix.shape[1] + max_tokens > language_model.context:
        raise InputError(
            f"a prefix of {prefix.shape[1]} and max_tokens={max_tokens} exceed the context of language model "
            f"'{language_model.name}' ({language_model.context}): set max_tokens to at most "
            f"{language_model.context - prefix.shape[1]}"
        )
