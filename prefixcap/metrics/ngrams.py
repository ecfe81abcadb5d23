"""N-grams of tokenized texts as arrays: what BLEU and CIDEr count.

Words and n-grams are numbered by the references: an n-gram is a pair of the (n-1)-gram that it begins with and its last
word, and its number is the rank of that pair among all pairs of the references. N-grams of captions that occur in no
reference get the numbers after those.

Shapes: T texts; W words of all texts together; E entries, an entry for each n-gram that a text has; P different n-grams
of one order; n images.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]

ORDERS = (1, 2, 3, 4)


class Grams(NamedTuple):
    """N-grams of one order in texts, one entry for each n-gram that a text has, sorted by text and number.

    Attributes:
        text: (E,) the row of the text.
        number: (E,) the number of the n-gram.
        times: (E,) how often the text has it.
    """

    text: Integers
    number: Integers
    times: Integers


class ReferenceGrams(NamedTuple):
    """N-grams of the references of images.

    Attributes:
        images: (T,) the image of each reference.
        lengths: (T,) words of each reference.
        vocabulary: numbers of the words.
        pairs: for each order the (P,) pairs that are its n-grams, sorted; empty for single words.
        grams: for each order the n-grams of the references.
        documents: for each order (P,) in how many images' references an n-gram occurs.
    """

    images: Integers
    lengths: Integers
    vocabulary: dict[str, int]
    pairs: list[Integers]
    grams: list[Grams]
    documents: list[Integers]


class ReferenceTexts(list[Sequence[str]]):
    """Tokenized references of images that keep their n-grams, as BLEU and CIDEr both need them.

    Examples:
        >>> references = ReferenceTexts([["a dog", "the dog"], ["a cat"]])
        >>> references.grams.images.tolist(), references.grams.lengths.tolist()
        ([0, 0, 1], [2, 2, 2])
        >>> references.grams.documents[0].tolist()  # of "a", "dog", "the", "cat"
        [2, 1, 1, 1]
    """

    @cached_property
    def grams(self) -> ReferenceGrams:
        """Their n-grams, counted when they are first asked for."""
        return count_references(self)


def grams_of(references: Sequence[Sequence[str]]) -> ReferenceGrams:
    """N-grams of tokenized references; those of `ReferenceTexts` are counted only once."""
    return references.grams if isinstance(references, ReferenceTexts) else count_references(references)


def count_references(references: Sequence[Sequence[str]]) -> ReferenceGrams:
    """N-grams of the tokenized references of images."""
    images = images_of(np.array([len(texts) for texts in references], np.int64))
    none_known = [np.empty(0, np.int64)] * len(ORDERS)
    vocabulary: dict[str, int] = {}
    lengths, grams, pairs = _count(list(chain.from_iterable(references)), vocabulary, none_known)
    documents = []
    for entries in grams:
        size = _size(entries.number)
        # Each n-gram once for every image that has it, as one key for both numbers.
        in_images = np.unique(images[entries.text] * size + entries.number)
        documents.append(np.bincount(in_images % size, minlength=size))
    return ReferenceGrams(images, lengths, vocabulary, pairs, grams, documents)


def count_captions(captions: Sequence[str], references: ReferenceGrams) -> tuple[Integers, list[Grams]]:
    """Numbers of words of tokenized captions, and their n-grams of each order."""
    lengths, grams, _ = _count(captions, dict(references.vocabulary), references.pairs)
    return lengths, grams


def take_images(references: ReferenceGrams, rows: Integers) -> ReferenceGrams:
    """The references of some images, as those of images 0, 1, …; `documents` still counts all images.

    Args:
        references: of all images.
        rows: (n,) images in any order, possibly repeated.
    """
    images, texts = _runs(references.images, rows)
    grams = []
    for counted in references.grams:
        text, rows_of_text = _runs(counted.text, texts)
        grams.append(Grams(text, counted.number[rows_of_text], counted.times[rows_of_text]))
    return references._replace(images=images, lengths=references.lengths[texts], grams=grams)


def images_of(references: Integers) -> Integers:
    """(n,) numbers of references -> (T,) the image of each."""
    return np.repeat(np.arange(len(references)), references)


def shared(captions: Grams, references: Grams, images: Integers) -> tuple[Integers, Integers]:
    """Where a caption and a reference of its image have the same n-gram: entries of `captions`, and of `references`.

    Args:
        captions: of one caption for each image.
        references: of the same order.
        images: (T,) the image of each reference.

    Returns:
        Two arrays of the same length: for each match, its entry in `captions` and its entry in `references`.
    """
    size = max(_size(captions.number), _size(references.number))
    # One key for image and n-gram; the text of a caption is its image.
    entry, is_shared = _find(
        images[references.text] * size + references.number,
        captions.text * size + captions.number,
    )
    return entry[is_shared], np.flatnonzero(is_shared)


def _count(
    texts: Sequence[str], vocabulary: dict[str, int], known: Sequence[Integers]
) -> tuple[Integers, list[Grams], list[Integers]]:
    """(T,) words in each text, n-grams of each order, and for each order the pairs that are not in `known`.

    Adds the words of the texts to the vocabulary.
    """
    split = [text.split() for text in texts]
    lengths = np.fromiter(map(len, split), np.int64, len(split))
    numbered = (vocabulary.setdefault(word, len(vocabulary)) for word in chain.from_iterable(split))
    words = np.fromiter(numbered, np.int64, lengths.sum())  # (W,) numbers of the words
    text = images_of(lengths)  # (W,) the text of each
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # (W,) words from here to the text's end
    grams, new_pairs = [], [np.empty(0, np.int64)]
    number = words  # (W,) of the n-gram that begins at each word
    for order in ORDERS:
        start = np.flatnonzero(left >= order)  # words at which an n-gram of this order begins
        if order > 1:
            # The (n-1)-gram in the upper 32 bits, the last word in the lower.
            pairs, rank = np.unique((number[start] << 32) | words[start + order - 1], return_inverse=True)
            pair_number, is_known = _find(pairs, known[order - 1])
            pair_number[~is_known] = len(known[order - 1]) + np.arange(np.count_nonzero(~is_known))
            number = np.zeros_like(words)
            number[start] = pair_number[rank]
            new_pairs.append(pairs[~is_known])
        # Equal n-grams of a text become one entry with their count.
        size = _size(number[start])
        keys, times = np.unique(text[start] * size + number[start], return_counts=True)
        grams.append(Grams(keys // size, keys % size, times))
    return lengths, grams, new_pairs


def _find(wanted: Integers, rising: Integers) -> tuple[Integers, NDArray[np.bool_]]:
    """The index of each number in a strictly rising array, and whether the array has it."""
    index = np.searchsorted(rising, wanted)
    exists = index < len(rising)
    exists[exists] = rising[index[exists]] == wanted[exists]
    return index, exists


def _runs(rising: Integers, wanted: Integers) -> tuple[Integers, Integers]:
    """Where each wanted number occurs in a sorted array: for each occurrence, its index in `wanted` and in `rising`."""
    first = np.searchsorted(rising, wanted)
    counts = np.searchsorted(rising, wanted, "right") - first
    owner = images_of(counts)
    return owner, np.arange(len(owner)) + (first - np.cumsum(counts) + counts)[owner]


def _size(numbers: Integers) -> int:
    """More than the largest number."""
    return int(numbers.max(initial=0)) + 1
