"""A datastore: captions with embeddings, from which those near an image are retrieved."""

import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prefixcap.errors import InputError, listed
from prefixcap.features import EncoderIdentity
from prefixcap.prompts.index import CaptionIndex, index_path
from prefixcap.prompts.protocol import Item
from prefixcap.store.reader import FeatureStore, StoreSplit
from prefixcap.textonly.memory import MemoryBank
from prefixcap.vocabulary import same

_OWN = 5  # captions of an image, as COCO has them: how many more to look for where those of an image are left out
_CHUNK = 1 << 16  # captions read at once
PROPOSED, LEAST_PROPOSED = 4, 64  # captions that an index proposes, for each that is asked for, and at least


@dataclass(frozen=True)
class Datastore:
    """Captions of any images, or sentences, with their embeddings.

    Attributes:
        memory: the captions.
        encoder: that embedded them.
        source: where they come from, for messages and descriptions.
        split: of the feature store they are in; None: they are in none, and it is not known of which images they are.
        index: proposes those that are near an embedding; None: all are compared.

    Examples:
        >>> import torch
        >>> memory = MemoryBank(np.eye(3, dtype=np.float32), ["a cat", "a dog", "A dog."])
        >>> datastore = Datastore(memory, EncoderIdentity("clip:small.pt", "ab", "none", 3))
        >>> [item.text for item in datastore.nearest(torch.tensor([[0.6, 0.8, 0.0]]), 2)[0]]
        ['a dog', 'a cat']
        >>> [item.text for item in datastore.nearest(torch.tensor([[0.6, 0.8, 0.0]]), 1, leave_out=[["a dog"]])[0]]
        ['a cat']
    """

    memory: MemoryBank
    encoder: EncoderIdentity
    source: str = ""
    split: StoreSplit | None = None
    index: CaptionIndex | None = None

    @classmethod
    def open(
        cls,
        store: "FeatureStore | str",
        split: str | None = None,
        size: int | None = None,
        seed: int = 0,
        indexed: bool = True,
    ) -> "Datastore":
        """The captions of a feature store.

        If the store has an index of them (`prefixcap datastore index`), it is used. One of captions that have changed
        since, one that is damaged and one for which faiss is missing is not, and a warning says so.

        Args:
            store: with captions/embedding, or its path.
            split: of the store; None: "train", or the largest if there is no such split.
            size: take at most this many captions, sampled at random; None: all.
            seed: of the sample, which is searched without an index.
            indexed: use an index if there is one; False: compare all captions.

        Raises:
            InputError: there is no such store or split, or it has no captions, or no embeddings of them.
        """
        opened = store if isinstance(store, FeatureStore) else FeatureStore(store)
        chosen = opened.split(split or opened.default_split)
        if not len(chosen.captions):
            raise InputError(f"the datastore {opened.location} has no captions in split '{chosen.name}': give another")
        memory = MemoryBank.from_store(chosen, size, seed)
        index, file = None, index_path(opened.path, chosen.name)
        if indexed and not memory.is_sample and file.exists():
            try:
                index = CaptionIndex.open(file, chosen, memory.dim)
            except InputError as error:
                warnings.warn(f"all captions are compared, which takes longer: {error}", stacklevel=2)
        return cls(memory, opened.encoder, opened.location, chosen, index)

    def __len__(self) -> int:
        return len(self.memory)

    def require_encoder(self, identity: EncoderIdentity) -> None:
        """Check that embeddings of an encoder may be compared with those of the datastore.

        Raises:
            InputError: weights or preprocessing differ; the message names both encoders.
        """
        if not self.encoder.agrees_with(identity):
            mine, theirs = self.encoder.name, identity.name
            if mine == theirs:
                mine, theirs = f"{mine} ({self.encoder.digest[:8]})", f"{theirs} ({identity.digest[:8]})"
            raise InputError(
                f"the captions of the datastore {self.source} were embedded with the encoder {mine}, but {theirs} is "
                "needed: embed them again with that encoder, or give a datastore that it made"
            )

    def describe(self) -> dict[str, Any]:
        """Where it comes from, which JSON can hold."""
        split = None if self.split is None else self.split.name
        return {"source": self.source, "split": split, "captions": len(self), "encoder": self.encoder.digest}

    def nearest(
        self,
        embeddings: Tensor,
        count: int,
        leave_out: Sequence[Collection[str]] | None = None,
        images: Sequence[int | str] | None = None,
    ) -> list[list[Item]]:
        """The nearest captions of each embedding with their cosines, the nearest first, no text twice.

        Texts are the same if their words are: case, punctuation and spaces make no difference. All embeddings of a call
        are searched for together. Without an index each call reads the entire datastore: ask for many at once. With one
        some captions may not be the nearest; their cosines are exact, and what is to be left out is.

        Args:
            embeddings: (n, dim), of any length, on any device.
            count: how many captions for each.
            leave_out: n collections of texts not to return.
            images: n ids of images whose captions not to return.

        Raises:
            InputError: fewer than `count` different captions are left, ids are given though the datastore knows none,
                the width is not the datastore's, or an embedding is zero, NaN or infinite.
        """
        return [[item for _, item in row] for row in self._nearest(embeddings, count, leave_out, images)]

    def neighbours(
        self, embeddings: Tensor, count: int, leave_out: Sequence[Collection[str]] | None = None
    ) -> NDArray[np.int64]:
        """(n, dim) embeddings -> (n, count) the nearest captions by their indices in `memory`, the nearest first.

        Arguments and errors are those of `nearest`.
        """
        return _indices(self._nearest(embeddings, count, leave_out, None), count)

    def nearest_embeddings(
        self, embeddings: Tensor, count: int, leave_out: Sequence[Collection[str]] | None = None
    ) -> tuple[Tensor, list[list[Item]]]:
        """The (n, count, dim) embeddings of the nearest captions, float32, beside what `nearest` returns."""
        nearest = self._nearest(embeddings, count, leave_out, None)
        return self.memory.embeddings(_indices(nearest, count)), [[item for _, item in row] for row in nearest]

    def _nearest(
        self,
        embeddings: Tensor,
        count: int,
        leave_out: Sequence[Collection[str]] | None,
        images: Sequence[int | str] | None,
    ) -> list[list[tuple[int, Item]]]:
        """Like `nearest`, each caption with its index in the memory."""
        for name, given in (("leave_out", leave_out), ("images", images)):
            if given is not None and len(given) != len(embeddings):
                raise InputError(f"{name} has {len(given)} entries for {len(embeddings)} embeddings: give one each")
        if images is not None and self.split is None:
            raise InputError("the datastore does not know of which images its captions are: leave out images")
        if not 1 <= count <= len(self):
            raise InputError(
                f"the {count} nearest captions are asked for, and the datastore {self.source} has {len(self)}: ask for "
                "1 to as many"
            )
        barred = [set(map(same, texts)) for texts in leave_out] if leave_out is not None else None
        found: list[list[tuple[int, Item]]] = [[] for _ in range(len(embeddings))]
        rows = list(range(len(embeddings)))
        wanted = 2 * count + max((len(texts) for texts in barred or ()), default=0) + (_OWN if images else 0)
        by_index = self.index is not None
        while rows:
            wanted = min(wanted, len(self))
            indices, cosines = self._search(embeddings[rows], wanted, by_index)
            candidates = self._candidates(indices, images is not None)
            short = []
            nearest_by_row = zip(rows, indices.tolist(), candidates, cosines.tolist(), strict=True)
            for row, places, texts, scores in nearest_by_row:
                taken = set(barred[row]) if barred is not None else set()
                if images is not None:  # nor captions of other images in the same words
                    taken |= {same(text) for text, image in texts if image == images[row]}
                kept: list[tuple[int, Item]] = []
                for place, (text, _), score in zip(places, texts, scores, strict=True):
                    if same(text) not in taken:
                        taken.add(same(text))
                        kept.append((place, Item(text, score)))
                found[row] = kept[:count]
                if len(kept) < count:
                    short.append(row)
            if short and wanted == len(self):
                left = min(len(found[row]) for row in short)
                raise InputError(
                    f"the {count} nearest captions are asked for, but the datastore {self.source} has only {left} "
                    f"different ones left for {listed('embedding', short)}: ask for fewer, or give a larger datastore"
                )
            rows, wanted, by_index = short, 4 * wanted, False
        return found

    def leaks(self, references: Iterable[Collection[str]]) -> int:
        """How many images have a reference that is a caption of the datastore, too, by the same words.

        Retrieval may return such a caption, and scores against the references then measure less than they seem to.

        Args:
            references: of each image, its captions.

        Examples:
            >>> memory = MemoryBank(np.eye(2, dtype=np.float32), ["a cat", "a dog"])
            >>> datastore = Datastore(memory, EncoderIdentity("clip:small.pt", "ab", "none", 2))
            >>> datastore.leaks([["A dog.", "the dog"], ["two dogs"]])
            1
        """
        texts = [set(map(same, captions)) for captions in references]
        asked = set().union(*texts)
        there: set[str] = set()
        for start in range(0, len(self), _CHUNK):
            indices = np.arange(start, min(start + _CHUNK, len(self)))
            there |= asked.intersection(map(same, self.memory.captions(indices)))
        return sum(not there.isdisjoint(captions) for captions in texts)

    def _search(self, embeddings: Tensor, count: int, by_index: bool) -> tuple[NDArray[np.int64], Tensor]:
        """(n, dim) -> (n, count) indices of the nearest captions in the memory, and their cosines."""
        if self.index is None or not by_index or PROPOSED * count > len(self):
            indices, cosines = self.memory.nearest(embeddings, count)
            return indices.cpu().numpy(), cosines
        queries = self.memory.normalized(embeddings).cpu()
        proposed = self.index.candidates(queries, max(PROPOSED * count, LEAST_PROPOSED))
        indices, cosines = self.memory.nearest_among(queries, proposed, count)
        if len(short := (indices < 0).any(1).nonzero()[:, 0]):  # the lists that were looked into have too few
            indices[short], cosines[short] = self.memory.nearest(queries[short], count)
        return indices.numpy(), cosines

    def _candidates(self, indices: Any, with_images: bool) -> list[list[tuple[str, int | str | None]]]:
        """(n, wanted) indices of captions -> their texts, each with the id of its image if that is asked for."""
        unique, places = np.unique(indices, return_inverse=True)  # a caption that many images retrieve is read once
        ids: list[int | str | None] = [None] * len(unique)
        if with_images and self.split is not None:
            ids = [self.split.ids[row] for row in self.split.caption_images[self.memory.rows[unique]].tolist()]
        pairs = list(zip(self.memory.captions(unique), ids, strict=True))
        return [[pairs[place] for place in row] for row in places.reshape(indices.shape).tolist()]


def _indices(nearest: list[list[tuple[int, Item]]], count: int) -> NDArray[np.int64]:
    """(n, count) indices of captions in the memory."""
    return np.array([[index for index, _ in row] for row in nearest], np.int64).reshape(-1, count)
