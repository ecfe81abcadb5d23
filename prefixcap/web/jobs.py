"""What the model does for the page and the API. Equal jobs are done together, see `prefixcap.web.batcher`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.encoders import Encoder, encode_feature
from prefixcap.errors import InputError
from prefixcap.interpretation import interpret
from prefixcap.zeroshot.arithmetic import encoder_of, weighted_sum

EMBEDDING = "images/embedding"


class Scored(NamedTuple):
    """A text and a cosine: of a caption with its image, or of a token with a prefix vector."""

    text: str
    similarity: float


class Sum(NamedTuple):
    """What arithmetic adds up: images, each (3, height, width) as the encoder prepares it, and texts."""

    images: Sequence[Tensor]
    texts: Sequence[str]
    weights: Sequence[float]  # first of the images, then of the texts


@dataclass(frozen=True)
class Captions:
    """Captions of images, the best first.

    Attributes:
        decode: name of a decoder.
        count: how many for each image.
        by_similarity: the best is the closest to the image, not the likeliest.
        prompt: how every caption begins.
        seed: of what is drawn for each image, which then does not depend on the others; None: drawn anew.
        options: the decoder's, by name.

    Raises:
        InputError: by `run`, as `Captioner.candidates`.
    """

    decode: str = "beam"
    count: int = 1
    by_similarity: bool = False
    prompt: str = ""
    seed: int | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def run(self, captioner: Captioner, images: list[Tensor]) -> list[list[Scored]]:
        """Captions of each image, (3, height, width) as the encoder prepares it."""
        pixels = torch.stack(images)
        features = encode_feature(captioner.encoder(), pixels, captioner.features)
        if captioner.features == EMBEDDING:
            return self.of_features(captioner, features, features)
        return self.of_features(captioner, features, encode_feature(captioner.encoder(), pixels, EMBEDDING))

    def of_features(self, captioner: Captioner, features: Tensor, embeddings: Tensor) -> list[list[Scored]]:
        """Captions of what the captioner reads of images, with their similarities to the images' embeddings."""
        parts = [features] if self.seed is None else [row.unsqueeze(0) for row in features]
        captions = [
            of_image
            for part in parts
            for of_image in captioner.candidates(
                part, self.count, self.decode, len(part), prompt=self.prompt, seed=self.seed, **dict(self.options)
            )
        ]
        scored = [
            list(map(Scored, of_image, cosines))
            for of_image, cosines in zip(captions, captioner.similarities(embeddings, captions), strict=True)
        ]
        if self.by_similarity:
            scored = [sorted(of_image, key=lambda caption: -caption.similarity) for of_image in scored]
        return scored


@dataclass(frozen=True)
class Interpretations:
    """What the prefixes of images say, see `prefixcap.interpretation`: so many tokens for each vector."""

    count: int

    def run(self, captioner: Captioner, images: list[Tensor]) -> list[list[list[Scored]]]:
        """For each image, (3, height, width), for each prefix vector, the nearest tokens."""
        features = encode_feature(captioner.encoder(), torch.stack(images), captioner.features)
        found = interpret(captioner, features, self.count)
        return [[[Scored(*token) for token in of_vector] for of_vector in of_image] for of_image in found]


@dataclass(frozen=True, eq=False)  # no two are equal: a sum that comes to nothing is a mistake in one request alone
class Arithmetic:
    """Captions of sums and differences of images and texts, see `prefixcap.zeroshot.arithmetic`."""

    captions: Captions

    def run(self, captioner: Captioner, sums: list[Sum]) -> list[list[Scored]]:
        """Captions of each sum."""
        embeddings = torch.stack([_add(encoder_of(captioner), *terms) for terms in sums])
        return self.captions.of_features(captioner, embeddings, embeddings)


def _add(encoder: Encoder, images: Sequence[Tensor], texts: Sequence[str], weights: Sequence[float]) -> Tensor:
    operands = [encoder.encode_images(torch.stack(list(images)))] if images else []
    operands += [encoder.encode_texts(texts)] if texts else []
    try:
        return weighted_sum(torch.cat(operands).float(), weights, range(len(images)))
    except InputError as error:
        raise InputError(f"the sum {error}") from error


Job = Captions | Interpretations | Arithmetic
