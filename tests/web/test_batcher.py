"""Batches beside a plain loop, and who is in them."""

import asyncio
import itertools
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixcap.web.batcher import Batcher


class Recorder:
    """Work that takes no time: the result of an item is (job, item)."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []

    def __call__(self, job: str, items: list[int]) -> list[tuple[str, int]]:
        self.batches.append((job, items))
        return [(job, item) for item in items]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers()), max_size=40), st.integers(1, 7))
def test_results_are_those_of_a_plain_loop(requests: list[tuple[str, int]], most: int) -> None:
    work = Recorder()

    async def together() -> list[tuple[str, int]]:
        batcher = Batcher[str, int, tuple[str, int]](work, most, wait=0)
        return await asyncio.gather(*(batcher.submit(job, item) for job, item in requests))

    assert asyncio.run(together()) == requests
    assert all(len(items) <= most for _, items in work.batches)
    for job in "abc":  # in the order in which they came, in as few batches as can be
        mine = [items for of, items in work.batches if of == job]
        assert list(itertools.chain(*mine)) == [item for of, item in requests if of == job]
        assert len(mine) == -(-sum(map(len, mine)) // most)
    assert not requests or work.batches[0][0] == requests[0][0]


def test_what_comes_while_work_is_done_is_done_together_next() -> None:
    begun, go_on, batches = threading.Event(), threading.Event(), list[list[int]]()

    def work(job: str, items: list[int]) -> list[int]:
        batches.append(items)
        begun.set()
        go_on.wait(10)
        return items

    async def main() -> list[int]:
        batcher = Batcher[str, int, int](work)
        first = asyncio.create_task(batcher.submit("a", 0))
        await asyncio.to_thread(begun.wait, 10)
        others = [asyncio.create_task(batcher.submit("a", number)) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        others[1].cancel()  # it waits, and is never begun
        go_on.set()
        return [await first, await others[0], await others[2]]

    assert asyncio.run(main()) == [0, 1, 3]
    assert batches == [[0], [1, 3]]


def test_an_error_is_told_to_its_own_batch_alone() -> None:
    def work(job: str, items: list[int]) -> list[int]:
        if job == "bad":
            raise ValueError("cannot be done")
        return items[:1] if job == "lost" else items

    async def main() -> list[Any]:
        batcher = Batcher[str, int, int](work)
        jobs = [("bad", 1), ("good", 2), ("bad", 3), ("lost", 4), ("lost", 5), ("good", 6)]
        return await asyncio.gather(*(batcher.submit(*job) for job in jobs), return_exceptions=True)

    results = asyncio.run(main())
    assert [type(result) for result in results] == [ValueError, int, ValueError, int, ValueError, int]
    assert [result for result in results if isinstance(result, int)] == [2, 4, 6]


def test_a_caller_that_goes_while_its_item_is_worked_on_leaves_the_others_theirs() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(job: str, items: list[int]) -> list[int]:
        begun.set()
        go_on.wait(10)
        return items

    async def main() -> int:
        batcher = Batcher[str, int, int](work)
        tasks = [asyncio.create_task(batcher.submit("a", number)) for number in (1, 2)]
        await asyncio.to_thread(begun.wait, 10)
        tasks[0].cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        return await tasks[1]

    assert asyncio.run(main()) == 2
