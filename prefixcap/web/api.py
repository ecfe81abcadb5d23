"""The HTTP API: images in, captions out. The page in the browser uses it as anyone does."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from torch import Tensor

from prefixcap.decoding import DECODERS
from prefixcap.errors import InputError
from prefixcap.prompts import Item
from prefixcap.web.about import about
from prefixcap.web.access import refusal
from prefixcap.web.batcher import Stopped
from prefixcap.web.gate import RETRY_AFTER, STOPPING
from prefixcap.web.jobs import Arithmetic, Captioned, Captions, Interpretations, Picture, Scored, Sum
from prefixcap.web.metrics import CONTENT_TYPE, Metrics
from prefixcap.web.pictures import FAILED, Outcome, Pictures, unless_gone
from prefixcap.web.schema import (
    ERRORS,
    MOST_IMAGES,
    MOST_TEXTS,
    ArithmeticAnswer,
    ArithmeticRequest,
    CaptionAnswer,
    CaptionedImage,
    CaptionerInfo,
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
    StreamedImage,
    TrainedOn,
    decoder_settings,
    with_decoder_options,
)
from prefixcap.web.served import Served

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

# What pydantic says less plainly.
PROBLEMS = {
    "extra_forbidden": "there is no such field, see /docs",
    "missing": "needed",
    "value_error": "send a file, with a name",
    "too_long": f"too many, the most are {MOST_IMAGES} images and {MOST_TEXTS} texts",
}


class Lines(StreamingResponse):
    """Objects of JSON, one a line (https://github.com/ndjson/ndjson-spec)."""

    media_type = "application/x-ndjson"


def build_api(served: Mapping[str, Served], metrics: Metrics, version: str) -> FastAPI:
    """The API as an application, without what `prefixcap.web.gate` sees to.

    Args:
        served: the captioners that answer, by name, the first by default.
        metrics: counts images, and is sent at /metrics.
        version: of prefixcap.
    """
    app = FastAPI(
        title="prefixcap",
        version=version,
        description="Captions for images, by CLIP and a language model.",
        docs_url=None,  # FastAPI's pages come from another host
        redoc_url=None,
        responses=ERRORS,
        generate_unique_id_function=lambda route: route.name,  # what clients that are generated call it
    )
    pictures = Pictures(metrics)
    described = list(map(_described, served.values()))
    forms = {form: with_decoder_options(form) for form in (CaptionRequest, ArithmeticRequest)}

    def with_options(endpoint: Endpoint) -> Endpoint:
        """An endpoint whose form has a field for each option of the decoders that there are now."""
        form = endpoint.__annotations__["given"]
        endpoint.__annotations__["given"] = Annotated[forms[form.__origin__], form.__metadata__[0]]
        return endpoint

    def post(path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
        """At /v1/…, and at /api/…, where it was before there were versions."""

        def register(endpoint: Endpoint) -> Endpoint:
            app.post(f"/v1/{path}", **options)(endpoint)
            app.post(f"/api/{path}", include_in_schema=False, **options)(endpoint)
            return endpoint

        return register

    @post("caption", response_model_exclude_none=True)
    @with_options
    async def caption(
        request: Request, given: Annotated[CaptionRequest, Form(media_type="multipart/form-data")]
    ) -> CaptionAnswer:
        """Caption images. One that cannot be captioned has an error in place of captions."""
        by = _chosen(served, given.captioner)
        outcomes = await pictures.together(request, by, *_captioning(by, given))
        return CaptionAnswer(images=[CaptionedImage(**_captioned(outcome)) for outcome in outcomes])

    @app.post("/v1/caption/stream", response_class=Lines, responses={200: {"model": StreamedImage}})
    @with_options
    async def caption_stream(
        request: Request, given: Annotated[CaptionRequest, Form(media_type="multipart/form-data")]
    ) -> Response:
        """Caption images. Each is sent as soon as it is done, as a line of JSON (NDJSON)."""
        by = _chosen(served, given.captioner)
        arguments = _captioning(by, given)

        async def lines() -> AsyncIterator[str]:
            async for outcome in pictures.as_ready(request, by, *arguments):
                yield (
                    StreamedImage(index=outcome.number, **_captioned(outcome)).model_dump_json(exclude_none=True) + "\n"
                )

        return Lines(lines(), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})  # nginx would wait

    @post("interpret", response_model_exclude_none=True)
    async def interpret(
        request: Request, given: Annotated[InterpretRequest, Form(media_type="multipart/form-data")]
    ) -> InterpretAnswer:
        """Say what the prefixes of images mean: the tokens nearest to each prefix vector.

        An image that cannot be read has an error in place of vectors.
        """
        by, job = _chosen(served, given.captioner), Interpretations(given.count)
        outcomes = await pictures.together(request, by, job, given.images, lambda pixels, _: pixels)
        return InterpretAnswer(
            images=[
                InterpretedImage(name=name, vectors=[_scored(tokens) for tokens in vectors or ()], error=error)
                for _, name, vectors, error in outcomes
            ]
        )

    @post("arithmetic")
    @with_options
    async def arithmetic(
        request: Request, given: Annotated[ArithmeticRequest, Form(media_type="multipart/form-data")]
    ) -> ArithmeticAnswer:
        """Caption a sum of images and texts; a difference has negative weights."""
        by = _chosen(served, given.captioner)
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
        pixels = [await pictures.pixels(by, image) for image in given.images]
        captions = await unless_gone(request, by.batcher.submit(job, Sum(pixels, given.texts, weights)))
        return ArithmeticAnswer(captions=_scored(captions))

    @app.get("/v1/info")
    async def info() -> Info:
        """Say what is served, and within which limits."""
        return Info(
            version=version,
            captioners=described,
            decoders={decoder: decoder_settings(decoder) for decoder in DECODERS},
            limits=Limits(),
        )

    @app.get("/api/info", include_in_schema=False)
    async def first_info() -> dict[str, Any]:
        """The same as it was before there were versions: of the first captioner."""
        now = (await info()).model_dump()
        first = now.pop("captioners")[0]
        return {**now, **first, "trained_on": first["trained_on"]["data"]}

    @app.get("/health")
    async def health() -> Health:
        """Say that the server is up."""
        return Health()

    @app.get("/metrics", include_in_schema=False)
    async def counts() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    for kind in (InputError, HTTPException, RequestValidationError, Stopped, Exception):
        app.add_exception_handler(kind, _explain)
    answers = app.openapi()["paths"]["/v1/caption/stream"]["post"]["responses"]
    for status, answer in answers.items():
        if status != "200":  # FastAPI takes mistakes to be of the same type as results
            answer["content"] = {"application/json": answer["content"][Lines.media_type]}
    return app


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
        return refusal(503, STOPPING, RETRY_AFTER)
    return refusal(500, FAILED)


def _chosen(served: Mapping[str, Served], name: str | None) -> Served:
    """The captioner of a request. Raises InputError if there is none of this name."""
    if name and name not in served:
        raise InputError(f"unknown captioner '{name[:100]}': choose one of {', '.join(served)}")
    return served[name or next(iter(served))]


def _captioning(by: Served, given: CaptionRequest) -> tuple[Captions, list[Any], Callable[[Tensor, int], Picture]]:
    """The job, the images, and what the job takes of an image. Raises InputError if a setting is wrong."""
    captioner = by.captioner
    prompts = given.image_prompts(captioner.prompts is not None, captioner.mapper.retrieved > 0)
    without = frozenset(given.without)
    if given.datastore:
        captioner.require_datastore(given.datastore)
    job = replace(given.job(), datastore=given.datastore or next(iter(captioner.datastores), "") or None)
    return job, given.images, lambda pixels, number: Picture(pixels, prompts[number], without)


def _captioned(outcome: Outcome) -> dict[str, Any]:
    """The fields of a `CaptionedImage`."""
    captions, made, retrieved = outcome.result or Captioned([])
    return {
        "name": outcome.name,
        "captions": _scored(captions),
        "prompt": None if made is None else ImagePrompt(text=made.text, items=_items(made.items)),
        "retrieved": None if retrieved is None else _items(retrieved),
        "error": outcome.error,
    }


def _items(items: Iterable[Item]) -> list[PromptItem]:
    return [PromptItem(text=text, score=score) for text, score in items]


def _scored(texts: Iterable[Scored]) -> list[ScoredText]:
    return [ScoredText(text=text, similarity=similarity) for text, similarity in texts]


def _described(each: Served) -> CaptionerInfo:
    captioner = each.captioner
    return CaptionerInfo(
        name=each.name,
        encoder=captioner.encoder_identity.name,
        language_model=captioner.language_model.name,
        mapper=captioner.mapper_options["name"],
        prefix_length=captioner.prefix_length,
        trained_on=TrainedOn(**about(captioner)._asdict()),
        low_similarity=captioner.low_similarity,
        prompts=None if captioner.prompts is None else captioner.prompts["name"],
        datastores=[*filter(None, captioner.datastores)],
    )
