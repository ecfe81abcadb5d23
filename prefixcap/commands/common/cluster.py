"""Captions made on a Ray cluster: each worker has a captioner, and sends here what it has written."""

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from prefixcap.commands.common.batches import Batch, BatchCaptioner, Captioned
from prefixcap.commands.common.options import announce
from prefixcap.errors import InputError
from prefixcap.utils.cluster import Accelerator, Shape, Workers, available_shape, enter

MOST_BATCHES = 8  # that a worker is given together: as many of each may be lost if the command is killed
ACCELERATORS: dict[str, Accelerator] = {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}  # by --device


class CaptionWorker:
    """What runs on a worker.

    Args:
        folder: where the command was given, which paths are relative to.
        options: of `BatchCaptioner`.
    """

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self._folder, self._options = folder, options
        self._captioner: BatchCaptioner

    def start(self) -> str:
        """Load the captioner."""
        from prefixcap.encoders.common import weights_digest

        enter(self._folder)
        try:
            self._captioner = BatchCaptioner(**self._options)
        except InputError as error:
            raise InputError(str(error)) from None  # some kinds of it cannot be sent
        return f"a captioner whose mapper is {weights_digest(self._captioner.captioner.mapper)[:8]}"

    def caption(self, batches: list[tuple[int, Batch]]) -> Generator[tuple[int, Captioned | InputError]]:
        """Batches with their captions, by number. A mistake is the last of them: trying again would not help."""
        with closing(self._captioner.caption([batch for _, batch in batches])) as results:
            for number, _ in batches:
                try:
                    yield number, next(results)
                except InputError as error:
                    yield number, InputError(str(error))
                    return


def shape_for(device: str, workers: int | None) -> Shape:
    """The workers that the cluster has room for, as these options ask for them. Raises InputError as `available_shape`
    does, or the device is a certain GPU."""
    if device not in ACCELERATORS:
        raise InputError(f"--engine ray takes all of the cluster: give --device cuda or cpu, not {device}")
    return available_shape(ACCELERATORS[device], workers)


class ClusterCaptioner:
    """Captions images on a cluster.

    Args:
        shape: of its workers.
        options: of `BatchCaptioner`, as for one process.

    Raises:
        InputError: as `Workers` and `BatchCaptioner` do.
    """

    def __init__(self, shape: Shape, options: dict[str, Any]) -> None:
        threads = options["workers"] or max(1, min(8, shape.cpus - 1))
        self._workers = Workers(CaptionWorker, shape, options | {"device": shape.device, "workers": threads})
        announce(options["ckpt"])

    def caption(self, batches: Sequence[Batch]) -> Generator[Captioned]:
        """Caption batches, in their order: a batch waits here for those before it. Then end the workers.

        Raises:
            InputError: as `BatchCaptioner.caption` does, or a batch failed three times.
        """
        waiting: dict[int, Captioned | InputError] = {}
        first = 0

        def submit(worker: Any, numbers: list[int]) -> Any:
            return worker.caption.remote([(number, batches[number]) for number in numbers])

        def unfinished(numbers: list[int]) -> list[int]:
            return [number for number in numbers if number >= first and number not in waiting]

        stream = self._workers.stream(range(len(batches)), submit, unfinished, MOST_BATCHES)
        with closing(self._workers), closing(stream) as results:
            for number, result in results:
                waiting[number] = result
                while first in waiting:
                    captioned = waiting.pop(first)
                    if isinstance(captioned, InputError):
                        raise captioned
                    first += 1
                    yield captioned
