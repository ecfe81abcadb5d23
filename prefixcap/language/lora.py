"""Low-rank adapters in a language model (LoRA: Hu et al. 2021), by peft.

They are added to the model in place: W x becomes W x + (alpha / rank) B A x in its linear layers, with W frozen and B
zero at first.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefixcap.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Lora:
    """Options of adapters.

    Args:
        rank: rows of A and columns of B.
        alpha: their output is scaled by alpha / rank.
        dropout: probability of dropping an input of A in training.
        target_modules: names of the layers with adapters, or their last parts, e.g. ["q_proj", "v_proj"]; None: every
            linear layer except the output head.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target_modules: list[str] | None = None


def add_adapters(model: "PreTrainedModel", lora: Lora) -> None:
    """Add new adapters to a model, in place. Only they take a gradient; they are float32 whatever the model's dtype.

    Raises:
        InputError: peft is not installed or refuses the options, or an adapter would be on the output head.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        raise InputError("adapters (tuning='lora') need peft: pip install 'prefixcap[lora]'") from error
    from transformers.pytorch_utils import Conv1D

    try:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules or "all-linear",
            # GPT-2's layers hold their weights transposed
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )
        inject_adapter_in_model(config, model)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"cannot put adapters into {type(model).__name__} with {lora}: {reason}") from error
    if isinstance(model.get_output_embeddings(), LoraLayer):  # training uses only its weight
        raise InputError(f"the output head of {type(model).__name__} takes no adapter: leave it out of target_modules")
    for name, weight in model.named_parameters():
        if is_adapter(name):
            weight.data = weight.data.float()  # small steps would be lost in fewer bits


def is_adapter(name: str) -> bool:
    """Whether a weight of that name belongs to an adapter."""
    return ".lora_" in name


def merged(model: "PreTrainedModel") -> "PreTrainedModel":
    """A copy of a model with its adapters merged into the weights: W + (alpha / rank) B A."""
    from peft.tuners.lora import LoraLayer

    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
    del model.peft_config
    return model
