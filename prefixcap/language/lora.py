"""Low-rank adapters in a language model (Hu et al. 2021), by peft.

They are put into the model itself, which stays what it was for all that use it: W x becomes W x + (alpha / rank) B A x
in its linear layers, W frozen, B zero at first.
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
        alpha: scales what they add, by alpha / rank.
        dropout: probability with which an input of A is dropped in training.
        target_modules: names of the layers that get adapters, or the last parts of them, e.g. ["q_proj", "v_proj"];
            None: every linear layer but the output head.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target_modules: list[str] | None = None


def add_adapters(model: "PreTrainedModel", lora: Lora) -> None:
    """Put new adapters into a model, in place. They alone take a gradient and are in float32, the model in what it is.

    Raises:
        InputError: peft is not installed, it does not take the options, or they ask for an adapter on the output head.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        raise InputError("lm_tuning=lora needs peft: pip install 'prefixcap[lora]'") from error
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
    if isinstance(model.get_output_embeddings(), LoraLayer):  # training reads its weight alone
        raise InputError(f"the output head of {type(model).__name__} takes no adapter: leave it out of target_modules")
    for name, weight in model.named_parameters():
        if is_adapter(name):
            weight.data = weight.data.float()  # steps of training are lost in fewer bits


def is_adapter(name: str) -> bool:
    """Whether a weight of that name belongs to an adapter."""
    return ".lora_" in name


def merged(model: "PreTrainedModel") -> "PreTrainedModel":
    """A copy of a model, its adapters added to the weights that they adapt: W + (alpha / rank) B A."""
    from peft.tuners.lora import LoraLayer

    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
    del model.peft_config
    return model
