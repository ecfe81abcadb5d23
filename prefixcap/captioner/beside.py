"""What the language model reads beside images, and what chooses among its captions."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from prefixcap.decoding import check_decoder, decode
from prefixcap.decoding.padded import PaddedPrefix, pad_left, with_memory
from prefixcap.encoders import Encoder
from prefixcap.language.tokens import tokenize_prompts
from prefixcap.model import PrefixLM
from prefixcap.reranking import rerank

if TYPE_CHECKING:
    from prefixcap.consensus import Consensus


def decoder_inputs(model: PrefixLM, embeddings: Tensor) -> Tensor | PaddedPrefix:
    """(rows, P, E) prefixes of what `PrefixLM.prefix` takes; with a memory, if images enter by cross-attention."""
    prefix, memory = model.prefix_and_memory(embeddings)
    return prefix if memory is None else with_memory(prefix, memory)


def with_prompts(
    model: PrefixLM, prefix: Tensor | PaddedPrefix, prompts: Sequence[list[int]], begin: list[int]
) -> Tensor | PaddedPrefix:
    """(rows, P, E) prefixes, each beside the tokens of its prompt, followed by those that captions begin with."""
    if model.prompts_first:
        return pad_left(prefix, [begin] * len(prompts), model.language_model, before=prompts)
    return pad_left(prefix, [prompt + begin for prompt in prompts], model.language_model)


def captions_beside(
    model: PrefixLM,
    inputs: Tensor,
    prompts: Sequence[str] | None,
    begin: list[int],
    method: str,
    num_captions: int,
    options: dict[str, Any],
) -> list[list[list[int]]]:
    """Token ids of captions, each of which follows the prefix and the prompt of its image, in the order of training.

    Where the prompt of an image leaves room for fewer tokens than `max_tokens` in the language model's context, the
    captions of this image are shorter; those of the others stay as they are.

    Args:
        model: that reads images and prompts.
        inputs: (rows, …) what `PrefixLM.prefix` takes: one row an image, or several next to each other.
        prompts: of the images; None: they have none.
        begin: the tokens that every caption begins with, which are not among those returned.
        method: name of a decoder.
        num_captions: how many captions for each row.
        options: of the decoder.

    Raises:
        InputError: as `prefixcap.decoding.decode`, e.g. as there is no room for a caption.
    """
    language_model = model.language_model
    limits, _ = check_decoder(method, num_captions, options)
    own = [[]] if prompts is None else tokenize_prompts(language_model.tokenizer, prompts)
    read = [ids for ids in own for _ in range(len(inputs) // max(len(own), 1))]  # by each row
    room = (language_model.context or sys.maxsize) - model.prefix_length - len(begin)  # without a prompt
    rows_of: dict[int, list[int]] = {}  # by the most tokens of their captions
    for row, ids in enumerate(read):
        fits = len(ids) < room >= limits.max_tokens  # if not, decoding refuses it
        most = min(limits.max_tokens, room - len(ids)) if fits else limits.max_tokens
        rows_of.setdefault(most, []).append(row)
    captions: list[list[list[int]]] = [[] for _ in read]
    for most, rows in rows_of.items():
        prefix = with_prompts(model, decoder_inputs(model, inputs[rows]), [read[row] for row in rows], begin)
        found = decode(language_model, prefix, method, num_captions, **options | {"max_tokens": most})
        for row, each in zip(rows, found, strict=True):
            captions[row] = each
    return captions


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
