"""Mapping networks: features of an image in, a prefix for the language model out."""

from typing import Any

from prefixcap.errors import InputError
from prefixcap.mappers.adaptor import AdaptorMapper
from prefixcap.mappers.base import Mapper
from prefixcap.mappers.mlp import MLPMapper
from prefixcap.mappers.query import QueryMapper
from prefixcap.mappers.transformer import TransformerMapper
from prefixcap.utils.options import check_options

MAPPERS: dict[str, type[Mapper]] = {
    "mlp": MLPMapper,
    "transformer": TransformerMapper,
    "query": QueryMapper,
    "adaptor": AdaptorMapper,
}

__all__ = ["MAPPERS", "AdaptorMapper", "MLPMapper", "Mapper", "QueryMapper", "TransformerMapper", "build_mapper"]


def build_mapper(name: str, embedding_dim: int, lm_dim: int, **options: Any) -> Mapper:
    """Build the mapper called `name`.

    Args:
        name: a name in `MAPPERS`: "mlp", "transformer", "query" or "adaptor".
        embedding_dim: width of the encoder's joint space.
        lm_dim: width of the language model's word embeddings.
        options: of the mapper's class.

    Raises:
        InputError: no mapper has this name, or it does not take one of the options or its value.

    Examples:
        >>> mapper = build_mapper("mlp", embedding_dim=512, lm_dim=768, prefix_length=10)
        >>> mapper.prefix_length, mapper.features
        (10, <Feature.IMAGE: 'images/embedding'>)
    """
    if not isinstance(name, str) or name not in MAPPERS:
        raise InputError(f"unknown mapper '{name}': choose one of {', '.join(MAPPERS)}")
    options = check_options(f"mapper '{name}'", MAPPERS[name], options, positional=2)
    return MAPPERS[name](embedding_dim, lm_dim, **options)
