"""A projector: one vector of the prefix for each patch of an image, as LiMBeR and LLaVA map images.

One linear layer is that of LiMBeR (Merullo et al., "Linearly Mapping from Image to Text Space", ICLR 2023) and LLaVA
(Liu et al., "Visual Instruction Tuning", NeurIPS 2023, equation 1); two layers with GELU are that of LLaVA-1.5 (Liu et
al., "Improved Baselines with Visual Instruction Tuning", CVPR 2024, section 3.2).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from prefixcap.errors import InputError, OptionError
from prefixcap.features import Feature
from prefixcap.mappers.base import Mapper
from prefixcap.utils.options import Count

FEATURES = ("patches", "regions", "hidden")


class ProjectorMapper(Mapper):
    """The same linear layer, or multilayer perceptron, of each patch, whose output is a prefix vector.

    Args:
        embedding_dim: width of a patch's or region's embedding.
        lm_dim: width of the language model's word embeddings.
        prefix_length: the number of patches of an image, and so of prefix vectors: 49 of ViT-B/32, 196 of ViT-B/16.
        features: the feature of an image to read: "patches" or "regions"; or "hidden", hidden states of the encoder's
            last layer, which are not projected into the joint space, and begin with the class token.
        layers: 1: LiMBeR's and LLaVA's; 2: LLaVA-1.5's. Hidden layers are as wide as the output, with GELU.
        input_dim: width of the hidden states, 768 of ViT-B/32; None for patches and regions.

    `prefixcap train` takes `prefix_length` and `input_dim` from the feature store where they are None.

    Raises:
        InputError: `features` is none of these, `input_dim` does not go with it, or `prefix_length` is missing.

    Examples:
        >>> import torch
        >>> mapper = ProjectorMapper(embedding_dim=512, lm_dim=768, prefix_length=49)
        >>> mapper(torch.randn(4, 49, 512)).shape
        torch.Size([4, 49, 768])
    """

    def __init__(
        self,
        embedding_dim: int,
        lm_dim: int,
        prefix_length: Count | None = None,
        features: str = "patches",
        layers: Count = 2,
        input_dim: Count | None = None,
    ) -> None:
        super().__init__()
        if features not in FEATURES:
            raise InputError(f"features of mapper 'projector' must be {', '.join(FEATURES)}, not {features!r}")
        if (features == "hidden") != (input_dim is not None):
            raise OptionError(
                f"mapper 'projector' reads {features}, and input_dim is the width of hidden states",
                input_dim=None if input_dim else 768,
            )
        if prefix_length is None:
            raise OptionError("mapper 'projector' makes one prefix vector for each patch of an image", prefix_length=49)
        self.prefix_length, self.features = prefix_length, Feature.parse(features)
        self.input_dim = input_dim or embedding_dim
        modules: list[nn.Module] = [nn.Linear(self.input_dim, lm_dim)]
        for _ in range(layers - 1):
            modules += [nn.GELU(), nn.Linear(lm_dim, lm_dim)]
        self.model = nn.Sequential(*modules)

    def forward(self, patches: Tensor) -> Tensor:
        """(batch, prefix_length, input_dim) -> (batch, prefix_length, lm_dim). Raises InputError for other numbers of
        patches."""
        if patches.shape[1] != self.prefix_length:
            raise OptionError(
                f"images have {patches.shape[1]} vectors of {self.features}, and mapper 'projector' was built for "
                f"{self.prefix_length}",
                prefix_length=patches.shape[1],
            )
        prefix: Tensor = self.model(patches)
        return prefix


def fit_to_images(options: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """The options of a `ProjectorMapper`, with those that are None as an image's vectors need them.

    Args:
        options: with `name` and `features`.
        shape: vectors of an image, and their width.

    Examples:
        >>> fit_to_images({"name": "projector", "features": "patches", "prefix_length": None}, (49, 512))
        {'name': 'projector', 'features': 'patches', 'prefix_length': 49}
    """
    count, width = shape
    needed = {"prefix_length": count} | ({"input_dim": width} if options.get("features") == "hidden" else {})
    return dict(options) | {name: value for name, value in needed.items() if options.get(name) is None}
