"""Input from outside is checked once, where it enters, against one schema for each kind of file."""

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from prefixcap.errors import InputError

T = TypeVar("T")

_MOST_CHARACTERS = 80  # of a wrong value in a message


def validate(schema: type[T], value: object, source: object, remedy: str) -> T:
    """A value from outside, as an instance of a schema.

    Args:
        schema: a pydantic model, or a type of JSON values such as `dict[str, int]`. Nothing is converted: a number in a
            string is not a number.
        value: what was read, e.g. by `prefixcap.utils.files.read_json`.
        source: where it comes from, for the message.
        remedy: what to do about it, for the message.

    Raises:
        InputError: the value does not fit the schema; the message names the first place that does not.

    Examples:
        >>> validate(dict[str, int], {"train": 6000}, "index.json", "embed again")
        {'train': 6000}
        >>> validate(dict[str, int], {"train": "all"}, "index.json", "embed again")
        Traceback (most recent call last):
        ...
        prefixcap.errors.InputError: index.json: train: Input should be a valid integer, not 'all'; embed again
    """
    try:
        validated: T = TypeAdapter(schema).validate_python(value, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        given = "" if problem["type"] == "missing" else f", not {shortened(problem['input'])}"
        raise InputError(f"{source}: {place + ': ' if place else ''}{message}{given}; {remedy}") from error
    return validated


def shortened(value: object) -> str:
    """A wrong value, on one line and short enough for a message."""
    if isinstance(value, dict | list | tuple | set) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value):,}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists
        return f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
