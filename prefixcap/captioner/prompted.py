"""What the language model reads of images: their prefixes and prompts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prefixcap.decoding.padded import PaddedPrefix, pad_left
from prefixcap.language.tokens import tokenize_prompts
from prefixcap.model import PrefixLM


def with_prompts(
    model: PrefixLM, prefix: Tensor, prompts: Sequence[str] | None, prompt_ids: list[int]
) -> Tensor | PaddedPrefix:
    """(rows, P, E) prefixes, each followed by the prompt of its image and the tokens of `prompt`.

    Args:
        model: that reads them.
        prefix: one row an image, or several next to each other.
        prompts: of the images; None: they have none.
        prompt_ids: the beginning of every caption.
    """
    if prompts is None:
        return model.append_tokens(prefix, torch.tensor(prompt_ids, dtype=torch.long))
    per_image = len(prefix) // max(len(prompts), 1)
    own = tokenize_prompts(model.language_model.tokenizer, prompts)
    return pad_left(prefix, [ids + prompt_ids for ids in own for _ in range(per_image)], model.language_model)
