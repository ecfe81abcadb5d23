"""Language models with less memory and time: quantized weights, activation checkpointing, fused activations."""

import importlib.util
import logging
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from prefixcap.errors import InputError, OptionError
from prefixcap.utils.options import Quantization

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel


def quantization_config(quantization: Quantization, dtype: torch.dtype) -> "BitsAndBytesConfig":
    """The configuration with which transformers quantizes the linear layers of a model, except the output head.

    Args:
        quantization: "8bit": LLM.int8() (Dettmers et al. 2022); "4bit": NF4 with quantized scales (QLoRA, Dettmers et
            al. 2023, section 3).
        dtype: in which 4-bit layers compute.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"quantization={quantization!r} needs bitsandbytes: pip install 'prefixcap[quantized]'")
    if quantization == "8bit":
        # It warns at every product that it casts to float16 before it quantizes.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_differentiable(model: "PreTrainedModel") -> None:
    """Let quantized layers compute in eval mode as in training.

    On some CPUs bitsandbytes permanently repacks 4-bit weights when a layer runs in eval mode, for a faster product
    without a gradient. A frozen model is always in eval mode, and its prefix needs the gradient.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def fuse_activations(model: "PreTrainedModel") -> None:
    """Replace GPT-2's activation, seven operations in transformers, by torch's single one."""
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def quantization_of(model: "PreTrainedModel") -> Quantization | None:
    """How bitsandbytes quantized a model; None: it is not quantized."""
    if getattr(model, "is_loaded_in_8bit", False):
        return "8bit"
    return "4bit" if getattr(model, "is_loaded_in_4bit", False) else None


def checkpoint_layers(model: "PreTrainedModel") -> None:
    """Store only the input of each layer, and recompute the rest in the backward pass (Chen et al. 2016).

    transformers' own switch does nothing in eval mode, in which a frozen model stays although gradients flow through it
    to the prefix.

    Raises:
        InputError: transformers does not mark the layers of this model.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise OptionError(f"{type(model).__name__} has no layers to checkpoint", gradient_checkpointing=False)
    for layer in layers:
        layer.forward = partial(_checkpointed, layer.forward)


def has_checkpointed_layers(model: "PreTrainedModel") -> bool:
    """Whether `checkpoint_layers` was called with the model."""
    return any(getattr(module.forward, "func", None) is _checkpointed for module in model.modules())


def _checkpointed(forward: Any, *inputs: Any, **options: Any) -> Any:
    from transformers import Cache

    # Recomputing would add keys and values to a cache a second time.
    cached = any(isinstance(value, Cache) for value in (*inputs, *options.values()))
    if cached or not torch.is_grad_enabled():
        return forward(*inputs, **options)
    # What the layer attends to (`prefixcap.language.cross_attention`) is a variable of the context.
    in_context = partial(copy_context().run, forward)
    return checkpoint(in_context, *inputs, use_reentrant=False, **options)
