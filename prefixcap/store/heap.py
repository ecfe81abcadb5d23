"""Strings of an HDF5 file, read from its bytes.

In a column each string is its length and a place in a "global heap": one of many collections of numbered objects (HDF5
File Format Specification, III.E). HDF5 itself trusts these, and never returns on some that are damaged.
"""

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

STRING = np.dtype([("length", "<u4"), ("collection", "<u8"), ("number", "<u4")])  # as it lies in a column
_COLLECTION = struct.Struct("<4sB3xQ")  # signature, version, size
_OBJECT = struct.Struct("<HHIQ")  # number, references, nothing, size; then the object, up to a multiple of 8 bytes


def read_strings(content: NDArray[np.uint8], offset: int, count: int) -> list[str]:
    """The strings of a column.

    Args:
        content: of the file.
        offset: of the column in it.
        count: rows of the column.

    Raises:
        ValueError: they are not there, or are not UTF-8.
    """
    column = content[offset : offset + count * STRING.itemsize].view(STRING)
    # A file of some kilobytes can name the same megabytes of letters a million times.
    if int(column["length"].sum(dtype=np.int64)) > len(content):
        raise ValueError("strings overlap")
    opened: dict[int, dict[int, bytes]] = {}
    strings = []
    for length, collection, number in column.tolist():
        if length and collection not in opened:
            opened[collection] = dict(_objects(content, collection))
        text = opened[collection].get(number, b"") if length else b""
        if len(text) != length:
            raise ValueError("a string is not where it should be")
        strings.append(text.decode())
    return strings


def _objects(content: NDArray[np.uint8], start: int) -> Iterator[tuple[int, bytes]]:
    """The objects of a collection, each with its number."""
    signature, version, size = _COLLECTION.unpack(content[start : start + _COLLECTION.size].tobytes())
    if (signature, version) != (b"GCOL", 1) or size > len(content) - start:
        raise ValueError("a collection is not where it should be")
    collection = content[start : start + size].tobytes()
    place = _COLLECTION.size
    while place + _OBJECT.size <= size:
        number, _, _, length = _OBJECT.unpack_from(collection, place)
        place += _OBJECT.size
        if number == 0:  # the rest is free
            return
        if length > size - place:
            raise ValueError("an object is larger than its collection")
        yield number, collection[place : place + length]
        place += -(-length // 8) * 8
