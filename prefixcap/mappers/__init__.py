"""Mapping networks: an embedding in, a prefix for the language model out."""

from typing import Any

from torch import nn

from prefixcap.errors import InputError
from prefixcap.mappers.mlp import MLPMapper
from prefixcap.mappers.transformer import TransformerMapper

MAPPERS: dict[str, type[MLPMapper] | type[TransformerMapper]] = {
    "mlp": MLPMapper,
    "transformer": TransformerMapper,
}

__all__ = ["MAPPERS", "MLPMapper", "TransformerMapper", "build_mapper"]


def build_mapper(name: str, embedding_dim: int, lm_dim: int, **options: Any) -> nn.Module:
    """The mapper called `name` ("mlp" or "transformer") between the two widths.

    Raises:
        InputError: no mapper has this name, or it does not take one of the options.
    """
    if name not in MAPPERS:
        raise InputError(f"unknown mapper '{name}': choose one of {', '.join(MAPPERS)}")
    try:
        return MAPPERS[name](embedding_dim, lm_dim, **options)
    except TypeError as error:
        raise InputError(f"mapper '{name}': {error}") from error
