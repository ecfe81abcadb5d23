"""Matrices of figures as text, for any number of rows and columns."""

from collections.abc import Sequence

_COLUMNS = 10  # beside each other: with figures of seven characters and a sign they fit 100 characters


def label(number: int) -> str:
    """A to Z for 0 to 25, then A2 to Z2 and so on."""
    return chr(ord("A") + number % 26) + (str(number // 26 + 1) if number > 25 else "")


def number(value: float) -> str:
    """Four digits after the point, or one where there are three or more before it."""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"


def signed(value: float) -> str:
    """Likewise, with its sign."""
    return ("" if value < 0 else "+") + number(value)


def matrix(names: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A square of cells with names on both sides; columns beyond the tenth stand below the others.

    Examples:
        >>> print(matrix("AB", [["-", "+0.1"], ["0.5", "-"]]))
             A     B
        A    -  +0.1
        B  0.5     -
    """
    bands = []
    for start in range(0, len(names), _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        rows = [["", *names[columns]], *([name, *row[columns]] for name, row in zip(names, cells, strict=True))]
        bands.append(aligned(rows, spaces=2))
    return "\n".join(bands)


def aligned(rows: Sequence[Sequence[str]], spaces: int) -> str:
    """Rows of cells as text, with this many spaces between columns: the first aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        right = [f"{'':{spaces}}{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append(f"{name:<{widths[0]}}" + "".join(right))
    return "\n".join(lines)
