"""Frozen weights in the precision of autocast, which otherwise casts them in every step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def cast_frozen_layers(model: nn.Module, dtype: torch.dtype) -> Callable[[], None]:
    """Cast the frozen float32 weights of linear layers, in place.

    Under autocast to the same dtype the model computes what it did, bit for bit. Embeddings, also those that are the
    head's weight, and layer norms stay as they are.

    Args:
        model: a model of transformers, on one device and not sharded.
        dtype: torch.bfloat16 or torch.float16.

    Returns:
        A function that puts the float32 weights back; until then they wait in the CPU's memory.

    Examples:
        >>> from prefixcap.language import load_language_model
        >>> model = load_language_model("demo").model
        >>> restore = cast_frozen_layers(model, torch.bfloat16)
        >>> model.transformer.h[0].mlp.c_fc.weight.dtype, model.lm_head.weight.dtype
        (torch.bfloat16, torch.float32)
        >>> restore()
    """
    from transformers.pytorch_utils import Conv1D

    linear = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    others = set(model.modules()) - set(linear)
    shared = {weight for module in others for weight in module.parameters(recurse=False)}  # with embeddings
    own = {weight for module in linear for weight in module.parameters(recurse=False)} - shared
    originals: dict[nn.Parameter, Tensor] = {}
    for weight in own:
        if weight.dtype == torch.float32 and not weight.requires_grad:
            originals[weight] = weight.data.cpu()
            weight.data = weight.data.to(dtype)

    def restore() -> None:
        while originals:
            weight, original = originals.popitem()
            weight.data = original.to(weight.device)

    return restore
