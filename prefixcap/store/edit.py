"""Editing a finished store of sentences: whoever reads it finds what it was before, or what it is after.

Files are never changed. What is added, and what an edit keeps of a file, is written to further parts, whose numbers are
free; then the index, which names the parts of the store, is replaced in one step; then parts that it no longer names
are removed. What a killed edit has left is removed by the next one.

A store with features of images is not edited: rows would be lost or missing. `copy_sentences` makes one of its captions
that can be.
"""

import hashlib
import itertools
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from prefixcap.errors import InputError
from prefixcap.features import Feature
from prefixcap.store.format import ImageRecord, read_index
from prefixcap.store.part import Columns, Part, write_part
from prefixcap.store.reader import FeatureStore, StoreSplit
from prefixcap.store.remote import is_remote, lock
from prefixcap.store.writer import parts_of, tidy, write_index
from prefixcap.utils.files import atomic_write_folder

PART_BYTES = 2**27  # of embeddings in a part that an edit writes: it is made in memory
BLOCK = 8192  # rows in memory at once beside it
EDITED = ", edited"  # at the end of a store's source

Keep = NDArray[np.bool_]


@contextmanager
def editing(path: str | Path) -> Generator[FeatureStore]:
    """Open a store of sentences, to be edited by one process at a time.

    Args:
        path: its folder.

    Raises:
        InputError: there is no store there, it is at a URL, another process edits it, or it has images, or image rows
            without a caption or with several.
    """
    if is_remote(path):
        raise InputError(f"{path} is a URL, and a datastore is edited on a local disk: copy it first")
    FeatureStore(path)  # otherwise the lock would make its folder
    try:
        with lock(Path(path)).acquire(timeout=0):
            store = FeatureStore(path)
            require_sentences(store)
            tidy(store.path)
            _remove_unnamed(store.path)
            yield store
    except Timeout as error:
        raise InputError(f"{path} is being edited by another process: wait for it to end") from error


def require_sentences(store: FeatureStore) -> None:
    """Raise InputError unless each row of a store is a sentence with an embedding, without an image."""
    for part in store.parts():
        others = [name for name in part.features if name != Feature.CAPTION]
        one_each = part.length("captions/image") == part.length("images/id") and bool(
            (np.diff(part.images_of(slice(None)), prepend=-1) == 1).all()
        )
        if others or not one_each or Feature.CAPTION not in part.features:
            reason = f"has {', '.join(others)}" if others else "has images with several captions, or with none"
            if Feature.CAPTION not in part.features:
                reason = "has no embeddings of captions"
            raise InputError(
                f"{store.location} {reason}, and only stores of sentences alone are edited: make one of its captions "
                f"with `prefixcap datastore copy`, or of other texts with `prefixcap embed`"
            )


def edit(store: FeatureStore, keep: Sequence[Keep] | None = None, added: Iterable[Columns] = ()) -> None:
    """Remove sentences from a store, add others, or both.

    Args:
        store: as `editing` opened it. It is to be opened again afterwards.
        keep: for each of `store.parts()`, (rows,) which of its sentences stay; None: all do.
        added: further sentences, a block at a time; see `sentences`.

    Raises:
        InputError: nothing would be left, the disk is full, or the folder cannot be written to. The store is then what
            it was.
    """
    index = read_index(store.path)
    assert index is not None
    parts = store.parts()
    added = iter(added)
    first_added = next(added, None)
    unchanged, changed = list[Part](), list[tuple[Part, Keep]]()
    for number, part in enumerate(parts):
        kept = np.ones(part.length("images/id"), np.bool_) if keep is None else keep[number]
        is_small = _bytes(part.length("images/id"), part) < PART_BYTES // 2
        if kept.all() and (first_added is None or not is_small):  # a small part joins what is added, lest there be many
            unchanged.append(part)
        else:
            changed.append((part, kept))
    if not changed and first_added is None:
        return
    attributes = {name: value for name, value in parts[0].attributes.items() if name not in ("digest", "shards")}
    digests = [entry.digest for entry in index.parts]
    source = attributes["source"].removesuffix(EDITED) + EDITED
    # Another job than that of the command that made it: this one must not repair it.
    attributes |= {"source": source, "job": hashlib.sha256(json.dumps(["edited", *digests]).encode()).hexdigest()}
    numbers = [int(file.stem.rpartition("-")[2]) for file in parts_of(store.path)]
    shard = max(entry.shards[1] for entry in index.parts)
    kept_blocks = (block for part, kept in changed for block in _kept(part, kept))
    blocks = itertools.chain(kept_blocks, [] if first_added is None else [first_added], added)
    try:
        written = list(_write_parts(store.path, attributes, 1 + max(numbers), shard, blocks))
        if not [*unchanged, *written]:
            raise InputError(f"nothing would be left in {store.location}: delete that folder instead")
        write_index(store.path, [*unchanged, *written], attributes)
    finally:
        _remove_unnamed(store.path)


def sentences(
    split: StoreSplit, ids: Sequence[int | str] | range, into: str, dtype: Any, block: int = BLOCK
) -> Iterator[Columns]:
    """The captions of a split as sentences without images, a block at a time.

    Args:
        split: with embeddings of captions.
        ids: of the sentences, as many as it has captions.
        into: the split that they belong to from now on.
        dtype: of the embeddings, float16 or float32.

    Raises:
        InputError: the split has no embeddings of captions.
    """
    embeddings = split.feature(Feature.CAPTION)
    for start in range(0, len(split.captions), block):
        rows = slice(start, start + block)
        pairs = zip(ids[rows], split.captions[rows], strict=True)
        records = [ImageRecord(number, "", into, (text,)) for number, text in pairs]
        yield Columns.from_records(records, {str(Feature.CAPTION): embeddings[rows].astype(dtype)}, [])


def new_ids(store: FeatureStore, count: int) -> Sequence[int | str] | range:
    """Ids for `count` further sentences, of the kind that the store has and that it has not."""
    numbers, are_strings = [-1], False
    for part in store.parts():
        if part.has_strings("images/id"):
            are_strings = True
            numbers += [int(word) for word in part["images/id"] if word.isdecimal() and len(word) < 16]
        elif part.length("images/id"):
            numbers.append(int(part.mapped("images/id").max()))
    fresh = range(max(numbers) + 1, max(numbers) + 1 + count)
    return [str(number) for number in fresh] if are_strings else fresh


def copy_sentences(store: FeatureStore, split: str, to: Path) -> None:
    """Make a store of the captions of a split, with their embeddings, as sentences without images.

    Args:
        store: with embeddings of captions.
        split: of the store, and the only one of the new store.
        to: the folder of the new store, which must not exist.

    Raises:
        InputError: there is something at `to`, there is no such split, it has no captions or no embeddings of them, or
            the folder cannot be written to.
    """
    if to.exists():
        raise InputError(f"{to} exists already: name a new folder")
    opened = store.split(split)
    count = len(opened.captions)
    if not count:
        raise InputError(f"{store.location} has no captions in split '{split}': name another split")
    identity = store.encoder
    job = hashlib.sha256(json.dumps(["copy", opened.digest]).encode()).hexdigest()
    attributes: dict[str, Any] = {
        "encoder": identity.name,
        "encoder_digest": identity.digest,
        "preprocessing": identity.preprocessing,
        "dim": identity.dim,
        "made_with": json.dumps(store.made_with | {"features": Feature.CAPTION.option}),
        "source": f"captions of {store.location}, {split}",
        "image_root": "",
        "job": job,
        "shards_in_all": 1,
    }
    blocks = sentences(opened, range(count), split, opened.feature(Feature.CAPTION).dtype)
    with atomic_write_folder(to) as temporary:
        temporary.mkdir(parents=True)
        write_index(temporary, list(_write_parts(temporary, attributes, 0, 0, blocks)))


def _kept(part: Part, keep: Keep) -> Iterator[Columns]:
    """The sentences of a part that stay, a block at a time, and what it lists as left out."""
    names = ("images/id", "images/file", "images/domain", "images/split")
    ids, files, domains, splits = (part[name] for name in names)
    rows, skipped = np.flatnonzero(keep), part.skipped()
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        records = [
            ImageRecord(ids[row], files[row], splits[row], (text,), domains[row])
            for row, text in zip(block.tolist(), part.texts(block), strict=True)
        ]
        features = {name: part.mapped(name)[block] for name in part.features}
        yield Columns.from_records(records, features, skipped if not start else [])


def _write_parts(
    folder: Path, attributes: dict[str, Any], number: int, shard: int, blocks: Iterable[Columns]
) -> Iterator[Part]:
    """Write blocks to parts from a number and a shard on, as many to each as `PART_BYTES` allows."""
    waiting, size = list[Columns](), 0
    for block in itertools.chain(blocks, [None]):  # None: the end
        if waiting and (block is None or size >= PART_BYTES):
            file = folder / f"part-{number:05d}.h5"
            write_part(file, attributes | {"shards": [shard, shard + 1], "shards_in_all": shard + 1}, waiting)
            yield Part(file)
            waiting, size, number, shard = [], 0, number + 1, shard + 1
        if block is not None:
            waiting.append(block)
            size += _bytes(block.length("images/id"), block)


def _bytes(rows: int, of: Part | Columns) -> int:
    """Bytes of the embeddings of as many rows."""
    if isinstance(of, Part):
        shape, dtype = of.row_of(str(Feature.CAPTION))
    else:
        array = np.asarray(of[str(Feature.CAPTION)])
        shape, dtype = array.shape[1:], array.dtype
    return rows * int(np.prod(shape)) * int(np.dtype(dtype).itemsize)


def _remove_unnamed(store: Path) -> None:
    """Remove the parts that the index does not name: what an edit has replaced, or what a killed one has left."""
    index = read_index(store)
    named = {entry.file for entry in index.parts} if index is not None else None
    for file in parts_of(store):
        if named is not None and file.name not in named:
            with suppress(OSError):  # where a reader holds it open: the next edit removes it
                file.unlink(missing_ok=True)
