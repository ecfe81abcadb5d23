"""Images of a data set -> feature store: decoded ahead of the encoder, written piece by piece, killed and resumed."""

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from data_prep.features import Features
from data_prep.loading import PixelReader, Pixels, in_threads
from data_prep.records import Dataset, Sample, Skipped
from prefixcap.encoders import Encoder
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore, StoreWriter, join
from prefixcap.utils.hardware import cpu_count

FEW_SKIPPED = 10  # so many images may be bad whatever their share

Array = NDArray[Any]
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class EmbedReport:
    """What a run did.

    Attributes:
        unit: "images" or "sentences".
        written: images embedded by this run.
        missing: shards that are still to be made, by other processes.
        resumed: images that were there already, where no other process shares the work.
        skipped: all that the store leaves out.
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
    of: int
    samples: list[Sample]
    skipped: list[Skipped]

    def batches(self, batch_size: int) -> list[list[Sample]]:
        """Its samples in batches, at least one; they end where the piece does.

        So a piece is the same whatever was there before it was made.
        """
        return [self.samples[start : start + batch_size] for start in range(0, max(1, len(self.samples)), batch_size)]


@dataclass(frozen=True)
class Encoded:
    """What became of a batch of samples.

    Attributes:
        places: of the images that could be read, in their batch.
        columns: of the store, with a row for each of them.
        reasons: for each of the others, by its place.
    """

    places: list[int]
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
    jpeg_scaling: bool = False,
    piece_size: int = 1000,
    max_skipped: float = 0.01,
    task: int = 0,
    tasks: int = 1,
    progress: bool = True,
) -> EmbedReport:
    """Embed the images of a data set, or their captions, into a feature store, piece by piece.

    Pieces that are there are kept. An image that cannot be read, or whose features are not finite as stored, is
    skipped and listed with the reason. A rotation in the image's EXIF data is applied; of an animation, the first frame
    is taken.

    Args:
        dataset: from a reader.
        encoder: makes the embeddings.
        store: the store's folder.
        features: what is stored, see `Features`; with captions alone, no image is opened.
        store_dtype: that it is stored in, float16 or float32.
        regions: how many sub-regions of an image, if they are among the features.
        batch_size: images encoded together; None: that of the run that began the store, else as many as help and fit.
        num_workers: processes that decode images; 0: the threads that encode them do; None: as many as help.
        jpeg_scaling: let the decoder of JPEG images halve their size, once or more, as far as they stay larger than
            what the encoder takes: quicker, but the pixels differ a little from the encoder's own preprocessing.
        piece_size: images a piece: the most that an interruption can cost.
        max_skipped: stop when more than this share of the images seen, and more than ten, cannot be embedded.
        task: which share of the work this process does, from 0.
        tasks: how many processes share the work. The last one to end makes the store whole.
        progress: show a progress bar on stderr.

    Raises:
        InputError: too many images, or all, cannot be embedded, the folder holds the store of another job, the disk is
            full, or a batch does not fit into the device's memory.
    """
    _require_whole("batch_size", 1 if batch_size is None else batch_size, least=1)
    _require_whole("num_workers", 0 if num_workers is None else num_workers, least=0)
    _require_whole("tasks", tasks, least=1)
    if not isinstance(task, int) or not 0 <= task < tasks:
        raise InputError(f"task must be a whole number from 0 to {tasks - 1}, one less than tasks, not {task!r}")
    chosen = Features(features, encoder, store_dtype, regions)
    settings: dict[str, str | int | bool] = {
        "features": ",".join(chosen.names),
        "stored_in": str(store_dtype).removeprefix("torch."),
        "computed_in": str(encoder.dtype).removeprefix("torch."),
        "jpeg_scaling": jpeg_scaling,
    }
    if "regions" in chosen.names:
        settings["regions"] = regions
    job = _fingerprint(dataset, encoder, [piece_size, settings])
    writer = StoreWriter(store, encoder.identity, dataset.source, dataset.image_root, job, len(dataset.shards))
    mine = [shard for shard in writer.missing() if shard % tasks == task]
    written = 0
    if mine:
        _ = chosen.empty  # an encoder that cannot do it says so before anything is written
        # A resumed run goes on with the batches of the first: sums of another order differ in their last bits.
        batch_size = batch_size or int(writer.made_with.get("batch_size", 0)) or chosen.largest_batch()
        writer.made_with = {**settings, "batch_size": batch_size}
        with _progress_bar(dataset, mine, task, tasks, disable=not progress) as bar:
            if num_workers is None:
                num_workers = min(16, cpu_count() - 1) if encoder.device.type != "cpu" else 0
            reader = PixelReader(encoder.preprocess, chosen.image_size if jpeg_scaling else None)
            encode = partial(_encode_batches, features=chosen, reader=reader, num_workers=num_workers)
            written = _embed_shards(dataset, mine, chosen, encode, writer, batch_size, piece_size, max_skipped, bar)
    if missing := len(writer.missing()):
        return EmbedReport(dataset.unit, written, missing)
    if not writer.finished():
        join(store)
    made = FeatureStore(store)
    resumed = sum(made.splits.values()) - written if tasks == 1 else 0
    return EmbedReport(dataset.unit, written, 0, resumed, made.skipped())


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
    """Embed the pieces of these shards that are not there. Returns how many images were written."""
    pieces: deque[Piece] = deque()  # those of which batches are under way

    def batches() -> Iterator[list[Sample]]:
        for piece in _pieces(dataset, shards, piece_size):
            if writer.has_piece(piece.shard, piece.number, piece.of):
                bar.update(len(piece.samples))
            else:
                pieces.append(piece)
                yield from piece.batches(batch_size)

    written = seen = bad = 0
    # Pieces without a single image wait for one that has some: a wrong folder must leave no store behind.
    barren: list[tuple[Piece, list[Skipped]]] = []
    nothing_yet = len(shards) == len(dataset.shards)
    with closing(encode(batches())) as stream:
        for first_batch in stream:
            piece = pieces.popleft()
            others = itertools.islice(stream, len(piece.batches(batch_size)) - 1)
            columns, reasons = _encode_piece(piece, itertools.chain([first_batch], others), features, batch_size, bar)
            images = [sample.record for place, sample in enumerate(piece.samples) if place not in reasons]
            skipped = [
                Skipped(piece.samples[place].record.id, piece.samples[place].record.file, reasons[place])
                for place in sorted(reasons)
            ]
            seen, bad = seen + len(piece.samples), bad + len(skipped)
            if skipped and bad > max(FEW_SKIPPED, max_skipped * seen):
                raise InputError(
                    f"{bad} of {seen} images cannot be embedded, more than max_skipped={max_skipped} allows; the last "
                    f"is {dataset.image_root / skipped[-1].file}: {skipped[-1].reason}; mend them, or allow more"
                )
            if not images and nothing_yet:
                barren.append((piece, skipped))
                continue
            nothing_yet = False
            writer.write_piece(
                piece.shard, piece.number, piece.of, images, features.empty | columns, [*piece.skipped, *skipped]
            )
            written += len(images)
    if nothing_yet and barren:
        reasons_of_all = (skip for piece, skipped in barren for skip in [*skipped, *piece.skipped])
        first = next(reasons_of_all, Skipped("", "", "there is no image"))
        where = dataset.image_root / first.file if first.file else first.id
        raise InputError(
            f"none of the {seen} {dataset.unit} can be embedded ({dataset.source}); the first is {where}: "
            f"{first.reason}"
        )
    for piece, skipped in barren:
        writer.write_piece(piece.shard, piece.number, piece.of, [], features.empty, [*piece.skipped, *skipped])
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


def _encode_batches(
    batches: Iterable[list[Sample]], features: Features, reader: PixelReader, num_workers: int
) -> Generator[Encoded]:
    """Each batch, read and encoded; others are under way meanwhile."""

    def encode(pixels: Pixels) -> Encoded:
        columns = features.encode_images(pixels.images) if pixels.places else {}
        return Encoded(pixels.places, columns, pixels.reasons)

    each = _several_at_once(features)
    if features.names == ["caption"]:  # no image is opened
        for batch in batches:
            yield Encoded(list(range(len(batch))), {}, {})
    elif num_workers:
        pin_memory = features.encoder.device.type == "cuda"
        yield from each(encode, reader.in_processes(batches, num_workers, pin_memory))
    else:
        yield from each(lambda samples: encode(reader.read(samples)), batches)


def _several_at_once(features: Features) -> Callable[[Callable[[T], U], Iterable[T]], Iterable[U]]:
    """How to apply a function to batches: a GPU works through them by itself, one after the other."""
    return in_threads if features.encoder.device.type == "cpu" else map


def _encode_piece(
    piece: Piece, batches: Iterable[Encoded], features: Features, batch_size: int, bar: Any
) -> tuple[dict[str, Array], dict[int, str]]:
    """The columns of the images that have all features, and for each of the others its place and the reason."""
    kept: list[int] = []
    reasons: dict[int, str] = {}
    of_images: list[dict[str, Tensor]] = []
    start = 0
    for batch in batches:
        of_images += [batch.columns] if batch.places else []
        kept += [start + place for place in batch.places]
        reasons |= {start + place: reason for place, reason in batch.reasons.items()}
        start += len(batch.places) + len(batch.reasons)
        bar.update(len(batch.places) + len(batch.reasons))
    captions = [caption for place in kept for caption in piece.samples[place].record.captions]
    by_length = sorted(range(len(captions)), key=lambda row: len(captions[row]))  # so that batches have little padding
    caption_batches = (
        [captions[row] for row in by_length[first : first + batch_size]]
        for first in range(0, len(captions), batch_size)
    )
    of_captions = list(_several_at_once(features)(features.encode_captions, caption_batches))
    back = np.argsort(by_length)
    columns = _together(of_images) | {name: rows[back] for name, rows in _together(of_captions).items()}
    image_of_caption = np.repeat(np.arange(len(kept)), [len(piece.samples[place].record.captions) for place in kept])
    finite = np.ones(len(kept), bool)
    for name, rows in columns.items():
        bad = ~np.isfinite(rows.reshape(len(rows), -1).sum(axis=1, dtype=np.float64))
        finite[np.flatnonzero(bad) if name.startswith("images/") else image_of_caption[bad]] = False
    reasons |= {place: "embedding is not finite" for place, good in zip(kept, finite, strict=True) if not good}
    rows_left = {"images": finite, "captions": finite[image_of_caption]}
    return {name: rows[rows_left[name.partition("/")[0]]] for name, rows in columns.items()}, reasons


def _together(batches: list[dict[str, Tensor]]) -> dict[str, Array]:
    """The columns of all batches, each in one array."""
    return {name: torch.cat([batch[name] for batch in batches]).cpu().numpy() for name in (batches or [{}])[0]}


def _progress_bar(dataset: Dataset, mine: list[int], task: int, tasks: int, disable: bool) -> Any:
    """Over all images of this process, as far as their number is known."""
    sizes = [dataset.shards[shard].size for shard in range(task, len(dataset.shards), tasks)]
    todo = [dataset.shards[shard].size for shard in mine]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    initial = 0 if total is None else total - sum(size or 0 for size in todo)
    return tqdm(desc="embedding", unit=f" {dataset.unit}", total=total, initial=initial, disable=disable)


def _fingerprint(dataset: Dataset, encoder: Encoder, settings: list[Any]) -> str:
    """A hash over all that decides the content of the pieces."""
    settings = [encoder.identity.digest, encoder.identity.preprocessing, *settings]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for skip in dataset.skipped:
        digest.update(json.dumps([skip.id, skip.file, skip.reason]).encode())
    for shard in dataset.shards:
        digest.update(shard.fingerprint().encode())
    return digest.hexdigest()


def _require_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
