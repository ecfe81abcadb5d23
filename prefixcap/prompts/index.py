"""An index of a datastore's captions, for datastores of millions: approximate search by faiss, as IVF-PQ.

Captions lie in lists by their nearest of `lists` centroids, each as `size` bytes (Jégou et al., "Product Quantization
for Nearest Neighbor Search", TPAMI 2011). A query is compared with the captions in the `probes` lists whose centroids
are nearest to it. The index only proposes captions: those that it does are compared with the query exactly.

The file, in the store's folder, holds numbers in safetensors: `centroids` (lists, dim), `codebooks` (size, 256, dim /
size), `lengths` (lists,) of the lists, and of the captions, list by list, `rows` (captions,) and `codes` (captions,
size). Its metadata have the digest of the captions that it is of. It is checked, and runs no code.
"""

import importlib
import importlib.util
import json
import math
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor
from tqdm import tqdm

from prefixcap.errors import InputError
from prefixcap.store.format import Digest
from prefixcap.store.reader import StoreSplit
from prefixcap.textonly.memory import MemoryBank
from prefixcap.utils.files import atomic_write
from prefixcap.utils.validation import validate

FORMAT = "prefixcap caption index"
LEAST = 256  # captions: as many as a codebook has entries
SIZE, PROBES = 64, 32
TRAINED_ON = 64  # captions for each list or codebook entry that they are learned from, sampled at random
BLOCK = 1 << 15  # captions in memory at once

Number = Annotated[int, Field(ge=1, le=10**7)]


class About(BaseModel):
    """What an index says of itself.

    Attributes:
        digest: of the split that its captions are in, see `StoreSplit`.
        lists, size, probes: as of `CaptionIndex.build`.
    """

    digest: Digest
    lists: Number
    size: Number
    probes: Number


class CaptionIndex:
    """Finds captions near an embedding without reading all of them.

    Args:
        about: its settings.
        arrays: as in the file.

    Attributes:
        about: its settings. `probes` may be changed at any time.
        dim: of the embeddings.

    Raises:
        InputError: faiss is missing.

    Examples:
        >>> import torch
        >>> embeddings = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
        >>> memory = MemoryBank(embeddings, [f"caption {row}" for row in range(2000)])
        >>> index = CaptionIndex.build(memory, digest="ab" * 32, lists=8, size=8, probes=4)
        >>> 7 in index.candidates(memory.normalized(embeddings[7:8]), 5)
        True
    """

    def __init__(self, about: About, arrays: dict[str, NDArray[Any]]) -> None:
        self.about, self._arrays = about, arrays
        self.dim: int = arrays["centroids"].shape[1]
        self._faiss = require_faiss()
        self._index = self._build()

    @classmethod
    def build(
        cls,
        memory: MemoryBank,
        digest: str,
        lists: int | None = None,
        size: int = SIZE,
        probes: int = PROBES,
        seed: int = 0,
        progress: bool = False,
    ) -> "CaptionIndex":
        """Learn centroids and codebooks from a sample of the captions, and add all, a block at a time.

        Args:
            memory: the captions.
            digest: of the split that they are.
            lists: how many; None: a power of two near four times the square root of the number of captions.
            size: bytes for each caption, a divisor of the embeddings' width.
            probes: lists to look into for a query: more find more and take longer.
            seed: of the sample and of what faiss draws.
            progress: show a bar on stderr.

        Raises:
            InputError: faiss is missing, there are fewer than 256 captions or fewer than lists, `size` is no divisor of
                the width, or an embedding is zero, NaN or infinite.
        """
        faiss, count = require_faiss(), len(memory)
        if count < LEAST:
            raise InputError(f"an index needs at least {LEAST} captions, and there are {count}: search without one")
        lists = lists or 2 ** round(math.log2(4 * math.sqrt(count)))
        about = validate(
            About, {"digest": digest, "lists": lists, "size": size, "probes": probes}, "index", "change it"
        )
        if lists > count:
            raise InputError(f"{lists} lists for {count} captions: give at most one list for ten captions or so")
        if memory.dim % size:
            fitting = [str(number) for number in range(1, memory.dim + 1) if memory.dim % number == 0]
            raise InputError(f"captions cannot have {size} bytes each: give a divisor of {memory.dim}, {_or(fitting)}")
        index = faiss.IndexIVFPQ(faiss.IndexFlatIP(memory.dim), memory.dim, lists, size, 8, faiss.METRIC_INNER_PRODUCT)
        for clustering in (index.cp, index.pq.cp):
            clustering.seed, clustering.min_points_per_centroid = seed, 1
            clustering.max_points_per_centroid = TRAINED_ON
        sample = np.random.default_rng(seed).permutation(count)[: TRAINED_ON * max(lists, LEAST)]
        index.train(memory.units(np.sort(sample)).numpy())
        with tqdm(total=count, desc="indexing", unit=" captions", disable=not progress) as bar:
            for start in range(0, count, BLOCK):
                rows = np.arange(start, min(start + BLOCK, count))
                index.add(memory.units(rows).numpy())
                bar.update(len(rows))
        return cls(about, _arrays_of(index, faiss))

    def candidates(self, queries: Tensor, count: int) -> NDArray[np.int64]:
        """Rows of captions that may be the nearest to embeddings.

        Args:
            queries: (n, dim), of length 1, on the CPU.
            count: how many for each.

        Returns:
            (n, count) rows, about the nearest first; -1 where there are no more in the lists that were looked into.
        """
        self._index.nprobe = min(self.about.probes, self.about.lists)
        rows: NDArray[np.int64] = self._index.search(queries.contiguous().numpy(), count)[1]
        return rows

    def save(self, path: Path) -> None:
        """Write it to a file, atomically. Raises InputError as `atomic_write`."""
        from safetensors.numpy import save_file

        metadata = {"format": FORMAT, "about": self.about.model_dump_json()}
        with atomic_write(path) as temporary:
            save_file(self._arrays, temporary, metadata)

    @classmethod
    def open(cls, path: Path, split: StoreSplit, dim: int) -> "CaptionIndex":
        """Read it from a file.

        Args:
            path: of the file.
            split: of whose captions it is to be.
            dim: of their embeddings.

        Raises:
            InputError: faiss is missing, the file is missing or damaged, holds something else, or the index of other
                captions: those that the split had before they were edited.
        """
        require_faiss()
        about, arrays = _read(path)
        if about.digest != split.digest:
            raise InputError(f"{path} is the index of other captions than those that are there now: make it again")
        if problem := _problem(about, arrays, len(split.captions), dim):
            raise InputError(f"{path} is damaged ({problem}): make it again")
        return cls(about, arrays)

    def _build(self) -> Any:
        """The index as faiss searches it."""
        faiss, arrays, about = self._faiss, self._arrays, self.about
        self._quantizer = faiss.IndexFlatIP(self.dim)  # faiss does not keep it
        self._quantizer.add(arrays["centroids"])
        index = faiss.IndexIVFPQ(self._quantizer, self.dim, about.lists, about.size, 8, faiss.METRIC_INNER_PRODUCT)
        index.is_trained = True
        faiss.copy_array_to_vector(arrays["codebooks"].ravel(), index.pq.centroids)
        rows, codes, start = arrays["rows"].astype(np.int64), np.ascontiguousarray(arrays["codes"]), 0
        for number, length in enumerate(arrays["lengths"].tolist()):
            if length:
                ids, own = rows[start : start + length], codes[start : start + length]
                index.invlists.add_entries(number, length, faiss.swig_ptr(ids), faiss.swig_ptr(own))
            start += length
        index.ntotal = start
        return index


def index_path(store: Path, split: str) -> Path:
    """Where the index of the captions of a split lies."""
    return store / f"index-{quote(split, safe='')}.safetensors"


def require_faiss() -> Any:
    """The package faiss. Raises InputError with what installs it."""
    if importlib.util.find_spec("faiss") is None:
        raise InputError('an index of captions needs faiss: pip install "prefixcap[faiss]"')
    return importlib.import_module("faiss")


def _arrays_of(index: Any, faiss: Any) -> dict[str, NDArray[Any]]:
    """The numbers of an index that faiss has made."""
    lists, size, dim = index.nlist, index.pq.M, index.d
    lengths = np.array([index.invlists.list_size(number) for number in range(lists)], np.int64)
    rows, codes = np.empty(index.ntotal, np.int32), np.empty((index.ntotal, size), np.uint8)
    start = 0
    for number, length in enumerate(lengths.tolist()):
        if length:
            own = slice(start, start + length)
            rows[own] = faiss.rev_swig_ptr(index.invlists.get_ids(number), length)
            codes[own] = faiss.rev_swig_ptr(index.invlists.get_codes(number), length * size).reshape(length, size)
        start += length
    return {
        "centroids": index.quantizer.reconstruct_n(0, lists),
        "codebooks": faiss.vector_to_array(index.pq.centroids).reshape(size, 256, dim // size),
        "lengths": lengths,
        "rows": rows,
        "codes": codes,
    }


def _read(path: Path) -> tuple[About, dict[str, NDArray[Any]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path} is no index of captions: remove it, and make one")
            about = validate(About, json.loads(metadata.get("about", "{}")), path, "make it again")
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({error}): make it again") from error


def _problem(about: About, arrays: dict[str, NDArray[Any]], count: int, dim: int) -> str | None:
    """What is wrong with the numbers of an index of as many captions; None if nothing is."""
    if dim % about.size:
        return f"{about.size} bytes do not divide {dim} dimensions"
    wanted: dict[str, tuple[tuple[int, ...], Any]] = {
        "centroids": ((about.lists, dim), np.float32),
        "codebooks": ((about.size, 256, dim // about.size), np.float32),
        "lengths": ((about.lists,), np.int64),
        "rows": ((count,), np.int32),
        "codes": ((count, about.size), np.uint8),
    }
    for name, (shape, dtype) in wanted.items():
        if name not in arrays or arrays[name].shape != shape or arrays[name].dtype != dtype:
            return f"{name} is missing or of another shape"
    lengths, rows = arrays["lengths"], arrays["rows"]
    if (lengths < 0).any() or (lengths > count).any() or lengths.sum() != count:
        return "the lists do not add up"
    if rows.min() < 0 or rows.max() >= count or (np.bincount(rows, minlength=count) != 1).any():
        return "a caption is missing or comes twice"
    if not (np.isfinite(arrays["centroids"]).all() and np.isfinite(arrays["codebooks"]).all()):
        return "a number is not finite"
    return None


def _or(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
