"""Attention masks of packed texts for each type of layer of a language model.

Shapes: R rows, L positions of a row.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def attention_masks(
    config: "PretrainedConfig", attention_mask: Tensor, position_ids: Tensor, query_position_ids: Tensor | None = None
) -> Tensor | dict[str, Tensor]:
    """The mask of a model's layers; or one for each type of layer, if they differ.

    A model that is given a 4D mask applies no sliding window itself. A window counts positions of a text, not of the
    row: between a caption and the prefix that it shares lie other captions of the image.

    Args:
        config: of the model; `layer_types`, `sliding_window` and `attention_chunk_size`, as transformers reads them.
        attention_mask: (R, 1, L, L) bool, the positions (last dimension) that each position may attend to.
        position_ids: (R, L) position in its own text.
        query_position_ids: (R, N), if only N positions attend, with an `attention_mask` of (R, 1, N, L); None: all do.

    Returns:
        (R, 1, L or N, L) bool; or a dictionary of these by type of layer, as models with several types take it.
    """
    text: Any = config.get_text_config(decoder=True)
    length = attention_mask.shape[-1]
    queries = (position_ids if query_position_ids is None else query_position_ids).unsqueeze(2)  # (R, L or N, 1)
    window, chunk = getattr(text, "sliding_window", None), getattr(text, "attention_chunk_size", None)
    masks = {"full_attention": attention_mask}
    if window and window < length:  # a longer window covers every text
        # How far each position (last dimension) is behind.
        behind = queries - position_ids.unsqueeze(1)  # (R, L or N, L)
        masks["sliding_attention"] = attention_mask & (behind < window).unsqueeze(1)
    if chunk and chunk < length:
        same_chunk = queries // chunk == position_ids.unsqueeze(1) // chunk  # (R, L or N, L)
        masks["chunked_attention"] = attention_mask & same_chunk.unsqueeze(1)
    # Without `layer_types` all layers are of one type, as in transformers.
    only = "sliding_attention" if window else "chunked_attention" if chunk else "full_attention"
    types = dict.fromkeys(getattr(text, "layer_types", None) or [only])
    by_type = {layer_type: masks.get(layer_type, attention_mask) for layer_type in types}
    first, *others = by_type.values()
    return by_type if any(mask is not first for mask in others) else first


def as_addend(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as numbers that are added to attention scores, for eager attention: 0 or the lowest of `dtype`."""
    return torch.zeros_like(attention_mask, dtype=dtype).masked_fill(~attention_mask, torch.finfo(dtype).min)
