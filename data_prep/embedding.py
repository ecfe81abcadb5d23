"""Images of a data set -> feature store: decoded ahead of the encoder and written in pieces, so that it can resume."""

import hashlib
import itertools
import json
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from annotated_types import Ge, Interval
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from data_prep.device_loading import DeviceReader
from data_prep.fast_decode import SCALED, choose_reader, cosines, describe_cosines
from data_prep.features import Features
from data_prep.loading import PixelReader, Pixels, in_threads
from data_prep.records import Dataset, Sample, Skipped
from prefixcap import renamed
from prefixcap.encoders import Encoder
from prefixcap.errors import InputError
from prefixcap.features import Feature
from prefixcap.store import FeatureStore, StoreWriter, join
from prefixcap.utils.hardware import cpu_count
from prefixcap.utils.options import Positive, check_value

FEW_SKIPPED = 10  # as many images may be unreadable, whatever their share

Array = NDArray[Any]
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class EmbedReport:
    """The result of a run.

    Attributes:
        unit: "images" or "sentences".
        written: the number of images embedded by this run.
        missing: the number of shards that other processes have still to write.
        resumed: the number of images that earlier runs embedded, where no other process shares the work.
        skipped: what the store leaves out.
    """

    unit: str
    written: int
    missing: int
    resumed: int = 0
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """Images whose embeddings are written together."""

    shard: int
    number: int
    num_pieces: int
    samples: list[Sample]
    skipped: list[Skipped]

    def batches(self, batch_size: int) -> list[list[Sample]]:
        """Its samples in batches, at least one. No batch spans two pieces, so the content of a piece does not depend on
        the pieces that exist already."""
        return [self.samples[start : start + batch_size] for start in range(0, max(1, len(self.samples)), batch_size)]


@dataclass(frozen=True)
class Encoded:
    """A batch of samples after encoding.

    Attributes:
        positions: in the batch, of the images that can be read.
        columns: of the store, with a row for each of them.
        reasons: by position, why each of the others cannot be read.
    """

    positions: list[int]
    columns: dict[str, Tensor]
    reasons: dict[int, str]


def embed(
    dataset: Dataset,
    encoder: Encoder,
    store: Path,
    features: Sequence[str] = ("image",),
    store_dtype: torch.dtype = torch.float16,
    regions: int = 10,
    batch_size: int | None = None,
    num_workers: int | None = None,
    fast_decode: bool = False,
    piece_size: int = 1000,
    max_skipped: float = 0.01,
    task: int = 0,
    tasks: int = 1,
    progress: bool = True,
    jpeg_scaling: bool | None = None,
) -> EmbedReport:
    """Embed the images of a data set, or their captions, into a feature store, piece by piece.

    Existing pieces are kept. An image that cannot be read, or whose features are not finite as stored, is skipped and
    listed with the reason. A rotation in the image's EXIF data is applied; of an animation, the first frame is used.

    Args:
        dataset: from a reader.
        encoder: the encoder to use.
        store: the store's folder.
        features: what to store, see `Features`; if that is only captions, no image is opened.
        store_dtype: torch.float16 or torch.float32.
        regions: the number of sub-regions of an image, if they are among the features.
        batch_size: images encoded together; None: as in the run that began the store, or else a good size that fits.
        num_workers: processes that decode images; 0: the threads that encode them decode them; None: a good number.
        fast_decode: decode JPEG images faster, to pixels that differ slightly from the encoder's own preprocessing:
            large ones at half of their size or less, at least twice the encoder's input; on a GPU by nvJPEG.
        piece_size: images in a piece: the most that an interruption can lose.
        max_skipped: stop when more than this share of the images so far, and more than ten, cannot be embedded.
        task: which share of the work this process does, from 0.
        tasks: the number of processes that share the work. The last one to end completes the store.
        progress: show a progress bar on stderr; before it, how near fast decoding comes to the encoder's preprocessing.
        jpeg_scaling: the old name of `fast_decode`.

    Returns:
        What was written and skipped.

    Raises:
        InputError: too many images, or all, cannot be embedded, the folder holds the store of another job, the disk is
            full, or a batch does not fit into the device's memory.
    """
    check_value("batch_size", batch_size, Positive | None)
    check_value("num_workers", num_workers, Annotated[int, Ge(0)] | None)
    check_value("tasks", tasks, Positive)
    check_value("task", task, Annotated[int, Interval(ge=0, lt=tasks)])
    if jpeg_scaling is not None:
        renamed.warn("the argument 'jpeg_scaling' of embed", "fast_decode")
        fast_decode = fast_decode or jpeg_scaling
    chosen = Features(features, encoder, store_dtype, regions)
    if num_workers is None:
        num_workers = min(16, cpu_count() - 1) if encoder.device.type != "cpu" else 0
    reader = choose_reader(encoder, SCALED * chosen.image_size if fast_decode else None, num_workers)
    settings: dict[str, str | int | bool] = {
        "features": ",".join(feature.option for feature in chosen.chosen),
        "stored_in": str(store_dtype).removeprefix("torch."),
        "computed_in": str(encoder.dtype).removeprefix("torch."),
    }
    if fast_decode:
        settings["fast_decode"] = "nvjpeg" if isinstance(reader, DeviceReader) else "scaled"
    else:
        settings["jpeg_scaling"] = False  # as version 0.1 recorded it: its stores go on
    if Feature.REGIONS in chosen.chosen:
        settings["regions"] = regions
    job = _fingerprint(dataset, encoder, [piece_size, settings])
    writer = StoreWriter(store, encoder.identity, dataset.source, dataset.image_root, job, len(dataset.shards))
    todo = [shard for shard in writer.missing() if shard % tasks == task]
    written = 0
    if todo:
        _ = chosen.empty  # raises before anything is written, if the encoder lacks a feature
        # A resumed run uses batches of the same size: sums in another order differ in their last bits.
        batch_size = batch_size or int(writer.made_with.get("batch_size", 0)) or chosen.largest_batch()
        writer.made_with = {**settings, "batch_size": batch_size}
        with _progress_bar(dataset, todo, task, tasks, disable=not progress) as bar:
            if fast_decode and dataset.has_images and progress:
                bar.write(describe_cosines(cosines(dataset, encoder, reader, num_workers)), sys.stderr)
            encode = partial(_encode_batches, features=chosen, reader=reader, num_workers=num_workers)
            written = _embed_shards(dataset, todo, chosen, encode, writer, batch_size, piece_size, max_skipped, bar)
    if missing := len(writer.missing()):
        return EmbedReport(dataset.unit, written, missing)
    if not writer.finished():
        join(store)
    complete = FeatureStore(store)
    resumed = sum(complete.splits.values()) - written if tasks == 1 else 0
    return EmbedReport(dataset.unit, written, 0, resumed, complete.skipped())


def _embed_shards(
    dataset: Dataset,
    shards: list[int],
    features: Features,
    encode: Callable[[Iterable[list[Sample]]], Generator[Encoded]],
    writer: StoreWriter,
    batch_size: int,
    piece_size: int,
    max_skipped: float,
    bar: Any,
) -> int:
    """Embed the missing pieces of these shards. Returns the number of images written."""
    pieces: deque[Piece] = deque()  # whose batches are being encoded

    def batches() -> Iterator[list[Sample]]:
        for piece in _pieces(dataset, shards, piece_size):
            if writer.has_piece(piece.shard, piece.number, piece.num_pieces):
                bar.update(len(piece.samples))
            else:
                pieces.append(piece)
                yield from piece.batches(batch_size)

    written = seen = bad = 0
    # Pieces without images are written after the first with images: a wrong folder must leave no store behind.
    empty_pieces: list[tuple[Piece, list[Skipped]]] = []
    no_image_yet = len(shards) == len(dataset.shards)
    with closing(encode(batches())) as stream:
        for first_batch in stream:
            piece = pieces.popleft()
            others = itertools.islice(stream, len(piece.batches(batch_size)) - 1)
            columns, reasons = _encode_piece(piece, itertools.chain([first_batch], others), features, batch_size, bar)
            images = [sample.record for position, sample in enumerate(piece.samples) if position not in reasons]
            skipped = [
                Skipped(piece.samples[position].record.id, piece.samples[position].record.file, reasons[position])
                for position in sorted(reasons)
            ]
            seen, bad = seen + len(piece.samples), bad + len(skipped)
            if skipped and bad > max(FEW_SKIPPED, max_skipped * seen):
                raise InputError(
                    f"{bad} of {seen} images cannot be embedded, more than max_skipped={max_skipped} allows; the last "
                    f"is {dataset.image_root / skipped[-1].file}: {skipped[-1].reason}; repair them, or allow more"
                )
            if not images and no_image_yet:
                empty_pieces.append((piece, skipped))
                continue
            no_image_yet = False
            writer.write_piece(
                piece.shard,
                piece.number,
                piece.num_pieces,
                images,
                features.empty | columns,
                [*piece.skipped, *skipped],
            )
            written += len(images)
    if no_image_yet and empty_pieces:
        reasons_of_all = (skip for piece, skipped in empty_pieces for skip in [*skipped, *piece.skipped])
        first = next(reasons_of_all, Skipped("", "", "there is no image"))
        where = dataset.image_root / first.file if first.file else first.id
        raise InputError(
            f"none of the {seen} {dataset.unit} can be embedded ({dataset.source}); the first is {where}: "
            f"{first.reason}"
        )
    for piece, skipped in empty_pieces:
        writer.write_piece(piece.shard, piece.number, piece.num_pieces, [], features.empty, [*piece.skipped, *skipped])
    return written


def _pieces(dataset: Dataset, shards: list[int], piece_size: int) -> Iterator[Piece]:
    """The shards, read one after the other, in pieces; a shard without images has one empty piece."""
    for shard in shards:
        samples, skipped = dataset.shards[shard].read()
        if shard == 0:
            skipped = [*dataset.skipped, *skipped]  # what the reader left out comes first in the list
        starts = range(0, max(1, len(samples)), piece_size)
        for number, start in enumerate(starts):
            own = samples[start : start + piece_size]
            yield Piece(shard, number, len(starts), own, skipped if number == 0 else [])


def _encode_batches(
    batches: Iterable[list[Sample]], features: Features, reader: PixelReader, num_workers: int
) -> Generator[Encoded]:
    """Each batch, read and encoded, several at a time."""

    def encode(pixels: Pixels) -> Encoded:
        columns = features.encode_images(pixels.images) if pixels.positions else {}
        return Encoded(pixels.positions, columns, pixels.reasons)

    each = _parallel_map(features)
    if features.chosen == [Feature.CAPTION]:  # no image is opened
        for batch in batches:
            yield Encoded(list(range(len(batch))), {}, {})
    elif num_workers:
        yield from each(encode, reader.in_processes(batches, num_workers, features.encoder.device))
    else:
        yield from each(lambda samples: encode(reader.read(samples)), batches)


def _parallel_map(features: Features) -> Callable[[Callable[[T], U], Iterable[T]], Iterable[U]]:
    """The `map` to encode batches with: in threads on a CPU; a GPU is busy with one batch after the other."""
    return in_threads if features.encoder.device.type == "cpu" else map


def _encode_piece(
    piece: Piece, batches: Iterable[Encoded], features: Features, batch_size: int, bar: Any
) -> tuple[dict[str, Array], dict[int, str]]:
    """The columns of the images that have all features; and, by position, why the others have not."""
    kept: list[int] = []
    reasons: dict[int, str] = {}
    image_batches: list[dict[str, Tensor]] = []
    start = 0
    for batch in batches:
        image_batches += [batch.columns] if batch.positions else []
        kept += [start + position for position in batch.positions]
        reasons |= {start + position: reason for position, reason in batch.reasons.items()}
        start += len(batch.positions) + len(batch.reasons)
        bar.update(len(batch.positions) + len(batch.reasons))
    captions = [caption for position in kept for caption in piece.samples[position].record.captions]
    by_length = sorted(range(len(captions)), key=lambda row: len(captions[row]))  # for little padding within a batch
    caption_batches = (
        [captions[row] for row in by_length[first : first + batch_size]]
        for first in range(0, len(captions), batch_size)
    )
    encoded_captions = list(_parallel_map(features)(features.encode_captions, caption_batches))
    original_order = np.argsort(by_length)
    caption_columns = {name: rows[original_order] for name, rows in _concatenated(encoded_captions).items()}
    columns = _concatenated(image_batches) | caption_columns
    image_of_caption = np.repeat(
        np.arange(len(kept)), [len(piece.samples[position].record.captions) for position in kept]
    )
    finite = np.ones(len(kept), bool)
    for name, rows in columns.items():
        bad = ~np.isfinite(rows.reshape(len(rows), -1).sum(axis=1, dtype=np.float64))
        finite[np.flatnonzero(bad) if name.startswith("images/") else image_of_caption[bad]] = False
    reasons |= {position: "embedding is not finite" for position, good in zip(kept, finite, strict=True) if not good}
    rows_left = {"images": finite, "captions": finite[image_of_caption]}
    return {name: rows[rows_left[name.partition("/")[0]]] for name, rows in columns.items()}, reasons


def _concatenated(batches: list[dict[str, Tensor]]) -> dict[str, Array]:
    """The columns of all batches, each in one array."""
    return {name: torch.cat([batch[name] for batch in batches]).cpu().numpy() for name in (batches or [{}])[0]}


def _progress_bar(dataset: Dataset, todo: list[int], task: int, tasks: int, disable: bool) -> Any:
    """A bar over all images of this process, without a total where their number is not known."""
    sizes = [dataset.shards[shard].size for shard in range(task, len(dataset.shards), tasks)]
    missing = [dataset.shards[shard].size for shard in todo]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    initial = 0 if total is None else total - sum(size or 0 for size in missing)
    return tqdm(desc="embedding", unit=f" {dataset.unit}", total=total, initial=initial, disable=disable)


def _fingerprint(dataset: Dataset, encoder: Encoder, settings: list[Any]) -> str:
    """A hash of all that determines the content of the pieces."""
    settings = [encoder.identity.digest, encoder.identity.preprocessing, *settings]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for skip in dataset.skipped:
        digest.update(json.dumps([skip.id, skip.file, skip.reason]).encode())
    for shard in dataset.shards:
        digest.update(shard.fingerprint().encode())
    return digest.hexdigest()
