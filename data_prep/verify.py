"""Check a feature store: `python -m data_prep.verify STORE [STORE ...]`.

Reads every byte and checks counts, digests, that every embedding is finite, and that every caption points to an image.
Prints what is wrong and what to do about it; ends with status 1 if anything is. Where all pieces of a store are there
and only its parts or its index are missing (as when pieces made on several machines were put together), they are made.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from prefixcap.errors import InputError
from prefixcap.store import FeatureStore, join
from prefixcap.store.format import AGAIN, read_index
from prefixcap.store.part import SPLIT, Part

ROWS = 4096  # of features that are checked at once


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
        problems = list(problems_of(store))
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
    for entry in tqdm(index["parts"], desc="verifying", unit=" parts"):
        part = Part(store / entry["file"])
        redo = f"delete {part.path} and {AGAIN}"
        try:
            if part.digest() != entry["digest"]:
                yield f"{part.path} is not as it was written (its digest differs): {redo}"
                continue
            yield from (f"{part.path}: {problem}: {redo}" for problem in _problems_of_part(part, entry))
            hashes.append(np.array([hash(image_id) for image_id in part["images/id"]], np.int64))
        except InputError as error:
            yield str(error)
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    if len(twice := values[counts > 1]):
        parts = (Part(store / entry["file"]) for entry in index["parts"])
        first = next(image_id for part in parts for image_id in part["images/id"] if hash(image_id) == twice[0])
        yield f"{len(twice)} image ids come twice, {first!r} for one: mend the data set and embed it into a new store"


def _problems_of_part(part: Part, entry: dict[str, Any]) -> Iterator[str]:
    images, captions = part.length("images/id"), part.length("captions/image")
    if (images, captions) != (entry["images"], entry["captions"]):
        yield f"{images} images and {captions} captions, but the index says {entry['images']} and {entry['captions']}"
    for name in part.names:
        if name.startswith("images/") and part.length(name) != images:
            yield f"{part.length(name)} rows of {name} for {images} images"
        if name == "captions/embedding" and part.length(name) != captions:
            yield f"{part.length(name)} rows of {name} for {captions} captions"
    for name in part.features:
        rows = part.mapped(name)
        bad = sum(
            int((~np.isfinite(rows[start : start + ROWS]).reshape(len(rows[start : start + ROWS]), -1).all(1)).sum())
            for start in range(0, len(rows), ROWS)
        )
        if bad:
            yield f"{bad} rows of {name} are not finite"
    pointers, ends = part.mapped("captions/image"), part.mapped("captions/text_end")
    if len(pointers) and not (pointers.min() >= 0 and pointers.max() < images and (np.diff(pointers) >= 0).all()):
        yield "captions point to images that are not there, or not in order"
    if (
        len(ends) != captions
        or (np.diff(ends, prepend=0) < 0).any()
        or (ends[-1:] != part.length("captions/text")).any()
    ):
        yield "the ends of the captions do not fit their text"
    if images and part.mapped(SPLIT).max() >= len(part.split_names):
        yield "an image is in a split without a name"


if __name__ == "__main__":
    main()
