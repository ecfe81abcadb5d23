"""Captions ordered by how close an encoder finds them to their image."""

from collections.abc import Sequence
from itertools import chain

import torch.nn.functional as F
from torch import Tensor

from prefixcap.encoders import Encoder, encode_feature
from prefixcap.features import Feature


def similarities(encoder: Encoder, embeddings: Tensor, captions: Sequence[Sequence[str]]) -> list[list[float]]:
    """The cosine of each caption with its image, in the encoder's joint space.

    Args:
        encoder: embeds the captions.
        embeddings: (images, dim) of the images, as this encoder gives them.
        captions: any number for each image.

    Returns:
        For each image the cosines of its captions, in the order given.
    """
    row_of = {caption: row for row, caption in enumerate(dict.fromkeys(chain(*captions)))}  # each caption once
    texts = F.normalize(encoder.encode_texts(list(row_of)).float(), dim=-1)  # (different captions, dim)
    cosines = (F.normalize(embeddings.to(texts), dim=-1) @ texts.T).tolist()  # (images, different captions)
    return [[row[row_of[caption]] for caption in candidates] for candidates, row in zip(captions, cosines, strict=True)]


def rerank(
    encoder: Encoder, embeddings: Tensor, captions: Sequence[Sequence[str]], characters: int | None = None
) -> list[list[str]]:
    """The captions of each image, the closest first; equally close ones keep their order.

    Args:
        encoder, embeddings, captions: as in `similarities`.
        characters: compare only so many of each caption; None: as much as the encoder reads.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> encoder = load_encoder("demo")
        >>> red = encoder.encode_texts(["a red circle"])  # in place of an image's embedding
        >>> rerank(encoder, red, [["a blue square", "a red circle"]])
        [['a red circle', 'a blue square']]
    """
    compared = [[caption[:characters] for caption in candidates] for candidates in captions]
    return [
        [caption for _, caption in sorted(zip(cosines, candidates, strict=True), key=lambda pair: -pair[0])]
        for cosines, candidates in zip(similarities(encoder, embeddings, compared), captions, strict=True)
    ]


def encode_for_reranking(encoder: Encoder, pixels: Tensor, feature: Feature) -> tuple[Tensor, Tensor]:
    """(images, 3, height, width) pixels -> the feature that a captioner reads, and the (images, dim) embeddings that
    captions are compared with."""
    features = encode_feature(encoder, pixels, feature)
    return features, features if feature is Feature.IMAGE else encode_feature(encoder, pixels, Feature.IMAGE)
