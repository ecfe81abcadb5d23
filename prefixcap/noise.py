"""Noise that makes text embeddings resemble image embeddings (CapDec: Nukrai et al., "Text-Only Training for Image
Captioning using Noise-Injected CLIP", 2022; MacCap: Qiu et al., "Mining Fine-Grained Image-Text Alignment for Zero-Shot
Captioning via Text-Only Training", 2024, equations 3 and 4).

A generator must be on the device of the embeddings; None: torch's default, which `torch.manual_seed` seeds.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from prefixcap.errors import InputError
from prefixcap.utils.options import Count, check_fields

Variance = Annotated[float, Interval(ge=0.0, le=100.0)]


def gaussian_noise(embeddings: Tensor, variance: float, generator: torch.Generator | None = None) -> Tensor:
    """(…, dim) embeddings plus Gaussian noise with mean zero and the given variance in each dimension.

    The variance is sigma squared: 0.016 in the published code of CapDec and MacCap, a standard deviation of 0.126
    (MacCap's paper calls the 0.016 "noise variance sigma", and the noise uniform, whereas its equation 4 and its code
    have it normal). In 512 dimensions the noise then has length 2.9, beside an embedding of unit length.
    """
    return embeddings + math.sqrt(variance) * _normal(embeddings, generator)


def ball_noise(embeddings: Tensor, variance: float, generator: torch.Generator | None = None) -> Tensor:
    """(…, dim) embeddings plus noise uniform in a ball of radius sqrt(variance) (CapDec's `uniform_noise`)."""
    # A uniform point of a ball: a random direction, and a radius whose dim-th power is uniform.
    direction = F.normalize(_normal(embeddings, generator), dim=-1)
    share = torch.rand(
        (*embeddings.shape[:-1], 1), generator=generator, device=embeddings.device, dtype=embeddings.dtype
    )
    return embeddings + math.sqrt(variance) * share ** (1 / embeddings.shape[-1]) * direction


def dimension_noise(
    embeddings: Tensor, variance: float, share: float = 0.1, generator: torch.Generator | None = None
) -> Tensor:
    """(…, dim) embeddings plus Gaussian noise in a random share of the dimensions of each, at least one ("noise on 10%
    of the features" of the CLIP+GPT-2 captioner)."""
    count = max(1, round(share * embeddings.shape[-1]))
    scores = torch.rand(embeddings.shape, generator=generator, device=embeddings.device)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.topk(count).indices, True)
    return torch.where(chosen, gaussian_noise(embeddings, variance, generator), embeddings)


@dataclass(frozen=True)
class Noise:
    """A transformation of embeddings in training, with noise.

    Attributes:
        kind: "gaussian", "ball" or "dimensions", see the functions of this module.
        variance: of the noise in each dimension, for embeddings of unit length; 0: no noise. For "ball" the square of
            the radius.
        share: share of the dimensions with noise, for "dimensions".
        copies: repeat the embedding so many times, each time with its own noise: MacCap's text-region features (N_cr,
            equation 3). None: a single vector.
        offset: (dim,) added to every embedding: CapDec's modality offset, the mean image embedding minus the mean text
            embedding, both of unit length. None: nothing.
        normalize_before: scale the embedding to unit length first.
        normalize_after: scale the result to unit length (equation 4).

    Raises:
        InputError: there is no such kind, or a value is out of range.

    Examples:
        >>> noise = Noise(variance=0.016, copies=10)
        >>> noise(torch.randn(2, 512)).shape
        torch.Size([2, 10, 512])
    """

    kind: Literal["gaussian", "ball", "dimensions"] = "gaussian"
    variance: Variance = 0.016
    share: Annotated[float, Interval(gt=0.0, le=1.0)] = 0.1
    copies: Count | None = None
    offset: Tensor | None = None
    normalize_before: bool = True
    normalize_after: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "noise: ")

    def __call__(self, embeddings: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(batch, dim) embeddings -> (batch, dim) or (batch, copies, dim), with noise.

        Raises:
            InputError: the offset has another width.
        """
        if self.normalize_before:
            embeddings = F.normalize(embeddings, dim=-1)
        if self.copies is not None:
            embeddings = embeddings.unsqueeze(-2).expand(*embeddings.shape[:-1], self.copies, -1)
        if self.variance > 0:
            embeddings = self._add_noise(embeddings, generator)
        if self.offset is not None:
            if self.offset.shape != embeddings.shape[-1:]:
                raise InputError(
                    f"the offset of the noise has the shape {tuple(self.offset.shape)}, but embeddings have "
                    f"{embeddings.shape[-1]} dimensions: compute it with the same encoder"
                )
            embeddings = embeddings + self.offset.to(embeddings)
        return F.normalize(embeddings, dim=-1) if self.normalize_after else embeddings

    def _add_noise(self, embeddings: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.kind == "dimensions":
            return dimension_noise(embeddings, self.variance, self.share, generator)
        add = gaussian_noise if self.kind == "gaussian" else ball_noise
        return add(embeddings, self.variance, generator)


def read_offset(file: Path) -> Tensor:
    """Read a (dim,) modality offset from the NumPy file that `prefixcap gap` wrote.

    Raises:
        InputError: there is no such file, or it is not a vector of finite numbers.
    """
    try:
        offset = torch.from_numpy(np.load(file, allow_pickle=False)).float()
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file} holds no modality offset ({error}): give what prefixcap gap wrote") from error
    if offset.ndim != 1 or not offset.isfinite().all():
        raise InputError(f"{file} holds no vector of finite numbers: give what prefixcap gap wrote")
    return offset


def _normal(embeddings: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(embeddings.shape, generator=generator, device=embeddings.device, dtype=embeddings.dtype)
