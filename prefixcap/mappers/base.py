"""The base class of mapping networks."""

from torch import nn

from prefixcap.features import Feature


class Mapper(nn.Module):
    """Maps what an encoder computes of an image to a prefix, (batch, prefix_length, lm_dim).

    A subclass is built as `Class(embedding_dim, lm_dim, **options)`: the widths of the encoder's joint space and of the
    language model's word embeddings, then the options under `model.mapper`. Its `forward` takes a batch of `features`.

    Attributes:
        features: the feature of an image that it reads: `Feature.IMAGE`, (batch, embedding_dim), or `Feature.PATCHES`
            or `Feature.REGIONS`, (batch, patches or regions, embedding_dim); or its name: "image" (or "embedding"),
            "patches", "regions", "hidden".
        prefix_length: the number of prefix vectors.
        retrieved: how many captions of a datastore, those nearest to the image, it reads beside `Feature.IMAGE`: a
            batch is then (batch, 1 + retrieved, embedding_dim), the image's embedding first. 0: none.
    """

    features: Feature | str
    prefix_length: int
    retrieved: int = 0
