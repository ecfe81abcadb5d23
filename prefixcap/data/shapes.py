"""A few shapes that a data set's batches are padded to, so that few CUDA graphs read all of them.

Shapes: B batches, R rows, L positions of a row.
"""

import math
from collections.abc import Sequence

import numpy as np

from prefixcap.packing import MULTIPLE, BatchShape, Layout, assign_rows

_SHARES = (0.35, 0.7, 0.95, 1.0)  # of the batches, those that each shape holds: more shapes leave less padding
_TRIED = 16  # of these batches, the largest, whose images are distributed over rows to see whether they fit
_LENGTHS = (64, 320)  # of a row: shorter ones leave more padding
_ATTENTION = 2048  # length of a row at which attention takes about as long as all else


def choose_shapes(layouts: Sequence[Layout]) -> list[BatchShape]:
    """Shapes for batches like these, the smallest first.

    Args:
        layouts: of B batches, drawn as in training. A rare one that is larger than all of them is allowed for: the last
            shape exceeds them by half of the distance from the median to the maximum, and its rows by a few positions.

    Returns:
        At most 4 shapes.
    """
    ordered = sorted(layouts, key=lambda layout: int(layout.sizes.sum()))
    sizes = np.array(
        [
            (each.sizes.sum(), each.sizes.max(), each.shape.images, each.shape.input_ids, each.shape.targets)
            for each in ordered
        ]
    )  # (B, 5)
    shapes: list[BatchShape] = []
    for share in _SHARES:
        held = math.ceil(share * len(ordered))
        is_last = held == len(ordered)
        most = sizes[:held].max(axis=0)  # (5,)
        if is_last:
            most += (most - np.median(sizes, axis=0).astype(np.int64)) // 2
        positions, largest, images, input_ids, targets = most.tolist()
        rows, length = _rows(positions, largest, images, ordered[max(0, held - _TRIED) : held])
        shapes.append(BatchShape(images, rows, length + MULTIPLE * is_last, input_ids, targets))
    return list(dict.fromkeys(shapes))


def _rows(positions: int, largest: int, images: int, layouts: Sequence[Layout]) -> tuple[int, int]:
    """R and L that take the least time of those that hold batches.

    Args:
        positions: that the images of a batch take.
        largest: positions that one image takes.
        images: of a batch.
        layouts: of batches that must fit.
    """
    shortest, longest = (-(-max(length, largest) // MULTIPLE) * MULTIPLE for length in _LENGTHS)
    lengths = range(shortest, longest + MULTIPLE, MULTIPLE)
    fewest = [(-(-positions // length), length) for length in lengths]
    candidates = [(rows + more * max(1, rows // 32), length) for rows, length in fewest for more in range(8)]
    candidates.append((images, shortest))  # a row for each image, which holds any
    candidates.sort(key=lambda size: size[0] * size[1] * (1 + size[1] / _ATTENTION))
    return next(size for size in candidates if all(_fits(layout, *size) for layout in layouts))


def _fits(layout: Layout, rows: int, length: int) -> bool:
    _, column = assign_rows(layout.sizes, rows)
    return int((column + layout.sizes).max()) <= length
