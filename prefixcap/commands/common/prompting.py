"""Prompts of images and retrieved captions, as a configuration describes them."""

import inspect
from typing import Annotated, Any, cast

from annotated_types import Ge
from omegaconf import DictConfig, OmegaConf

from prefixcap.errors import InputError
from prefixcap.mappers import MAPPERS
from prefixcap.prompts import check_provider, retrieves
from prefixcap.utils.deferred import deferred_imports
from prefixcap.utils.options import Positive, Proportion, check_value
from prefixcap.vocabulary import Vocabulary

with deferred_imports():  # what follows imports torch
    from prefixcap.captioner import Captioner
    from prefixcap.data.provided import ProvidedPrompts
    from prefixcap.prompts import Datastore, build_provider
    from prefixcap.store import FeatureStore

# In the group `prompts`, beside the provider's options.
_Noise = Annotated[float, Ge(0.0)]
_OF_TRAINING: dict[str, tuple[Any, Any]] = {
    "masked": (Proportion, 0.0),
    "noise": (_Noise, 0.0),
    "max_prompt_tokens": (Positive | None, None),
    "first": (bool, False),
    "datastore": (str | None, None),
}


def prompts_options(config: DictConfig) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The group `prompts`: the description of a provider, and the options of training. None: there are no prompts.

    Raises:
        InputError: there is no such provider, it does not take an option, or a value is out of range.
    """
    if not config.get("prompts"):
        return None
    options = cast(dict[str, Any], OmegaConf.to_container(config.prompts, resolve=True))
    training = {
        name: check_value(f"prompts.{name}", options.pop(name, default), kind)
        for name, (kind, default) in _OF_TRAINING.items()
    }
    check_provider(options)
    return options, training


def build_prompts(
    config: DictConfig, captioner: "Captioner", store: "FeatureStore"
) -> tuple["ProvidedPrompts | None", int | None]:
    """The prompts of training, which the captioner will make for images from now on, and the most tokens of one.

    Raises:
        InputError: as `prompts_options`, or the provider cannot be built.
    """
    options = prompts_options(config)
    if options is None:
        return None, None
    description, training = options
    datastore = Datastore.open(training["datastore"] or store) if retrieves(description) else None
    provider = build_provider(description, captioner.encoder(), datastore)
    captioner.use_prompts(provider, training["max_prompt_tokens"], training["first"])
    from_text = config.model.learns_from == "text"
    prompts = ProvidedPrompts(provider, from_text, training["masked"], training["noise"], config.seed)
    return prompts, training["max_prompt_tokens"]


def retrieval_options(model: DictConfig) -> tuple[str | None, float]:
    """The group `model.retrieval`: the store to retrieve from, None for that of the training; and the noise.

    Raises:
        InputError: the mapper reads no retrieved captions, there is no such option, or a value is out of range.
    """
    if model.get("retrieval") is None:
        return None, 0.0
    options = cast(dict[str, Any], OmegaConf.to_container(model.retrieval, resolve=True))
    if "retrieved" not in inspect.signature(MAPPERS[model.mapper.name]).parameters:
        raise InputError(
            f"model.retrieval is for a mapper that reads retrieved captions, and '{model.mapper.name}' does not: set "
            "model.retrieval=null"
        )
    if unknown := options.keys() - {"datastore", "noise"}:
        raise InputError(f"model.retrieval has no option '{min(unknown)}': it has datastore and noise")
    store = check_value("model.retrieval.datastore", options.get("datastore"), str | None)
    return store, check_value("model.retrieval.noise", options.get("noise", 0.0), _Noise)


def change_prompts(captioner: "Captioner", options: DictConfig) -> None:
    """Make the prompts of images with other options, e.g. another vocabulary; with a `name`, by another provider.

    Raises:
        InputError: the captioner makes no prompts, the provider does not take an option, or the vocabulary cannot be
            read.
    """
    changes = cast(dict[str, Any], OmegaConf.to_container(options, resolve=True))
    if not changes:
        return
    if captioner.prompts is None:
        raise InputError(
            "prompts.… changes how a captioner makes prompts, and this one was trained without: leave it out"
        )
    if isinstance(vocabulary := changes.get("vocabulary"), str):
        changes["vocabulary"] = Vocabulary.read(vocabulary).lines
    captioner.use_prompts(changes if "name" in changes else captioner.prompts | changes)
