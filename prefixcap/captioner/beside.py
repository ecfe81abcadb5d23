"""What is read beside images: prompts, and captions that are retrieved."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prefixcap.decoding.padded import PaddedPrefix, pad_left
from prefixcap.features import EncoderIdentity
from prefixcap.language.tokens import tokenize_prompts
from prefixcap.model import PrefixLM

if TYPE_CHECKING:
    from prefixcap.prompts import Datastore
    from prefixcap.store import FeatureStore


def with_prompts(
    model: PrefixLM, prefix: Tensor, prompts: Sequence[str] | None, prompt_ids: list[int]
) -> Tensor | PaddedPrefix:
    """(rows, P, E) prefixes, each followed by the prompt of its image and the tokens of `prompt`.

    Args:
        model: that reads them.
        prefix: one row an image, or several next to each other.
        prompts: of the images; None: they have none.
        prompt_ids: the beginning of every caption.
    """
    if prompts is None:
        return model.append_tokens(prefix, torch.tensor(prompt_ids, dtype=torch.long))
    per_image = len(prefix) // max(len(prompts), 1)
    own = tokenize_prompts(model.language_model.tokenizer, prompts)
    return pad_left(prefix, [ids + prompt_ids for ids in own for _ in range(per_image)], model.language_model)


def with_nearest(embeddings: Tensor, datastore: "Datastore", count: int) -> Tensor:
    """(B, D) -> (B, 1 + count, D), behind each embedding those of the nearest captions of a datastore."""
    retrieved = datastore.memory.embeddings(datastore.neighbours(embeddings, count)).to(embeddings)  # (B, count, D)
    return torch.cat((embeddings.unsqueeze(1), retrieved), dim=1)


def open_datastore(store: "FeatureStore | str | Path | Datastore", encoder: EncoderIdentity, least: int) -> "Datastore":
    """A datastore that fits a captioner.

    Args:
        store: a feature store with embeddings of captions, or its path; or a datastore.
        encoder: the captioner's.
        least: how many captions it must have.

    Raises:
        InputError: there is no such store, it has fewer captions, or is of another encoder.
    """
    from prefixcap.prompts.datastore import Datastore  # which reads stores: other captioners need not
    from prefixcap.prompts.retrieval import require_size
    from prefixcap.store.reader import FeatureStore

    if not isinstance(store, Datastore):
        store = Datastore.open(store if isinstance(store, FeatureStore) else str(store))
    store.require_encoder(encoder)
    require_size(store, least)
    return store
