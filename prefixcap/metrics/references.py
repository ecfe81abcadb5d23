"""Tokenized references of images and their n-grams, computed once for the same references."""

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefixcap.metrics.cache import cached
from prefixcap.metrics.ngrams import ORDERS, Grams, ReferenceGrams, ReferenceTexts, images_of
from prefixcap.metrics.tokenizers import TOKENIZERS
from prefixcap.utils.array_cache import Arrays

WORTH_A_FILE = 1000  # texts; of fewer, nothing takes long


def tokenized_references(references: Sequence[Sequence[str]], tokenizer: str = "ptb") -> ReferenceTexts:
    """The references of images, tokenized as one text; many of them come from a file if they were tokenized before."""
    if sum(map(len, references)) < WORTH_A_FILE:
        return _tokenized(references, tokenizer)
    content = [list(texts) for texts in references]
    kind = "references" if tokenizer == "ptb" else f"references-{tokenizer}"
    return _unpacked(cached(kind, [tokenizer, content], lambda: _packed(_tokenized(content, tokenizer))))


def _tokenized(references: Sequence[Sequence[str]], tokenizer: str) -> ReferenceTexts:
    return _grouped(TOKENIZERS[tokenizer](chain.from_iterable(references)), map(len, references))


def _grouped(texts: Sequence[str], counts: Iterable[int]) -> ReferenceTexts:
    """Texts of all images, grouped by image; `counts` are the numbers of texts."""
    return ReferenceTexts(texts[start:end] for start, end in pairwise(accumulate(counts, initial=0)))


def _packed(references: ReferenceTexts) -> Arrays:
    """As arrays, with the n-grams. Neither texts nor words hold a line break."""
    grams = references.grams
    arrays: dict[str, NDArray[Any]] = {
        "texts": _as_bytes(text for texts in references for text in texts),
        "words": _as_bytes(grams.vocabulary),
        "references": np.array([len(texts) for texts in references], np.int32),
        "lengths": grams.lengths.astype(np.int32),
    }
    for order, entries in zip(ORDERS, grams.grams, strict=True):
        for name, column in entries._asdict().items():
            arrays[f"{name}{order}"] = column.astype(np.int32)
        arrays[f"pairs{order}"] = grams.pairs[order - 1]
        arrays[f"documents{order}"] = grams.documents[order - 1].astype(np.int32)
    return arrays


def _unpacked(arrays: Arrays) -> ReferenceTexts:
    """The opposite of `_packed`."""
    integers = {name: array.astype(np.int64) for name, array in arrays.items() if name not in ("texts", "words")}
    texts = _as_texts(arrays["texts"])
    references = _grouped(texts, integers["references"].tolist())
    references.grams = ReferenceGrams(
        images=images_of(integers["references"]),
        lengths=integers["lengths"],
        vocabulary={word: number for number, word in enumerate(_as_texts(arrays["words"]))},
        pairs=[integers[f"pairs{order}"] for order in ORDERS],
        grams=[Grams(*(integers[f"{name}{order}"] for name in Grams._fields)) for order in ORDERS],
        documents=[integers[f"documents{order}"] for order in ORDERS],
    )
    return references


def _as_bytes(texts: Iterable[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(texts).encode("utf-8", "surrogatepass"), np.uint8)


def _as_texts(packed: NDArray[np.uint8]) -> list[str]:
    return packed.tobytes().decode("utf-8", "surrogatepass").split("\n")
