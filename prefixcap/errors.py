"""The errors that users are meant to read: one line that says what is wrong, where, and what to do about it."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

_MOST_NAMED = 10


class InputError(ValueError):
    """A mistake in the input, described in one line: what is wrong, where, and what to do about it.

    The commands print the message without a traceback and exit with status 2.
    """


class OptionError(InputError):
    """A mistake that another value of an option corrects.

    The message names options as Python arguments; `spell_options` rewrites it for users who type them differently.

    Args:
        problem: what is wrong.
        options: values that correct it, by name; if there are several options, each of them does.

    Examples:
        >>> error = OptionError("4bit weights cannot be trained", tuning="lora")
        >>> print(error)
        4bit weights cannot be trained: set tuning='lora'
        >>> error.spelled("model.lm_{}".format)
        '4bit weights cannot be trained: set model.lm_tuning=lora'
    """

    def __init__(self, problem: str, **options: object) -> None:
        super().__init__(f"{problem}: set " + " or ".join(f"{name}={value!r}" for name, value in options.items()))
        self.problem, self.options = problem, options

    def spelled(self, spell: Callable[[str], str], verb: str = "set") -> str:
        """The message with options as a command line or a configuration takes them.

        Args:
            spell: what the user types for the option called so in Python.
            verb: what the user does with an option, e.g. "give".
        """
        return f"{self.problem}: {verb} " + " or ".join(
            f"{spell(name)}={value if isinstance(value, str) else json.dumps(value)}"
            for name, value in self.options.items()
        )


class RowsError(InputError):
    """A mistake in some rows of the input. `name_rows` replaces the row numbers by the ids of their images.

    Args:
        what: the rows of what, e.g. "captions".
        rows: their numbers.
        problem: what is wrong with these rows, and what to do about it.
    """

    def __init__(self, what: str, rows: Sequence[int], problem: str) -> None:
        super().__init__(f"{what}: {listed('row', rows)} {problem}")
        self.what, self.rows, self.problem = what, rows, problem


@contextmanager
def spell_options(spell: Callable[[str], str], verb: str = "set") -> Iterator[None]:
    """Within this context, an OptionError becomes an InputError with options as the user types them, see
    `OptionError.spelled`."""
    try:
        yield
    except OptionError as error:
        raise InputError(error.spelled(spell, verb)) from error


@contextmanager
def name_rows(images: Iterable[int | str]) -> Iterator[None]:
    """Within this context, a RowsError becomes an InputError that names images; `images` are the ids of all rows."""
    try:
        yield
    except RowsError as error:
        ids = list(images)
        named = listed("image", [repr(ids[row]) for row in error.rows])
        raise InputError(f"{error.what}: {named} {error.problem}") from error


def listed(noun: str, names: Sequence[object]) -> str:
    """`row 3`, or `rows 3, 7, …`: the first ten names, and how many more there are."""
    named = ", ".join(map(str, names[:_MOST_NAMED]))
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return f"{noun}{'' if len(names) == 1 else 's'} {named}{more}"


def first_line(error: Exception) -> str:
    """The first line of a message, to quote in an InputError: other libraries' messages may have pages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
