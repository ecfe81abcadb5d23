"""Mapping networks: features of an image in, a prefix for the language model out."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefixcap.errors import InputError
from prefixcap.utils.deferred import deferred, deferred_attributes
from prefixcap.utils.options import check_options

if TYPE_CHECKING:
    from prefixcap.mappers.adaptor import AdaptorMapper
    from prefixcap.mappers.base import Mapper
    from prefixcap.mappers.cross_attention import CrossAttentionMapper
    from prefixcap.mappers.fusion import FusionMapper
    from prefixcap.mappers.mlp import MLPMapper
    from prefixcap.mappers.projector import ProjectorMapper
    from prefixcap.mappers.query import QueryMapper
    from prefixcap.mappers.transformer import TransformerMapper

# Imported when they are built: names and options are known without torch. A mapper of one's own is any `Mapper` class.
MAPPERS: dict[str, "type[Mapper]"] = {
    "mlp": deferred("prefixcap.mappers.mlp.MLPMapper"),
    "transformer": deferred("prefixcap.mappers.transformer.TransformerMapper"),
    "projector": deferred("prefixcap.mappers.projector.ProjectorMapper"),
    "query": deferred("prefixcap.mappers.query.QueryMapper"),
    "adaptor": deferred("prefixcap.mappers.adaptor.AdaptorMapper"),
    "fusion": deferred("prefixcap.mappers.fusion.FusionMapper"),
    "cross_attention": deferred("prefixcap.mappers.cross_attention.CrossAttentionMapper"),
}

__all__ = [
    "MAPPERS",
    "AdaptorMapper",
    "CrossAttentionMapper",
    "FusionMapper",
    "MLPMapper",
    "Mapper",
    "ProjectorMapper",
    "QueryMapper",
    "TransformerMapper",
    "build_mapper",
    "check_mapper",
]

__getattr__ = deferred_attributes(
    __name__,
    {
        "AdaptorMapper": "adaptor",
        "CrossAttentionMapper": "cross_attention",
        "FusionMapper": "fusion",
        "MLPMapper": "mlp",
        "Mapper": "base",
        "ProjectorMapper": "projector",
        "QueryMapper": "query",
        "TransformerMapper": "transformer",
    },
)


def build_mapper(name: str, embedding_dim: int, lm_dim: int, **options: Any) -> "Mapper":
    """Build the mapper called `name`.

    Args:
        name: a name in `MAPPERS`: "mlp", "transformer", "query", "projector", "adaptor", "fusion" or "cross_attention".
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
    options = check_mapper(name, options)
    return MAPPERS[name](embedding_dim, lm_dim, **options)


def check_mapper(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a mapper, as `check_options` gives them. Raises InputError as `build_mapper`."""
    if not isinstance(name, str) or name not in MAPPERS:
        raise InputError(f"unknown mapper '{name}': choose one of {', '.join(MAPPERS)}")
    return check_options(f"mapper '{name}'", MAPPERS[name], options, positional=2)
