"""Language models in less memory and time: weights in fewer bits, activations computed again, or in one operation."""

import importlib.util
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from prefixcap.errors import InputError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

Quantization = Literal["8bit", "4bit"]


def quantization_config(quantization: Quantization, dtype: torch.dtype) -> "BitsAndBytesConfig":
    """What transformers needs to quantize the linear layers of a model as it loads them, but for the output head.

    Args:
        quantization: "8bit": LLM.int8() (Dettmers et al. 2022); "4bit": NF4 with quantized scales (QLoRA, Dettmers et
            al. 2023, section 3).
        dtype: in which 4-bit layers compute.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"lm.quantization={quantization} needs bitsandbytes: pip install 'prefixcap[quantized]'")
    if quantization == "8bit":
        # It says at every product that it rounds to float16 before it quantizes.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_differentiable(model: "PreTrainedModel") -> None:
    """Have quantized layers compute in eval mode as in training.

    On some CPUs bitsandbytes repacks 4-bit weights, once and for all, when a layer runs in eval mode, for a faster
    product that has no gradient. A frozen model is always in eval mode, and its prefix needs one.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def fuse_activations(model: "PreTrainedModel") -> None:
    """Put torch's one operation in the place of GPT-2's activation, which transformers writes out in seven."""
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def quantization_of(model: "PreTrainedModel") -> Quantization | None:
    """How bitsandbytes quantized a model; None if it did not."""
    if getattr(model, "is_loaded_in_8bit", False):
        return "8bit"
    return "4bit" if getattr(model, "is_loaded_in_4bit", False) else None


def checkpoint_layers(model: "PreTrainedModel") -> None:
    """Keep of each layer its input alone, and compute the rest again in the backward pass (Chen et al. 2016).

    transformers' own switch does nothing in eval mode. There a frozen model stays, and yet gradients go through all of
    it to the prefix.

    Raises:
        InputError: transformers does not say which modules are layers of this model.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(f"{type(model).__name__} has no layers to checkpoint: set lm.gradient_checkpointing=false")
    for layer in layers:
        layer.forward = partial(_checkpointed, layer.forward)


def _checkpointed(forward: Any, *inputs: Any, **options: Any) -> Any:
    from transformers import Cache

    # A second pass would put keys and values into a cache once more.
    cached = any(isinstance(value, Cache) for value in (*inputs, *options.values()))
    if cached or not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, **options)
