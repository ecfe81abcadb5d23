"""The schema of a captioner's description in checkpoints and exported folders, and whether weights fit a description.

`PrefixLM.describe` returns a description. One from a file is validated here before anything is built from it; nothing
in it is trusted.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from prefixcap.errors import InputError
from prefixcap.mappers import MAPPERS, build_mapper
from prefixcap.model import FORMAT_VERSION
from prefixcap.utils.options import check_options
from prefixcap.utils.validation import validate
from prefixcap.weights import REMEDY, Shapes, require_shapes

MOST_VALUES = 1_000_000  # of a description

# No control characters: they would move the cursor of a terminal.
Name = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]
Size = Annotated[int, Field(ge=1, le=1_000_000)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class MapperDescription(Strict):
    """Further keys are the mapper's own options, see `require_mapper`."""

    model_config = ConfigDict(extra="allow")
    name: Name
    prefix_length: Size | None = None


class EncoderDescription(Strict):
    name: Name
    digest: Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
    preprocessing: Annotated[str, StringConstraints(max_length=4096)]
    dim: Size


class LoraDescription(Strict):
    rank: Size
    alpha: float
    dropout: Annotated[float, Field(ge=0, le=1)]
    target_modules: list[Name] | Name | None


class LanguageModelDescription(Strict):
    """Keys with a default are newer than format 1 and missing from older files."""

    name: Name
    tuning: Literal["frozen", "lora", "full"]
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["8bit", "4bit"] | None = None
    lora: LoraDescription | None = None
    files: dict[str, str] | None = None  # see `prefixcap.language.rebuild_language_model`

    @model_validator(mode="after")
    def _has_adapters(self) -> "LanguageModelDescription":
        if self.tuning == "lora" and self.lora is None:
            raise ValueError("tuning is 'lora', but the options of the adapters are missing")
        return self


class TrainedOn(Strict):
    """The keys that are known; a captioner may have more."""

    model_config = ConfigDict(extra="allow")
    data: str | None = None
    store: str | None = None
    images: dict[str, int] = {}
    before: list[str] = []  # data sets that it had learned from already


class PromptsDescription(Strict):
    """Further keys are the provider's own options, see `prefixcap.prompts.check_provider`."""

    model_config = ConfigDict(extra="allow")
    name: Name
    vocabulary: list[str] | None = None  # and no path: files that a stranger names are not read
    max_prompt_tokens: Size | None = None  # missing where prompts are not cut
    first: bool = False  # missing where prompts are read after the prefix


class Description(Strict):
    format_version: int
    mapper: MapperDescription
    normalize_embeddings: bool
    start_token: bool = False  # missing from older files
    language_model: LanguageModelDescription
    encoder: EncoderDescription
    trained_on: TrainedOn
    low_similarity: Annotated[float, Field(ge=-1, le=1)] | None = None  # of the cosine; missing where it is not known
    rerank: Annotated[int, Field(ge=0, le=10_000)] = 0  # missing where the decoder chooses
    prompts: PromptsDescription | None = None  # missing where images have none


def require_description(value: object, source: object) -> dict[str, Any]:
    """Check a description from a file.

    Raises:
        InputError: it has another format or does not match the schema; the message names `source` and the key.
    """
    if not isinstance(value, dict):
        raise InputError(f"{source}: its description is a {type(value).__name__}; {REMEDY}")
    _require_plain(value, source)
    if "format_version" not in value:
        raise InputError(f"{source} holds no captioner: it has no format_version; {REMEDY}")
    if value["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{source} is of format {value['format_version']!r:.40}, but this version of prefixcap reads format "
            f"{FORMAT_VERSION}: use the version of prefixcap that wrote it"
        )
    validate(Description, value, source, REMEDY)
    return value


def _require_plain(value: object, source: object) -> None:
    """Refuse values that are not JSON, and nested lists that are small in the file but, repeated, endless to read."""
    left, waiting = MOST_VALUES, [(value, 0)]
    while waiting:
        inner, depth = waiting.pop()
        left -= 1
        if isinstance(inner, dict) and all(isinstance(key, str) for key in inner):
            within = list(inner.values())
        elif isinstance(inner, list | tuple):
            within = list(inner)
        elif inner is None or isinstance(inner, str | bool | float) or (isinstance(inner, int) and abs(inner) < 2**63):
            continue
        else:
            raise InputError(f"{source}: its description holds a {type(inner).__name__} that is not JSON; {REMEDY}")
        waiting += [(one, depth + 1) for one in within]
        if left < len(waiting) or depth > 100:
            raise InputError(f"{source}: its description is nested too deeply, or has too many values; {REMEDY}")


def require_mapper(
    options: Mapping[str, Any], embedding_dim: int, lm_dim: int, weights: Shapes, source: object
) -> None:
    """Check, without allocating memory, that the weights of a file fit the mapper of its description.

    Args:
        options: of `build_mapper`, with the mapper's name.
        embedding_dim, lm_dim: width of embeddings, and of the language model's word embeddings.
        weights: shapes of the captioner's weights.
        source: the file.

    Raises:
        InputError: there is no such mapper, an option is unknown or has another type, or a weight is missing, unknown
            or of another shape.
    """
    name = options["name"]
    weights = {name: shape for name, shape in weights.items() if name.startswith("mapper.")}
    if name not in MAPPERS:
        raise InputError(f"{source}: unknown mapper '{name}': choose one of {', '.join(MAPPERS)}")
    given = {option: value for option, value in options.items() if option != "name"}
    try:
        check_options(f"{source}: mapper", MAPPERS[name], given, positional=2)
    except InputError as error:
        raise InputError(f"{error}; {REMEDY}") from error
    for option, value in given.items():
        count = len(value) if isinstance(value, list | tuple) else value if "layer" in option else 0
        if isinstance(count, int) and count > len(weights):  # building each layer would take time
            raise InputError(f"{source}: mapper.{option} is {count:,}, but there are {len(weights)} weights; {REMEDY}")
    try:
        with torch.device("meta"):
            mapper = build_mapper(embedding_dim=embedding_dim, lm_dim=lm_dim, **options)
    except InputError as error:
        raise InputError(f"{source}: {error}; {REMEDY}") from error
    except Exception as error:
        if not MAPPERS[name].__module__.startswith("prefixcap."):
            return  # a user's own mapper may not support meta tensors
        raise InputError(f"{source}: mapper '{name}' cannot be built with {given} ({error}); {REMEDY}") from error
    expected = {f"mapper.{name}": tuple(weight.shape) for name, weight in mapper.state_dict().items()}
    require_shapes(weights, expected, source)
