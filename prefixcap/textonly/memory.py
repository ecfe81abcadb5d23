"""A memory of captions: DeCap projects image embeddings onto it, and CLIPRe retrieves the nearest caption.

DeCap: Li et al., "DeCap: Decoding CLIP Latents for Zero-Shot Captioning via Text-Only Training", ICLR 2023, its
projection-based decoding. CLIPRe: the retrieval baseline of Su et al., "Language Models Can See: Plugging Visual
Controls in Text Generation" (MAGIC), 2022.

Embeddings stay where they are (those of a store are memory-mapped) and are read in chunks, so that neither all of them
in float32 nor all cosines are ever in memory at once.

Shapes: Q queries of a chunk, M captions of a chunk, D width of an embedding, G groups of a chunk, S captions of a
group, M = G * S.
"""

import importlib.util
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from prefixcap.errors import InputError, RowsError
from prefixcap.features import Feature
from prefixcap.store.reader import Column, StoreSplit

QUERIES, CAPTIONS = 8192, 1024  # of a chunk: few enough that its cosines fit a CPU's cache, and sum well in float32
FEW = 4  # queries that are faster one by one, each by products with the embeddings as they are stored
FEW_AMONG = 32  # queries at once for which some captions are compared
FEW_FOR_FAISS = 64  # queries for which its search is slower than a product and `topk`
RUN = 1 << 15  # captions of a product with one query
SLACK = 1e-5  # more than the errors of sums in float32
GROUP = 32  # S; a group is skipped if not even its highest cosine counts


class MemoryBank:
    """C captions with their embeddings, searched exactly.

    A caption that occurs k times in the corpus counts as k captions, as in DeCap's released code. In a projection it
    has k times the weight, as if its cosine were higher by temperature * ln k: at 0.01 by 0.007 for two copies, by
    0.046 for a hundred. The frequencies of the corpus thus act as a prior, and a mild one: of 12,000 sentences from
    COCO, a hundred copies each of 60 sentences leave projections at a mean cosine of 0.997 to those without copies. To
    have no prior, remove duplicates from the corpus.

    Args:
        embeddings: (N, D), as the encoder returned them: a column of a store, an array, or a tensor on the CPU.
        captions: N texts.
        size: take at most this many, sampled at random without replacement (DeCap: 500,000); None: all.
        seed: of the sample.

    Attributes:
        rows: (C,) which of the N captions these are, ascending.
        is_sample: whether C is less than N.
        dim: D.

    Raises:
        InputError: there are no captions, or not as many as embeddings; or size is below 1.

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
        self.is_sample = len(self.rows) < shape[0]
        self.dim: int = shape[1]

    @classmethod
    def from_store(cls, split: StoreSplit, size: int | None = None, seed: int = 0) -> "MemoryBank":
        """The captions of a split of a feature store.

        Raises:
            InputError: as the class, or the store has no embeddings of captions.
        """
        return cls(split.feature(Feature.CAPTION), split.captions, size, seed)

    def __len__(self) -> int:
        return len(self.rows)

    def captions(self, indices: ArrayLike) -> list[str]:
        """The texts of captions by their indices in the memory, 0 to C - 1, as `nearest` returns them."""
        return list(self._captions[self.rows[np.asarray(indices, np.int64)]])

    def embeddings(self, indices: ArrayLike) -> Tensor:
        """(…, D) float32 embeddings of captions by their (…) indices, as they were given, on the CPU."""
        places = np.asarray(indices, np.int64)
        unique, order = np.unique(places, return_inverse=True)  # each is read once
        read = torch.from_numpy(self._embeddings[self.rows[unique]]).float()
        return read[torch.from_numpy(order.reshape(places.shape))]

    @torch.no_grad()
    def project(self, embeddings: Tensor, temperature: float = 0.01) -> Tensor:
        """The mean of the memory, weighted by softmax(cosine / temperature) (DeCap, as in its released code).

        The result is exact up to rounding in float32. Captions whose weight rounds to 0 beside the nearest caption's
        are skipped, so that a call takes little longer than the matrix product for the cosines where few captions are
        near; where weights are spread over the memory (a high temperature, or cosines close together), it takes twice
        as long. Each call reads the entire memory, so project many embeddings at once.

        Args:
            embeddings: (n, D), of any length, on any device.
            temperature: 1 / 100 in DeCap's code.

        Returns:
            (n, D) of unit length, float32, on the same device.

        Raises:
            InputError: the width is not the memory's, an embedding (also one of the memory) is zero, NaN or infinite,
                or the temperature is not positive.
        """
        if not 0 < temperature < math.inf:
            raise InputError(f"the temperature is {temperature}: give one above 0 (DeCap: 0.01)")
        return torch.cat([self._projected(part, temperature) for part in self._queries(embeddings)])

    @torch.no_grad()
    def nearest(self, embeddings: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
        """The nearest captions of each embedding, the nearest first; many by faiss's exact search if it is installed.

        The first call also computes the lengths of all embeddings, 4 bytes a caption, and keeps them.

        Args:
            embeddings: (n, D), of any length, on any device.
            count: how many.

        Returns:
            (n, count) indices of captions in the memory, see `captions`, and (n, count) their cosines, on the same
            device.

        Raises:
            InputError: the width is not the memory's, an embedding (also one of the memory) is zero, NaN or infinite,
                or there are fewer captions than `count`.

        Examples:
            >>> bank = MemoryBank(np.eye(2, dtype=np.float32), ["a cat", "a dog"])
            >>> indices, cosines = bank.nearest(torch.tensor([[3.0, 4.0]]), count=2)
            >>> indices.tolist(), cosines.round(decimals=1).tolist()
            ([[1, 0]], [[0.800000011920929, 0.6000000238418579]])
        """
        if not 1 <= count <= len(self):
            raise InputError(f"the {count} nearest captions are asked for: give 1 to {len(self)}, the memory's size")
        parts = [self._nearest(part, count) for part in self._queries(embeddings)]
        return torch.cat([indices for indices, _ in parts]), torch.cat([cosines for _, cosines in parts])

    def units(self, indices: ArrayLike) -> Tensor:
        """(n,) indices of captions -> (n, D) their embeddings, of length 1 in float32.

        Raises:
            RowsError: one is zero, NaN or infinite.
        """
        rows = self.rows[np.asarray(indices, np.int64)]
        return _normalize(torch.from_numpy(self._embeddings[rows]), "captions of the memory", rows)

    @torch.no_grad()
    def nearest_among(self, queries: Tensor, proposed: ArrayLike, count: int) -> tuple[Tensor, Tensor]:
        """The nearest of some captions of each query.

        Args:
            queries: (n, D), as `normalized` returns them, on the CPU.
            proposed: (n, m) indices of captions, m at least `count`; -1: none.
            count: how many.

        Returns:
            (n, count) indices and (n, count) cosines, as `nearest`; -1 where fewer are proposed.
        """
        rows = np.asarray(proposed, np.int64)
        indices, cosines = [torch.empty(0, count, dtype=torch.int64)], [torch.empty(0, count)]
        for start in range(0, len(rows), FEW_AMONG):
            own = rows[start : start + FEW_AMONG]
            unique, places = np.unique(np.maximum(own, 0), return_inverse=True)
            units = self.units(unique)[torch.from_numpy(places.reshape(own.shape))]  # (Q, m, D)
            exact = (units @ queries[start : start + FEW_AMONG, :, None])[:, :, 0]  # (Q, m)
            exact[torch.from_numpy(own < 0)] = -math.inf
            best, order = exact.topk(count)
            cosines.append(best)
            indices.append(torch.from_numpy(own).gather(1, order))
        return torch.cat(indices), torch.cat(cosines)

    def retrieve(self, embeddings: Tensor) -> list[str]:
        """The nearest caption of each of (n, D) embeddings (CLIPRe). Raises as `nearest`."""
        return self.captions(self.nearest(embeddings)[0][:, 0].cpu())

    def _projected(self, queries: Tensor, temperature: float) -> Tensor:
        """(Q, D) queries -> (Q, D): a softmax over the memory in one pass, rescaled as nearer captions appear."""
        # A weight is relative to the nearest caption's. The weights of all captions whose cosine is lower than the
        # nearest's by more than this add up to less than float32 resolves.
        reach = temperature * math.log(len(self) / torch.finfo(torch.float32).eps)
        sums = torch.zeros_like(queries)  # (Q, D) of embeddings times weights
        nearest = queries.new_full((len(queries), 1), -math.inf)  # (Q, 1) the highest cosine so far
        buffer = queries.new_empty(len(queries) * min(CAPTIONS, len(self)))
        for _, memories in self._chunks(queries):
            cosines = buffer[: len(queries) * len(memories)].view(len(queries), len(memories))
            torch.mm(queries, memories.T, out=cosines)  # (Q, M)
            groups = _groups(cosines)  # (Q, S, G)
            highest = groups.amax(1)  # (Q, G)
            # A nearer caption: sums that were relative to the previous nearest become relative to this one.
            previous, nearest = nearest, torch.maximum(nearest, highest.amax(1, keepdim=True))
            sums *= ((previous - nearest) / temperature).exp_()
            # Groups with a caption that counts, as pairs of query and group.
            query, group = (highest > nearest - reach).nonzero(as_tuple=True)
            if len(query) > highest.numel() / 2:  # so many that all captions together are faster
                sums += cosines.sub_(nearest).div_(temperature).exp_() @ memories
                continue
            # Of these groups the captions that count.
            members = groups.transpose(1, 2)[query, group]  # (pairs, S) cosines
            pair, member = (members > nearest[query] - reach).nonzero(as_tuple=True)
            query, caption = query[pair], member * groups.shape[2] + group[pair]  # queries ascend
            weights = ((members[pair, member] - nearest[query, 0]) / temperature).exp_()
            # Their weighted sum, query by query.
            starts = torch.searchsorted(query, torch.arange(len(queries), device=query.device))
            sums += F.embedding_bag(caption, memories, starts, mode="sum", per_sample_weights=weights)
        return F.normalize(sums)

    def _nearest(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(Q, D) queries -> (Q, count) indices in the memory and (Q, count) cosines."""
        on_cpu = queries.device.type == "cpu"
        if on_cpu and 0 < len(queries) <= FEW:
            pairs = [self._nearest_to_one(query, count) for query in queries]
            indices, best = (torch.stack(values) for values in zip(*pairs, strict=True))
            return indices, best
        best = queries.new_full((len(queries), count), -math.inf)
        indices = torch.zeros_like(best, dtype=torch.int64)
        with_faiss = on_cpu and len(queries) > FEW_FOR_FAISS and importlib.util.find_spec("faiss") is not None
        size = min(len(self), CAPTIONS if len(queries) > FEW_FOR_FAISS else 8 * CAPTIONS)
        buffer = queries.new_empty(size, self.dim)  # memory that is new for each chunk would cost more than the product
        for start, stored in self._stored(size):
            inverse = self._inverse_lengths[start : start + len(stored)].to(queries.device)
            memories = buffer[: len(stored)].copy_(stored)
            many = min(count, len(memories))
            if with_faiss:
                cosines, rows = _search(queries, memories * inverse[:, None], many)
                better = torch.arange(len(queries))
            else:
                products = (memories @ queries.T).T.mul_(inverse)  # (Q, M); this order is faster for few queries
                better = (products.amax(1) > best[:, -1]).nonzero()[:, 0]  # the queries for which the chunk has nearer
                cosines, rows = products[better].topk(many)
            best[better], order = torch.cat([best[better], cosines], dim=1).topk(count)
            indices[better] = torch.cat([indices[better], rows + start], dim=1).gather(1, order)
        return indices, best

    def _nearest_to_one(self, query: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(D,) a query of length 1 -> (count,) indices in the memory and (count,) cosines.

        Products with embeddings in half precision say within which error the cosines lie; what may be among the nearest
        is then compared exactly. That reads each embedding once, as it is stored, and converts hardly any.
        """
        products = query.new_empty(len(self))  # (C,)
        error = 0.0  # that products have at most, per length of the embedding, and beside it a share of themselves
        share = 0.0
        for start, stored in self._stored(RUN):
            rounded = query.to(stored.dtype)
            products[start : start + len(stored)] = torch.mv(stored, rounded)
            error = max(error, float(torch.linalg.vector_norm(query - rounded.float())))
            share = max(share, torch.finfo(stored.dtype).eps)
        cosines = products.mul_(self._inverse_lengths)
        least = cosines.topk(count).values[-1]
        margin = error + share + SLACK  # a cosine is at most 1
        likely = (
            (cosines >= least - 2 * margin).nonzero()[:, 0] if cosines.isfinite().all() else torch.arange(len(self))
        )
        parts = likely.numpy()
        exact = torch.cat([self.units(parts[start : start + RUN]) @ query for start in range(0, len(parts), RUN)])
        best, order = exact.topk(count)
        return likely[order], best

    @cached_property
    def _inverse_lengths(self) -> Tensor:
        """(C,) one by the length of each embedding. Raises RowsError if one has none."""
        lengths = torch.empty(len(self))
        for start, stored in self._stored(CAPTIONS):
            rows = self.rows[start : start + len(stored)]
            lengths[start : start + len(stored)] = _lengths(stored.float(), "captions of the memory", rows)[:, 0]
        return lengths.reciprocal_()

    def _stored(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """The memory as it is stored, in runs of at most `size`: the index of the first, and the embeddings.

        They are not copied unless the memory is a sample, and must not be changed.
        """
        if self.is_sample:
            yield from (
                (start, torch.from_numpy(self._embeddings[self.rows[start : start + size]]))
                for start in range(0, len(self), size)
            )
            return
        runs = self._embeddings.runs(size) if isinstance(self._embeddings, Column) else _runs(self._embeddings, size)
        for start, stored in runs:
            yield start, _as_tensor(stored)

    def normalized(self, embeddings: Tensor) -> Tensor:
        """(n, D) embeddings -> of length 1 in float32.

        Raises:
            InputError: the width is not the memory's, or an embedding is zero, NaN or infinite.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise InputError(
                f"embeddings of shape {tuple(embeddings.shape)}, but the memory's captions have {self.dim} dimensions: "
                f"give (n, {self.dim}), from the encoder that embedded the captions"
            )
        return _normalize(embeddings, "embeddings")

    def _queries(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        return torch.split(self.normalized(embeddings), QUERIES)

    def _chunks(self, queries: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The memory in chunks: the index of the first caption, and (M, D) embeddings of unit length in float32."""
        for start, stored in self._stored(CAPTIONS):
            rows = self.rows[start : start + len(stored)]
            yield start, _normalize(stored.to(queries.device), "captions of the memory", rows)


def _normalize(embeddings: Tensor, what: str, rows: NDArray[np.int64] | None = None) -> Tensor:
    """(n, D) embeddings -> of unit length, in float32. Raises RowsError with their numbers in `rows` if some cannot be
    scaled."""
    exact = embeddings.float()
    lengths = _lengths(exact, what, rows)
    return exact / lengths if exact is embeddings else exact.div_(lengths)  # a copy may be changed


def _lengths(embeddings: Tensor, what: str, rows: NDArray[np.int64] | None = None) -> Tensor:
    """(n, D) embeddings in float32 -> (n, 1). Raises RowsError as `_normalize`."""
    lengths: Tensor = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    good = (lengths > 0) & (lengths < math.inf)
    if not good.all():
        bad = (~good[:, 0]).nonzero()[:, 0].cpu().numpy()
        raise RowsError(what, (bad if rows is None else rows[bad]).tolist(), "NaN, infinite or all zero: embed again")
    return lengths


def _runs(embeddings: NDArray[Any], size: int) -> Iterator[tuple[int, NDArray[Any]]]:
    yield from ((start, embeddings[start : start + size]) for start in range(0, len(embeddings), size))


def _as_tensor(stored: NDArray[Any]) -> Tensor:
    """An array as a tensor that shares its memory, which may be a file's that cannot be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(stored)


def _groups(cosines: Tensor) -> Tensor:
    """(Q, M) cosines -> (Q, S, G), without a copy; a single group if S does not divide M.

    The captions of a group are not neighbours but G apart, so that the maximum over a group is fast.
    """
    size = cosines.shape[1] if cosines.shape[1] % GROUP else GROUP
    return cosines.view(len(cosines), size, cosines.shape[1] // size)


def _search(queries: Tensor, memories: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(Q, D) queries, (M, D) memories -> (Q, count) highest products by faiss, and the rows that have them."""
    faiss = importlib.import_module("faiss")
    products, rows = faiss.knn(queries.numpy(), memories.numpy(), count, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(products), torch.from_numpy(rows)
