"""What the language model reads beside images, and what chooses among its captions."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prefixcap.decoding.padded import PaddedPrefix, pad_left, with_memory
from prefixcap.encoders import Encoder
from prefixcap.language.tokens import tokenize_prompts
from prefixcap.model import PrefixLM
from prefixcap.reranking import rerank

if TYPE_CHECKING:
    from prefixcap.consensus import Consensus


def decoder_inputs(model: PrefixLM, embeddings: Tensor) -> Tensor | PaddedPrefix:
    """(rows, P, E) prefixes of what `PrefixLM.prefix` takes; with a memory, if images enter by cross-attention."""
    prefix, memory = model.prefix_and_memory(embeddings)
    return prefix if memory is None else with_memory(prefix, memory)


def with_prompts(
    model: PrefixLM, prefix: Tensor | PaddedPrefix, prompts: Sequence[str] | None, prompt_ids: list[int]
) -> Tensor | PaddedPrefix:
    """(rows, P, E) prefixes, each followed by the prompt of its image and the tokens of `prompt`.

    Args:
        model: that reads them.
        prefix: one row an image, or several next to each other.
        prompts: of the images; None: they have none.
        prompt_ids: the beginning of every caption.
    """
    if prompts is None and isinstance(prefix, Tensor):
        return model.append_tokens(prefix, torch.tensor(prompt_ids, dtype=torch.long))
    prompts = [""] * len(prefix) if prompts is None else prompts
    per_image = len(prefix) // max(len(prompts), 1)
    own = tokenize_prompts(model.language_model.tokenizer, prompts)
    return pad_left(prefix, [ids + prompt_ids for ids in own for _ in range(per_image)], model.language_model)


def ranked(
    encoder: Callable[[], Encoder],
    embeddings: Tensor,
    captions: list[list[str]],
    consensus: "Consensus | None",
    characters: int | None,
) -> list[list[str]]:
    """Captions of images with these embeddings, ordered by `consensus`, or without one by the encoder's similarity, see
    `prefixcap.reranking.rerank`."""
    if consensus is None:
        return rerank(encoder(), embeddings, captions, characters)
    return consensus.rerank(embeddings, captions)
