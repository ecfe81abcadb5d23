"""What a captioner finds by itself: prompts of images, and captions that are retrieved for them or for its mapper."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from prefixcap.encoders import Encoder
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.model import PrefixLM
from prefixcap.prompts import Item, OwnPrompts, Prompt, PromptProvider

if TYPE_CHECKING:
    from prefixcap.prompts import Datastore
    from prefixcap.store import FeatureStore

    AnyDatastore = FeatureStore | str | Path | Datastore


class Retrieved(NamedTuple):
    """What a mapper reads that fuses images with retrieved captions.

    Attributes:
        embeddings: (B, 1 + retrieved, D), behind each image's embedding those of its captions.
        items: of each image the captions with their cosines, the nearest first.
    """

    embeddings: Tensor
    items: list[list[Item]]


class RetrievingLM(PrefixLM):
    """A `PrefixLM` that makes prompts of images, and retrieves captions.

    Attributes:
        own_prompts: what makes them, as it learned to read them.
        datastores: by name, the first of which is used unless another is named. A single one may have no name, "".
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own_prompts = OwnPrompts(self.prompts)
        self.datastores: dict[str, Datastore] = {}

    def encoder(self) -> Encoder:
        """The encoder whose embeddings it reads."""
        raise NotImplementedError

    def use_prompts(
        self,
        provider: PromptProvider | Mapping[str, Any],
        max_prompt_tokens: int | None = None,
        first: bool | None = None,
    ) -> None:
        """Make prompts of images by this provider from now on; checkpoints describe it.

        Datastores that were given before are forgotten if it retrieves captions.

        Args:
            provider: makes them; or its description, from which it is built when it is first needed.
            max_prompt_tokens: longer prompts lose their last words; None: none is cut, unless a description says so.
            first: prompts are read before an image's prefix, and not after it; None: as a description says, or as the
                captioner has read them so far.

        Raises:
            InputError: no provider has this description.
        """
        if first is None:
            described = provider.get("first") if isinstance(provider, Mapping) else None
            first = self.prompts_first if described is None else described
        self.own_prompts = OwnPrompts.given(provider, max_prompt_tokens, first)
        self.prompts = self.own_prompts.description
        if self.own_prompts.retrieve:
            self.datastores = {}

    @property
    def retrieves(self) -> bool:
        """Whether captions are retrieved, for the mapper or for the prompts of images."""
        return self.mapper.retrieved > 0 or self.own_prompts.retrieve

    def use_datastore(self, store: "AnyDatastore | Mapping[str, AnyDatastore]") -> None:
        """Retrieve captions, for the mapper or for the prompts of images, from this datastore from now on.

        Args:
            store: a feature store with embeddings of captions, or its path; or several by name, the first as default.

        Raises:
            InputError: the captioner retrieves nothing, there is no such store, or it does not fit the captioner.
        """
        if not self.retrieves:
            raise InputError("this captioner was trained without retrieved captions, and takes no datastore")
        opened = _opened(store, self.encoder_identity, self.mapper.retrieved)
        if self.own_prompts.retrieve:
            self.own_prompts.use(opened, self.encoder)
        self.datastores = opened

    def require_datastore(self, name: str) -> None:
        """Raise InputError if no datastore has this name."""
        if not name or name not in self.datastores:
            names = ", ".join(filter(None, self.datastores))
            choice = f"choose one of {names}" if names else "there are none to choose from"
            raise InputError(f"unknown datastore '{name[:100]}': {choice}")

    def image_prompts(
        self, embeddings: Tensor, without: Sequence[Collection[str]] | None = None, datastore: str | None = None
    ) -> list[Prompt]:
        """The prompts that the captioner makes for images, as it learned to read them.

        Args:
            embeddings: (images, dim) of the images, as `embed` returns them.
            without: for each image, texts of items that its prompt leaves out, e.g. because they are wrong.
            datastore: the name of one of several, see `use_datastore`; None: the first, or the only one.

        Returns:
            For each image the text of its prompt, and what that was made of, with scores.

        Raises:
            InputError: the captioner has no prompts, retrieves captions and has no datastore yet, or none of this name.
        """
        if datastore is not None:
            self.require_datastore(datastore)
        return self.own_prompts.make(embeddings, self.encoder, self.language_model.tokenizer, without, datastore)

    def retrieve(
        self, embeddings: Tensor, without: Sequence[Collection[str]] | None = None, datastore: str | None = None
    ) -> Retrieved:
        """What the mapper reads of images where it fuses them with the captions that are nearest to them.

        Args:
            embeddings, datastore: as in `image_prompts`.
            without: for each image, captions that are not retrieved; the next nearest take their place.

        Returns:
            Embeddings, which `caption` and `prefix` take in place of those of images, and the captions.

        Raises:
            InputError: the mapper reads images alone, there is no datastore yet, or none of this name, or it has too
                few captions.
        """
        if not self.mapper.retrieved:
            raise InputError(f"mapper '{self.mapper_options['name']}' reads images alone, and retrieves nothing")
        if datastore is not None:
            self.require_datastore(datastore)
        if not self.datastores:
            super().with_retrieved(embeddings)  # which says what is missing
        chosen = next(iter(self.datastores)) if datastore is None else datastore
        captions, items = self.datastores[chosen].nearest_embeddings(embeddings, self.mapper.retrieved, without)
        return Retrieved(torch.cat((embeddings.unsqueeze(1), captions.to(embeddings)), dim=1), items)

    def with_retrieved(self, embeddings: Tensor) -> Tensor:
        """(B, D) -> (B, 1 + retrieved, D), behind each embedding those of the nearest captions of the datastore."""
        return self.retrieve(embeddings).embeddings


def _opened(
    stores: "AnyDatastore | Mapping[str, AnyDatastore]", encoder: EncoderIdentity, read: int
) -> "dict[str, Datastore]":
    """Datastores by name. Raises InputError if there is none, or one does not fit `encoder`, or has fewer captions than
    the mapper reads."""
    from prefixcap.prompts.datastore import Datastore  # which reads stores: other captioners need not
    from prefixcap.prompts.retrieval import require_size
    from prefixcap.store.reader import FeatureStore

    given = stores if isinstance(stores, Mapping) else {"": stores}
    if not given:
        raise InputError("no datastore is given: give at least one")
    opened = {}
    for name, store in given.items():
        if not isinstance(store, Datastore):
            store = Datastore.open(store if isinstance(store, FeatureStore) else str(store))
        store.require_encoder(encoder)
        require_size(store, read)
        opened[name] = store
    return opened
