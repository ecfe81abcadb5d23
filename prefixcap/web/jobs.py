"""The jobs that the page and the API give to the model. Equal jobs are run together, see `prefixcap.web.batcher`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.encoders import Encoder, encode_feature
from prefixcap.errors import InputError
from prefixcap.interpretation import interpret
from prefixcap.reranking import encode_for_reranking
from prefixcap.zeroshot.arithmetic import encoder_of, weighted_sum


class Scored(NamedTuple):
    """A text and a cosine: between a caption and its image, or between a token and a prefix vector."""

    text: str
    similarity: float


class Sum(NamedTuple):
    """The operands of arithmetic: images, each (3, height, width) as the encoder preprocesses it, and texts."""

    images: Sequence[Tensor]
    texts: Sequence[str]
    weights: Sequence[float]  # first of the images, then of the texts


@dataclass(frozen=True)
class Captions:
    """Captions of images, the best first.

    Attributes:
        decode: name of a decoder.
        count: how many for each image.
        by_similarity: order captions by similarity to the image instead of likelihood.
        prompt: how every caption begins.
        seed: for sampling, separately for each image, so that the images of a batch do not matter; None: none.
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
        """Captions of each image, (3, height, width) as the encoder preprocesses it."""
        pixels = torch.stack(images)
        features, embeddings = encode_for_reranking(captioner.encoder(), pixels, captioner.features)
        return self.caption_features(captioner, features, embeddings)

    def caption_features(self, captioner: Captioner, features: Tensor, embeddings: Tensor) -> list[list[Scored]]:
        """Captions of the features that the captioner reads, with their cosines to the (images, dim) embeddings."""
        parts = [features] if self.seed is None else [row.unsqueeze(0) for row in features]
        captions = [
            candidates
            for part in parts
            for candidates in captioner.candidates(
                part, self.count, self.decode, len(part), prompt=self.prompt, seed=self.seed, **dict(self.options)
            )
        ]
        scored = [
            list(map(Scored, candidates, cosines))
            for candidates, cosines in zip(captions, captioner.similarities(embeddings, captions), strict=True)
        ]
        if self.by_similarity:
            scored = [sorted(candidates, key=lambda caption: -caption.similarity) for candidates in scored]
        return scored


@dataclass(frozen=True)
class Interpretations:
    """Interpretations of prefixes, see `prefixcap.interpretation`: `count` tokens for each vector."""

    count: int

    def run(self, captioner: Captioner, images: list[Tensor]) -> list[list[list[Scored]]]:
        """For each image, (3, height, width), for each prefix vector, the nearest tokens."""
        features = encode_feature(captioner.encoder(), torch.stack(images), captioner.features)
        images_tokens = interpret(captioner, features, self.count)
        return [[[Scored(*token) for token in nearest] for nearest in vectors] for vectors in images_tokens]


@dataclass(frozen=True, eq=False)  # never equal: a sum of zero is a mistake in only one request
class Arithmetic:
    """Captions of sums and differences of images and texts, see `prefixcap.zeroshot.arithmetic`."""

    captions: Captions

    def run(self, captioner: Captioner, sums: list[Sum]) -> list[list[Scored]]:
        """Captions of each sum."""
        embeddings = torch.stack([_add(encoder_of(captioner), *terms) for terms in sums])
        return self.captions.caption_features(captioner, embeddings, embeddings)


def _add(encoder: Encoder, images: Sequence[Tensor], texts: Sequence[str], weights: Sequence[float]) -> Tensor:
    operands = [encoder.encode_images(torch.stack(list(images)))] if images else []
    operands += [encoder.encode_texts(texts)] if texts else []
    try:
        return weighted_sum(torch.cat(operands).float(), weights, range(len(images)))
    except InputError as error:
        raise InputError(f"the sum {error}") from error


Job = Captions | Interpretations | Arithmetic
