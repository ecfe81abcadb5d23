"""What all figures share: matplotlib, atomic PNG files, and how their commands start."""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefixcap.errors import InputError
from prefixcap.utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Raise InputError if matplotlib is not installed; call it before anything is computed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError('drawing needs matplotlib: pip install "prefixcap[plot]"')


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as a PNG with 150 pixels per inch. Raises InputError as `atomic_write` does."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def command_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a command `python -m MODULE`, whose `--help` shows the description as it is."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_command(
    parser: argparse.ArgumentParser, draw: Callable[[argparse.Namespace], str], arguments: Sequence[str] | None
) -> None:
    """Let a command draw, and print what it says of that.

    A mistake of the user (an InputError) is printed to stderr as one line, and ends the process with status 2.
    """
    given = parser.parse_args(arguments)
    try:
        require_matplotlib()
        print(draw(given))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
