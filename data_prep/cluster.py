"""Pieces of a store made on a Ray cluster: each worker has an encoder, and sends here what it has encoded."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Set
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from data_prep.pieces import Array, EncodedPiece, PieceKey, PieceMaker, Settings
from data_prep.records import Dataset, Shard
from prefixcap.encoders import load_encoder
from prefixcap.errors import spell_options
from prefixcap.features import EncoderIdentity
from prefixcap.utils.cluster import Accelerator, Workers, available_shape, enter

AHEAD = 4  # pieces that a worker may have made before this process takes them


class EncoderWorker:
    """What runs on a worker.

    Args:
        folder: where the command was given, which paths are relative to.
        encoder_name: as `load_encoder` takes it.
        device: of the encoder.
        dtype: of its weights.
        options: of `PieceMaker`.
    """

    def __init__(self, folder: Path, encoder_name: str, device: str, dtype: str, options: dict[str, Any]) -> None:
        self._folder, self._name, self._device, self._dtype = folder, encoder_name, device, dtype
        self._options = options
        self._maker: PieceMaker

    def start(self) -> tuple[EncoderIdentity, Settings]:
        """Load the encoder."""
        enter(self._folder)
        with spell_options("{}".format):
            encoder = load_encoder(self._name, self._device, getattr(torch, self._dtype))
            self._maker = PieceMaker(encoder, **self._options)
        return self._maker.identity, self._maker.settings

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the maker returns."""
        with spell_options("{}".format):
            return getattr(self._maker, method)(*arguments)

    def make(
        self, shards: list[tuple[int, Shard]], batch_size: int, piece_size: int, there: Set[PieceKey]
    ) -> Generator[tuple[int, EncodedPiece]]:
        """Pieces, each with the number of images that are done since the one before."""
        done = 0

        def advance(images: int) -> None:
            nonlocal done
            done += images

        pieces = self._maker.make(shards, batch_size, piece_size, there, advance)
        with spell_options("{}".format), closing(pieces):
            for piece in pieces:
                yield done, piece
                done = 0


class ClusterMaker:
    """Makes pieces on a Ray cluster; see `data_prep.pieces.Maker`.

    Args:
        encoder_name: as `load_encoder` takes it.
        accelerator: of the workers, "auto", "cpu" or "gpu".
        dtype: of the encoder's weights, "auto": float16 on GPUs, otherwise float32.
        features: what to store, see `Features`.
        store_dtype: torch.float16 or torch.float32.
        regions: the number of sub-regions of an image, if they are among the features.
        num_workers: processes that decode images for each worker; None: a good number.
        fast_decode: decode JPEG images faster, to slightly different pixels.

    Raises:
        InputError: Ray is not installed, there is no such cluster, or as `load_encoder` and `PieceMaker` do.
    """

    def __init__(
        self,
        encoder_name: str,
        accelerator: Accelerator = "auto",
        dtype: str = "auto",
        features: Iterable[str] = ("image",),
        store_dtype: torch.dtype = torch.float16,
        regions: int = 10,
        num_workers: int | None = None,
        fast_decode: bool = False,
    ) -> None:
        shape = available_shape(accelerator, num_workers)
        options = {
            "features": list(features), "store_dtype": store_dtype, "regions": regions,
            "num_workers": shape.cpus - 1, "fast_decode": fast_decode,
        }  # fmt: skip
        if dtype == "auto":
            dtype = "float16" if shape.gpus else "float32"
        self._workers = Workers(EncoderWorker, shape, encoder_name, shape.device, dtype, options)
        self.identity: EncoderIdentity
        self.settings: Settings
        self.identity, self.settings = self._workers.description

    def empty(self) -> dict[str, Array]:
        columns: dict[str, Array] = self._workers.call("ask", "empty")
        return columns

    def largest_batch(self) -> int:
        return int(self._workers.call("ask", "largest_batch"))

    def compare(self, dataset: Dataset) -> str:
        return str(self._workers.call("ask", "compare", dataset))

    def make(
        self,
        shards: list[tuple[int, Shard]],
        batch_size: int,
        piece_size: int,
        there: Set[PieceKey],
        advance: Callable[[int], object],
    ) -> Generator[EncodedPiece]:
        by_number, made = dict(shards), set(there)

        def submit(worker: Any, numbers: list[int]) -> Any:
            own = set(numbers)
            own_pieces = {key for key in made if key[0] in own}
            make = worker.make.options(_generator_backpressure_num_objects=AHEAD)
            return make.remote([(number, by_number[number]) for number in numbers], batch_size, piece_size, own_pieces)

        def unfinished(numbers: list[int]) -> list[int]:
            pieces = Counter(shard for shard, _, _ in made)
            complete = {shard for shard, _, num_pieces in made if pieces[shard] == num_pieces}
            return [number for number in numbers if number not in complete]

        with closing(self._workers.stream(by_number, submit, unfinished)) as results:
            for done, piece in results:
                made.add((piece.shard, piece.number, piece.num_pieces))
                advance(done)
                yield piece
        self.close()  # the machines are free while the store is joined

    def close(self) -> None:
        """End the workers."""
        self._workers.close()
