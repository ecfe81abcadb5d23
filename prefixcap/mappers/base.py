"""What all mapping networks have in common."""

from torch import nn


class Mapper(nn.Module):
    """From what an encoder sees of an image to a prefix, (batch, prefix_length, lm_dim).

    Its class is called with the widths of the encoder's embedding and of the language model's word embeddings, and with
    the options under `model.mapper`.

    Attributes:
        features: what it reads of an image: "embedding", (batch, embedding_dim), or "patches" or "regions",
            (batch, so many of them, embedding_dim).
        prefix_length: how many prefix vectors it makes.
    """

    features: str
    prefix_length: int
