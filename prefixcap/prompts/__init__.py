"""Prompts of images: what each image's own text says, read beside the prefix, before the caption."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from prefixcap.errors import InputError
from prefixcap.utils.deferred import deferred, deferred_attributes
from prefixcap.utils.options import check_options
from prefixcap.utils.validation import shortened

if TYPE_CHECKING:
    from prefixcap.encoders import Encoder
    from prefixcap.prompts.datastore import Datastore
    from prefixcap.prompts.entities import ClipEntities, RetrievedEntities
    from prefixcap.prompts.own import OwnPrompts
    from prefixcap.prompts.protocol import Item, Prompt, PromptProvider
    from prefixcap.prompts.retrieval import RetrievedCaptions

# Imported when they are built: names and options are known without torch. One of one's own is any `PromptProvider`.
PROVIDERS: dict[str, Callable[..., "PromptProvider"]] = {
    "clip_entities": deferred("prefixcap.prompts.entities.ClipEntities"),
    "retrieved_entities": deferred("prefixcap.prompts.entities.RetrievedEntities"),
    "retrieved_captions": deferred("prefixcap.prompts.retrieval.RetrievedCaptions"),
}
"""What makes a prompt for an image, by name. A class is built as `Class(encoder, datastore, **options)`."""

__all__ = [
    "PROVIDERS",
    "ClipEntities",
    "Datastore",
    "Item",
    "OwnPrompts",
    "Prompt",
    "PromptProvider",
    "RetrievedCaptions",
    "RetrievedEntities",
    "build_provider",
    "check_provider",
    "retrieves",
]

__getattr__ = deferred_attributes(
    __name__,
    {
        "ClipEntities": "entities",
        "Datastore": "datastore",
        "Item": "protocol",
        "OwnPrompts": "own",
        "Prompt": "protocol",
        "PromptProvider": "protocol",
        "RetrievedCaptions": "retrieval",
        "RetrievedEntities": "entities",
    },
)

_NOT_OPTIONS = ("name", "datastore", "max_prompt_tokens", "first")  # of a description


def build_provider(
    description: Mapping[str, Any], encoder: "Encoder", datastore: "Datastore | None" = None
) -> "PromptProvider":
    """Build a provider of prompts from its name and options, or build it again from what its `describe` returned.

    Args:
        description: `name`, a name in `PROVIDERS`, and the options of its class. What it says of a `datastore` is not
            opened, but names it where one is missing.
        encoder: of the embeddings that prompts are made for.
        datastore: captions to retrieve from, for those that need one: the one it was made with, or another.

    Raises:
        InputError: no provider has this name, it does not take one of the options or its value, it needs a datastore,
            or that is of another encoder.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> described = {"name": "clip_entities", "vocabulary": ["red circle", "blue square"], "top_k": 1}
        >>> provider = build_provider(described, load_encoder("demo"))
        >>> provider.prompts(load_encoder("demo").encode_texts(["a red circle in the snow"]))[0].text
        'There are red circle in image.'
    """
    name, options = check_provider(description)
    provider = PROVIDERS[name]
    if retrieves(description) and datastore is None:
        made_with = (description.get("datastore") or {}).get("source")
        hint = f", e.g. {shortened(made_with)}, with which it was made" if made_with else ""
        raise InputError(f"prompts '{name}' need a datastore: give a feature store with embeddings of captions{hint}")
    return provider(encoder, datastore, **options)


def check_provider(description: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the options in a description, before torch is needed. Raises InputError as `build_provider`."""
    name = description.get("name")
    if not isinstance(name, str) or name not in PROVIDERS:
        raise InputError(f"unknown prompts '{name}': choose one of {', '.join(PROVIDERS)}")
    options = {option: value for option, value in description.items() if option not in _NOT_OPTIONS}
    return name, check_options(f"prompts '{name}'", PROVIDERS[name], options, positional=2)


def retrieves(description: Mapping[str, Any]) -> bool:
    """Whether a provider with this description retrieves captions from a datastore."""
    return bool(getattr(PROVIDERS[check_provider(description)[0]], "needs_datastore", False))
