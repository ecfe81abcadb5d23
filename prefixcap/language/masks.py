"""What each layer of a language model sees of texts that lie in one row."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def attention_masks(config: "PretrainedConfig", visible: Tensor, position_ids: Tensor) -> Tensor | dict[str, Tensor]:
    """The mask of a model's layers, or, where they differ, one for each type of layer.

    A model that is handed a mask puts no window into it. Windows reach back from a position by so many positions of its
    own text, not of the row: between a caption and the prefix that it shares lie other captions of the image.

    Args:
        config: of the model: `layer_types`, `sliding_window` and `attention_chunk_size`, as transformers reads them.
        visible: (rows, 1, length, length) bool, which positions (last) each position may see at most.
        position_ids: (rows, length) of each position in its own text.

    Returns:
        (rows, 1, length, length) bool, or these by type of layer, as models of several types take them.
    """
    text: Any = config.get_text_config(decoder=True)
    length = visible.shape[-1]
    window, chunk = getattr(text, "sliding_window", None), getattr(text, "attention_chunk_size", None)
    masks = {"full_attention": visible}
    if window and window < length:  # a longer one reaches all of any text
        behind = position_ids.unsqueeze(2) - position_ids.unsqueeze(1)  # (rows, length, length)
        masks["sliding_attention"] = visible & (behind < window).unsqueeze(1)
    if chunk and chunk < length:
        chunks = position_ids // chunk
        masks["chunked_attention"] = visible & (chunks.unsqueeze(2) == chunks.unsqueeze(1)).unsqueeze(1)
    # transformers, too, takes all layers for one type where the configuration names none.
    only = "sliding_attention" if window else "chunked_attention" if chunk else "full_attention"
    types = dict.fromkeys(getattr(text, "layer_types", None) or [only])
    by_type = {layer_type: masks.get(layer_type, visible) for layer_type in types}
    first, *others = by_type.values()
    return by_type if any(mask is not first for mask in others) else first


def as_addend(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as the number that is added to each attention score, as plain implementations of attention take it."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
