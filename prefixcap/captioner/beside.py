"""What is read beside images: prompts, and captions that are retrieved, also to choose among captions."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prefixcap.decoding.padded import PaddedPrefix, pad_left, with_memory
from prefixcap.encoders import Encoder
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.language.tokens import tokenize_prompts
from prefixcap.model import PrefixLM
from prefixcap.reranking import rerank

if TYPE_CHECKING:
    from prefixcap.consensus import Consensus
    from prefixcap.prompts import Datastore
    from prefixcap.store import FeatureStore

    AnyDatastore = FeatureStore | str | Path | Datastore


def decoder_inputs(model: PrefixLM, embeddings: Tensor) -> Tensor | PaddedPrefix:
    """(rows, P, E) prefixes of what `PrefixLM.prefix` takes; with a memory, if images enter by cross-attention."""
    prefix, memory = model.prefix_and_memory(embeddings)
    return prefix if memory is None else with_memory(prefix, memory)


def with_prompts(
    model: PrefixLM, prefix: Tensor | PaddedPrefix, prompts: Sequence[str] | None, prompt_ids: list[int]
) -> Tensor | PaddedPrefix:
    """(rows, P, E) prefixes, each followed by the prompt of its image and the tokens of `prompt`.

    Args:
        model: that reads them.
        prefix: one row an image, or several next to each other.
        prompts: of the images; None: they have none.
        prompt_ids: the beginning of every caption.
    """
    if prompts is None and isinstance(prefix, Tensor):
        return model.append_tokens(prefix, torch.tensor(prompt_ids, dtype=torch.long))
    prompts = [""] * len(prefix) if prompts is None else prompts
    per_image = len(prefix) // max(len(prompts), 1)
    own = tokenize_prompts(model.language_model.tokenizer, prompts)
    return pad_left(prefix, [ids + prompt_ids for ids in own for _ in range(per_image)], model.language_model)


def with_nearest(embeddings: Tensor, datastore: "Datastore", count: int) -> Tensor:
    """(B, D) -> (B, 1 + count, D), behind each embedding those of the nearest captions of a datastore."""
    retrieved = datastore.memory.embeddings(datastore.neighbours(embeddings, count)).to(embeddings)  # (B, count, D)
    return torch.cat((embeddings.unsqueeze(1), retrieved), dim=1)


def ranked(
    encoder: Callable[[], Encoder],
    embeddings: Tensor,
    captions: list[list[str]],
    consensus: "Consensus | None",
    characters: int | None,
) -> list[list[str]]:
    """Captions of images with these embeddings, ordered by `consensus`, or without one by the encoder's similarity, see
    `prefixcap.reranking.rerank`."""
    if consensus is None:
        return rerank(encoder(), embeddings, captions, characters)
    return consensus.rerank(embeddings, captions)


def open_datastores(
    stores: "AnyDatastore | Mapping[str, AnyDatastore]", encoder: EncoderIdentity, read: int
) -> "dict[str, Datastore]":
    """Datastores that fit a captioner, by name; one without a name has "".

    Args:
        stores: a feature store with embeddings of captions, or its path, or a datastore; or several by name.
        encoder: the captioner's.
        read: how many captions its mapper reads; 0: prompts alone are made of captions.

    Raises:
        InputError: there is no such store, it has fewer captions, or is of another encoder; or there are none, or
            several for a mapper, which reads from one.
    """
    from prefixcap.prompts.datastore import Datastore  # which reads stores: other captioners need not
    from prefixcap.prompts.retrieval import require_size
    from prefixcap.store.reader import FeatureStore

    given = stores if isinstance(stores, Mapping) else {"": stores}
    if not given:
        raise InputError("no datastore is given: give at least one")
    if read and len(given) > 1:
        raise InputError("the mapper of this captioner reads captions of one datastore: give one")
    opened = {}
    for name, store in given.items():
        if not isinstance(store, Datastore):
            store = Datastore.open(store if isinstance(store, FeatureStore) else str(store))
        store.require_encoder(encoder)
        require_size(store, read)
        opened[name] = store
    return opened
