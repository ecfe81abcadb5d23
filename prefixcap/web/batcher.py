"""Dynamic batching: what arrives while the model works is done together next, as far as the jobs are equal."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

Job = TypeVar("Job", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


class _Waiting(NamedTuple, Generic[Job, Item, Result]):
    job: Job
    item: Item
    result: "asyncio.Future[Result]"


class Batcher(Generic[Job, Item, Result]):
    """Gives items that wait with equal jobs to a function together, in one thread, the oldest first.

    All methods are for one event loop.

    Args:
        work: does a job for a list of items and gives the result of each.
        most: items that it is given at once.
        wait: seconds that an idle batcher waits for others after the first item.

    Attributes:
        thread: in which the function is called.
    """

    def __init__(
        self, work: Callable[[Job, list[Item]], Sequence[Result]], most: int = 32, wait: float = 0.004
    ) -> None:
        self._work, self._most, self._wait = work, most, wait
        self._waiting: deque[_Waiting[Job, Item, Result]] = deque()
        self.thread = ThreadPoolExecutor(1, "model")
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, job: Job, item: Item) -> Result:
        """The result of an item, in time. One whose caller has been cancelled is not begun.

        Raises:
            Exception: whatever `work` raised for its batch.
        """
        waiting = _Waiting[Job, Item, Result](job, item, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work_off())
        return await waiting.result

    async def _work_off(self) -> None:
        """Work until nothing waits."""
        await asyncio.sleep(self._wait)
        while batch := self._next():
            items = [waiting.item for waiting in batch]
            loop = asyncio.get_running_loop()
            try:
                results = await loop.run_in_executor(self.thread, self._work, batch[0].job, items)
                for waiting, result in zip(batch, results, strict=True):
                    if not waiting.result.done():  # by a caller that has gone
                        waiting.result.set_result(result)
            except Exception as error:
                for waiting in batch:
                    if not waiting.result.done():
                        waiting.result.set_exception(error)

    def _next(self) -> list[_Waiting[Job, Item, Result]]:
        """The oldest items with one job."""
        batch: list[_Waiting[Job, Item, Result]] = []
        others: deque[_Waiting[Job, Item, Result]] = deque()
        for waiting in self._waiting:
            if waiting.result.done():  # cancelled
                continue
            fits = not batch or (len(batch) < self._most and waiting.job == batch[0].job)
            (batch if fits else others).append(waiting)
        self._waiting = others
        return batch
