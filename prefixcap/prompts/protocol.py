"""What a provider of prompts is: from the embeddings of images to a text for each."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from prefixcap.errors import InputError
from prefixcap.utils.validation import shortened

FIELD = "{}"  # in a template: where the items go


class Item(NamedTuple):
    """An entity or a caption that a prompt was made of.

    Attributes:
        text: the name of the entity, or the caption.
        score: how well it fits the image, as its provider says: a probability, a share of captions, a cosine.
    """

    text: str
    score: float


@dataclass(frozen=True)
class Prompt:
    """The text of an image that is read beside the prefix, before the caption, and is no part of the caption.

    Attributes:
        text: one line or more; "": none.
        items: what the text was made of, the best first.
    """

    text: str
    items: tuple[Item, ...] = ()


class PromptProvider(Protocol):
    """Makes a prompt for each image. Built as `Class(encoder, datastore, **options)`.

    Attributes:
        needs_datastore: whether it retrieves captions; others are built with None in place of a datastore.
    """

    needs_datastore: bool

    def prompts(
        self,
        embeddings: Tensor,
        leave_out: Sequence[Collection[str]] | None = None,
        images: Sequence[int | str] | None = None,
    ) -> list[Prompt]:
        """A prompt for each embedding.

        Args:
            embeddings: (n, dim) of images, or of texts in their place, of the provider's encoder; of any length, on any
                device.
            leave_out: n collections of captions that must not be retrieved, as those of the image itself in training.
            images: n ids: captions of these images must not be retrieved; for a datastore of the same images.

        Raises:
            InputError: the width is another, an embedding is NaN or infinite, or zero where captions are retrieved,
                or too few captions are left.
        """
        ...

    def compose(self, items: Sequence[str]) -> str:
        """The text of a prompt with these items, e.g. those that are left when a wrong one is taken away."""
        ...

    def describe(self) -> dict[str, Any]:
        """`name` and options, which JSON can hold; `build_provider` makes the same provider from it."""
        ...


def leave_out_items(provider: PromptProvider, prompt: Prompt, items: Collection[str]) -> Prompt:
    """A prompt that a provider made, without the items that have these texts."""
    kept = tuple(item for item in prompt.items if item.text not in items)
    return prompt if kept == prompt.items else Prompt(provider.compose([item.text for item in kept]), kept)


def check_template(name: str, template: str) -> str:
    """Return a template. Raises InputError unless it has the field {} once.

    Examples:
        >>> check_template("template", "There are {} in image.")
        'There are {} in image.'
    """
    if template.count(FIELD) != 1:
        raise InputError(f"{name} must have {FIELD} once, where the items go, not {shortened(template)}")
    return template
