"""What the commands share: the captions of a store, block by block, and which of them say the same."""

import hashlib
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from prefixcap.errors import InputError
from prefixcap.store import FeatureStore
from prefixcap.store.part import Part
from prefixcap.store.remote import is_remote
from prefixcap.vocabulary import same

BLOCK = 1 << 14  # captions read at once
PATIENCE = 1  # seconds after which there is a progress bar
MOST_SHOWN = 5
INDEXES = "index-*.safetensors"  # see `prefixcap.prompts.index`

DRY_RUN = "Say what would change, and change nothing."


def require_store(store: str) -> str:
    """Return the path of a datastore. Raises InputError if it is not there, with what makes one."""
    if not is_remote(store) and not Path(store).is_dir():
        command = f"prefixcap embed data=text data.files=FILE data.store={store}"
        raise InputError(f"there is no datastore {store}: make it with `{command}`")
    return store


def existing(store: str) -> str:
    """The callback of arguments that name a datastore: a wrong path is reported without torch."""
    return require_store(store)


Store = Annotated[str, typer.Argument(metavar="STORE", help="The folder of a datastore.", callback=existing)]


def text_files(sources: Iterable[str], folder: Path) -> list[str]:
    """Paths of text files, with what comes from the standard input, "-", written to a file in `folder`."""
    files = []
    for source in sources:
        if source == "-":
            file = folder / "stdin.txt"
            with file.open("wb") as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy)
            source = str(file)
        files.append(source)
    return files


def blocks(parts: list[Part], what: str) -> Iterator[tuple[int, int, list[str]]]:
    """The captions of all parts, block by block, with a bar: number of the part, first row, captions."""
    total = sum(part.length("captions/image") for part in parts)
    with tqdm(total=total, desc=what, unit=" captions", delay=PATIENCE, leave=False) as bar:
        for number, part in enumerate(parts):
            for start in range(0, count := part.length("captions/image"), BLOCK):
                texts = part.texts(np.arange(start, min(start + BLOCK, count)))
                yield number, start, texts
                bar.update(len(texts))


def digests(texts: list[str]) -> NDArray[np.uint64]:
    """(n, 2) numbers that are equal where texts have the same words: 128 bits of a hash."""
    hashed = b"".join(hashlib.blake2b(same(text).encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(hashed, np.uint64).reshape(-1, 2)


def repetitions(words: NDArray[np.uint64], groups: NDArray[Any] | None = None) -> NDArray[np.bool_]:
    """(n,) which rows have the words, and the group, of an earlier one; `words` as of `digests`."""
    columns = [words[:, 0], words[:, 1], *([] if groups is None else [groups])]
    order = np.lexsort(columns)  # stable: the earliest first
    repeated = np.zeros(len(words), np.bool_)
    if len(words):
        repeated[order[1:]] = np.logical_and.reduce([column[order[1:]] == column[order[:-1]] for column in columns])
    return repeated


def splits_of(parts: list[Part], store: FeatureStore) -> NDArray[np.int64]:
    """(captions,) the split of each caption of a store of sentences, as the number of its name in `store.splits`."""
    names = list(store.splits)
    numbers = [np.array([names.index(name) for name in part.split_names], np.int64) for part in parts]
    pairs = zip(numbers, parts, strict=True)
    return np.concatenate([own[part.mapped("images/split")[part.images_of(slice(None))]] for own, part in pairs])


def by_part(rows: NDArray[np.bool_], parts: list[Part]) -> list[NDArray[np.bool_]]:
    """(captions,) values -> those of each part."""
    ends = np.cumsum([part.length("captions/image") for part in parts])[:-1]
    return np.split(rows, ends)


def print_left(path: Path, done: str) -> None:
    """Print what was done, and how many captions a store has after it."""
    counts = ", ".join(f"{name} {count:,}" for name, count in FeatureStore(path).splits.items())
    print(f"{done}\ncaptions now: {counts}")
    if any(path.glob(INDEXES)):
        print(f"the index is of the captions before: make it again with `prefixcap datastore index {path}`")
