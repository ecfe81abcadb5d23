"""Embeddings of other tools -> feature store, in chunks; an interrupted import resumes."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.interchange.arrays import read_arrays
from data_prep.interchange.clip_retrieval import read_clip_retrieval
from data_prep.interchange.sources import CHUNK, Array, Row, Source
from data_prep.readers.inputs import INT64, check_shares, clean_caption, draw_split, is_storable, split_name
from data_prep.records import ImageRecord, Skipped
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity, Feature
from prefixcap.store import StoreWriter, join
from prefixcap.utils.deferred import deferred_imports

with deferred_imports():  # only where there is a file of torch's
    from data_prep.interchange.clipcap import read_clipcap

ARRAYS = (".npy", ".npz")
LENGTH_ONE = 1e-2  # how far the length of a scaled embedding may be from one
HASHED_WHOLE = 64 * 2**20  # bytes; of larger files the ends are hashed
HASHED_END = 2**20


@dataclass(frozen=True)
class _Chunk:
    """Images that are written together.

    Attributes:
        split: the one that was asked for, None if none was.
        where: the file of embeddings.
        places: their rows in it.
        rows: N images.
        embeddings: (N, dim).
        caption_embeddings: (N, dim), or None.
    """

    split: str | None
    where: Path
    places: NDArray[np.int64]
    rows: list[Row]
    embeddings: Array
    caption_embeddings: Array | None


def require_source(path: Path) -> None:
    """Raise InputError if there is nothing at the path of a source."""
    if not path.exists():
        raise InputError(f"there is no {path}: give a file or folder of embeddings")


def import_features(
    sources: Sequence[tuple[str | None, Path]],
    store: Path,
    encoder: EncoderIdentity,
    captions: Sequence[Path] = (),
    image_root: Path | None = None,
    val_share: float = 0.0,
    test_share: float = 0.0,
) -> int:
    """Make or finish a feature store of embeddings that were made elsewhere; chunks that are there are kept.

    A caption that is empty or no text, and an image whose embedding is not finite in float16, are skipped and listed
    with the reason; so is an image of which no caption is left.

    Args:
        sources: a split, or None, and a folder of clip-retrieval, a `.npy` or `.npz` file, or a ClipCap pickle. Without
            a split, each image goes to the one that its source names, else it is drawn.
        store: the store's folder.
        encoder: the encoder that computed the embeddings.
        captions: the JSON file of each `.npy` or `.npz` file, in their order.
        image_root: the folder that the image files are relative to; None: that of the first source.
        val_share: share of the images, 0.0 to 1.0, that is drawn for "val". The draw depends only on an image's id.
        test_share: likewise for "test"; what is left is "train".

    Returns:
        How many images were written; 0 if the store was complete.

    Raises:
        InputError: a source is missing, cannot be read or does not fit the encoder; ids come twice or are of two kinds;
            embeddings of length one and others are mixed; no image is left; the folder holds the store of another job;
            or the disk is full.
    """
    check_shares(val_share, test_share)
    opened = list(_opened(sources, captions, encoder))
    with_text = {block.caption_embeddings is not None: source.path for _, source in opened for block in source.blocks}
    if len(with_text) > 1:
        raise InputError(f"{with_text[True]} has text_emb and {with_text[False]} has not: move it out of the folder")
    normalized = _all_have_length_one([source for _, source in opened])
    folder = opened[0][1].path
    image_root = image_root or (folder if folder.is_dir() else folder.parent)
    options = [encoder.digest, encoder.preprocessing, str(image_root.resolve()), val_share, test_share, CHUNK]
    shards = sum(-(-len(block.places) // CHUNK) for _, source in opened for block in source.blocks)
    name = ", ".join(f"{source.form} {source.path}" for _, source in opened)
    writer = StoreWriter(store, encoder, name, image_root, _fingerprint(opened, options), shards)
    writer.made_with = {
        "normalized": normalized,
        "imported_from": ", ".join(dict.fromkeys(source.form for _, source in opened)),
    }
    missing = set(writer.missing())
    if not missing:
        if not writer.finished():
            join(store)
        return 0
    images = written = 0
    check = _Checks(val_share, test_share)
    # Chunks without a single image wait for one that has some: a wrong file must leave no store behind.
    waiting: list[tuple[int, list[ImageRecord], dict[str, Array], list[Skipped]]] = []
    bar = tqdm(desc="importing", unit=" images", total=sum(source.images for _, source in opened), delay=1)
    with bar:
        for shard, chunk in enumerate(_chunks(opened)):
            records, features, skipped = _convert(chunk, check)
            images += len(records)
            if shard in missing:
                waiting.append((shard, records, features, skipped))
            while images and waiting:
                number, records, features, skipped = waiting.pop(0)
                writer.write_piece(number, 0, 1, records, features, skipped)
                written += len(records)
            bar.update(len(chunk.rows))
    if not images:
        first = waiting[0][3][0]
        raise InputError(f"no image of {name} can be used; the first is {first.id!r}: {first.reason}")
    join(store)
    return written


def _opened(
    sources: Sequence[tuple[str | None, Path]], captions: Sequence[Path], encoder: EncoderIdentity
) -> Iterator[tuple[str | None, Source]]:
    """Each source with its split. All that can be checked without reading the embeddings is checked."""
    arrays = [path for _, path in sources if path.suffix.lower() in ARRAYS]
    if len(arrays) != len(captions):
        raise InputError(
            f"{len(arrays)} .npy or .npz files and {len(captions)} files of captions: give --captions FILE once for "
            "each .npy or .npz file, in their order"
        )
    caption_files = iter(captions)
    first = 0
    for split, path in sources:
        suffix = path.suffix.lower()
        require_source(path)
        if (path / "img_emb").is_dir():
            source = read_clip_retrieval(path, encoder, first)
        elif suffix in ARRAYS:
            source = read_arrays(path, next(caption_files), encoder, first)
        elif suffix in (".pkl", ".pt"):
            source = read_clipcap(path, encoder)
        else:
            raise InputError(
                f"{path} is none of the forms that can be imported: clip-retrieval's output folder (with img_emb/ in "
                "it), embeddings in a .npy or .npz file, or ClipCap's .pkl or .pt file"
            )
        if not source.images:
            raise InputError(f"{path} holds no embeddings: give another file or folder")
        first += source.images
        yield split, source


def _all_have_length_one(sources: list[Source]) -> bool:
    """Whether the embeddings are scaled to length one, from the first chunk of each source."""
    path_by_answer = {}
    for source in sources:
        block = next(block for block in source.blocks if len(block.places))
        rows = block.embeddings()[np.asarray(block.places[:CHUNK])].astype(np.float64)
        lengths = np.linalg.norm(rows[np.isfinite(rows).all(axis=1)], axis=1)
        path_by_answer[bool(len(lengths)) and bool((abs(lengths - 1) < LENGTH_ONE).all())] = source.path
    if len(path_by_answer) > 1:
        raise InputError(
            f"the embeddings of {path_by_answer[True]} are scaled to length one and those of "
            f"{path_by_answer[False]} are not: make a store of each"
        )
    return True in path_by_answer


def _fingerprint(opened: list[tuple[str | None, Source]], options: list[Any]) -> str:
    """A hash of all that determines the content of the store."""
    digest = hashlib.sha256(json.dumps(options).encode())
    for split, source in opened:
        for path in source.files:
            size = path.stat().st_size
            digest.update(json.dumps([split, path.name, size]).encode())
            with path.open("rb") as file:
                if size < HASHED_WHOLE:
                    digest.update(file.read())
                else:
                    digest.update(file.read(HASHED_END))
                    file.seek(-HASHED_END, 2)
                    digest.update(file.read())
    return digest.hexdigest()


def _chunks(opened: list[tuple[str | None, Source]]) -> Iterator[_Chunk]:
    for split, source in opened:
        for block in source.blocks:
            rows, embeddings = block.rows(), block.embeddings()
            caption_embeddings = block.caption_embeddings() if block.caption_embeddings else None
            for start in range(0, len(block.places), CHUNK):
                own = list(itertools.islice(rows, CHUNK))
                places = np.asarray(block.places[start : start + CHUNK], np.int64)
                caption_rows = None if caption_embeddings is None else caption_embeddings[places]
                yield _Chunk(split, block.path, places, own, embeddings[places], caption_rows)


class _Checks:
    """Turns rows of sources into records, and remembers the ids."""

    def __init__(self, val_share: float, test_share: float) -> None:
        self.shares = (val_share, test_share)
        self.kind: type | None = None
        self.seen: set[int] = set()

    def record(self, row: Row, split: str | None, where: str) -> ImageRecord:
        """The record of an image, its captions left out; a wrong one raises InputError beginning with `where`."""
        image_id = row.id
        if not (is_storable(image_id) and image_id) and not (type(image_id) is int and image_id in INT64):
            raise InputError(f"{where}: the id {image_id!r} is neither a text nor a 64-bit integer: correct it")
        assert isinstance(image_id, int | str)
        self.kind = self.kind or type(image_id)
        if type(image_id) is not self.kind:
            raise InputError(
                f"{where}: the id {image_id!r} is a {'number' if self.kind is str else 'text'}, but those before it "
                "are not: make them all of one kind"
            )
        # Of a text the hash, for want of memory: of 100 million, two agree by chance once in thousands of imports.
        number = image_id if isinstance(image_id, int) else hash(image_id)
        if number in self.seen:
            raise InputError(f"{where}: the id {image_id!r} comes twice: give every image its own, then import again")
        self.seen.add(number)
        for name, value in (("file", row.file), ("split", row.split), ("domain", row.domain)):
            if value is not None and not is_storable(value):
                raise InputError(f"{where}: the {name} {value!r} is no text: correct it")
        own = split_name(str(split or row.split or "")) or draw_split(str(image_id), *self.shares, seed=0)
        return ImageRecord(image_id, str(row.file or ""), own, (), str(row.domain or ""))


def _convert(chunk: _Chunk, check: _Checks) -> tuple[list[ImageRecord], dict[str, Array], list[Skipped]]:
    """The records and features of a chunk that a store can hold, and what is left out."""
    rows, finite = _half(chunk.embeddings)
    caption_rows, captions_finite = (
        (None, finite) if chunk.caption_embeddings is None else _half(chunk.caption_embeddings)
    )
    records: list[ImageRecord] = []
    kept: list[int] = []
    skipped: list[Skipped] = []
    for number, row in enumerate(chunk.rows):
        where = f"{chunk.where}, row {chunk.places[number]}"
        record = check.record(row, chunk.split, where)
        if caption_rows is not None and len(row.captions) != 1:
            raise InputError(
                f"{where}: {len(row.captions)} captions, but text_emb has one embedding for each image: move text_emb "
                "out of the folder"
            )
        if not finite[number] or not captions_finite[number]:
            whose = "embedding" if not finite[number] else "caption embedding"
            skipped.append(Skipped(record.id, record.file, f"{whose} is not finite"))
            continue
        captions = []
        for caption in row.captions:
            try:
                captions.append(clean_caption(caption))
            except ValueError as error:
                skipped.append(Skipped(record.id, record.file, str(error)))
        if captions or not row.captions:
            records.append(ImageRecord(record.id, record.file, record.split, tuple(captions), record.domain))
            kept.append(number)
    features: dict[str, Array] = {Feature.IMAGE: rows[kept]}
    if caption_rows is not None:
        features[Feature.CAPTION] = caption_rows[kept]
    return records, features, skipped


def _half(rows: Array) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """(N, dim) embeddings in float16, and for each whether it is finite there."""
    with np.errstate(over="ignore", invalid="ignore"):
        half = rows.astype(np.float16)
    return half, np.isfinite(half.sum(axis=1, dtype=np.float64))  # of float16: cannot overflow
