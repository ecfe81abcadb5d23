"""Where the columns of a part lie in its file: what HDF5 says, checked against what `write_part` writes.

Rows are read through a memory map, so that a column must be one contiguous run of bytes of its own file: no chunks,
filters, external or virtual storage, and no links. HDF5 reads those, too, but a memory map of them shows other bytes.
"""

import math
from typing import Any, NamedTuple

import h5py
import numpy as np

from prefixcap.store.heap import STRING

GROUPS = ("captions", "images", "skipped")
SPLIT = "images/split"  # names when read, numbers (an HDF5 enumeration) in the file
IDS = ("images/id", "skipped/id")  # integers or strings
STRINGS = ("images/file", "images/domain", "skipped/file", "skipped/reason")
FEATURES = (np.float16, np.float32)
NUMBERS = {"captions/text": np.uint8, "captions/text_end": np.int64, "captions/image": np.int64}
# Axes of the features that every store may have; those of other features are not known.
RANKS = {
    "captions/embedding": 2,
    "images/attention": 2,
    "images/embedding": 2,
    "images/hidden": 3,
    "images/patches": 3,
    "images/regions": 3,
}
MOST_COLUMNS = 64  # of a group
MOST_ROW_BYTES = 2**30


class LayoutError(ValueError):
    """A file is not laid out as `write_part` does it; the message is the reason, to follow the file's name."""


class Place(NamedTuple):
    """Where a column lies.

    Attributes:
        offset: of its first byte in the file; None: it has no rows.
        dtype: of its rows, `object` for strings.
        shape: of all rows.
    """

    offset: int | None
    dtype: Any
    shape: tuple[int, ...]


def read_layout(file: Any, size: int) -> dict[str, Place]:
    """The columns of an HDF5 file, by name, without reading any row.

    Args:
        file: opened.
        size: in bytes.

    Raises:
        LayoutError: it has other columns or types than a part, their rows lie elsewhere or do not fit into the file, or
            columns differ in their number of rows.
    """
    if file.userblock_size or file.id.get_create_plist().get_sizes() != (8, 8):
        raise LayoutError("has another kind of HDF5 header than this program writes")
    if len(file) != len(GROUPS) or set(file) != set(GROUPS):
        raise LayoutError(f"has other groups than {', '.join(GROUPS)}")
    layout = {}
    for group in GROUPS:
        columns = _own(file, group, h5py.Group)
        if len(columns) > MOST_COLUMNS:
            raise LayoutError(f"has {len(columns):,} columns of {group}")
        for name in columns:
            layout[f"{group}/{name}"] = _place(_own(columns, name, h5py.Dataset), f"{group}/{name}", size)
    if missing := {*IDS, *STRINGS, *NUMBERS, SPLIT} - layout.keys():
        raise LayoutError(f"lacks {min(missing)}")
    _require_equal_lengths(layout)
    return layout


def _own(parent: Any, name: str, kind: type) -> Any:
    """A group or a column that lies in `parent` itself."""
    if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
        raise LayoutError(f"has a link in place of {name}")
    if not isinstance(child := parent[name], kind):
        raise LayoutError(f"has a {type(child).__name__.lower()} of the name {name}")
    return child


def _place(column: Any, name: str, size: int) -> Place:
    storage, shape = column.id.get_create_plist(), column.shape
    if storage.get_layout() != h5py.h5d.CONTIGUOUS or storage.get_external_count() or storage.get_nfilters():
        raise LayoutError(f"holds {name} in chunks, compressed, or outside of the file")
    axes = RANKS.get(name, None if _number_types(name) == FEATURES else 1)
    itemsize = _item_bytes(column, name)
    if not shape or axes not in (None, len(shape)) or not 0 < math.prod(shape[1:]) * itemsize <= MOST_ROW_BYTES:
        raise LayoutError(f"holds {name} of shape {shape}")
    offset = column.id.get_offset() if shape[0] else None
    if shape[0] and (offset is None or offset + math.prod(shape) * itemsize > size):
        raise LayoutError(f"does not hold the {shape[0]:,} rows that {name} should have")
    return Place(offset, column.dtype, shape)


def _item_bytes(column: Any, name: str) -> int:
    """The bytes of one number or string in the file. Raises LayoutError if they are of another type than we write."""
    stored, dtype = column.id.get_type(), column.dtype
    if (text := h5py.check_string_dtype(dtype)) is not None:
        if name in (*IDS, *STRINGS) and text.length is None:
            return STRING.itemsize
    elif (codes := h5py.check_enum_dtype(dtype)) is not None:
        numbered = sorted(codes.values()) == list(range(len(codes)))
        if name == SPLIT and stored.get_super() == _stored(np.uint16) and numbered:
            return int(dtype.itemsize)
    elif any(stored == _stored(number) for number in _number_types(name)):
        return int(dtype.itemsize)
    raise LayoutError(f"holds {name} as {dtype}")


def _number_types(name: str) -> tuple[type, ...]:
    """What the numbers of a column may be; none, where it holds no plain numbers."""
    if name in NUMBERS:
        return (NUMBERS[name],)
    if name in IDS:
        return (np.int64,)
    return () if name in (*STRINGS, SPLIT) or name.startswith("skipped/") else FEATURES


def _stored(number: type) -> Any:
    """The type that HDF5 has for a type of numbers."""
    return h5py.h5t.py_create(np.dtype(number))


def _require_equal_lengths(layout: dict[str, Place]) -> None:
    counted = {"captions": "captions/image", "images": "images/id", "skipped": "skipped/id"}
    for name, place in layout.items():
        rows = layout[counted[name.partition("/")[0]]].shape[0]
        if name != "captions/text" and place.shape[0] != rows:
            raise LayoutError(f"has {place.shape[0]} rows of {name} where {rows} belong")
