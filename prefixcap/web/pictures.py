"""From the files of a request to what a job gives for each."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import anyio
from fastapi import Request, UploadFile
from PIL import Image
from starlette.exceptions import HTTPException
from torch import Tensor

from prefixcap.errors import InputError
from prefixcap.utils.hardware import cpu_count
from prefixcap.utils.images import TooManyPixels, decode_image
from prefixcap.web.batcher import Stopped
from prefixcap.web.gate import STOPPING
from prefixcap.web.jobs import Job
from prefixcap.web.metrics import Metrics
from prefixcap.web.served import Served

T = TypeVar("T")
Problem = HTTPException | InputError  # of one image
FAILED = "the server could not do this; its log says why"

Image.init()  # so that Pillow knows all of them
# That Pillow reads without running another program; AVIF where it was built with that.
FORMATS = tuple(f for f in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if f in Image.OPEN)


class Outcome(NamedTuple):
    """What a job gave for an image: a result, or why there is none."""

    number: int
    name: str
    result: Any = None
    error: str | None = None


class Pictures:
    """Reads images and has jobs done on them.

    Args:
        metrics: counts images and their errors.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._opening = anyio.CapacityLimiter(cpu_count())

    async def pixels(self, served: Served, upload: UploadFile) -> Tensor:
        """An image as a captioner's encoder preprocesses it. Raises HTTPException if it cannot be read."""
        return await anyio.to_thread.run_sync(_open, served, upload, limiter=self._opening)

    async def together(
        self,
        request: Request,
        served: Served,
        job: Job,
        images: Sequence[UploadFile],
        item: Callable[[Tensor, int], Any],
    ) -> list[Outcome]:
        """What a job gives for images, once all are done. `item` is what it takes of an image's pixels and its number.

        Raises:
            HTTPException, InputError: there is a result for none of them.
        """
        opened = [await _attempt(self.pixels(served, image)) for image in images]

        async def done(number: int, pixels: Tensor | Problem) -> Any:
            if isinstance(pixels, Problem):
                return pixels
            return await _attempt(served.batcher.submit(job, item(pixels, number), request))

        results = await unless_gone(request, asyncio.gather(*(done(*each) for each in enumerate(opened))))
        self._count(served, results)
        problems = [result for result in results if isinstance(result, Problem)]
        if len(problems) == len(results):
            reasons = "; ".join(dict.fromkeys(map(_reason, problems)))
            first = problems[0]
            raise HTTPException(first.status_code if isinstance(first, HTTPException) else 422, reasons)
        return [_outcome(*each) for each in zip(range(len(images)), images, results, strict=True)]

    async def as_ready(
        self,
        request: Request,
        served: Served,
        job: Job,
        images: Sequence[UploadFile],
        item: Callable[[Tensor, int], Any],
    ) -> AsyncIterator[Outcome]:
        """The same, each as soon as it is there. Nothing is raised; what is left when this is closed is cancelled."""

        async def done(number: int, image: UploadFile) -> Outcome:
            try:
                pixels = await self.pixels(served, image)
                result: Any = await served.batcher.submit(job, item(pixels, number), request)
            except (HTTPException, InputError) as error:
                result = error
            except Stopped:
                result = HTTPException(503, STOPPING)
            except Exception:
                logging.getLogger("uvicorn.error").exception("an image of a stream failed")
                result = HTTPException(500, FAILED)
            self._count(served, [result])
            return _outcome(number, image, result)

        tasks = [asyncio.create_task(done(*each)) for each in enumerate(images)]
        try:
            for task in asyncio.as_completed(tasks):
                yield await task
        finally:
            for each in tasks:
                each.cancel()

    def _count(self, served: Served, results: Sequence[Any]) -> None:
        failed = sum(isinstance(result, Problem) for result in results)
        self._metrics.images(served.name, len(results) - failed, failed)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives. If the client goes away meanwhile, it is cancelled."""
    doing, gone = asyncio.create_task(_result(work)), asyncio.create_task(_disconnection(request))
    try:
        await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise HTTPException(499, "the client has gone")
        return doing.result()
    finally:
        doing.cancel()
        gone.cancel()


async def _result(work: Awaitable[T]) -> T:
    return await work  # a task that is cancelled tells nobody; what `gather` returns would, in the log


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _attempt(work: Awaitable[T]) -> T | Problem:
    try:
        return await work
    except (HTTPException, InputError) as error:
        return error


def _open(served: Served, upload: UploadFile) -> Tensor:
    name = name_of(upload)
    if served.batcher.stopped:
        raise Stopped
    try:
        return served.captioner.encoder().preprocess(decode_image(upload.file, formats=FORMATS))
    except TooManyPixels as error:
        raise HTTPException(413, f"{name}: {error}") from error
    except InputError as error:
        raise HTTPException(400, f"{name}: {error}") from error


def name_of(upload: UploadFile) -> str:
    """What an upload is called in answers: the last part of its name, which is nothing but a label here."""
    last = (upload.filename or "").replace("\\", "/").rpartition("/")[2]
    return " ".join(last.split())[:100] or "image"


def _outcome(number: int, image: UploadFile, result: Any) -> Outcome:
    if isinstance(result, Problem):
        return Outcome(number, name_of(image), error=_reason(result))
    return Outcome(number, name_of(image), result)


def _reason(problem: Problem) -> str:
    return problem.detail if isinstance(problem, HTTPException) else str(problem)
