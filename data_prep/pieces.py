"""The pieces of a store: images of a data set, decoded ahead of the encoder, and encoded."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Set
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.device_loading import DeviceReader
from data_prep.fast_decode import SCALED, choose_reader, cosines, describe_cosines
from data_prep.features import Features
from data_prep.loading import Pixels, in_threads
from data_prep.records import Dataset, ImageRecord, Sample, Shard, Skipped
from prefixcap.encoders import Encoder
from prefixcap.features import EncoderIdentity, Feature
from prefixcap.utils.hardware import cpu_count

Array = NDArray[Any]
T = TypeVar("T")
U = TypeVar("U")
Settings = dict[str, str | int | bool]
PieceKey = tuple[int, int, int]  # the number of the shard, of the piece in it, and how many pieces the shard has


@dataclass(frozen=True)
class Piece:
    """Images whose embeddings are written together.

    Attributes:
        shard: its number in the data set.
        number: of the piece in the shard, from 0.
        num_pieces: of the shard.
        samples: the images.
        skipped: what the reader left out.
    """

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
class EncodedPiece:
    """A piece as it is written.

    Attributes:
        shard: as in `Piece`, and so are `number` and `num_pieces`.
        images: those that could be embedded.
        columns: of the store, with a row for each of them; none if there is no image.
        left_out: what the reader left out.
        skipped: the images that could not be embedded.
    """

    shard: int
    number: int
    num_pieces: int
    images: list[ImageRecord]
    columns: dict[str, Array]
    left_out: list[Skipped]
    skipped: list[Skipped]


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


class Maker(Protocol):
    """What makes the pieces of a store: `PieceMaker` in this process, `data_prep.cluster.ClusterMaker` elsewhere.

    Attributes:
        identity: of the encoder.
        settings: how it makes them, as the store records it.
    """

    identity: EncoderIdentity
    settings: Settings

    def empty(self) -> dict[str, Array]:
        """The columns without rows. Raises InputError if the encoder lacks a feature."""
        ...

    def largest_batch(self) -> int:
        """A good batch size that fits into memory."""
        ...

    def compare(self, dataset: Dataset) -> str:
        """How near fast decoding comes to the encoder's preprocessing, in a line for the user."""
        ...

    def make(
        self,
        shards: list[tuple[int, Shard]],
        batch_size: int,
        piece_size: int,
        there: Set[PieceKey],
        advance: Callable[[int], object],
    ) -> Generator[EncodedPiece]:
        """The pieces of some shards that are not there yet: those of a shard in order, the shards in any.

        Args:
            shards: with their numbers in the data set.
            batch_size: images encoded together.
            piece_size: images in a piece.
            there: the pieces that are there.
            advance: is called with the number of images that were encoded, or are in a piece that is there.
        """
        ...


class PieceMaker:
    """Makes pieces in this process, and in the processes that decode images for it; see `Maker`.

    Args:
        encoder: the encoder to use.
        features: what to store, see `Features`.
        store_dtype: torch.float16 or torch.float32.
        regions: the number of sub-regions of an image, if they are among the features.
        num_workers: processes that decode images; 0: the threads that encode them decode them; None: a good number.
        fast_decode: decode JPEG images faster, to slightly different pixels.

    Raises:
        InputError: a feature is unknown.
    """

    def __init__(
        self,
        encoder: Encoder,
        features: Iterable[str],
        store_dtype: torch.dtype,
        regions: int,
        num_workers: int | None,
        fast_decode: bool,
    ) -> None:
        self.features = Features(list(features), encoder, store_dtype, regions)
        if num_workers is None:
            num_workers = min(16, cpu_count() - 1) if encoder.device.type != "cpu" else 0
        self.num_workers = num_workers
        self.reader = choose_reader(encoder, SCALED * self.features.image_size if fast_decode else None, num_workers)
        self.identity = encoder.identity
        self.settings: Settings = {
            "features": ",".join(feature.option for feature in self.features.chosen),
            "stored_in": str(store_dtype).removeprefix("torch."),
            "computed_in": str(encoder.dtype).removeprefix("torch."),
        }
        if fast_decode:
            self.settings["fast_decode"] = "nvjpeg" if isinstance(self.reader, DeviceReader) else "scaled"
        else:
            self.settings["jpeg_scaling"] = False  # as version 0.1 recorded it: its stores go on
        if Feature.REGIONS in self.features.chosen:
            self.settings["regions"] = regions

    def empty(self) -> dict[str, Array]:
        return self.features.empty

    def largest_batch(self) -> int:
        return self.features.largest_batch()

    def compare(self, dataset: Dataset) -> str:
        return describe_cosines(cosines(dataset, self.features.encoder, self.reader, self.num_workers))

    def make(
        self,
        shards: list[tuple[int, Shard]],
        batch_size: int,
        piece_size: int,
        there: Set[PieceKey],
        advance: Callable[[int], object],
    ) -> Generator[EncodedPiece]:
        pieces: deque[Piece] = deque()  # whose batches are being encoded

        def batches() -> Iterator[list[Sample]]:
            for piece in _pieces(shards, piece_size):
                if (piece.shard, piece.number, piece.num_pieces) in there:
                    advance(len(piece.samples))
                else:
                    pieces.append(piece)
                    yield from piece.batches(batch_size)

        with closing(self._encode_batches(batches())) as stream:
            for first_batch in stream:
                piece = pieces.popleft()
                others = islice(stream, len(piece.batches(batch_size)) - 1)
                yield self._encode_piece(piece, chain([first_batch], others), batch_size, advance)

    def _encode_batches(self, batches: Iterable[list[Sample]]) -> Generator[Encoded]:
        """Each batch, read and encoded, several at a time."""

        def encode(pixels: Pixels) -> Encoded:
            columns = self.features.encode_images(pixels.images) if pixels.positions else {}
            return Encoded(pixels.positions, columns, pixels.reasons)

        if self.features.chosen == [Feature.CAPTION]:  # no image is opened
            for batch in batches:
                yield Encoded(list(range(len(batch))), {}, {})
        elif self.num_workers:
            device = self.features.encoder.device
            yield from self._each(encode, self.reader.in_processes(batches, self.num_workers, device))
        else:
            yield from self._each(lambda samples: encode(self.reader.read(samples)), batches)

    def _each(self, work: Callable[[T], U], items: Iterable[T]) -> Iterable[U]:
        """The `map` to encode batches with: in threads on a CPU; a GPU is busy with one batch after the other."""
        return (in_threads if self.features.encoder.device.type == "cpu" else map)(work, items)

    def _encode_piece(
        self, piece: Piece, batches: Iterable[Encoded], batch_size: int, advance: Callable[[int], object]
    ) -> EncodedPiece:
        """The columns of the images that have all features; and why the others have not."""
        kept: list[int] = []
        reasons: dict[int, str] = {}
        image_batches: list[dict[str, Tensor]] = []
        start = 0
        for batch in batches:
            image_batches += [batch.columns] if batch.positions else []
            kept += [start + position for position in batch.positions]
            reasons |= {start + position: reason for position, reason in batch.reasons.items()}
            start += len(batch.positions) + len(batch.reasons)
            advance(len(batch.positions) + len(batch.reasons))
        records = [sample.record for sample in piece.samples]
        captions = [caption for position in kept for caption in records[position].captions]
        columns = _concatenated(image_batches) | self._encode_captions(captions, batch_size)
        image_of_caption = np.repeat(np.arange(len(kept)), [len(records[position].captions) for position in kept])
        finite = np.ones(len(kept), bool)
        for name, rows in columns.items():
            bad = ~np.isfinite(rows.reshape(len(rows), -1).sum(axis=1, dtype=np.float64))
            finite[np.flatnonzero(bad) if name.startswith("images/") else image_of_caption[bad]] = False
        reasons |= {
            position: "embedding is not finite" for position, good in zip(kept, finite, strict=True) if not good
        }
        rows_left = {"images": finite, "captions": finite[image_of_caption]}
        return EncodedPiece(
            piece.shard,
            piece.number,
            piece.num_pieces,
            [record for position, record in enumerate(records) if position not in reasons],
            {name: rows[rows_left[name.partition("/")[0]]] for name, rows in columns.items()},
            piece.skipped,
            [Skipped(records[at].id, records[at].file, reasons[at]) for at in sorted(reasons)],
        )

    def _encode_captions(self, captions: list[str], batch_size: int) -> dict[str, Array]:
        by_length = sorted(range(len(captions)), key=lambda row: len(captions[row]))  # for little padding in a batch
        batches = (
            [captions[row] for row in by_length[first : first + batch_size]]
            for first in range(0, len(captions), batch_size)
        )
        columns = _concatenated(list(self._each(self.features.encode_captions, batches)))
        original_order = np.argsort(by_length)
        return {name: rows[original_order] for name, rows in columns.items()}


def _pieces(shards: Iterable[tuple[int, Shard]], piece_size: int) -> Iterator[Piece]:
    """The shards, read one after the other, in pieces; a shard without images has one empty piece."""
    for number, shard in shards:
        samples, skipped = shard.read()
        starts = range(0, max(1, len(samples)), piece_size)
        for position, start in enumerate(starts):
            own = samples[start : start + piece_size]
            yield Piece(number, position, len(starts), own, skipped if position == 0 else [])


def _concatenated(batches: list[dict[str, Tensor]]) -> dict[str, Array]:
    """The columns of all batches, each in one array."""
    return {name: torch.cat([batch[name] for batch in batches]).cpu().numpy() for name in (batches or [{}])[0]}
