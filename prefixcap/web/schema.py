"""Requests and answers of the HTTP API as pydantic models: they check requests, and /docs shows them."""

from typing import Annotated, Any, TypeVar

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, create_model

from prefixcap.decoding import DECODERS, check_decoder, decoder_options, draws, takes_num_captions
from prefixcap.errors import InputError
from prefixcap.utils.images import MOST_PIXELS
from prefixcap.utils.options import Option
from prefixcap.web.gate import MOST_BYTES
from prefixcap.web.jobs import Captions

MOST_IMAGES = 16  # in a request
MOST_TEXTS = 8
MOST_CHARACTERS = 200  # of a prompt or text
MOST_PROMPT_CHARACTERS = 1000  # of the prompt of an image, which may be several captions, or an item of it
MOST_ITEMS = 64  # of a prompt, to leave out

Images = Annotated[
    list[UploadFile], Field(description=f"JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF; at most {MOST_IMAGES}")
]
Text = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]
ImageText = Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS)]
Weight = Annotated[float, Field(ge=-10, le=10)]


# What a request may ask for, where that is less than the decoders take: one request must not occupy the server.
LIMITS: dict[str, dict[str, float]] = {
    "max_tokens": {"le": 200},
    "min_tokens": {"le": 200},
    "repetition_penalty": {"le": 10},
    "beams": {"le": 10},
    "groups": {"le": 10},
    "length_penalty": {"ge": 0, "le": 5},
    "diversity": {"le": 10},
    "top_k": {"le": 50},
    "temperature": {"ge": 0.001, "le": 5},
}
MOST_INTEGER = 100  # where neither the decoder nor `LIMITS` says less

Request = TypeVar("Request", bound=BaseModel)


def decoder_settings(decoder: str) -> list[str]:
    """The fields of a request that a decoder takes, beside what every decoder does.

    Raises:
        InputError: no decoder has this name.
    """
    several = ["count"] if takes_num_captions(decoder) else []
    return [*several, *decoder_options(decoder), *(["seed"] if draws(decoder) else [])]


def request_bounds(name: str, option: Option) -> dict[str, Any]:
    """The range of a decoder's option in a request, as `pydantic.Field` takes it."""
    most = {"le": MOST_INTEGER} if option.kind is int else {}
    return most | option.bounds | LIMITS.get(name, {})


class ToCaptioner(BaseModel):
    """A request to one of the captioners that are served."""

    model_config = ConfigDict(extra="forbid")

    captioner: str | None = Field(
        None, max_length=MOST_CHARACTERS, description="its name, as in /v1/info; none: the first", examples=["photos"]
    )


class Settings(ToCaptioner):
    """How captions are generated. Options of the decoder that are left out have its defaults."""

    decode: str = Field("beam", description="the decoder")
    count: int = Field(1, ge=1, le=10, description="captions for each image")
    by_similarity: bool = Field(
        False, description="order captions by their similarity to the image, not as the decoder does"
    )
    prompt: str = Field("", max_length=MOST_CHARACTERS, description="how every caption begins", examples=["A photo of"])
    seed: int | None = Field(None, ge=0, lt=2**63, description="of what is drawn; none: drawn anew each time")

    def job(self) -> Captions:
        """The settings as the model takes them.

        Raises:
            InputError: no decoder has this name, or it does not take an option or its value.
        """
        options = {name: getattr(self, name) for name in _all_options() if getattr(self, name, None) is not None}
        takes = decoder_settings(self.decode)
        for name in [*(["count"] if self.count > 1 else []), *options]:
            if name not in takes:
                others = [decoder for decoder in DECODERS if name in decoder_settings(decoder)]
                raise InputError(f"decoder '{self.decode}' takes no {name}: leave it out, or take {', '.join(others)}")
        check_decoder(self.decode, self.count, options)
        return Captions(
            self.decode, self.count, self.by_similarity, self.prompt, self.seed, tuple(sorted(options.items()))
        )


def with_decoder_options(request: type[Request]) -> type[Request]:
    """A kind of request with a field for each option of the decoders that there are now, in its schema, too."""
    fields: dict[str, Any] = {
        "decode": (str, Field("beam", description="the decoder", json_schema_extra={"enum": list(DECODERS)})),
    }
    for name, by_decoder in _all_options().items():
        kind: Any = next(iter(by_decoder.values())).kind
        bounds = [request_bounds(name, option).items() for option in by_decoder.values()]
        limits: dict[str, Any] = dict(set.intersection(*map(set, bounds)))  # the decoder checks what only it limits
        if kind is float:
            limits["allow_inf_nan"] = False
        elif kind is str:
            limits["max_length"] = MOST_CHARACTERS
        fields[name] = (kind | None, Field(None, description=_description(by_decoder), **limits))
    return create_model(request.__name__, __base__=request, __doc__=request.__doc__, **fields)


def _all_options() -> dict[str, dict[str, Option]]:
    """Each option of the decoders: by its name, and by the decoder that takes it."""
    options: dict[str, dict[str, Option]] = {}
    for decoder in DECODERS:
        for name, option in decoder_options(decoder).items():
            if name not in ArithmeticRequest.model_fields:
                options.setdefault(name, {})[decoder] = option
    return options


def _description(by_decoder: dict[str, Option]) -> str:
    """What an option is, after the names of its decoders, where not all have it."""
    decoders: dict[str, list[str]] = {}
    for decoder, option in by_decoder.items():
        decoders.setdefault(option.description, []).append(decoder)
    if len(decoders) == 1 and len(by_decoder) == len(DECODERS):
        return next(iter(decoders))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in decoders.items())


class CaptionRequest(Settings):
    """Images to caption."""

    images: Images = Field(min_length=1, max_length=MOST_IMAGES)
    prompts: list[ImageText] = Field(
        [],
        max_length=MOST_IMAGES,
        description="what is known of each image, in order, or one text for all, which is read before the caption and "
        "is no part of it; none: the prompts that the captioner makes by itself, if it does",
        examples=[["There are dog, frisbee in image."]],
    )
    without: list[ImageText] = Field(
        [],
        max_length=MOST_ITEMS,
        description="items that the captioner's own prompts leave out, e.g. because they are wrong, and captions that "
        "its mapper does not read",
        examples=[["frisbee"]],
    )

    datastore: str | None = Field(
        None,
        max_length=MOST_CHARACTERS,
        description="the one that captions are retrieved from, a name of /v1/info; none: the first",
        examples=["art"],
    )

    def image_prompts(self, makes_prompts: bool, reads_captions: bool) -> list[str | None]:
        """The prompt of each image; None: the captioner's own, if it `makes_prompts`.

        `reads_captions` says whether its mapper retrieves captions, which prompts that are given do not replace.

        Raises:
            InputError: there are not as many prompts as images, or there are no items to leave out.
        """
        if len(self.prompts) not in (0, 1, len(self.images)):
            raise InputError(
                f"prompts: {len(self.prompts)} are given for {len(self.images)} images: give one for each, or for all"
            )
        if self.without and (self.prompts or not makes_prompts) and not reads_captions:
            reason = "prompts are given" if self.prompts else "this captioner makes none"
            raise InputError(f"without: leaves out items of the captioner's own prompts, and {reason}: leave it out")
        if self.datastore and self.prompts and not reads_captions:
            raise InputError("datastore: the captioner's own prompts are made from it, and prompts are given: omit one")
        if not self.prompts:
            return [None] * len(self.images)
        return [*self.prompts] * (len(self.images) if len(self.prompts) == 1 else 1)


class InterpretRequest(ToCaptioner):
    """Images whose prefixes are interpreted."""

    images: Images = Field(min_length=1, max_length=MOST_IMAGES)
    count: int = Field(3, ge=1, le=20, description="tokens for each prefix vector")


class ArithmeticRequest(Settings):
    """Images and texts, each with a weight; without weights all count 1."""

    images: Images = Field([], max_length=MOST_IMAGES)
    image_weights: list[Weight] = Field([], description="one for each image, in order", examples=[[1, -1]])
    texts: list[Text] = Field([], max_length=MOST_TEXTS, examples=[["a blue square"]])
    text_weights: list[Weight] = Field([], description="one for each text, in order", examples=[[1]])


class ScoredText(BaseModel):
    """A text with a cosine, -1 to 1."""

    model_config = ConfigDict(json_schema_extra={"example": {"text": "A red star in the snow.", "similarity": 0.63}})

    text: str
    similarity: float | None = Field(description="the cosine; null for captions if the encoder reads no texts")


class PromptItem(BaseModel):
    """An entity or a caption, with how well it fits the image: a probability, a share or a cosine."""

    model_config = ConfigDict(json_schema_extra={"example": {"text": "dog", "score": 0.71}})

    text: str
    score: float


class ImagePrompt(BaseModel):
    """What a captioner that makes prompts by itself read beside the image's prefix, before the caption."""

    text: str = Field(examples=["There are dog in image."])
    items: list[PromptItem] = Field(description="what the text was made of, the best first")


class CaptionedImage(BaseModel):
    """Captions of one image, the best first, each with the cosine of its text embedding and the image's."""

    name: str = Field(examples=["photo.jpg"])
    captions: list[ScoredText]
    prompt: ImagePrompt | None = Field(None, description="the one that the captioner made; otherwise left out")
    retrieved: list[PromptItem] | None = Field(
        None, description="captions that the mapper read with the image, the nearest first; otherwise left out"
    )
    error: str | None = Field(None, description="why there are none; otherwise left out")


class CaptionAnswer(BaseModel):
    """The images, in the order in which they were sent."""

    images: list[CaptionedImage]


class StreamedImage(CaptionedImage):
    """A line of a stream: a captioned image, and which of those that were sent it is, from 0."""

    index: int = Field(examples=[0])


class InterpretedImage(BaseModel):
    """The nearest tokens of each prefix vector, with the cosines of their embeddings and the vector."""

    name: str = Field(examples=["photo.jpg"])
    vectors: list[list[ScoredText]]
    error: str | None = Field(None, description="why there are none; otherwise left out")


class InterpretAnswer(BaseModel):
    """The images, in the order in which they were sent."""

    images: list[InterpretedImage]


class ArithmeticAnswer(BaseModel):
    """Captions of the sum, the best first, each with the cosine of its text embedding and the sum."""

    captions: list[ScoredText]


class Limits(BaseModel):
    """What a request may hold."""

    bytes: int = MOST_BYTES
    images: int = MOST_IMAGES
    pixels: int = Field(default=MOST_PIXELS, description="of each image")
    characters: int = Field(default=MOST_CHARACTERS, description="of a prompt or text")
    prompt_characters: int = Field(default=MOST_PROMPT_CHARACTERS, description="of what is known of an image")


class TrainedOn(BaseModel):
    """What a captioner was trained on, as its files say it."""

    data: str | None = Field(description="the data set, where they say it", examples=["flickr8k"])
    images: dict[str, int] = Field(description="of its splits", examples=[{"train": 6000, "val": 1000}])
    before: list[str] = Field(description="data sets that it had learned from already", examples=[["coco"]])
    training: list[str] = Field(description="paragraphs of the model card", examples=[["6,000 photographs."]])
    limitations: list[str] = Field(
        description="what the model card says that it cannot do", examples=[["It counts badly."]]
    )


class CaptionerInfo(BaseModel):
    """A captioner that is served."""

    name: str = Field(description="which `captioner` of a request names", examples=["photos"])
    encoder: str = Field(examples=["clip:ViT-B/32"])
    language_model: str = Field(examples=["gpt2"])
    mapper: str = Field(examples=["transformer"])
    prefix_length: int = Field(examples=[10])
    trained_on: TrainedOn
    low_similarity: float | None = Field(
        description="a similarity below this says that the image is unlike those learned from, where that is known",
        examples=[0.25],
    )
    prompts: str | None = Field(
        description="what the captioner makes prompts of images with, where it does", examples=["clip_entities"]
    )
    datastores: list[str] = Field(
        description="the names of those that it retrieves captions from, the first by default, where there are several",
        examples=[["coco", "art"]],
    )


class Info(BaseModel):
    """What is served."""

    version: str = Field(examples=["1.0.0"])
    captioners: list[CaptionerInfo] = Field(description="the first by default")
    decoders: dict[str, list[str]] = Field(
        description="the settings that each takes, beside decode, prompt and by_similarity",
        examples=[{"beam": ["max_tokens", "count", "beams", "length_penalty"]}],
    )
    limits: Limits


class Health(BaseModel):
    """The server is up and its model is loaded."""

    status: str = "ok"


class Error(BaseModel):
    """What is wrong, in one line."""

    error: str


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": description}
    for status, description in {
        400: "no image can be read",
        401: "the password is missing or wrong",
        403: "the Host header or the Origin header is not one of this server's",
        408: "the request came too slowly",
        413: "too many bytes or pixels",
        415: "no multipart/form-data",
        422: "a setting is unknown or out of range",
        503: "busy or stopping: try again after the seconds of Retry-After",
    }.items()
}
