"""Noise that makes text embeddings look like image embeddings (CapDec: Nukrai et al., "Text-Only Training for Image
Captioning using Noise-Injected CLIP", 2022; MacCap: Qiu et al., "Mining Fine-Grained Image-Text Alignment for Zero-Shot
Captioning via Text-Only Training", 2024, equations 3 and 4).

Every function takes a generator on the device of the embeddings; None: torch's own, which `torch.manual_seed` seeds.
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
    """Embeddings (…, dim) with Gaussian noise of mean zero and the given variance in each dimension.

    The variance is sigma squared: CapDec's and MacCap's published code take 0.016 for it, a standard deviation of 0.126
    (MacCap's paper calls the 0.016 "noise variance sigma", and the noise uniform where its equation 4 and its code have
    it normal). Of 512 dimensions the noise is then 2.9 long, where the
    embedding, scaled to length one, is 1.
    """
    return embeddings + math.sqrt(variance) * _normal(embeddings, generator)


def ball_noise(embeddings: Tensor, variance: float, generator: torch.Generator | None = None) -> Tensor:
    """Embeddings (…, dim) moved to a place drawn evenly from the ball around each whose radius is sqrt(variance), as in
    CapDec's code (`uniform_noise`)."""
    direction = F.normalize(_normal(embeddings, generator), dim=-1)
    share = torch.rand(
        (*embeddings.shape[:-1], 1), generator=generator, device=embeddings.device, dtype=embeddings.dtype
    )
    return embeddings + math.sqrt(variance) * share ** (1 / embeddings.shape[-1]) * direction


def dimension_noise(
    embeddings: Tensor, variance: float, share: float = 0.1, generator: torch.Generator | None = None
) -> Tensor:
    """Embeddings (…, dim) with Gaussian noise in a share of the dimensions, drawn anew for each embedding (the
    CLIP+GPT-2 captioner's "noise on 10% of the features"; at least one dimension)."""
    count = max(1, round(share * embeddings.shape[-1]))
    scores = torch.rand(embeddings.shape, generator=generator, device=embeddings.device)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.topk(count).indices, True)
    return torch.where(chosen, gaussian_noise(embeddings, variance, generator), embeddings)


@dataclass(frozen=True)
class Noise:
    """What is done to an embedding before a captioner learns from it.

    Attributes:
        kind: "gaussian", "ball" or "dimensions", see the functions of this module.
        variance: of the noise in each dimension, for embeddings of length one; 0 adds none. "ball": the square of the
            radius.
        share: of the dimensions that have noise, for "dimensions".
        copies: how many times the embedding is repeated, each time with its own noise: MacCap's text-region features
            (N_cr, equation 3). None: it is not, and stays one vector.
        offset: (dim,) added to every embedding: CapDec's modality offset, the mean image embedding less the mean text
            embedding, both scaled to length one first. None: nothing.
        normalize_before: scale the embedding to length one first.
        normalize_after: scale the result to length one (equation 4).

    Raises:
        InputError: there is no such kind, or a number is out of its range.
    """

    kind: Literal["gaussian", "ball", "dimensions"] = "gaussian"
    variance: Variance = 0.016
    share: Annotated[float, Interval(gt=0.0, le=1.0)] = 0.1
    copies: Count | None = None
    offset: Tensor | None = None
    normalize_before: bool = True
    normalize_after: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "noise.")

    def __call__(self, embeddings: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(batch, dim) embeddings -> the same shape, or (batch, copies, dim), with noise.

        Raises:
            InputError: the offset is of another width.
        """
        if self.normalize_before:
            embeddings = F.normalize(embeddings, dim=-1)
        if self.copies is not None:
            embeddings = embeddings.unsqueeze(-2).expand(*embeddings.shape[:-1], self.copies, -1)
        if self.variance > 0:
            embeddings = self._added(embeddings, generator)
        if self.offset is not None:
            if self.offset.shape != embeddings.shape[-1:]:
                raise InputError(
                    f"noise.offset has the shape {tuple(self.offset.shape)}, but embeddings have "
                    f"{embeddings.shape[-1]} dimensions: compute it with the same encoder"
                )
            embeddings = embeddings + self.offset.to(embeddings)
        return F.normalize(embeddings, dim=-1) if self.normalize_after else embeddings

    def _added(self, embeddings: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.kind == "dimensions":
            return dimension_noise(embeddings, self.variance, self.share, generator)
        add = gaussian_noise if self.kind == "gaussian" else ball_noise
        return add(embeddings, self.variance, generator)


def read_offset(file: Path) -> Tensor:
    """A modality offset, (dim,), from the NumPy file that `prefixcap gap` wrote.

    Raises:
        InputError: there is no such file, or it holds something else.
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
