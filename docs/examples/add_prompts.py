"""A provider of prompts of your own: what is in an image, and where it is, from two vocabularies.

python docs/examples/add_prompts.py photo.jpg another.png
"""

import sys
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.encoders import Encoder, embed_images, load_encoder
from prefixcap.prompts import PROVIDERS, Datastore, Item, Prompt, build_provider
from prefixcap.prompts.entities import embed_vocabulary
from prefixcap.vocabulary import Vocabulary


class ThingAndPlace:
    """The nearest name of each of two vocabularies.

    Args:
        encoder: of the embeddings.
        datastore: not used.
        things: names.
        places: names.
    """

    needs_datastore = False

    def __init__(
        self, encoder: Encoder, datastore: Datastore | None, things: Sequence[str], places: Sequence[str]
    ) -> None:
        self.vocabularies = [Vocabulary(things), Vocabulary(places)]
        self.directions = [embed_vocabulary(encoder, each, ["{}"]) for each in self.vocabularies]  # (names, dim) each

    @torch.no_grad()
    def prompts(
        self,
        embeddings: Tensor,
        leave_out: Sequence[Collection[str]] | None = None,
        images: Sequence[int | str] | None = None,
    ) -> list[Prompt]:
        """(n, dim) embeddings -> n prompts."""
        items: list[list[Item]] = [[] for _ in embeddings]
        for vocabulary, directions in zip(self.vocabularies, self.directions, strict=True):
            cosines, rows = (F.normalize(embeddings.float()) @ directions.T).max(1)  # (n,) each
            for own, cosine, row in zip(items, cosines.tolist(), rows.tolist(), strict=True):
                own.append(Item(vocabulary.names[row], cosine))
        return [Prompt(self.compose([item.text for item in own]), tuple(own)) for own in items]

    def compose(self, items: Sequence[str]) -> str:
        """What is left of "There is a star, in the snow." when a user takes one of them away."""
        return f"There is {', '.join(items)}." if items else ""

    def describe(self) -> dict[str, Any]:
        """Name and options: a checkpoint keeps them."""
        things, places = (each.lines for each in self.vocabularies)
        return {"name": "thing_and_place", "things": things, "places": places}


PROVIDERS["thing_and_place"] = ThingAndPlace

if __name__ == "__main__":
    description = {
        "name": "thing_and_place",
        "things": ["a circle", "a square", "a star", "a heart"],
        "places": ["in a meadow", "on a beach", "in the snow", "by the sea"],
    }
    encoder = load_encoder("demo")
    for prompt in build_provider(description, encoder).prompts(embed_images(encoder, sys.argv[1:])):
        print(prompt.text)
