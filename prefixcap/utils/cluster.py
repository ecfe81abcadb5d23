"""Work on a Ray cluster: a worker for each GPU or core, tasks handed out as workers become free, and tried again."""

import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tqdm import tqdm

from prefixcap.errors import InputError, first_line

TRIES = 3  # of a task, and of starting each worker
MOST_CPUS = 17  # of a worker with a GPU: sixteen processes that decode images, and the one that drives the GPU
PATIENCE = 60  # seconds without news of the workers, until it is said what is waited for

Accelerator = Literal["auto", "cpu", "gpu"]
T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """The workers that a cluster has room for: how many, and the CPUs and GPUs of each."""

    count: int
    cpus: int
    gpus: int

    @property
    def device(self) -> str:
        """Of each worker, which sees no other GPU than its own."""
        return "cuda" if self.gpus else "cpu"


def connect() -> Any:
    """The module `ray`, connected to the cluster of $RAY_ADDRESS; without it, to one that is started on this machine
    and ends with this process.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise a cluster that it starts reports to Ray's makers
    try:
        import ray  # an extra
    except ImportError as error:
        raise InputError("work on a cluster needs Ray: pip install 'prefixcap[ray]'") from error
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise InputError(
            f"RAY_ADDRESS={address} is that of a Ray client: run the command on a machine of the cluster, with "
            "RAY_ADDRESS=auto"
        )
    if not ray.is_initialized():
        only_here: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **only_here)
        except Exception as error:  # it raises all kinds
            what = "start Ray on this machine" if address == "local" else f"reach the Ray cluster at {address}"
            raise InputError(f"cannot {what}: {first_line(error)}") from error
    return ray


def available_shape(accelerator: Accelerator, num_workers: int | None) -> Shape:
    """The workers that the cluster has room for now, see `worker_shape`. Raises InputError as that and `connect` do."""
    machines = [machine["Resources"] for machine in connect().nodes() if machine["Alive"]]
    return worker_shape(machines, accelerator, num_workers)


def worker_shape(machines: Sequence[dict[str, float]], accelerator: Accelerator, num_workers: int | None) -> Shape:
    """The workers for images: one for each GPU, with its share of the cores; without GPUs one a core.

    Args:
        machines: the resources of each, as Ray names them.
        accelerator: "auto": GPUs, if there are any.
        num_workers: processes or threads that read images for each worker, which takes a core more; None: as said.

    Raises:
        InputError: there are no GPUs and should be, or no machine has so many cores.

    Examples:
        >>> worker_shape([{"CPU": 32, "GPU": 2}, {"CPU": 64, "GPU": 4}, {"CPU": 8}], "auto", None)
        Shape(count=6, cpus=16, gpus=1)
        >>> worker_shape([{"CPU": 8}, {"CPU": 4}], "auto", None)
        Shape(count=12, cpus=1, gpus=0)
    """
    with_gpus = [machine for machine in machines if machine.get("GPU", 0) >= 1]
    if accelerator == "gpu" and not with_gpus:
        raise InputError(
            "the cluster has no GPU, and GPUs are asked for: leave that out, or add machines that have some"
        )
    if with_gpus and accelerator != "cpu":
        share = min(int(machine.get("CPU", 0) // machine["GPU"]) for machine in with_gpus)
        cpus = max(1, min(MOST_CPUS, share)) if num_workers is None else num_workers + 1
        count = sum(min(int(machine["GPU"]), int(machine.get("CPU", 0) // cpus)) for machine in with_gpus)
    else:
        cpus = 1 + (num_workers or 0)
        count = sum(int(machine.get("CPU", 0) // cpus) for machine in machines)
    if not count:
        readers = f" with {num_workers} to read images" if num_workers else ""
        raise InputError(f"a worker{readers} takes {cpus} cores, which no machine of the cluster has: ask for fewer")
    return Shape(count, cpus, 1 if with_gpus and accelerator != "cpu" else 0)


def enter(folder: Path) -> None:
    """Make the folder where the command was given that of this worker, as paths are relative to it."""
    with suppress(OSError):  # a machine may lack it, where all paths are absolute or URLs
        os.chdir(folder)


class Workers:
    """Actors of one class, which a cluster starts when it has room for them.

    A worker that is lost, or that raises an exception, is replaced by a new one, and what it had not finished is done
    again, by any worker.

    Args:
        worker: the class. Its `start()` gets an actor ready and returns a description, in which all must agree; errors
            of `__init__` do not get through.
        shape: how many, and what each takes of the cluster.
        arguments: of `worker`, after the folder where the command was given, see `enter`.

    Attributes:
        description: what `start()` returned.

    Raises:
        InputError: the first worker cannot start, or as `connect` does.
    """

    def __init__(self, worker: type, shape: Shape, *arguments: object) -> None:
        self._ray, self._count = connect(), shape.count
        actor, folder = self._ray.remote(num_cpus=shape.cpus, num_gpus=shape.gpus)(worker), Path.cwd()
        self._create: Callable[[], Any] = lambda: actor.remote(folder, *arguments)
        self._starting: dict[Any, Any] = {}  # actors, by what `start()` will return
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, list[Any]]] = {}  # actors and their items, by the stream of their results
        self._failed_starts = 0
        self.description: Any = None
        self._begin()
        while not self._idle:
            self._ready(self._next())

    def call(self, method: str, *arguments: object) -> Any:
        """What a method returns on one of the workers, none of which is busy. Raises InputError if it fails."""
        try:
            return self._ray.get(getattr(self._idle[0], method).remote(*arguments))
        except self._ray.exceptions.RayError as error:
            raise InputError(reason(error)) from None

    def stream(
        self,
        items: Iterable[T],
        submit: Callable[[Any, list[T]], Any],
        unfinished: Callable[[list[T]], list[T]],
        most: int | None = None,
    ) -> Generator[Any]:
        """What the workers yield for some items, in the order in which it is ready.

        Args:
            items: what there is to do.
            submit: gives an actor some items; returns the stream of what it yields for them, one after the other.
            unfinished: of the items of a worker that was lost, in their order, those for which it has not yielded all.
            most: items that a worker is given together, which are half of what is left, divided by the workers, so that
                they seldom start anew, and end at about the same time (guided self-scheduling, Polychronopoulos and
                Kuck 1987); None: any number.

        Raises:
            InputError: an item failed three times.
        """
        left, failures = deque(items), Counter[T]()
        for _ in range(min(self._count, len(left)) - len(self._idle) - len(self._starting)):
            self._begin()
        while left or self._running:
            while left and self._idle:
                size = min(most or len(left), max(1, len(left) // (2 * self._count)))
                task = [left.popleft() for _ in range(size)]
                actor = self._idle.pop()
                self._running[submit(actor, task)] = actor, task
            stream = self._next()
            if stream in self._starting:
                self._ready(stream)
                continue
            try:
                result = self._ray.get(next(stream))
            except StopIteration:
                self._idle.append(self._running.pop(stream)[0])
            except self._ray.exceptions.RayError as error:
                actor, task = self._running.pop(stream)
                self._ray.kill(actor)
                if again := unfinished(task):
                    failures[again[0]] += 1  # the others are not to blame
                    if failures[again[0]] == TRIES:
                        raise _given_up(error) from None
                    tqdm.write(f"a worker failed, and its work is done again: {reason(error)}", sys.stderr)
                    left.extendleft(reversed(again))
                self._begin()
            else:
                yield result

    def close(self) -> None:
        """End all workers."""
        for actor in [*self._idle, *self._starting.values(), *(actor for actor, _ in self._running.values())]:
            self._ray.kill(actor)
        self._idle, self._starting, self._running = [], {}, {}

    def _begin(self) -> None:
        actor = self._create()
        self._starting[actor.start.remote()] = actor

    def _next(self) -> Any:
        """What is ready next: a worker that was starting, or a result in a stream."""
        waiting = [*self._starting, *self._running]
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=PATIENCE)
        if not ready:
            if not self._running:
                tqdm.write("waiting for the cluster to start a worker", sys.stderr)
            ready, _ = self._ray.wait(waiting, num_returns=1)
        return ready[0]

    def _ready(self, started: Any) -> None:
        actor = self._starting.pop(started)
        try:
            description = self._ray.get(started)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(actor)
            self._failed_starts += 1
            if isinstance(_cause(error), InputError) or self._failed_starts == TRIES * self._count:
                raise _given_up(error) from None
            self._begin()
            return
        if self.description is None:
            self.description = description
        elif description != self.description:
            raise InputError(f"the machines of the cluster differ: one has {self.description}, another {description}")
        self._idle.append(actor)


def _cause(error: Exception) -> Exception:
    """What a worker raised, or what happened to it."""
    cause: Exception | None = getattr(error, "cause", None)
    return cause or error


def reason(error: Exception) -> str:
    """Why a worker failed, in one line."""
    cause = _cause(error)
    return str(cause) if isinstance(cause, InputError) else f"{type(cause).__name__}: {first_line(cause)}"


def _given_up(error: Exception) -> InputError:
    if isinstance(_cause(error), InputError):
        return InputError(reason(error))
    return InputError(f"a task failed {TRIES} times on the cluster, at last by {reason(error)}")
