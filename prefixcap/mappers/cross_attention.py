"""Thin cross-attention in every layer of a language model (Ramos et al., "SmallCap: Lightweight Image Captioning
Prompted with Retrieval Augmentation", CVPR 2023; github.com/RitaRamo/smallcap).

The image enters in no prefix: each layer attends to it. The heads are as many as the layer's own, but thinner, so that
few parameters are trained, and the language model stays as it is.

Shapes: I images, K vectors of an image, D width of each, H heads, d width of a head, W width of the language model's
hidden states, R rows, L positions of a row.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefixcap.errors import InputError, OptionError
from prefixcap.features import Feature
from prefixcap.mappers.base import Mapper
from prefixcap.utils.options import Count

if TYPE_CHECKING:
    from prefixcap.language.cross_attention import Memory
    from prefixcap.packing import Batch

FEATURES = ("patches", "regions", "hidden")
_DEVIATION = 0.02  # of initial weights, as in GPT-2


class CrossAttentionMapper(Mapper):
    """No prefix, but an adapter for each layer of the language model, with which it attends to vectors of an image.

    Images need something else to be read before the caption: the language model's start token, and prompts.

    Args:
        embedding_dim: width of the encoder's joint space, in which patches and regions are.
        lm_dim: width of the language model's word embeddings.
        head_dim: width of a head: 16, 8 or 4 in the paper, with heads of 64 in GPT-2.
        features: the feature of an image to read: "patches" or "regions"; or "hidden", hidden states of the encoder's
            last layer, as in the paper.
        input_dim: width of the hidden states, 768 of ViT-B/32; None for patches and regions.
        layers: number of the language model's layers.
        heads: attention heads in each.
        width: of the language model's hidden states.

    `PrefixLM` takes `layers`, `heads` and `width` from the language model where they are None.

    Raises:
        InputError: `features` is none of these, `input_dim` does not go with it, or a size of the language model is
            missing.

    Examples:
        >>> mapper = CrossAttentionMapper(embedding_dim=512, lm_dim=768, layers=12, heads=12, width=768)
        >>> sum(weight.numel() for weight in mapper.parameters())
        5914368
        >>> memory = mapper.memory(torch.randn(4, 49, 512))  # 7 x 7 patches each
        >>> memory.attend(0, torch.randn(4, 10, 768)).shape  # to be added to hidden states of the first layer
        torch.Size([4, 10, 768])
    """

    def __init__(
        self,
        embedding_dim: int,
        lm_dim: int,
        head_dim: Count = 16,
        features: str = "patches",
        input_dim: Count | None = None,
        layers: Count | None = None,
        heads: Count | None = None,
        width: Count | None = None,
    ) -> None:
        super().__init__()
        if features not in FEATURES:
            raise InputError(f"features of mapper 'cross_attention' must be {', '.join(FEATURES)}, not {features!r}")
        if (features == "hidden") != (input_dim is not None):
            raise OptionError(
                f"mapper 'cross_attention' reads {features}, and input_dim is the width of hidden states",
                input_dim=None if input_dim else 768,
            )
        if layers is None or heads is None or width is None:
            raise InputError("mapper 'cross_attention' needs layers, heads and width of the language model")
        self.prefix_length, self.lm_dim = 0, lm_dim
        self.features = Feature.parse(features)
        self.input_dim = input_dim or embedding_dim
        sizes = (self.input_dim, width, heads, head_dim, layers)
        self.adapters = nn.ModuleList(Adapter(*sizes) for _ in range(layers))

    def forward(self, patches: Tensor) -> Tensor:
        """(batch, patches, input_dim) -> (batch, 0, lm_dim): a prefix of no vectors."""
        return patches.new_empty(len(patches), 0, self.lm_dim)

    def memory(self, patches: Tensor) -> "ImageMemory":
        """What the layers attend to, given (batch, patches, input_dim) of any number of patches."""
        adapters: list[Adapter] = list(self.adapters)  # type: ignore[arg-type]  # a ModuleList holds any modules
        return ImageMemory(adapters, [adapter.keys_and_values(patches) for adapter in adapters])


def fit_to(sizes: Mapping[str, int], options: Mapping[str, Any], language_model: str) -> dict[str, Any]:
    """The options of a `CrossAttentionMapper`, with the sizes of the language model of that name where they are None.

    Raises:
        InputError: an option is another number than the language model's, and not free.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("layers", "width"):
        if given.get(name, sizes[name]) != sizes[name]:
            raise InputError(
                f"mapper 'cross_attention' has {name}={given[name]}, but language model '{language_model}' has "
                f"{sizes[name]}: leave it out"
            )
    return given | {name: given.get(name, size) for name, size in sizes.items()}


class Adapter(nn.Module):
    """The cross-attention of one layer, with a layer norm before it that has no weights of its own.

    The released code has a layer norm with weights, and does not train them.

    Args:
        input_dim: D.
        width: W.
        heads: H.
        head_dim: d.
        layers: of the language model: the more there are, the less each adds at first, as in GPT-2.
    """

    def __init__(self, input_dim: int, width: int, heads: int, head_dim: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.query = nn.Linear(width, heads * head_dim)
        self.key_value = nn.Linear(input_dim, 2 * heads * head_dim)
        self.output = nn.Linear(heads * head_dim, width)
        for linear, deviation in (
            (self.query, _DEVIATION),
            (self.key_value, _DEVIATION),
            (self.output, _DEVIATION / math.sqrt(2 * layers)),
        ):
            nn.init.normal_(linear.weight, std=deviation)
            nn.init.zeros_(linear.bias)

    def keys_and_values(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(I, K, D) -> keys and values, each (I, H, K, d)."""
        keys, values = self.key_value(image).chunk(2, dim=-1)  # (I, K, H * d)
        return self._by_head(keys), self._by_head(values)

    def queries(self, hidden: Tensor) -> Tensor:
        """(R, L, W) hidden states -> (R, H, L, d)."""
        return self._by_head(self.query(self.norm(hidden.to(self.query.weight.dtype))))

    def _by_head(self, vectors: Tensor) -> Tensor:
        rows, length, _ = vectors.shape
        return vectors.view(rows, length, self.heads, -1).transpose(1, 2)


@dataclass(frozen=True)
class ImageMemory:
    """The keys and values of I images for each layer, and which of them each row or position attends to.

    Attributes:
        adapters: of each layer.
        keys_and_values: of each layer, (I, H, K, d) each.
        rows: (R,) the image of each row; None: there is a row for each image.
        image_at: (R, L) the image of each position of packed rows, any where there is none; None: rows are not packed.
        row_of: (I,) the row of each image in packed rows; None: rows are not packed.
    """

    adapters: Sequence[Adapter]
    keys_and_values: Sequence[tuple[Tensor, Tensor]]
    rows: Tensor | None = None
    image_at: Tensor | None = None
    row_of: Tensor | None = None

    def attend(self, layer: int, hidden: Tensor) -> Tensor:
        """(R, L, W) hidden states of a layer -> what is added to them, (R, L, W)."""
        adapter, (keys, values) = self.adapters[layer], self.keys_and_values[layer]
        queries = adapter.queries(hidden)  # (R, H, L, d)
        if self.rows is not None:
            keys, values = keys[self.rows], values[self.rows]  # (R, H, K, d)
        if self.row_of is not None:  # an image is read by all of its row
            queries = queries[self.row_of]  # (I, H, L, d)
        mixed = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)  # (R or I, L, H, d)
        if self.image_at is not None:  # of which positions of other images take nothing
            mixed = mixed[self.image_at, torch.arange(mixed.shape[1], device=mixed.device)]  # (R, L, H, d)
        added: Tensor = adapter.output(mixed.flatten(2))
        return added

    def select(self, rows: Tensor) -> "ImageMemory":
        """That of these rows, in this order: (R',) row numbers, each any number of times."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def packed(self, batch: "Batch") -> "ImageMemory":
        """That of the rows of a batch, from one row an image: each position attends to its own image."""
        (rows, length), images = batch.images.shape, len(batch.embeddings)
        prefix_length = (len(batch.input_index) - len(batch.input_ids)) // max(images, 1)
        first = batch.input_index[: images * prefix_length : prefix_length]  # (I,) where each begins
        # Images that only pad a batch lie behind the last row.
        row_of = (first // length).clamp(max=rows - 1)
        return replace(self, image_at=batch.images.clamp(min=0), row_of=row_of)

    def kind(self) -> Hashable:
        """Layers, H, K, d, dtype, and where the weights of adapters lie."""
        layers = [(keys.shape[1:], keys.dtype) for keys, _ in self.keys_and_values]
        return *layers, *(weight.data_ptr() for adapter in self.adapters for weight in adapter.parameters())

    def clone(self) -> "ImageMemory":
        """A copy with tensors of its own, with one row an image."""
        return ImageMemory(self.adapters, [(keys.clone(), values.clone()) for keys, values in self.keys_and_values])

    def copy_(self, other: "Memory") -> None:
        """Overwrite the first images with those of a memory of this kind, of no more images."""
        assert isinstance(other, ImageMemory)
        for own, others in zip(self.keys_and_values, other.keys_and_values, strict=True):
            for target, source in zip(own, others, strict=True):
                target[: len(source)] = source
