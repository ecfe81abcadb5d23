"""The jobs that the page and the API give to the model. Equal jobs are run together, see `prefixcap.web.batcher`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.encoders import Encoder, encode_feature, reads_texts
from prefixcap.errors import InputError
from prefixcap.interpretation import interpret
from prefixcap.prompts import Item, Prompt
from prefixcap.reranking import encode_for_reranking
from prefixcap.zeroshot.arithmetic import encoder_of, weighted_sum


class Scored(NamedTuple):
    """A text and a cosine: between a caption and its image, or between a token and a prefix vector.

    The cosine of a caption is None if the encoder reads no texts.
    """

    text: str
    similarity: float | None


class Picture(NamedTuple):
    """An image to caption, and what is read with it.

    Attributes:
        pixels: (3, height, width), as the encoder preprocesses it.
        prompt: read beside the prefix, before the caption; "": none; None: the captioner's own, if it makes one.
        without: texts of items that the captioner's own prompt leaves out, and captions that its mapper does not read.
    """

    pixels: Tensor
    prompt: str | None = None
    without: frozenset[str] = frozenset()


class Captioned(NamedTuple):
    """An image's captions and what the captioner found by itself.

    Attributes:
        captions: the best first.
        prompt: that the captioner made; None: it made none.
        retrieved: captions that the mapper read with the image; None: it reads none.
    """

    captions: list[Scored]
    prompt: Prompt | None = None
    retrieved: list[Item] | None = None


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
        datastore: the name of the one of several that captions are retrieved from; None: the first.

    Raises:
        InputError: by `run`, as `Captioner.candidates`.
    """

    decode: str = "beam"
    count: int = 1
    by_similarity: bool = False
    prompt: str = ""
    seed: int | None = None
    options: tuple[tuple[str, Any], ...] = ()
    datastore: str | None = None

    def run(self, captioner: Captioner, images: list[Picture]) -> list[Captioned]:
        """Captions of each image."""
        pixels = torch.stack([image.pixels for image in images])
        features, embeddings = encode_for_reranking(captioner.encoder(), pixels, captioner.features)
        made: dict[int, Prompt] = {}
        rows = [row for row, image in enumerate(images) if image.prompt is None]
        if captioner.prompts is not None and rows:
            own = captioner.image_prompts(embeddings[rows], [images[row].without for row in rows], self.datastore)
            made = dict(zip(rows, own, strict=True))
        texts = [made[row].text if row in made else image.prompt or "" for row, image in enumerate(images)]
        read: list[list[Item]] | list[None] = [None] * len(images)
        if captioner.mapper.retrieved:
            features, read = captioner.retrieve(embeddings, [image.without for image in images], self.datastore)
        captions = self.caption_features(captioner, features, embeddings, texts)
        return [Captioned(candidates, made.get(row), read[row]) for row, candidates in enumerate(captions)]

    def caption_features(
        self, captioner: Captioner, features: Tensor, embeddings: Tensor, prompts: Sequence[str] | None = None
    ) -> list[list[Scored]]:
        """Captions of the features that the captioner reads, with their cosines to the (images, dim) embeddings.

        `prompts` are those of the images, as `Captioner.candidates` takes them.
        """
        captions: list[list[str]] = []
        step = max(len(features), 1) if self.seed is None else 1  # each image has the numbers that it has alone
        for start in range(0, len(features), step):
            rows = slice(start, start + step)
            captions += captioner.candidates(
                features[rows], self.count, self.decode, step, prompts=None if prompts is None else prompts[rows],
                prompt=self.prompt, seed=self.seed, **dict(self.options),
            )  # fmt: skip
        if not self.by_similarity and not reads_texts(captioner.encoder()):
            return [[Scored(caption, None) for caption in candidates] for candidates in captions]
        similarities = captioner.similarities(embeddings, captions)
        scored = [
            list(map(Scored, *texts_and_cosines)) for texts_and_cosines in zip(captions, similarities, strict=True)
        ]
        if self.by_similarity:
            scored = [sorted(candidates, key=lambda caption: -(caption.similarity or 0)) for candidates in scored]
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
