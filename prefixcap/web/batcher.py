"""Dynamic batching: requests that arrive while the model is busy are batched next, if their jobs are equal."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

Job = TypeVar("Job", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):
    """An item was not begun, or not finished, when the server stopped."""


class _Waiting(NamedTuple, Generic[Job, Item, Result]):
    job: Job
    item: Item
    request: object
    result: "asyncio.Future[Result]"


class Batcher(Generic[Job, Item, Result]):
    """Passes waiting items with equal jobs to a function as one batch, in one thread, the oldest first.

    All methods belong to one event loop.

    Args:
        work: runs a job on a list of items and returns the result of each, or an exception, which its caller gets.
        most: items in a batch.
        wait: seconds that an idle batcher waits for more items after the first.
        thread: where `work` is called, of one thread, which batchers may share; None: one of its own.

    Attributes:
        thread: as given.
        stopped: nothing new is begun.
        working: the batch that is in the thread now.
    """

    def __init__(
        self,
        work: Callable[[Job, list[Item]], Sequence[Result | Exception]],
        most: int = 32,
        wait: float = 0.004,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self._work, self._most, self._wait = work, most, wait
        self._waiting: deque[_Waiting[Job, Item, Result]] = deque()
        self.thread = thread or ThreadPoolExecutor(1, "model")
        self._worker: asyncio.Task[None] | None = None
        self.stopped = False
        self.working: list[_Waiting[Job, Item, Result]] = []

    async def submit(self, job: Job, item: Item, request: object = None) -> Result:
        """The result of an item. An item whose caller has been cancelled is not begun.

        Args:
            job: to run.
            item: to run it on.
            request: what the item is a part of: once one part has been begun, `stop` lets the others be finished.

        Raises:
            Stopped: the batcher was stopped before the item was begun.
            Exception: whatever `work` raised for its batch.
        """
        if self.stopped:
            raise Stopped
        waiting = _Waiting[Job, Item, Result](job, item, request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work_off())
        return await waiting.result

    @property
    def queued(self) -> int:
        """How many items wait to be begun."""
        return sum(not waiting.result.done() for waiting in self._waiting)

    def stop(self) -> None:
        """Begin nothing new, except the rest of requests that have been begun."""
        self.stopped = True
        begun = {id(waiting.request) for waiting in self.working if waiting.request is not None}
        _fail(waiting for waiting in self._waiting if id(waiting.request) not in begun)

    def give_up(self) -> None:
        """Stop waiting for results; the thread may still be working."""
        self.stop()
        _fail([*self.working, *self._waiting])

    async def _work_off(self) -> None:
        """Work until nothing is waiting."""
        await asyncio.sleep(self._wait)
        while batch := self._next():
            self.working = batch
            items = [waiting.item for waiting in batch]
            loop = asyncio.get_running_loop()
            try:
                results = await loop.run_in_executor(self.thread, self._work, batch[0].job, items)
                for waiting, result in zip(batch, results, strict=True):
                    if isinstance(result, Exception):
                        _fail([waiting], result)
                    elif not waiting.result.done():  # its caller may have gone
                        waiting.result.set_result(result)
            except Exception as error:
                _fail(batch, error)
        self.working = []

    def _next(self) -> list[_Waiting[Job, Item, Result]]:
        """The oldest items that have the same job."""
        batch: list[_Waiting[Job, Item, Result]] = []
        others: deque[_Waiting[Job, Item, Result]] = deque()
        for waiting in self._waiting:
            if waiting.result.done():  # cancelled
                continue
            fits = not batch or (len(batch) < self._most and waiting.job == batch[0].job)
            (batch if fits else others).append(waiting)
        self._waiting = others
        return batch


def _fail(several: Iterable[_Waiting[Any, Any, Any]], error: Exception | None = None) -> None:
    for waiting in several:
        if not waiting.result.done():
            waiting.result.set_exception(error or Stopped())
