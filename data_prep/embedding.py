"""Images of a data set -> feature store, written in pieces, so that it can resume."""

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Interval
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.pieces import EncodedPiece, Maker, PieceMaker
from data_prep.records import Dataset, Skipped
from prefixcap import renamed
from prefixcap.encoders import Encoder
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.store import FeatureStore, StoreWriter, join
from prefixcap.store.writer import pieces_of
from prefixcap.utils.options import Positive, check_value

FEW_SKIPPED = 10  # as many images may be unreadable, whatever their share

Array = NDArray[Any]


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
    check_numbers(batch_size, num_workers, task, tasks)
    if jpeg_scaling is not None:
        renamed.warn("the argument 'jpeg_scaling' of embed", "fast_decode")
        fast_decode = fast_decode or jpeg_scaling
    maker = PieceMaker(encoder, features, store_dtype, regions, num_workers, fast_decode)
    return fill_store(dataset, maker, store, batch_size, piece_size, max_skipped, task, tasks, progress)


def check_numbers(batch_size: int | None, num_workers: int | None, task: int, tasks: int) -> None:
    """Raise InputError unless these arguments of `embed` are what they may be."""
    check_value("batch_size", batch_size, Positive | None)
    check_value("num_workers", num_workers, Annotated[int, Ge(0)] | None)
    check_value("tasks", tasks, Positive)
    check_value("task", task, Annotated[int, Interval(ge=0, lt=tasks)])


def fill_store(
    dataset: Dataset,
    maker: Maker,
    store: Path,
    batch_size: int | None = None,
    piece_size: int = 1000,
    max_skipped: float = 0.01,
    task: int = 0,
    tasks: int = 1,
    progress: bool = True,
) -> EmbedReport:
    """Write the pieces of a store that are missing, by a maker of pieces, and finish it; arguments, result and errors
    as for `embed`."""
    job = _fingerprint(dataset, maker.identity, [piece_size, maker.settings])
    writer = StoreWriter(store, maker.identity, dataset.source, dataset.image_root, job, len(dataset.shards))
    todo = [shard for shard in writer.missing() if shard % tasks == task]
    written = 0
    if todo:
        empty = maker.empty()  # raises before anything is written, if the encoder lacks a feature
        # A resumed run uses batches of the same size: sums in another order differ in their last bits.
        batch_size = batch_size or int(writer.made_with.get("batch_size", 0)) or maker.largest_batch()
        writer.made_with = {**maker.settings, "batch_size": batch_size}
        with _progress_bar(dataset, todo, task, tasks, disable=not progress) as bar:
            if "fast_decode" in maker.settings and dataset.has_images and progress:
                bar.write(maker.compare(dataset), sys.stderr)
            shards = [(shard, dataset.shards[shard]) for shard in todo]
            there = {piece for piece in pieces_of(store) if writer.has_piece(*piece)}
            with closing(maker.make(shards, batch_size, piece_size, there, bar.update)) as pieces:
                written = _write_pieces(pieces, dataset, writer, empty, max_skipped, len(todo) == len(dataset.shards))
    if missing := len(writer.missing()):
        return EmbedReport(dataset.unit, written, missing)
    if not writer.finished():
        join(store)
    complete = FeatureStore(store)
    resumed = sum(complete.splits.values()) - written if tasks == 1 else 0
    return EmbedReport(dataset.unit, written, 0, resumed, complete.skipped())


def _write_pieces(
    pieces: Iterable[EncodedPiece],
    dataset: Dataset,
    writer: StoreWriter,
    empty: dict[str, Array],
    max_skipped: float,
    no_image_yet: bool,
) -> int:
    """Write each piece as it comes. Returns the number of images written."""
    written = seen = bad = 0
    # Pieces without images are written after the first with images: a wrong folder must leave no store behind.
    empty_pieces: list[EncodedPiece] = []

    def write(piece: EncodedPiece) -> None:
        left_out = piece.left_out
        if piece.shard == piece.number == 0:
            left_out = [*dataset.skipped, *left_out]  # what the reader of all left out comes first in the list
        writer.write_piece(
            piece.shard, piece.number, piece.num_pieces, piece.images, empty | piece.columns, left_out + piece.skipped
        )

    for piece in pieces:
        skipped = piece.skipped
        seen, bad = seen + len(piece.images) + len(skipped), bad + len(skipped)
        if skipped and bad > max(FEW_SKIPPED, max_skipped * seen):
            raise InputError(
                f"{bad} of {seen} images cannot be embedded, more than max_skipped={max_skipped} allows; the last "
                f"is {dataset.image_root}/{skipped[-1].file}: {skipped[-1].reason}; repair them, or allow more"
            )
        if not piece.images and no_image_yet:
            empty_pieces.append(piece)
            continue
        no_image_yet = False
        write(piece)
        written += len(piece.images)
    if no_image_yet and empty_pieces:
        reasons = (skip for piece in empty_pieces for skip in [*piece.skipped, *piece.left_out])
        first = next(chain(reasons, dataset.skipped), Skipped("", "", "there is no image"))
        where = f"{dataset.image_root}/{first.file}" if first.file else first.id
        raise InputError(
            f"none of the {seen} {dataset.unit} can be embedded ({dataset.source}); the first is {where}: "
            f"{first.reason}"
        )
    for piece in empty_pieces:
        write(piece)
    return written


def _progress_bar(dataset: Dataset, todo: list[int], task: int, tasks: int, disable: bool) -> Any:
    """A bar over all images of this process, without a total where their number is not known."""
    sizes = [dataset.shards[shard].size for shard in range(task, len(dataset.shards), tasks)]
    missing = [dataset.shards[shard].size for shard in todo]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    initial = 0 if total is None else total - sum(size or 0 for size in missing)
    return tqdm(desc="embedding", unit=f" {dataset.unit}", total=total, initial=initial, disable=disable)


def _fingerprint(dataset: Dataset, encoder: EncoderIdentity, settings: list[Any]) -> str:
    """A hash of all that determines the content of the pieces."""
    settings = [encoder.digest, encoder.preprocessing, *settings]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for skip in dataset.skipped:
        digest.update(json.dumps([skip.id, skip.file, skip.reason]).encode())
    for shard in dataset.shards:
        digest.update(shard.fingerprint().encode())
    return digest.hexdigest()
