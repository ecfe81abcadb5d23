"""A memory of captions: what DeCap projects an image embedding onto, and what CLIPRe answers with.

DeCap: Li et al., "DeCap: Decoding CLIP Latents for Zero-Shot Captioning via Text-Only Training", ICLR 2023, its
projection-based decoding. CLIPRe: the retrieval baseline of Su et al., "Language Models Can See: Plugging Visual
Controls in Text Generation" (MAGIC), 2022.

Embeddings stay where they lie (a store's are mapped from the disk) and are read in chunks, so that neither they in
float32 nor all cosines are ever held whole.
"""

import importlib.util
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from prefixcap.errors import InputError, RowsError
from prefixcap.store.reader import Column, StoreSplit

QUERIES, CAPTIONS = 8192, 1024  # in a chunk: so few that its cosines fit a processor's cache, and float32 adds them up
GROUP = 32  # cosines of a chunk that are passed over together, if the highest does not count


class MemoryBank:
    """C captions with their embeddings, searched exactly.

    A caption that stands k times in the corpus is k captions here too, as in DeCap's released code. In a projection it
    weighs k times, as if its cosine were higher by temperature · ln k: at 0.01 by 0.007 for two copies, by 0.046 for a
    hundred. The corpus's own frequencies thus act as a prior, and a mild one: 60 sentences of 12,000 from COCO, each
    there a hundred times, leave projections at a mean cosine of 0.997 to those without copies. Who wants no prior
    leaves copies out of the corpus.

    Args:
        embeddings: (N, dim), as the encoder gave them: a column of a store, an array, or a tensor on the CPU.
        captions: N texts.
        size: take at most so many, drawn at random without replacement (DeCap: 500,000); None: all.
        seed: of the draw.

    Attributes:
        rows: (C,) which of the N captions these are, rising.
        dim: of an embedding.

    Raises:
        InputError: there are no captions, or not as many as embeddings; size is below 1.

    Examples:
        >>> bank = MemoryBank(np.eye(2, dtype=np.float32), ["a cat", "a dog"])
        >>> bank.retrieve(torch.tensor([[0.1, 0.9]]))
        ['a dog']
        >>> bank.project(torch.tensor([[0.1, 0.9]]), temperature=1.0)
        tensor([[0.3820, 0.9242]])
    """

    def __init__(
        self,
        embeddings: Column | NDArray[np.floating] | Tensor,
        captions: Column | Sequence[str],
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        shape = tuple(embeddings.shape)
        if len(shape) != 2 or shape[0] != len(captions):
            raise InputError(f"{len(captions)} captions, but embeddings of shape {shape}: give (captions, dim)")
        if not shape[0]:
            raise InputError("the memory of captions is empty: give a corpus with at least one caption")
        if size is not None and size < 1:
            raise InputError(f"a memory of {size} captions is asked for: size must be at least 1")
        self._embeddings = embeddings if isinstance(embeddings, Column) else np.asarray(embeddings)
        self._captions = captions if isinstance(captions, Column) else np.array(captions, dtype=object)
        self.rows: NDArray[np.int64] = np.arange(shape[0])
        if size is not None and size < shape[0]:
            self.rows = np.sort(np.random.default_rng(seed).choice(shape[0], size, replace=False))
        self.dim: int = shape[1]

    @classmethod
    def from_store(cls, split: StoreSplit, size: int | None = None, seed: int = 0) -> "MemoryBank":
        """The captions of a split of a store with "captions/embedding". Raises as the class, or if it has none."""
        return cls(split.feature("captions/embedding"), split.captions, size, seed)

    def __len__(self) -> int:
        return len(self.rows)

    def captions(self, places: ArrayLike) -> list[str]:
        """The texts at some places of the memory, as `nearest` tells them: from 0 to C - 1."""
        return list(self._captions[self.rows[np.asarray(places, np.int64)]])

    @torch.no_grad()
    def project(self, embeddings: Tensor, temperature: float = 0.01) -> Tensor:
        """The mean of the memory, weighted by softmax(cosine / temperature): DeCap, as in its released code.

        Exact to the rounding of float32. What that makes 0 beside the nearest caption is not added up, so that where
        few captions are near, as among sentences, a call takes little longer than the product for the cosines; where
        weights are spread over the memory (a high temperature; cosines that the modality gap has squeezed), twice as
        long. Each call reads the whole memory: project many embeddings together.

        Args:
            embeddings: (n, dim), of any length, on any device.
            temperature: 1 / 100 in DeCap's code.

        Returns:
            (n, dim) of length one, in float32, on the same device.

        Raises:
            InputError: dim is another than the memory's, an embedding (also of the memory) has no direction, or the
                temperature is not positive.
        """
        if not 0 < temperature < math.inf:
            raise InputError(f"the temperature is {temperature}: give one above 0 (DeCap: 0.01)")
        return torch.cat([self._projected(part, temperature) for part in self._queries(embeddings)])

    @torch.no_grad()
    def nearest(self, embeddings: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
        """The nearest captions of each embedding, nearest first; with faiss's exact search where it is installed.

        Args:
            embeddings: (n, dim), of any length, on any device.
            count: how many.

        Returns:
            (n, count) places in the memory, see `captions`, and (n, count) their cosines, on the same device.

        Raises:
            InputError: dim is another than the memory's, an embedding (also of the memory) has no direction, or there
                are fewer captions than `count`.
        """
        if not 1 <= count <= len(self):
            raise InputError(f"the {count} nearest captions are asked for: give 1 to {len(self)}, the memory's size")
        found = [self._nearest(part, count) for part in self._queries(embeddings)]
        return torch.cat([places for places, _ in found]), torch.cat([cosines for _, cosines in found])

    def retrieve(self, embeddings: Tensor) -> list[str]:
        """CLIPRe: the nearest caption of each of (n, dim) embeddings. Raises as `nearest`."""
        return self.captions(self.nearest(embeddings)[0][:, 0].cpu())

    def _projected(self, queries: Tensor, temperature: float) -> Tensor:
        # Weights are relative to the nearest caption's. All that lie further behind it than this are together
        # less than float32 resolves of it.
        reach = temperature * math.log(len(self) / torch.finfo(torch.float32).eps)
        sums = torch.zeros_like(queries)
        nearest = queries.new_full((len(queries), 1), -math.inf)  # cosine, of what was read so far
        space = queries.new_empty(len(queries) * min(CAPTIONS, len(self)))
        for _, memories in self._chunks(queries):
            cosines = space[: len(queries) * len(memories)].view(len(queries), len(memories))
            torch.mm(queries, memories.T, out=cosines)
            groups = _groups(cosines)
            highest = groups.amax(1)  # of each group
            before, nearest = nearest, torch.maximum(nearest, highest.amax(1, keepdim=True))
            sums *= ((before - nearest) / temperature).exp_()
            rows, group = (highest > nearest - reach).nonzero(as_tuple=True)
            if len(rows) > highest.numel() / 2:  # then it is quicker to take all
                sums += cosines.sub_(nearest).div_(temperature).exp_() @ memories
                continue
            of_groups = groups.transpose(1, 2)[rows, group]  # (found, in a group)
            found, member = (of_groups > nearest[rows] - reach).nonzero(as_tuple=True)
            rows, places = rows[found], member * groups.shape[2] + group[found]  # rows never fall
            weights = ((of_groups[found, member] - nearest[rows, 0]) / temperature).exp_()
            starts = torch.searchsorted(rows, torch.arange(len(queries), device=rows.device))
            sums += F.embedding_bag(places, memories, starts, mode="sum", per_sample_weights=weights)
        return F.normalize(sums)

    def _nearest(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        best = queries.new_full((len(queries), count), -math.inf)
        places = torch.zeros_like(best, dtype=torch.int64)
        for start, memories in self._chunks(queries):
            cosines, rows = _search(queries, memories, min(count, len(memories)))
            best, order = torch.cat([best, cosines], dim=1).topk(count)
            places = torch.cat([places, rows + start], dim=1).gather(1, order)
        return places, best

    def _queries(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise InputError(
                f"embeddings of shape {tuple(embeddings.shape)}, but the memory's captions have {self.dim} dimensions: "
                f"give (n, {self.dim}), from the encoder that embedded the captions"
            )
        return torch.split(_directions(embeddings, "embeddings"), QUERIES)

    def _chunks(self, queries: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The place of the first of some captions, and these: (m, dim) of length one in float32."""
        for start in range(0, len(self), CAPTIONS):
            rows = self.rows[start : start + CAPTIONS]
            memories = torch.from_numpy(self._embeddings[rows]).to(queries.device)
            yield start, _directions(memories, "captions of the memory", rows)


def _directions(embeddings: Tensor, what: str, rows: NDArray[np.int64] | None = None) -> Tensor:
    """(n, dim) embeddings -> of length one, in float32. RowsError, with their numbers in `rows`, if some have none."""
    norms: Tensor = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True, dtype=torch.float32)
    good = (norms > 0) & (norms < math.inf)
    if not good.all():
        bad = (~good[:, 0]).nonzero()[:, 0].cpu().numpy()
        raise RowsError(what, (bad if rows is None else rows[bad]).tolist(), "NaN, infinite or all zero: embed again")
    return embeddings.float() / norms


def _groups(cosines: Tensor) -> Tensor:
    """(queries, captions) as (queries, in a group, groups), without a copy: one group, if they are not made of more.

    The captions of a group lie apart, so that its maximum is quick to find.
    """
    size = cosines.shape[1] if cosines.shape[1] % GROUP else GROUP
    return cosines.view(len(cosines), size, cosines.shape[1] // size)


def _search(queries: Tensor, memories: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(n, count) highest cosines, and the rows of `memories` that have them."""
    if queries.device.type == "cpu" and importlib.util.find_spec("faiss"):
        faiss = importlib.import_module("faiss")
        found = faiss.knn(queries.numpy(), memories.numpy(), count, metric=faiss.METRIC_INNER_PRODUCT)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    cosines, rows = (queries @ memories.T).topk(count)
    return cosines, rows
