"""The HTTP API: images in, captions out. The page in the browser uses it as anyone does."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.exceptions import HTTPException
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.decoding import DECODERS
from prefixcap.errors import InputError
from prefixcap.utils.hardware import cpu_count
from prefixcap.utils.images import TooManyPixels, decode_image
from prefixcap.web.access import refusal
from prefixcap.web.batcher import Batcher, Stopped
from prefixcap.web.gate import RETRY_AFTER
from prefixcap.web.jobs import Arithmetic, Captioned, Interpretations, Job, Picture, Scored, Sum
from prefixcap.web.schema import (
    ERRORS,
    MOST_IMAGES,
    MOST_TEXTS,
    ArithmeticAnswer,
    ArithmeticRequest,
    CaptionAnswer,
    CaptionedImage,
    CaptionRequest,
    Health,
    ImagePrompt,
    Info,
    InterpretAnswer,
    InterpretedImage,
    InterpretRequest,
    Limits,
    PromptItem,
    ScoredText,
    decoder_settings,
    with_decoder_options,
)

T = TypeVar("T")
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

Image.init()  # so that Pillow knows all of them
# That Pillow reads without running another program; AVIF where it was built with that.
FORMATS = tuple(f for f in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if f in Image.OPEN)

# What pydantic says less plainly.
PROBLEMS = {
    "extra_forbidden": "there is no such field, see /docs",
    "missing": "needed",
    "value_error": "send a file, with a name",
    "too_long": f"too many, the most are {MOST_IMAGES} images and {MOST_TEXTS} texts",
}


def build_api(captioner: Captioner, batcher: Batcher[Job, Any, Any], version: str) -> FastAPI:
    """The API as an application, without what `prefixcap.web.gate` sees to.

    Args:
        captioner: the model that answers.
        batcher: runs `job.run(captioner, items)`.
        version: of prefixcap.
    """
    app = FastAPI(
        title="prefixcap",
        version=version,
        description="Captions for images, by CLIP and a language model.",
        docs_url=None,  # FastAPI's pages come from another host
        redoc_url=None,
        responses=ERRORS,
    )
    opening = anyio.CapacityLimiter(cpu_count())
    encoder = captioner.encoder()

    def open_upload(upload: UploadFile) -> Tensor:
        name = _name(upload)
        if batcher.stopped:
            raise Stopped
        try:
            return encoder.preprocess(decode_image(upload.file, formats=FORMATS))
        except TooManyPixels as error:
            raise HTTPException(413, f"{name}: {error}") from error
        except InputError as error:
            raise HTTPException(400, f"{name}: {error}") from error

    async def pixels_of(upload: UploadFile) -> Tensor:
        return await anyio.to_thread.run_sync(open_upload, upload, limiter=opening)

    async def do(
        request: Request, job: Job, images: Sequence[UploadFile], item: Callable[[Tensor, int], Any]
    ) -> list[tuple[str, Any, str | None]]:
        """For each image its name, what a job gives for it, and why it gives nothing; one at least must be an image.

        `item` is what the job takes of an image's pixels, and its number.
        """
        items, problems = list[Any](), dict[int, HTTPException]()
        for number, image in enumerate(images):
            try:
                items.append(item(await pixels_of(image), number))
            except HTTPException as error:
                problems[number] = error
        if not items:
            raise HTTPException(problems[0].status_code, "; ".join(error.detail for error in problems.values()))
        submitted = asyncio.gather(*(batcher.submit(job, each, request) for each in items))
        results = iter(await _unless_gone(request, submitted))
        return [
            (_name(image), None, problems[number].detail) if number in problems else (_name(image), next(results), None)
            for number, image in enumerate(images)
        ]

    @app.post("/api/caption", response_model_exclude_none=True)
    @_with_decoder_options
    async def caption(
        request: Request, given: Annotated[CaptionRequest, Form(media_type="multipart/form-data")]
    ) -> CaptionAnswer:
        """Caption images. One that cannot be read has an error in place of captions."""
        prompts, without = given.image_prompts(captioner.prompts is not None), frozenset(given.without)

        def picture(pixels: Tensor, number: int) -> Picture:
            return Picture(pixels, prompts[number], without)

        datastores = captioner.own_prompts.datastores
        if given.datastore:
            captioner.own_prompts.require(given.datastore)
        job = replace(given.job(), datastore=given.datastore or next(iter(datastores), None))
        results = await do(request, job, given.images, picture)
        return CaptionAnswer(images=[_captioned(name, captioned, error) for name, captioned, error in results])

    @app.post("/api/interpret", response_model_exclude_none=True)
    async def interpret(
        request: Request, given: Annotated[InterpretRequest, Form(media_type="multipart/form-data")]
    ) -> InterpretAnswer:
        """Say what the prefixes of images mean: the tokens nearest to each prefix vector.

        An image that cannot be read has an error in place of vectors.
        """
        results = await do(request, Interpretations(given.count), given.images, lambda pixels, _: pixels)
        return InterpretAnswer(
            images=[
                InterpretedImage(name=name, vectors=[_scored(tokens) for tokens in vectors or ()], error=error)
                for name, vectors, error in results
            ]
        )

    @app.post("/api/arithmetic")
    @_with_decoder_options
    async def arithmetic(
        request: Request, given: Annotated[ArithmeticRequest, Form(media_type="multipart/form-data")]
    ) -> ArithmeticAnswer:
        """Caption a sum of images and texts; a difference has negative weights."""
        weights = []
        for kind, terms, own in (
            ("image", given.images, given.image_weights),
            ("text", given.texts, given.text_weights),
        ):
            if len(own) not in (0, len(terms)):
                raise InputError(f"{kind}_weights: {len(own)} are given for {len(terms)}: give one for each, or none")
            weights += own or [1.0] * len(terms)
        if not weights:
            raise InputError("the sum is empty: give images, texts or both")
        job = Arithmetic(given.job())
        pixels = [await pixels_of(image) for image in given.images]
        captions = await _unless_gone(request, batcher.submit(job, Sum(pixels, given.texts, weights)))
        return ArithmeticAnswer(captions=_scored(captions))

    @app.get("/api/info")
    async def info() -> Info:
        """Say what is served, and within which limits."""
        return Info(
            version=version,
            encoder=captioner.encoder_identity.name,
            language_model=captioner.language_model.name,
            mapper=captioner.mapper_options["name"],
            prefix_length=captioner.prefix_length,
            trained_on=captioner.trained_on.get("data"),
            low_similarity=captioner.low_similarity,
            prompts=None if captioner.prompts is None else captioner.prompts["name"],
            datastores=list(captioner.own_prompts.datastores),
            decoders={decoder: decoder_settings(decoder) for decoder in DECODERS},
            limits=Limits(),
        )

    @app.get("/health")
    async def health() -> Health:
        """Say that the server is up."""
        return Health()

    for kind in (InputError, HTTPException, RequestValidationError, Stopped, Exception):
        app.add_exception_handler(kind, _explain)
    return app


def _with_decoder_options(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose form has a field for each option of the decoders that there are now."""
    form = endpoint.__annotations__["given"]
    fields = with_decoder_options(form.__origin__)
    endpoint.__annotations__["given"] = Annotated[fields, form.__metadata__[0]]
    return endpoint


async def _explain(request: Request, error: Exception) -> JSONResponse:
    """An answer that explains a mistake in one line."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = " ".join(str(part) for part in first["loc"][1:])[:100]
        return refusal(422, f"{place}: {PROBLEMS.get(first['type'], first['msg'])}")
    if isinstance(error, HTTPException):
        return refusal(error.status_code, error.detail, dict(error.headers or {}))
    if isinstance(error, InputError):
        return refusal(422, str(error))
    if isinstance(error, Stopped):
        return refusal(503, "the server is stopping: try again in a moment", RETRY_AFTER)
    return refusal(500, "the server could not do this; its log says why")


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
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


def _name(upload: UploadFile) -> str:
    """What an upload is called in answers: the last part of its name, which is nothing but a label here."""
    last = (upload.filename or "").replace("\\", "/").rpartition("/")[2]
    return " ".join(last.split())[:100] or "image"


def _captioned(name: str, captioned: Captioned | None, error: str | None) -> CaptionedImage:
    captions, made = captioned or Captioned([])
    prompt = None
    if made is not None:
        items = [PromptItem(text=text, score=score) for text, score in made.items]
        prompt = ImagePrompt(text=made.text, items=items)
    return CaptionedImage(name=name, captions=_scored(captions), prompt=prompt, error=error)


def _scored(texts: Iterable[Scored]) -> list[ScoredText]:
    return [ScoredText(text=text, similarity=similarity) for text, similarity in texts]
