"""Check a feature store: `python -m data_prep.verify STORE [STORE ...]`.

Reads every byte and checks counts, digests, that every embedding is finite, and that every caption points to an image.
Prints what is wrong and what to do about it; ends with status 1 if anything is. Where all pieces of a store are there
and only its parts or its index are missing (as when pieces made on several machines were put together), they are made.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from prefixcap.errors import InputError
from prefixcap.store import FeatureStore, join
from prefixcap.store.format import RERUN_HINT, PartEntry, read_index
from prefixcap.store.part import Part
from prefixcap.store.writer import describe

ROWS = 4096  # of features that are checked at once


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="prefixcap verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="the folder of a feature store")
    wrong = False
    for store in parser.parse_args().stores:
        try:
            if read_index(store) is None and (store / "pieces").is_dir():
                join(store)
                print(f"{store}: its pieces were joined")
            opened = FeatureStore(store)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            wrong = True
            continue
        problems = list(problems_of(store)) or list(_problems_between_parts(opened))
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        wrong |= bool(problems)
        if not problems:
            splits = ", ".join(f"{name} {count:,}" for name, count in opened.splits.items())
            print(f"{store}: whole; {splits}; captions {opened.captions:,}; encoder {opened.encoder.name}")
    sys.exit(1 if wrong else 0)


def problems_of(store: Path) -> Iterator[str]:
    """What is wrong with the parts of a finished store, a line each, with what to do."""
    index = read_index(store)
    assert index is not None
    hashes = [np.empty(0, np.int64)]
    for entry in tqdm(index.parts, desc="verifying", unit=" parts"):
        part = Part(store / entry.file, entry)
        redo = f"delete {part.path} and {RERUN_HINT}"
        try:
            if part.digest() != entry.digest:
                yield f"{part.path} is not as it was written (its digest differs): {redo}"
                continue
            yield from (f"{part.path}: {problem}: {redo}" for problem in _problems_of_part(part, entry))
            hashes.append(np.array([hash(image_id) for image_id in part["images/id"]], np.int64))
        except InputError as error:
            yield str(error)
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    if len(twice := values[counts > 1]):
        parts = (Part(store / entry.file) for entry in index.parts)
        first = next(image_id for part in parts for image_id in part["images/id"] if hash(image_id) == twice[0])
        yield f"{len(twice)} image ids come twice, {first!r} for one: mend the data set and embed it into a new store"


def _problems_of_part(part: Part, entry: PartEntry) -> Iterator[str]:
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
        yield from _wrong_entries(part, entry)


def _wrong_entries(part: Part, entry: PartEntry) -> Iterator[str]:
    """What the index says of a part that is not so."""
    true, stated = describe(part), entry.model_dump()
    for name in true.keys() - {"digest"}:
        if true[name] != stated[name]:
            yield f"its {name} are {true[name]}, but the index says {stated[name]}"


def _problems_between_parts(store: FeatureStore) -> Iterator[str]:
    """What cannot be read as one column."""
    try:
        for split in map(store.split, store.splits):
            for name in split.features:
                split.feature(name)
    except InputError as error:
        yield str(error)


if __name__ == "__main__":
    main()
