"""Images of a data set -> feature store: decoded ahead of the encoder, written piece by piece, killed and resumed."""

import contextlib
import hashlib
import itertools
import json
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from data_prep.records import Dataset, Sample, Skipped
from prefixcap.encoders import Encoder
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore, StoreWriter, join

MANY_IMAGES = 2000  # below this many, starting worker processes takes longer than they save
FEW_SKIPPED = 10  # so many images may be bad whatever their share

T = TypeVar("T")
# The places in their batch of the images that could be read, their pixels, and the reason for each of the others.
Batch = tuple[list[int], Tensor, dict[int, str]]


@dataclass(frozen=True)
class EmbedReport:
    """What a run did.

    Attributes:
        written: images embedded by this run.
        missing: shards that are still to be made, by other processes.
        resumed: images that were there already.
        skipped: all that the store leaves out.
    """

    written: int
    missing: int
    resumed: int = 0
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """Images whose embeddings are written together."""

    shard: int
    number: int
    of: int
    samples: list[Sample]
    skipped: list[Skipped]

    def batches(self, batch_size: int) -> list[list[Sample]]:
        """Its samples in batches, at least one; they end where the piece does.

        So a piece is the same whatever was there before it was made.
        """
        return [self.samples[start : start + batch_size] for start in range(0, max(1, len(self.samples)), batch_size)]


def embed(
    dataset: Dataset,
    encoder: Encoder,
    store: Path,
    batch_size: int = 64,
    num_workers: int | None = None,
    piece_size: int = 1000,
    max_skipped: float = 0.01,
    task: int = 0,
    tasks: int = 1,
    progress: bool = True,
) -> EmbedReport:
    """Embed the images of a data set into a feature store, piece by piece; pieces that are there are kept.

    An image that cannot be read, or whose embedding is not finite in float16, is skipped and listed with the
    reason. A rotation in the image's EXIF data is applied; of an animation, the first frame is taken.

    Args:
        dataset: from a reader.
        encoder: makes the embeddings.
        store: the store's folder.
        batch_size: images encoded together.
        num_workers: processes that decode images; 0: threads do, beside the encoder; None: as many as help.
        piece_size: images a piece: the most that an interruption can cost.
        max_skipped: stop when more than this share of the images seen, and more than ten, cannot be embedded.
        task: which share of the work this process does, from 0.
        tasks: how many processes share the work. The last one to end makes the store whole.
        progress: show a progress bar on stderr.

    Raises:
        InputError: too many images, or all, cannot be embedded, the folder holds the store of another job, the disk is
            full, or a batch does not fit into the device's memory.
    """
    _require_whole("batch_size", batch_size, least=1)
    _require_whole("num_workers", 0 if num_workers is None else num_workers, least=0)
    _require_whole("tasks", tasks, least=1)
    if not isinstance(task, int) or not 0 <= task < tasks:
        raise InputError(f"task must be a whole number from 0 to {tasks - 1}, one less than tasks, not {task!r}")
    job = _fingerprint(dataset, encoder, piece_size)
    writer = StoreWriter(store, encoder.identity, dataset.source, dataset.image_root, job, len(dataset.shards))
    mine = [shard for shard in writer.missing() if shard % tasks == task]
    bar = _progress_bar(dataset, mine, task, tasks, disable=not (progress and mine))
    if num_workers is None:
        many = encoder.device.type != "cpu" and (bar.total is None or bar.total - bar.initial >= MANY_IMAGES)
        num_workers = min(16, _processors() - 1) if many else 0
    with bar:
        written = _embed_shards(dataset, mine, encoder, writer, batch_size, num_workers, piece_size, max_skipped, bar)
    if missing := len(writer.missing()):
        return EmbedReport(written, missing)
    if not writer.finished():
        join(store)
    made = FeatureStore(store)
    return EmbedReport(written, 0, sum(made.splits.values()) - written, made.skipped())


def _embed_shards(
    dataset: Dataset,
    shards: list[int],
    encoder: Encoder,
    writer: StoreWriter,
    batch_size: int,
    num_workers: int,
    piece_size: int,
    max_skipped: float,
    bar: Any,
) -> int:
    """Embed the pieces of these shards that are not there. Returns how many images were written."""
    pieces: deque[Piece] = deque()  # those of which batches are under way

    def batches() -> Iterator[list[Sample]]:
        for piece in _pieces(dataset, shards, piece_size):
            if writer.has_piece(piece.shard, piece.number, piece.of):
                bar.update(len(piece.samples))
            else:
                pieces.append(piece)
                yield from piece.batches(batch_size)

    # Beside an encoder that takes all cores, images are decoded on all of them too: one that is busy with images would
    # make the others wait for it.
    pool = ThreadPoolExecutor(_processors())
    loader = DataLoader(
        _Images(encoder.preprocess, map if num_workers else pool.map),
        batch_sampler=batches(),
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=encoder.device.type == "cuda",
    )
    written = seen = bad = 0
    # Pieces without a single image wait for one that has some: a wrong folder must leave no store behind.
    barren: list[tuple[Piece, list[Skipped]]] = []
    nothing_yet = len(shards) == len(dataset.shards)
    stream = ahead(loader)
    for first_batch in stream:
        piece = pieces.popleft()
        others = itertools.islice(stream, len(piece.batches(batch_size)) - 1)
        rows, reasons = _encode_piece(piece, itertools.chain([first_batch], others), encoder, bar)
        images = [sample.record for place, sample in enumerate(piece.samples) if place not in reasons]
        skipped = [
            Skipped(piece.samples[place].record.id, piece.samples[place].record.file, reasons[place])
            for place in sorted(reasons)
        ]
        seen, bad = seen + len(piece.samples), bad + len(skipped)
        if skipped and bad > max(FEW_SKIPPED, max_skipped * seen):
            raise InputError(
                f"{bad} of {seen} images cannot be embedded, more than max_skipped={max_skipped} allows; the last is "
                f"{dataset.image_root / skipped[-1].file}: {skipped[-1].reason}; mend them, or allow more"
            )
        if skipped and not images and nothing_yet:
            barren.append((piece, skipped))
            continue
        nothing_yet = False
        writer.write_piece(piece.shard, piece.number, piece.of, images, {"embedding": rows}, [*piece.skipped, *skipped])
        written += len(images)
    if nothing_yet and barren:
        first = barren[0][1][0]
        raise InputError(
            f"none of the {seen} images can be embedded; the first is {dataset.image_root / first.file}: {first.reason}"
        )
    for piece, skipped in barren:
        empty = {"embedding": np.empty((0, encoder.identity.dim), np.float16)}
        writer.write_piece(piece.shard, piece.number, piece.of, [], empty, [*piece.skipped, *skipped])
    return written


def _pieces(dataset: Dataset, shards: list[int], piece_size: int) -> Iterator[Piece]:
    """The shards, read one after the other, in pieces; one without images gives an empty piece."""
    for shard in shards:
        samples, skipped = dataset.shards[shard].read()
        if shard == 0:
            skipped = [*dataset.skipped, *skipped]  # what the reader left out heads the list
        starts = range(0, max(1, len(samples)), piece_size)
        for number, start in enumerate(starts):
            own = samples[start : start + piece_size]
            yield Piece(shard, number, len(starts), own, skipped if number == 0 else [])


def _encode_piece(
    piece: Piece, batches: Iterable[Batch], encoder: Encoder, bar: Any
) -> tuple[NDArray[np.float16], dict[int, str]]:
    """The embeddings of the images that have one, and for each of the others its place in the piece and the reason."""
    embeddings: list[Tensor] = []
    kept: list[int] = []
    reasons: dict[int, str] = {}
    start = 0
    for read, pixels, unreadable in batches:
        if read:
            embeddings.append(_encode(encoder, pixels))
        kept += [start + place for place in read]
        reasons |= {start + place: reason for place, reason in unreadable.items()}
        start += len(read) + len(unreadable)
        bar.update(len(read) + len(unreadable))
    if not embeddings:
        return np.empty((0, encoder.identity.dim), np.float16), reasons
    rows: NDArray[np.float16] = torch.cat(embeddings).half().cpu().numpy()
    finite = np.isfinite(rows.sum(axis=1, dtype=np.float64))  # of float16: cannot overflow
    reasons |= {place: "embedding is not finite" for place, good in zip(kept, finite, strict=True) if not good}
    return rows[finite], reasons


def _encode(encoder: Encoder, pixels: Tensor) -> Tensor:
    """(batch, 3, height, width) pixels -> (batch, dim) embeddings, left on the device: nothing waits for them."""
    try:
        return encoder.encode_images(pixels)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"a batch of {len(pixels)} images is too much for {encoder.device}: lower batch_size"
        ) from error


class _Images(TorchDataset[Batch]):
    """Samples -> a batch of what could be read of them."""

    def __init__(self, preprocess: Callable[[Image.Image], Tensor], each: Callable[..., Iterable[Any]] = map) -> None:
        self.preprocess, self.each = preprocess, each

    def __getitems__(self, samples: list[Sample]) -> Batch:
        read = list(self.each(self._pixels, samples))
        pixels = {place: image for place, image in enumerate(read) if not isinstance(image, str)}
        reasons = {place: reason for place, reason in enumerate(read) if isinstance(reason, str)}
        # Stacked by NumPy: torch would do it with threads that then get in the encoder's way.
        stacked = torch.from_numpy(np.stack(list(pixels.values()))) if pixels else torch.empty(0)
        return list(pixels), stacked, reasons

    def _pixels(self, sample: Sample) -> NDArray[np.uint8] | str:
        """(3, height, width), or why there is nothing."""
        try:
            return self.preprocess(sample.open()).numpy()
        except InputError as error:
            return str(error).removeprefix(f"{sample.where}: ")


def _as_it_is(batch: Any) -> Any:
    return batch


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items, made in a thread up to `depth` before they are asked for."""
    waiting: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None = None, last: bool = False) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put((item, error, last), timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
            put(None, last=True)
        except BaseException as error:  # raised again where the items are used
            put(None, error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = waiting.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]  # an item, as it is neither an error nor the end
    finally:
        stopped.set()
        thread.join()


def _progress_bar(dataset: Dataset, mine: list[int], task: int, tasks: int, disable: bool) -> Any:
    """Over all images of this process, as far as their number is known."""
    sizes = [dataset.shards[shard].size for shard in range(task, len(dataset.shards), tasks)]
    todo = [dataset.shards[shard].size for shard in mine]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    initial = 0 if total is None else total - sum(size or 0 for size in todo)
    return tqdm(desc="embedding", unit=" images", total=total, initial=initial, disable=disable)


def _fingerprint(dataset: Dataset, encoder: Encoder, piece_size: int) -> str:
    """A hash over all that decides the content of the pieces."""
    settings = [encoder.identity.digest, encoder.identity.preprocessing, piece_size]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for skip in dataset.skipped:
        digest.update(json.dumps([skip.id, skip.file, skip.reason]).encode())
    for shard in dataset.shards:
        digest.update(shard.fingerprint().encode())
    return digest.hexdigest()


def _processors() -> int:
    """How many processors this process may use; a job scheduler often grants fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
