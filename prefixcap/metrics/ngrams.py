"""N-grams of tokenized texts as arrays: what BLEU and CIDEr count.

Words and n-grams are numbered by the references: an n-gram is a pair of the (n-1)-gram that it begins with and its last
word, and its number is the place of that pair among all pairs of the references in order. N-grams of captions that
occur in no reference get the numbers after those.
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
    """N-grams of one order in texts, each once for every text that it is in, sorted by text and number.

    Attributes:
        text: (entries,) which text.
        number: (entries,) which n-gram.
        times: (entries,) how often the text has it.
    """

    text: Integers
    number: Integers
    times: Integers


class ReferenceGrams(NamedTuple):
    """N-grams of the references of images.

    Attributes:
        images: (texts,) the image of each reference.
        lengths: (texts,) words of each reference.
        vocabulary: numbers of the words.
        pairs: for each order the pairs that are its n-grams, in rising order; none for single words.
        grams: for each order the n-grams of the references.
        documents: for each order (n-grams,) in how many images' references an n-gram occurs.
    """

    images: Integers
    lengths: Integers
    vocabulary: dict[str, int]
    pairs: list[Integers]
    grams: list[Grams]
    documents: list[Integers]


class ReferenceTexts(list[Sequence[str]]):
    """Tokenized references of images, which keep their n-grams: each metric that is given them needs the same."""

    @cached_property
    def grams(self) -> ReferenceGrams:
        """Their n-grams, counted when they are first asked for."""
        return count_references(self)


def grams_of(references: Sequence[Sequence[str]]) -> ReferenceGrams:
    """N-grams of tokenized references, not counted again where they have been."""
    return references.grams if isinstance(references, ReferenceTexts) else count_references(references)


def count_references(references: Sequence[Sequence[str]]) -> ReferenceGrams:
    """N-grams of the tokenized references of images."""
    images = images_of(np.array([len(texts) for texts in references], np.int64))
    none_known = [np.empty(0, np.int64)] * len(ORDERS)
    vocabulary: dict[str, int] = {}
    lengths, grams, pairs = _count(list(chain.from_iterable(references)), vocabulary, none_known)
    documents = []
    for of_order in grams:
        size = _size(of_order.number)
        in_image = np.unique(images[of_order.text] * size + of_order.number)
        documents.append(np.bincount(in_image % size, minlength=size))
    return ReferenceGrams(images, lengths, vocabulary, pairs, grams, documents)


def count_captions(captions: Sequence[str], references: ReferenceGrams) -> tuple[Integers, list[Grams]]:
    """Numbers of words of tokenized captions, and their n-grams of each order."""
    lengths, grams, _ = _count(captions, dict(references.vocabulary), references.pairs)
    return lengths, grams


def take_images(references: ReferenceGrams, rows: Integers) -> ReferenceGrams:
    """The references of some images, as those of images 0, 1, …; `documents` still tells of all.

    Args:
        references: of all images.
        rows: (n,) images in any order; one may be there several times.
    """
    images, texts = _runs(references.images, rows)
    grams = []
    for of_order in references.grams:
        text, entries = _runs(of_order.text, texts)
        grams.append(Grams(text, of_order.number[entries], of_order.times[entries]))
    return references._replace(images=images, lengths=references.lengths[texts], grams=grams)


def images_of(references: Integers) -> Integers:
    """(images,) numbers of references -> (texts,) the image of each."""
    return np.repeat(np.arange(len(references)), references)


def shared(captions: Grams, references: Grams, images: Integers) -> tuple[Integers, Integers]:
    """Where a caption and a reference of its image have the same n-gram: entries of `captions`, and of `references`.

    Args:
        captions: of one caption an image.
        references: of the same order.
        images: (texts,) the image of each reference.
    """
    size = max(_size(captions.number), _size(references.number))
    place, found = _find(
        images[references.text] * size + references.number,
        captions.text * size + captions.number,
    )
    return place[found], np.flatnonzero(found)


def _count(
    texts: Sequence[str], vocabulary: dict[str, int], known: Sequence[Integers]
) -> tuple[Integers, list[Grams], list[Integers]]:
    """Words in each text, n-grams of each order, and their pairs that are not known; adds words to the vocabulary."""
    split = [text.split() for text in texts]
    lengths = np.fromiter(map(len, split), np.int64, len(split))
    numbered = (vocabulary.setdefault(word, len(vocabulary)) for word in chain.from_iterable(split))
    words = np.fromiter(numbered, np.int64, lengths.sum())
    text = images_of(lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # words from here to the end of the text
    grams, new_pairs = [], [np.empty(0, np.int64)]
    number = words  # of the n-gram that begins at each place
    for order in ORDERS:
        start = np.flatnonzero(left >= order)
        if order > 1:
            pairs, rank = np.unique((number[start] << 32) | words[start + order - 1], return_inverse=True)
            place, found = _find(pairs, known[order - 1])
            place[~found] = len(known[order - 1]) + np.arange(np.count_nonzero(~found))
            number = np.zeros_like(words)
            number[start] = place[rank]
            new_pairs.append(pairs[~found])
        size = _size(number[start])
        keys, times = np.unique(text[start] * size + number[start], return_counts=True)
        grams.append(Grams(keys // size, keys % size, times))
    return lengths, grams, new_pairs


def _find(wanted: Integers, rising: Integers) -> tuple[Integers, NDArray[np.bool_]]:
    """The place of each number in a rising array, and whether it is there."""
    place = np.searchsorted(rising, wanted)
    found = place < len(rising)
    found[found] = rising[place[found]] == wanted[found]
    return place, found


def _runs(rising: Integers, wanted: Integers) -> tuple[Integers, Integers]:
    """Where each wanted number stands in an array that does not fall: its place in `wanted`, and there."""
    first = np.searchsorted(rising, wanted)
    counts = np.searchsorted(rising, wanted, "right") - first
    owner = images_of(counts)
    return owner, np.arange(len(owner)) + (first - np.cumsum(counts) + counts)[owner]


def _size(numbers: Integers) -> int:
    """More than the largest number."""
    return int(numbers.max(initial=0)) + 1
