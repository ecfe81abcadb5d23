"""Candidates by adding noise to an image's features (MacCap: Qiu et al. 2024, section 4.3, "multiple sampling and
filtering"), and how its released code processes them (github.com/Artanic30/MacCap)."""

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
    """How candidates are sampled and processed, beside the decoder's own options.

    Attributes:
        noise: variance of Gaussian noise that is added to an image's features, scaled to unit length first; each
            candidate is the decoder's best caption for its own noise. 0: candidates are the decoder's best captions.
        unit_parts: for captioners that read regions: scale the image's embedding and what the region adds to it to unit
            length each, and add the noise to their sum, see `prefixcap.encoders.regions.unit_parts`.
        clean: keep only letters, digits, spaces, commas and full stops of a caption, see `clean_caption`.
        rerank_characters: how many characters of a caption reranking compares (80 in the released code); None: as many
            as the encoder reads.

    Raises:
        InputError: a value is out of range.

    Examples:
        >>> options = {"noise": 0.016, "beams": 4}
        >>> Sampling.take_from(options)
        Sampling(noise=0.016, unit_parts=False, clean=False, rerank_characters=None)
        >>> options  # those of the decoder
        {'beams': 4}
    """

    noise: Variance = 0.0
    unit_parts: bool = False
    clean: bool = False
    rerank_characters: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def take_from(cls, options: dict[str, Any]) -> "Sampling":
        """Remove these options from a dictionary that also has a decoder's."""
        return cls(**{field.name: options.pop(field.name) for field in fields(cls) if field.name in options})

    def decoded_per_row(self, count: int) -> int:
        """How many captions the decoder returns for each row: with noise, each candidate has a row of its own."""
        return 1 if self.noise else count

    def images_at_once(self, batch_size: int, count: int) -> int:
        """How many images are captioned together: with noise, each candidate takes a row of a batch."""
        return max(1, batch_size // count) if self.noise else batch_size

    def inputs(
        self, features: Tensor, embeddings: Tensor | None, count: int, generator: torch.Generator | None
    ) -> Tensor:
        """What the mapper reads.

        Args:
            features: (images, …, dim).
            embeddings: (images, dim) of the entire images, for `unit_parts`; None: regions stay as they are.
            count: candidates of an image.
            generator: on the CPU; None: torch's default.

        Returns:
            (images, …, dim); with noise (images * count, …, dim), the rows of an image next to each other.
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
        """The captions of each decoded row -> the `count` captions of each image."""
        if self.clean:
            captions = [list(map(clean_caption, row)) for row in captions]
        rows_per_image = count if self.noise else 1
        return [
            list(itertools.chain(*captions[row : row + rows_per_image]))
            for row in range(0, len(captions), rows_per_image)
        ]


def clean_caption(caption: str) -> str:
    """Clean a caption like `clean_func` of MacCap's models/BaseModel.py: it keeps unaccented letters, digits, spaces,
    commas and full stops, collapses runs of spaces or full stops, and removes groups of four digits such as years.

    Examples:
        >>> clean_caption("A café's sign, 1999: two  dogs...")
        'A cafs sign,  two dogs.'
    """
    caption = re.sub(r"[^a-zA-Z0-9 ,.]", "", caption)
    caption = re.sub(r" +", " ", caption)
    caption = re.sub(r"\.+", ".", caption)
    return re.sub(r"[0-9]{4}", "", caption).strip()
