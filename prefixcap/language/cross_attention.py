"""Layers of a language model that also attend to an image (SmallCap: Ramos et al., "SmallCap: Lightweight Image
Captioning Prompted with Retrieval Augmentation", CVPR 2023; github.com/RitaRamo/smallcap).

The adapters that attend belong to a mapper (`prefixcap.mappers.cross_attention`). Here is how a model of transformers
comes to call them: what a layer's adapter computes is added to what its self-attention returns, so that the hidden
states before the feed-forward part are x + attention(x) + adapter(x + attention(x)), as in the decoders of
encoder-decoder models. A model that reads without an image is the same as before.

Shapes: R rows, L positions of a row, W width of the model's hidden states.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from prefixcap.errors import InputError, OptionError
from prefixcap.language.checks import ADVICE, require_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prefixcap.language.model import LanguageModel
    from prefixcap.packing import Batch


class Memory(Protocol):
    """What the layers of a language model attend to, for each row that it reads."""

    def attend(self, layer: int, hidden: Tensor) -> Tensor:
        """(R, L, W) hidden states of a layer -> what is added to them, of the same shape."""
        ...

    def select(self, rows: Tensor) -> "Memory":
        """That of these rows, in this order: (R',) row numbers, each any number of times."""
        ...

    def packed(self, batch: "Batch") -> "Memory":
        """That of the rows of a batch, from one row an image: each position attends to its own image."""
        ...

    def kind(self) -> Hashable:
        """What memories have in common that can be copied into each other: shapes, and the weights that attend."""
        ...

    def clone(self) -> "Memory":
        """A copy with tensors of its own, with one row an image."""
        ...

    def copy_(self, other: "Memory") -> None:
        """Overwrite the first images with those of a memory of this kind, of no more images."""
        ...


@dataclass
class _Reading:
    """What is read at present, and the (R, L, W) input of each layer."""

    memory: Memory
    inputs: dict[int, Tensor] = field(default_factory=dict)


_READING: ContextVar[_Reading | None] = ContextVar("prefixcap_reading", default=None)  # of each thread its own


@contextmanager
def attending(memory: Memory | None) -> Iterator[None]:
    """A context in which the layers of `attach` attend to a memory; None: to nothing."""
    token = _READING.set(None if memory is None else _Reading(memory))
    try:
        yield
    finally:
        _READING.reset(token)


def attach(language_model: "LanguageModel") -> dict[str, int]:
    """Let the layers of a language model attend to the `Memory` that comes with a prefix; without one, to no more than
    before.

    Returns:
        The options that a mapper takes over from it: its `layers`, the `heads` and the `width` of each.

    Raises:
        InputError: its layers or their self-attention are not where transformers usually has them, it computes
            positions itself, or it is compiled.
    """
    model, name = language_model.model, language_model.name
    require_positions(model, name)
    config: Any = model.config.get_text_config(decoder=True)
    sizes = {"layers": config.num_hidden_layers, "heads": config.num_attention_heads, "width": config.hidden_size}
    if is_attached(model):
        return sizes
    if language_model._backbone != language_model._backbone_eager:
        raise OptionError("layers that attend to images cannot be compiled", compile=None)
    layers = _layers(model)
    attentions = [[part for part in layer.children() if "Attention" in type(part).__name__] for layer in layers]
    if len(layers) != sizes["layers"] or any(len(parts) != 1 for parts in attentions):
        raise InputError(
            f"language model '{name}' ({type(model).__name__}) has no layers of one self-attention each, behind which "
            f"adapters for cross-attention are put: take another, {ADVICE}"
        )
    for number, (layer, (attention,)) in enumerate(zip(layers, attentions, strict=True)):
        layer.register_forward_pre_hook(partial(_keep_input, number), with_kwargs=True)
        attention.register_forward_hook(partial(_add_attended, number))
    model._attends_to_images = True
    return sizes


def is_attached(model: "PreTrainedModel") -> bool:
    """Whether `attach` was called with the language model of this model."""
    return getattr(model, "_attends_to_images", False)


def _layers(model: "PreTrainedModel") -> list[nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.base_model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _keep_input(number: int, layer: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
    if (reading := _READING.get()) is not None:
        reading.inputs[number] = inputs[0] if inputs else options["hidden_states"]


def _add_attended(number: int, attention: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """The output of a layer's self-attention, (R, L, W) or a tuple that begins with it, and the adapter's."""
    if (reading := _READING.get()) is None:
        return output
    attended: Tensor = output[0] if isinstance(output, tuple) else output
    added = reading.memory.attend(number, reading.inputs[number] + attended)
    attended = attended + added.to(attended.dtype)
    return (attended, *output[1:]) if isinstance(output, tuple) else attended
