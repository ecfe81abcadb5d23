"""Order captions by the similarity of their text embedding to their image's embedding."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from prefixcap.decoding import decoder_options
from prefixcap.encoders import Encoder, encode_feature
from prefixcap.features import Feature


def similarities(encoder: Encoder, embeddings: Tensor, captions: Sequence[Sequence[str]]) -> list[list[float]]:
    """The cosine between each caption and its image, in the encoder's joint space.

    Args:
        encoder: embeds the captions.
        embeddings: (images, dim) of the images, as this encoder returns them.
        captions: any number for each image.

    Returns:
        For each image the cosines of its captions, -1.0 to 1.0, in the order given.
    """
    columns = {caption: column for column, caption in enumerate(dict.fromkeys(chain(*captions)))}  # each caption once
    texts = F.normalize(encoder.encode_texts(list(columns)).float(), dim=-1)  # (distinct captions, dim)
    cosines = (F.normalize(embeddings.to(texts), dim=-1) @ texts.T).tolist()  # (images, distinct captions)
    return [[row[columns[text]] for text in candidates] for candidates, row in zip(captions, cosines, strict=True)]


def rerank(
    encoder: Encoder, embeddings: Tensor, captions: Sequence[Sequence[str]], characters: int | None = None
) -> list[list[str]]:
    """The captions of each image, the most similar first; equally similar ones keep their order.

    Args:
        encoder, embeddings, captions: as in `similarities`.
        characters: compare only the first characters of each caption; None: all that the encoder reads.

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


def default_candidates(rerank: int, decode: str, options: Mapping[str, Any]) -> int:
    """How many candidates a captioner chooses from unless it is told: its own number, in a beam search wide enough.

    Args:
        rerank: of the captioner, see `PrefixLM`.
        decode: name of a decoder.
        options: those that are given to it.

    Examples:
        >>> [default_candidates(5, "beam", {"beams": beams}) for beams in (3, 5)], default_candidates(5, "greedy", {})
        ([0, 5], 0)
    """
    if decode != "beam":
        return 0
    beams = options.get("beams", decoder_options("beam")["beams"].default)
    return rerank if isinstance(beams, int) and beams >= rerank else 0


def encode_for_reranking(encoder: Encoder, pixels: Tensor, feature: Feature) -> tuple[Tensor, Tensor]:
    """What is needed to caption images and to rank their captions.

    Args:
        encoder: embeds the images.
        pixels: (images, 3, height, width), as its `preprocess` returns them.
        feature: what the captioner reads.

    Returns:
        The feature, and the (images, dim) embeddings to compare captions with; the same tensor if that is the feature.

    Raises:
        InputError: the encoder has no patches or regions.
    """
    features = encode_feature(encoder, pixels, feature)
    return features, features if feature is Feature.IMAGE else encode_feature(encoder, pixels, Feature.IMAGE)
