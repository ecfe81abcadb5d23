"""The shapes that are chosen for a data set's batches."""

import numpy as np
import pytest

from prefixcap.data.shapes import choose_shapes
from prefixcap.packing import Layout, lay_out


def drawn(batches: int, captions: int, together: int, seed: int) -> list[Layout]:
    """Batches of captions about as long as COCO's (10.5 words, rarely 40), with so many of an image together."""
    generator = np.random.default_rng(seed)
    lengths = 8 + generator.gamma(2.0, 2.0, (batches, captions)).astype(np.int64).clip(max=40)
    owner = np.repeat(np.arange(captions // together), together)
    return [lay_out(own, owner, captions // together, 10) for own in lengths]


@pytest.mark.parametrize(("captions", "together"), [(40, 1), (40, 5), (320, 1), (320, 5)])
def test_shapes_hold_nearly_all_batches_with_little_padding(captions: int, together: int) -> None:
    shapes = choose_shapes(drawn(256, captions, together, seed=0))
    assert shapes == choose_shapes(drawn(256, captions, together, seed=0)) and len(shapes) <= 4
    laid = [
        lay_out(own.lengths, own.owner, len(own.sizes), 10, shapes=shapes)
        for own in drawn(1000, captions, together, seed=1)
    ]
    held = [own for own in laid if own.padded is not None]
    assert len(held) >= 998 and {own.padded for own in held} == set(shapes)
    for own in held:
        assert own.padded is not None and own.padded.holds(own.shape)
        assert own.shape.rows == own.padded.rows and own.shape.length == own.padded.length
    # The share of positions, of tokens and of images that is padding.
    positions = sum(own.padded.rows * own.padded.length for own in held if own.padded)
    assert sum(own.sizes.sum() for own in held) > 0.9 * positions
    assert sum(own.shape.targets for own in held) > 0.9 * sum(own.padded.targets for own in held if own.padded)
    assert all(own.shape.images == own.padded.images for own in held if own.padded)


def test_a_batch_takes_the_smallest_shape_that_holds_it() -> None:
    shapes = choose_shapes(drawn(50, 40, 1, seed=0))
    for own in drawn(50, 40, 1, seed=2):
        alone = [lay_out(own.lengths, own.owner, 40, 10, shapes=[shape]).padded for shape in shapes]
        smallest = next((shape for shape in alone if shape is not None), None)
        assert lay_out(own.lengths, own.owner, 40, 10, shapes=shapes).padded == smallest
    last = lay_out(np.array([9, 8]), np.array([0, 1]), 2, 10, shapes=shapes)  # the rest of an epoch
    assert last.padded == shapes[0]
    huge = lay_out(np.full(40, 60), np.arange(40), 40, 10, shapes=shapes)
    assert huge.padded is None and huge.shape.input_ids == 40 * 59
