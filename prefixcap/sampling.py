"""Candidates from noise on an image's features (MacCap, Qiu et al. 2024, section 4.3, "multiple sampling and
filtering"), and what the released code does to them (github.com/Artanic30/MacCap)."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.encoders.regions import unit_parts
from prefixcap.noise import Variance, gaussian_noise
from prefixcap.utils.options import Positive, check_fields


@dataclass(frozen=True)
class Sampling:
    """How candidates come about, beyond what the decoder finds.

    Attributes:
        noise: each candidate is the decoder's best for the image with Gaussian noise of this variance on its features,
            scaled to unit length before; 0: candidates are the decoder's best ones.
        unit_parts: of regions, the image's embedding and what the region adds to it are scaled to unit length each, and
            the noise is added to their sum as it is, see `prefixcap.encoders.regions.unit_parts`. Where the whole
            image is read, its embedding has unit length in any case.
        clean: keep only letters, digits, spaces, commas and full stops of a caption, see `clean_caption`.
        rerank_characters: reranking compares so many characters of a caption (80 in the released code); None: as many
            as the encoder reads.

    Raises:
        InputError: a value is out of range.
    """

    noise: Variance = 0.0
    unit_parts: bool = False
    clean: bool = False
    rerank_characters: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def take_from(cls, options: dict[str, Any]) -> "Sampling":
        """Take these options out of a decoder's."""
        return cls(**{field.name: options.pop(field.name) for field in fields(cls) if field.name in options})

    def decoded_per_row(self, count: int) -> int:
        """How many captions the decoder finds for each row that it reads: with noise, each candidate has its own."""
        return 1 if self.noise else count

    def inputs(
        self, features: Tensor, embeddings: Tensor | None, count: int, generator: torch.Generator | None
    ) -> Tensor:
        """What the mapper reads: (images, …, dim) features -> the same; with noise, (images x count, …, dim).

        Args:
            features: of images.
            embeddings: (images, dim) of the whole images, to divide regions by; None: they are not divided.
            count: candidates of an image.
            generator: on the CPU; None: torch's own.
        """
        if embeddings is not None:
            features = unit_parts(features, embeddings.to(features.device))
        if not self.noise:
            return features
        features = features.to("cpu", torch.float32)  # the same noise on any device
        if embeddings is None:
            features = F.normalize(features, dim=-1)
        return gaussian_noise(features.repeat_interleave(count, 0), self.noise, generator)

    def candidates(self, captions: Sequence[Sequence[str]], count: int) -> list[list[str]]:
        """The captions of each row that was decoded -> those of each image."""
        if self.clean:
            captions = [list(map(clean_caption, row)) for row in captions]
        rows = count if self.noise else 1  # of an image
        return [list(itertools.chain(*captions[row : row + rows])) for row in range(0, len(captions), rows)]


def clean_caption(caption: str) -> str:
    """A caption as `clean_func` of MacCap's models/BaseModel.py leaves it: unaccented letters, digits, spaces, commas
    and full stops. Several spaces or full stops become one, and runs of four digits, such as years, go.

    Examples:
        >>> clean_caption("A café's sign, 1999: two  dogs...")
        'A cafs sign,  two dogs.'
    """
    caption = re.sub(r"[^a-zA-Z0-9 ,.]", "", caption)
    caption = re.sub(r" +", " ", caption)
    caption = re.sub(r"\.+", ".", caption)
    return re.sub(r"[0-9]{4}", "", caption).strip()
