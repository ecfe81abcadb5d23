"""Batches of captions: how long one takes to make, and how much of it is padding, beside the published recipe's.

Captions as long as those of a data set (words and signs, and the end), each with an image of its own or together with
those of its image. The published recipe: a row for each caption, padded to 40 tokens behind its prefix. Ours: `pack`,
plain and with the shapes that `choose_shapes` finds for 256 batches; padding is measured on 1,000 others. Embeddings
are read before, and tokens are in memory. Times are the least of several turns, on one thread.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefixcap.data.shapes import choose_shapes
from prefixcap.packing import BatchShape, Layout, lay_out, pack

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FILES = {"COCO": "captions/coco_karpathy_val.json", "Flickr8k": "flickr8k/captions.json"}
LONGEST, PREFIX, DIM = 40, 10, 512

Lengths = list[NDArray[np.int64]]  # of the captions of each image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=FILES, nargs="+", default=list(FILES))
    parser.add_argument("--captions", type=int, nargs="+", default=[40, 320, 1280], help="of a batch")
    parser.add_argument("--turns", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for data in given.data:
        images = lengths_of(SHARED / FILES[data])
        for together in (False, True):
            items = images if together else [own[place, None] for own in images for place in range(len(own))]
            for captions in given.captions:
                size = max(1, round(captions * len(items) / sum(map(len, items))))
                print(f"{data}, {captions} captions, {'together' if together else 'alone'}")
                for what, figure in measure(items, size, given.turns).items():
                    print(f"    {what:45} {figure:{'8.1%' if 'share' in what else '8.2f'}}", flush=True)


def lengths_of(file: Path) -> Lengths:
    """The lengths of each image's captions in a file."""
    content = json.loads(file.read_text())
    return lengths_of_texts(
        list(content["train"].values()) if "train" in content else [image["captions"] for image in content]
    )


def lengths_of_texts(images: list[list[str]]) -> Lengths:
    """The lengths of each image's captions."""
    return [
        np.array([len(re.findall(r"\w+|[^\w\s]", text)) + 1 for text in captions]).clip(max=LONGEST)
        for captions in images
    ]


def drawn(items: Lengths, size: int) -> Iterator[Lengths]:
    """Batches of images, in the random order of one epoch after another."""
    generator = np.random.default_rng(0)
    while True:
        order = generator.permutation(len(items))
        for start in range(0, len(items) - size + 1, size):
            yield [items[image] for image in order[start : start + size]]


def measure(items: Lengths, size: int, turns: int, number: int = 1000) -> dict[str, float]:
    """The figures of batches of so many items; padding is that of `number` batches."""
    batches = drawn(items, size)

    def laid(shapes: Sequence[BatchShape]) -> Layout:
        own = next(batches)
        return lay_out(
            np.concatenate(own), np.repeat(np.arange(size), list(map(len, own))), size, PREFIX, False, shapes
        )

    shapes = choose_shapes([laid([]) for _ in range(256)])
    padded, plain = [laid(shapes) for _ in range(number)], [laid([]) for _ in range(number)]
    targets = sum(own.shape.targets for own in padded) / sum((own.padded or own.shape).targets for own in padded)
    published_shares = [(own.lengths + PREFIX).mean() / (LONGEST + PREFIX) for own in plain]

    layout, generator = laid([]), np.random.default_rng(0)
    rows = [generator.integers(1, 50_000, length).astype(np.uint16) for length in layout.lengths]
    embeddings, captions, images = torch.randn(size, DIM), list(range(len(rows))), list(range(size))
    return {
        "ms, published": least_ms(lambda: published(rows), turns),
        "ms, ours": least_ms(lambda: pack(embeddings, rows, layout.owner, PREFIX, captions, images), turns),
        "ms, fixed shapes": least_ms(
            lambda: pack(embeddings, rows, layout.owner, PREFIX, captions, images, shapes=shapes), turns
        ),
        "share of padding, published": float(1 - np.mean(published_shares)),
        "share of padding, ours": padding(plain),
        "share of padding, fixed shapes": padding(padded),
        "share of targets that are padding": 1 - targets,
        "shapes": len(shapes),
        f"of {number:,} batches, those that fit no shape": sum(own.padded is None for own in padded),
    }


def padding(layouts: list[Layout]) -> float:
    """The share of positions that no prefix and no token takes."""
    taken = sum(int(own.sizes.sum()) for own in layouts)
    return 1 - taken / sum(own.shape.rows * own.shape.length for own in layouts)


def published(rows: list[NDArray[np.uint16]]) -> tuple[Tensor, Tensor]:
    """Tokens and mask of a batch of ClipCap's train.py: each caption padded by itself, then stacked."""
    tokens, masks = [], []
    for row in rows:
        padded = torch.cat((torch.from_numpy(row.astype(np.int64)), torch.full((LONGEST - len(row),), -1)))
        mask = padded.ge(0)
        padded[~mask] = 0
        tokens.append(padded)
        masks.append(torch.cat((torch.ones(PREFIX), mask.float())))
    return torch.stack(tokens), torch.stack(masks)


def least_ms(make: Callable[[], object], turns: int) -> float:
    took = []
    for _ in range(turns):
        start = time.perf_counter()
        make()
        took.append(time.perf_counter() - start)
    return 1e3 * min(took)


if __name__ == "__main__":
    main()
