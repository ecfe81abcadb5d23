"""Check feature stores, every byte.

Checks counts and digests, that every embedding is finite, and that every caption belongs to an image. Prints what is \
wrong and what to do about it, with status 1.

A store whose pieces are complete, but whose parts or index are missing (as after copying pieces from several machines \
together), is joined first.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from tqdm import tqdm

from prefixcap.errors import InputError
from prefixcap.store import FeatureStore, join
from prefixcap.store.format import RERUN_HINT, PartEntry, read_index
from prefixcap.store.part import Part
from prefixcap.store.writer import describe

ROWS = 4096  # checked at once
EXAMPLES = """  prefixcap verify stores/coco-clip-vit-b-32"""


def main(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE", help="Folders of feature stores.")],
) -> None:
    """Print a line for each store, and its problems; exit with status 1 if there are any."""
    wrong = False
    for store in stores:
        try:
            if read_index(store) is None and (store / "pieces").is_dir():
                join(store)
                print(f"{store}: its pieces were joined")
            opened = FeatureStore(store)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            wrong = True
            continue
        problems = list(find_problems(store)) or list(_problems_across_parts(opened))
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        wrong |= bool(problems)
        if not problems:
            splits = ", ".join(f"{name} {count:,}" for name, count in opened.splits.items())
            print(f"{store}: intact; {splits}; captions {opened.captions:,}; encoder {opened.encoder.name}")
    if wrong:
        raise typer.Exit(1)


def find_problems(store: Path) -> Iterator[str]:
    """Problems in the parts of a finished store: a line each, with what to do."""
    index = read_index(store)
    assert index is not None
    hashes = [np.empty(0, np.int64)]
    for entry in tqdm(index.parts, desc="verifying", unit=" parts"):
        part = Part(store / entry.file, entry)
        redo = f"delete {part.path} and {RERUN_HINT}"
        try:
            if part.digest() != entry.digest:
                yield f"{part.path} has changed since it was written (its digest differs): {redo}"
                continue
            yield from (f"{part.path}: {problem}: {redo}" for problem in _part_problems(part, entry))
            hashes.append(np.array([hash(image_id) for image_id in part["images/id"]], np.int64))
        except InputError as error:
            yield str(error)
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    if len(duplicates := values[counts > 1]):
        parts = (Part(store / entry.file) for entry in index.parts)
        first = next(image_id for part in parts for image_id in part["images/id"] if hash(image_id) == duplicates[0])
        example = f"{len(duplicates)} image ids occur twice, e.g. {first!r}"
        yield f"{example}: correct the data set and embed it into a new store"


def _part_problems(part: Part, entry: PartEntry) -> Iterator[str]:
    for name in part.features:
        rows = part.mapped(name)
        bad = sum(
            int((~np.isfinite(rows[start : start + ROWS]).reshape(len(rows[start : start + ROWS]), -1).all(1)).sum())
            for start in range(0, len(rows), ROWS)
        )
        if bad:
            yield f"{bad} rows of {name} are not finite"
    problems = list(part.problems())
    yield from problems
    if not problems:
        yield from _index_problems(part, entry)


def _index_problems(part: Part, entry: PartEntry) -> Iterator[str]:
    """Where the index contradicts a part."""
    true, stated = describe(part), entry.model_dump()
    for name in true.keys() - {"digest"}:
        if true[name] != stated[name]:
            yield f"its {name} are {true[name]}, but the index says {stated[name]}"


def _problems_across_parts(store: FeatureStore) -> Iterator[str]:
    """Columns that cannot be read across parts."""
    try:
        for split in map(store.split, store.splits):
            for name in split.features:
                split.feature(name)
    except InputError as error:
        yield str(error)
