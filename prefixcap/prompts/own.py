"""The prompts that a captioner makes for images by itself, as it learned to read them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from prefixcap.encoders import Encoder
from prefixcap.errors import InputError
from prefixcap.language.tokens import cut_prompts
from prefixcap.prompts import build_provider, check_provider, retrieves
from prefixcap.prompts.protocol import Prompt, PromptProvider, leave_out_items

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from prefixcap.prompts.datastore import Datastore


class OwnPrompts:
    """A provider that is built when it is first needed, from a captioner's description; or one for each of several
    datastores.

    Args:
        description: what `PromptProvider.describe` returned; None: the captioner has no prompts.
        provider: the one that it describes; None: it is still to be built.

    Attributes:
        description: as given.

    Raises:
        InputError: no provider has this name, or it does not take one of the options.
    """

    def __init__(self, description: dict[str, Any] | None, provider: PromptProvider | None = None) -> None:
        if description is not None:
            check_provider(description)
        self.description = description
        self._providers = {} if provider is None else {"": provider}  # by datastore

    @classmethod
    def given(
        cls, provider: PromptProvider | Mapping[str, Any], max_prompt_tokens: int | None, first: bool
    ) -> "OwnPrompts":
        """Those of `Captioner.use_prompts`, which describes the arguments."""
        built = None if isinstance(provider, Mapping) else provider
        description = dict(provider) if isinstance(provider, Mapping) else provider.describe()
        description |= {"max_prompt_tokens": max_prompt_tokens} if max_prompt_tokens else {}
        description.pop("first", None)
        return cls(description | ({"first": True} if first else {}), built)

    @property
    def retrieve(self) -> bool:
        """Whether they are made of captions that are retrieved from a datastore."""
        return self.description is not None and retrieves(self.description)

    def use(self, datastores: "Mapping[str, Datastore]", encoder: Callable[[], Encoder]) -> None:
        """Retrieve from these datastores, by name, from now on. Raises InputError if one does not fit."""
        assert self.description is not None
        self._providers = {name: build_provider(self.description, encoder(), each) for name, each in datastores.items()}

    def make(
        self,
        embeddings: Tensor,
        encoder: Callable[[], Encoder],
        tokenizer: "PreTrainedTokenizerBase",
        without: Sequence[Collection[str]] | None = None,
        datastore: str | None = None,
    ) -> list[Prompt]:
        """The prompts of images; `encoder` loads the encoder. Otherwise as `Captioner.image_prompts`."""
        if self.description is None:
            raise InputError("this captioner was trained without prompts of images, and makes none")
        if not self._providers:
            self._providers = {"": build_provider(self.description, encoder())}
        first = next(iter(self._providers))
        provider = self._providers[first if datastore is None or not self.retrieve else datastore]
        prompts = provider.prompts(embeddings)
        if without is not None:
            pairs = zip(prompts, without, strict=True)
            prompts = [leave_out_items(provider, prompt, items) for prompt, items in pairs]
        if (most := self.description.get("max_prompt_tokens")) is None:
            return prompts
        texts = cut_prompts(tokenizer, [prompt.text for prompt in prompts], most)
        return [replace(prompt, text=text) for prompt, text in zip(prompts, texts, strict=True)]
