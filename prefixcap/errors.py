"""The exceptions that users are meant to read."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

_MOST_NAMED = 10


class InputError(ValueError):
    """A mistake in what was given, told in one line: what is wrong, where, and what to do about it.

    The scripts print its message without a traceback and exit with status 2.
    """


class OptionError(InputError):
    """A mistake that another value of an option mends. Who knows how its user spells options says so, see
    `spell_options`.

    Args:
        problem: what is wrong.
        name: of the option.
        value: that mends it.
    """

    def __init__(self, problem: str, name: str, value: object) -> None:
        super().__init__(f"{problem}: set {name}={value}")
        self.problem, self.name, self.value = problem, name, value


class RowsError(InputError):
    """A mistake in some rows of what was given. Who knows which images they are says so, see `name_rows`.

    Args:
        what: is wrong, e.g. "captions".
        rows: their numbers.
        problem: of these rows, and what to do about it.
    """

    def __init__(self, what: str, rows: Sequence[int], problem: str) -> None:
        super().__init__(f"{what}: {listed('row', rows)} {problem}")
        self.what, self.rows, self.problem = what, rows, problem


@contextmanager
def spell_options(before: str) -> Iterator[None]:
    """Within it, what mends a mistake is told as its user types it: `give --set beams=10`, where "give --set " stands
    before the name."""
    try:
        yield
    except OptionError as error:
        raise InputError(f"{error.problem}: {before}{error.name}={error.value}") from error


@contextmanager
def name_rows(images: Iterable[int | str]) -> Iterator[None]:
    """Within it, mistakes in rows are told with the ids of the images that the rows are of."""
    try:
        yield
    except RowsError as error:
        ids = list(images)
        named = listed("image", [repr(ids[row]) for row in error.rows])
        raise InputError(f"{error.what}: {named} {error.problem}") from error


def listed(noun: str, names: Sequence[object]) -> str:
    """`row 3`, or `rows 3, 7, …`: the first ten, and how many more there are."""
    named = ", ".join(map(str, names[:_MOST_NAMED]))
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return f"{noun}{'' if len(names) == 1 else 's'} {named}{more}"
