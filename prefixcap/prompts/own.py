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
    """A provider that is built when it is first needed, from a captioner's description.

    Args:
        description: what `PromptProvider.describe` returned; None: the captioner has no prompts.
        provider: the one that it describes; None: it is still to be built.

    Raises:
        InputError: no provider has this name, or it does not take one of the options.
    """

    def __init__(self, description: Mapping[str, Any] | None, provider: PromptProvider | None = None) -> None:
        if description is not None:
            check_provider(description)
        self.description = description
        self._provider = provider

    @property
    def retrieve(self) -> bool:
        """Whether they are made of captions that are retrieved from a datastore."""
        return self.description is not None and retrieves(self.description)

    def use(self, datastore: "Datastore", encoder: Callable[[], Encoder]) -> None:
        """Retrieve from this datastore from now on. Raises InputError if it does not fit."""
        assert self.description is not None
        self._provider = build_provider(self.description, encoder(), datastore)

    def make(
        self,
        embeddings: Tensor,
        encoder: Callable[[], Encoder],
        tokenizer: "PreTrainedTokenizerBase",
        without: Sequence[Collection[str]] | None = None,
    ) -> list[Prompt]:
        """The prompts of images; `encoder` loads the encoder. Otherwise as `Captioner.image_prompts`."""
        if self.description is None:
            raise InputError("this captioner was trained without prompts of images, and makes none")
        if self._provider is None:
            self._provider = build_provider(self.description, encoder())
        prompts = self._provider.prompts(embeddings)
        if without is not None:
            pairs = zip(prompts, without, strict=True)
            prompts = [leave_out_items(self._provider, prompt, items) for prompt, items in pairs]
        if (most := self.description.get("max_prompt_tokens")) is None:
            return prompts
        texts = cut_prompts(tokenizer, [prompt.text for prompt in prompts], most)
        return [replace(prompt, text=text) for prompt, text in zip(prompts, texts, strict=True)]
