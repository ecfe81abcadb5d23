"""What the HTTP API takes and answers, as pydantic models: they check requests and are what /docs shows."""

from typing import Annotated, Any

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from prefixcap.decoding import DECODERS, own_options
from prefixcap.errors import InputError
from prefixcap.utils.images import MOST_PIXELS
from prefixcap.web.gate import MOST_BYTES
from prefixcap.web.jobs import Captions

MOST_IMAGES = 16  # in a request
MOST_TEXTS = 8
MOST_CHARACTERS = 200  # of a prompt or text

Images = Annotated[
    list[UploadFile], Field(description=f"JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF; at most {MOST_IMAGES}")
]
Text = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]
Weight = Annotated[float, Field(ge=-10, le=10)]


DECODER_SETTINGS = ("max_tokens", "beams", "length_penalty", "top_p", "top_k", "temperature", "penalty")


def decoder_settings(decoder: str) -> list[str]:
    """Those of `Settings` that a decoder takes, beside what every one does. Raises InputError if it is unknown."""
    named = {"captions": "count", "generator": "seed"}
    options = [named.get(option, option) for option in own_options(decoder)]
    return ["max_tokens", *(option for option in options if option in Settings.model_fields)]


class Settings(BaseModel):
    """How captions are written. Options of the decoder that are left out have its defaults."""

    model_config = ConfigDict(extra="forbid")

    decode: str = Field("beam", description="the decoder", json_schema_extra={"enum": list(DECODERS)})
    count: int = Field(1, ge=1, le=10, description="captions for each image; beam, nucleus and clipcap have several")
    by_similarity: bool = Field(
        False, description="order captions by their similarity to the image, not as the decoder does"
    )
    prompt: str = Field("", max_length=MOST_CHARACTERS, description="how every caption begins", examples=["A photo of"])
    seed: int | None = Field(None, ge=0, lt=2**63, description="of what nucleus draws; none: drawn anew each time")
    max_tokens: int | None = Field(None, ge=1, le=200, description="the longest caption, in tokens")
    beams: int | None = Field(None, ge=1, le=10, description="beam, clipcap: how many captions are kept at every step")
    length_penalty: float | None = Field(None, ge=0, le=5, description="beam: above 1.0 favours long captions")
    top_p: float | None = Field(None, gt=0, le=1, description="nucleus: draws from the likeliest tokens of so much")
    top_k: int | None = Field(None, ge=0, le=50, description="nucleus, contrastive: chooses from so many tokens")
    temperature: float | None = Field(
        None, ge=0.001, le=5, description="nucleus: below 1.0, likely tokens are likelier"
    )
    penalty: float | None = Field(None, ge=0, le=1, description="contrastive: on likeness to what was written")

    def job(self) -> Captions:
        """The settings as the model takes them. Raises InputError if the decoder does not take one that was given."""
        options = {name: getattr(self, name) for name in DECODER_SETTINGS if getattr(self, name) is not None}
        takes = decoder_settings(self.decode)
        for name in [*(["count"] if self.count > 1 else []), *options]:
            if name not in takes:
                others = [decoder for decoder in DECODERS if name in decoder_settings(decoder)]
                raise InputError(f"decoder '{self.decode}' takes no {name}: leave it out, or take {', '.join(others)}")
        return Captions(
            self.decode, self.count, self.by_similarity, self.prompt, self.seed, tuple(sorted(options.items()))
        )


class CaptionRequest(Settings):
    """Images to caption."""

    images: Images = Field(min_length=1, max_length=MOST_IMAGES)


class InterpretRequest(BaseModel):
    """Images whose prefixes are put into words."""

    model_config = ConfigDict(extra="forbid")

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
    similarity: float


class CaptionedImage(BaseModel):
    """Captions of one image, the best first, each with the cosine of its text embedding and the image's."""

    name: str = Field(examples=["photo.jpg"])
    captions: list[ScoredText]
    error: str | None = Field(None, description="why there are none; otherwise left out")


class CaptionAnswer(BaseModel):
    """The images, in the order in which they were sent."""

    images: list[CaptionedImage]


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


class Info(BaseModel):
    """What is served."""

    version: str = Field(examples=["1.0.0"])
    encoder: str = Field(examples=["clip:ViT-B/32"])
    language_model: str = Field(examples=["gpt2"])
    mapper: str = Field(examples=["transformer"])
    prefix_length: int = Field(examples=[10])
    trained_on: str | None = Field(description="the data set, where the checkpoint says it", examples=["coco"])
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
