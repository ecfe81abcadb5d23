"""Options by name: which ones a function, a mapper or a dataclass takes, and whether a value is valid.

The declaration is the signature itself. The type of a value and the range of a number are in its annotation, as in
`top_p: Annotated[float, Interval(gt=0.0, le=1.0)] = 0.9`, and apply wherever the option comes from: Python, the command
line, a configuration, the HTTP API.
"""

import inspect
import math
import operator
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Interval

from prefixcap.errors import InputError
from prefixcap.utils.validation import shortened

Positive = Annotated[int, Ge(1)]
Count = Annotated[int, Interval(ge=1, le=10_000)]  # of what is kept in memory at once
NonNegative = Annotated[float, Ge(0.0)]
Proportion = Annotated[float, Interval(ge=0.0, le=1.0)]
Seed = Annotated[int, Interval(ge=0, lt=2**63)]
Dtype = Literal["float32", "bfloat16", "float16"]  # of weights
Quantization = Literal["8bit", "4bit"]

_KINDS: dict[type | None, str] = {int: "an integer", float: "a finite number", str: "a text", bool: "true or false"}
_COMPARISONS = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def check_options(
    source: str,
    declared: Callable[..., object],
    options: Mapping[str, Any],
    positional: int = 0,
    known: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Options that a function or class takes by name, checked against its signature.

    Args:
        source: what takes them, for the message, e.g. "decoder 'beam'".
        declared: the function or class.
        options: by name.
        positional: how many of its first parameters are not options.
        known: the options to choose from, for the message; None: its own.

    Returns:
        The same options, numbers as plain int or float. Values of other types than numbers, strings, bool, Literal and
        sequences of these are not checked.

    Raises:
        InputError: there is no such option, one is missing, or a value is of another type or out of range.

    Examples:
        >>> def decoder(prefix, beams: Positive = 5): ...
        >>> check_options("decoder", decoder, {"beams": 3}, positional=1)
        {'beams': 3}
        >>> check_options("decoder", decoder, {"beams": 2.5}, positional=1)
        Traceback (most recent call last):
        ...
        prefixcap.errors.InputError: decoder: beams must be an integer of at least 1, not 2.5
    """
    signature = signature_of(declared)
    takes = dict(list(signature.parameters.items())[positional:])
    try:
        signature.bind(*[None] * positional, **options)
    except TypeError as error:
        names = ", ".join(takes if known is None else known)
        raise InputError(f"{source}: {error}; its options: {names or 'none'}") from error
    annotations = {name: parameter.annotation for name, parameter in takes.items()}
    return {
        name: check_value(f"{source}: {name}", value, annotations.get(name, Any)) for name, value in options.items()
    }


def check_fields(options: Any, before: str = "") -> None:
    """Check each field of a frozen dataclass against its annotation, in its `__post_init__`; `before` precedes names in
    messages. Raises as `check_options`."""
    annotations = get_type_hints(type(options), include_extras=True)
    for field in fields(options):
        value = check_value(before + field.name, getattr(options, field.name), annotations[field.name])
        object.__setattr__(options, field.name, value)


def signature_of(declared: Callable[..., object]) -> inspect.Signature:
    """The signature of a function or class, with string annotations evaluated where possible."""
    try:
        return inspect.signature(declared, eval_str=True)
    except NameError:  # a name that is only imported for type checkers
        return inspect.signature(declared)


@dataclass(frozen=True)
class Option:
    """A parameter of a function or class as its signature and its docstring declare it.

    Attributes:
        annotation: of its values.
        default: `inspect.Parameter.empty` if it has none.
        description: from the `Args` (or `Attributes`) of the docstring; "" if they do not name it.
    """

    annotation: Any
    default: Any
    description: str

    @property
    def kind(self) -> type | None:
        """int, float, str or bool; None: another type."""
        return kind_of(self.annotation)

    @property
    def bounds(self) -> dict[str, Any]:
        """The range of a number, e.g. {"ge": 1, "le": 10}."""
        return _bounds(_without_none(self.annotation))

    def parse(self, text: str) -> Any:
        """The value that a text stands for. Raises ValueError if it is of another kind."""
        if self.kind is bool:
            if text not in ("true", "false"):
                raise ValueError(text)
            return text == "true"
        return text if self.kind is None else self.kind(text)


def declared_options(declared: Callable[..., object], positional: int = 0) -> dict[str, Option]:
    """The parameters of a function or class after its first `positional` ones, by name.

    Examples:
        >>> def decoder(prefix, beams: Positive = 5):
        ...     '''Beam search.
        ...
        ...     Args:
        ...         beams: captions kept at each step.
        ...     '''
        >>> option = declared_options(decoder, positional=1)["beams"]
        >>> option.default, option.bounds, option.description
        (5, {'ge': 1}, 'captions kept at each step')
    """
    parameters = list(signature_of(declared).parameters.values())[positional:]
    described = _descriptions(declared)
    return {each.name: Option(each.annotation, each.default, described.get(each.name, "")) for each in parameters}


def summary(declared: Callable[..., object]) -> str:
    """The first line of a docstring without the full stop at its end; "" if there is none."""
    return (inspect.getdoc(declared) or "").partition("\n")[0].removesuffix(".")


def _descriptions(declared: Callable[..., object]) -> dict[str, str]:
    """What the `Args` or `Attributes` of a docstring say of each name, on one line without the full stop at its end."""
    section = re.search(r"^(?:Args|Attributes):\n((?: .*\n?|\n)*)", inspect.getdoc(declared) or "", re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()).removesuffix(".") for name, text in entries}


def kind_of(annotation: object) -> type | None:
    """int, float, str or bool if that is the type of an annotation, with or without None; otherwise None."""
    kind = _without_none(annotation)
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return kind if kind in _KINDS else None


def check_value(name: str, value: Any, annotation: Any) -> Any:
    """A value checked against its annotation, see `check_options`.

    Raises:
        InputError: it is of another type or out of range.
    """
    wanted = _without_none(annotation)
    if value is None and wanted is not annotation:
        return None
    kind = kind_of(wanted)
    origin = get_origin(wanted)
    if kind is not None:
        plain = _plain(value, kind)
        if plain is None or (kind is float and not math.isfinite(plain)):
            raise InputError(f"{name} must be {_KINDS[kind]}{_range(wanted, ' of')}, not {shortened(value)}")
        if not all(_COMPARISONS[bound](plain, limit) for bound, limit in _bounds(wanted).items()):
            raise InputError(f"{name} must be{_range(wanted)}, not {shortened(value)}")
        return plain
    if origin is Literal:
        if not isinstance(value, str) or value not in get_args(wanted):
            source, colon, option = name.rpartition(": ")
            choices = ", ".join(map(str, get_args(wanted)))
            raise InputError(f"{source}{colon}unknown {option} '{value}': choose one of {choices}")
    elif isinstance(origin, type) and issubclass(origin, Sequence) and origin is not tuple:
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise InputError(f"{name} must be a list, not {shortened(value)}")
        return [check_value(f"{name}[{place}]", item, get_args(wanted)[0]) for place, item in enumerate(value)]
    return value


def _without_none(annotation: Any) -> Any:
    """X of `X | None`; any other annotation unchanged."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    others = [kind for kind in get_args(annotation) if kind is not type(None)]
    return others[0] if len(others) == 1 and len(others) < len(get_args(annotation)) else annotation


def _plain(value: Any, kind: type) -> Any:
    """The value as a plain int, float, str or bool, also from NumPy's numbers; None: it has another type."""
    if kind in (str, bool) or isinstance(value, bool):
        return value if isinstance(value, kind) and (kind is not int) else None
    if kind is int:
        return int(value) if isinstance(value, Integral) else None
    try:
        return float(value) if isinstance(value, Real) else None
    except OverflowError:  # of a large integer
        return math.inf


def _bounds(annotation: Any) -> dict[str, Any]:
    """{"ge": 1, "le": 10} of `Annotated[int, Interval(ge=1, le=10)]`."""
    kind, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (None,)
    # `typing` caches annotations with equal bounds as one: 0 may stand for 0.0.
    as_kind = float if kind is float else lambda bound: bound
    return {name: as_kind(bound) for mark in marks for name, bound in asdict(mark).items() if bound is not None}


def _range(annotation: Any, link: str = "") -> str:
    """E.g. " at least 1", " above 0.0 and at most 1.0", " between 0 and 1"; `link` before "at least" and "at most"."""
    bounds = _bounds(annotation)
    if "ge" in bounds and "le" in bounds:
        return f" between {bounds['ge']} and {bounds['le']}"
    limits = " and ".join(f"{_WORDS[name]} {limit}" for name, limit in bounds.items())
    return f"{link if limits.startswith('at ') else ''} {limits}".rstrip()
