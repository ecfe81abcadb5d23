"""Reads files of MATLAB, level 5 (`save -v6` and `-v7`): texts, numbers, cells and structures, and nothing else.

The format is that of MathWorks, "MAT-File Format", in the order of bytes of today's machines. A file may come from
anywhere, so all of it is checked as it is read: some damaged ones end the process where scipy reads them.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from prefixcap.errors import InputError

Value: TypeAlias = Any
"""A text is a str, numbers are a list of floats; cells are a list of values, structures a list of lists of fields."""

_WORDS = struct.Struct("<II")
_HEADER = 128  # bytes
_MOST_BYTES = 1 << 30  # of a variable, unpacked
_DEEPEST = 20  # cells in cells
_MATRIX, _PACKED = 14, 15  # types of elements
_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}  # as `struct` calls them
_TEXTS = {16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
_CELL, _STRUCTURE, _TEXT = 1, 2, 4  # kinds of matrices
_NUMERIC = range(6, 16)


class _Damaged(Exception):
    """The file is not what the format says; the message says where it differs."""


class _Element(NamedTuple):
    kind: int
    content: memoryview


def read_matlab(path: str | Path) -> dict[str, Value]:
    """The variables of a file by name.

    Raises:
        InputError: the file cannot be read, is damaged, of another level, or holds other kinds of variables.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if content[126:_HEADER] != b"IM":
        raise InputError(f"{path} is no file of MATLAB, level 5; is it the right file?")
    if content.startswith(b"MATLAB 7.3"):
        raise InputError(f"{path} is a file of MATLAB 7.3, which is another format: save it with -v7")
    try:
        matrices = [_unpacked(element) for element in _elements(memoryview(content)[_HEADER:])]
        return dict(_matrix(matrix.content, 0) for matrix in matrices if matrix.kind == _MATRIX)
    except (_Damaged, struct.error, zlib.error, ValueError, OverflowError) as error:
        raise InputError(f"{path} is damaged, or no file of texts, numbers, cells and structures: {error}") from error


def _elements(content: memoryview) -> Iterator[_Element]:
    """The elements that follow one another."""
    start = 0
    while start < len(content):
        kind, size = _WORDS.unpack_from(content, start)
        if kind >> 16:  # a small element: its size is in the upper half, and its content in the second word
            size, kind = kind >> 16, kind & 0xFFFF
            if size > 4:
                raise _Damaged(f"a small element of {size} bytes")
            yield _Element(kind, content[start + 4 : start + 4 + size])
            start += 8
            continue
        start += 8
        if start + size > len(content):
            raise _Damaged(f"an element of {size:,} bytes where {len(content) - start:,} are left")
        yield _Element(kind, content[start : start + size])
        start += size if kind == _PACKED else (size + 7) // 8 * 8


def _unpacked(element: _Element) -> _Element:
    """The one element in a packed one; any other as it is."""
    if element.kind != _PACKED:
        return element
    program = zlib.decompressobj()
    content = program.decompress(element.content, _MOST_BYTES)
    if program.unconsumed_tail:
        raise _Damaged(f"a variable of more than {_MOST_BYTES:,} bytes")
    inner = next(_elements(memoryview(content)), None)
    if inner is None or inner.kind == _PACKED:
        raise _Damaged("a packed element without content")
    return inner


def _matrix(content: memoryview, depth: int) -> tuple[str, Value]:
    """The name of a variable and its value."""
    if depth > _DEEPEST:
        raise _Damaged(f"more than {_DEEPEST} cells within one another")
    if not content:
        return "", []
    parts = _elements(content)
    flags, dimensions, name = (_next(parts) for _ in range(3))
    kind = int(_numbers(flags)[0]) & 0xFF if len(flags.content) == 8 else 0
    count = 1
    for size in _numbers(dimensions):
        count *= max(0, int(size))
    if kind == _CELL:
        return _name(name), _values(parts, count, len(content), depth)
    if kind == _STRUCTURE:
        width, names = _numbers(_next(parts)), _next(parts).content
        if not width or width[0] < 1 or len(names) < width[0]:
            raise _Damaged("a structure without fields")
        fields = len(names) // int(width[0])
        values = _values(parts, count * fields, len(content), depth)
        return _name(name), [values[start : start + fields] for start in range(0, len(values), fields)]
    if kind == _TEXT:
        return _name(name), _text(next(parts, None))
    if kind in _NUMERIC:
        return _name(name), _numbers(next(parts, None))
    raise _Damaged(f"a variable of kind {kind}")


def _values(parts: Iterator[_Element], count: int, size: int, depth: int) -> list[Value]:
    if 8 * count > size:  # each takes eight bytes at least
        raise _Damaged(f"{count:,} cells in {size:,} bytes")
    values = []
    for _ in range(count):
        part = _next(parts)
        if part.kind != _MATRIX:
            raise _Damaged(f"an element of type {part.kind} where a matrix belongs")
        values.append(_matrix(part.content, depth + 1)[1])
    return values


def _next(parts: Iterator[_Element]) -> _Element:
    part = next(parts, None)
    if part is None:
        raise _Damaged("a matrix that ends too early")
    return part


def _numbers(element: _Element | None) -> list[float]:
    if element is None:
        return []
    letter = _NUMBERS.get(element.kind)
    if letter is None:
        raise _Damaged(f"an element of type {element.kind} where numbers belong")
    count = len(element.content) // struct.calcsize(f"<{letter}")
    return [float(number) for number in struct.unpack_from(f"<{count}{letter}", element.content)]


def _text(element: _Element | None) -> str:
    if element is None:
        return ""
    if element.kind in _TEXTS:
        return bytes(element.content).decode(_TEXTS[element.kind])
    numbers = [int(number) for number in _numbers(element)]
    if any(not 0 <= number < 0x110000 for number in numbers):
        raise _Damaged("a character that is none")
    return "".join(map(chr, numbers)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _name(element: _Element) -> str:
    return bytes(element.content).decode("ascii", "replace")
