"""Writing a feature store: small pieces as the work proceeds, joined into large parts at the end."""

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.store.format import (
    FORMAT,
    FORMAT_VERSION,
    PART_NAME,
    RERUN_HINT,
    ImageRecord,
    Skipped,
    find_damage,
    read_index,
)
from prefixcap.store.part import Columns, Part, UnreadableError, write_part
from prefixcap.store.remote import is_remote
from prefixcap.utils.files import as_cell, atomic_write, atomic_write_text

PART_BYTES = 2**30  # of features in one part, unless a single shard has more
PIECE = re.compile(r"([0-9]{6,9})-([0-9]{4,9})-of-([0-9]{4,9})\.h5")
WRITTEN = re.compile(rf"{PIECE.pattern}|\.{PIECE.pattern}\..+\.tmp")  # pieces, and unfinished ones of a killed run
UNFINISHED = re.compile(rf"\.({PART_NAME}|index\.json|skipped\.csv)\..+\.tmp")

Array = NDArray[Any]


class StoreWriter:
    """Writes a store piece by piece, in any order, from any number of processes; `join` then finishes it.

    A data set is a sequence of shards, and each shard is written as one piece or more. Pieces that exist already, from
    a run that was stopped or from another machine, are kept.

    Args:
        path: the store's folder.
        encoder: the encoder that computes the embeddings.
        source: what is embedded, a name or a path.
        image_root: the folder or URL that image files are relative to.
        job: a fingerprint of everything that determines the store's content; a folder holds the pieces of one job only.
        shards: the number of shards in the data set.

    Attributes:
        made_with: settings to be recorded in the files, by name; at first those of the files that exist.

    Raises:
        InputError: the folder holds something else, or the store of another job.
    """

    def __init__(
        self, path: Path, encoder: EncoderIdentity, source: str, image_root: Path | str, job: str, shards: int
    ) -> None:
        self.path, self.encoder, self.source, self.image_root = path, encoder, source, image_root
        self.job, self.shards = job, shards
        self.made_with: dict[str, str | int | bool] = {}
        index = read_index(path)
        if index is not None:
            self.made_with = index.made_with
            self._require_same_job(index.job, index.encoder.name, index.source)
        for file in [*pieces_of(path).values(), *parts_of(path)]:
            part = Part(file)
            try:
                attributes, _ = part.attributes, part.names
            except UnreadableError:
                file.unlink(missing_ok=True)  # to be written again
            else:
                self._require_same_job(attributes["job"], attributes["encoder"], attributes["source"])
                self.made_with = json.loads(attributes["made_with"])
        if self.finished():  # the run that finished it may have been killed while it removed the pieces
            tidy(path)

    def finished(self) -> bool:
        """Whether the index and all parts exist and are complete."""
        return _finished(self.path)

    def missing(self) -> list[int]:
        """The shards of which a piece is missing and that are in no part."""
        return _missing(self.path, self.shards)

    def has_piece(self, shard: int, number: int, num_pieces: int) -> bool:
        """Whether that piece exists and can be read."""
        try:
            return bool(Part(self._piece(shard, number, num_pieces)).attributes["job"] == self.job)
        except UnreadableError:
            return False

    def write_piece(
        self,
        shard: int,
        number: int,
        num_pieces: int,
        images: Sequence[ImageRecord],
        features: dict[str, Array],
        skipped: Sequence[Skipped],
    ) -> None:
        """Write one piece, atomically.

        Args:
            shard: from 0.
            number: of the piece in the shard, from 0.
            num_pieces: the number of pieces in the shard.
            images: N records.
            features: float16 or float32, by column (`Feature`): N rows for a feature of images, one a caption for a
                feature of captions.
            skipped: what was left out of this piece.

        Raises:
            InputError: the disk is full or the folder cannot be written to; earlier pieces are kept.
        """
        columns = Columns.from_records(images, features, skipped)
        write_part(self._piece(shard, number, num_pieces), self._attributes(), [columns])

    def _piece(self, shard: int, number: int, num_pieces: int) -> Path:
        return self.path / "pieces" / f"{shard:06d}-{number:04d}-of-{num_pieces:04d}.h5"

    def _attributes(self) -> dict[str, Any]:
        """The attributes of each file."""
        return {
            "encoder": self.encoder.name,
            "encoder_digest": self.encoder.digest,
            "preprocessing": self.encoder.preprocessing,
            "dim": self.encoder.dim,
            "made_with": json.dumps(self.made_with),
            "source": self.source,
            "image_root": str(self.image_root if is_remote(self.image_root) else Path(self.image_root).resolve()),
            "job": self.job,
            "shards_in_all": self.shards,
        }

    def _require_same_job(self, job: str, encoder: str, source: str) -> None:
        if job != self.job:
            raise InputError(
                f"{self.path} holds the feature store of another job (encoder {encoder}, {source}); "
                f"this one has encoder {self.encoder.name}, {self.source}: "
                "delete that folder, or choose another"
            )


def join(store: Path) -> None:
    """Finish a store: join its pieces into parts, then write `skipped.csv` and the index.

    Nothing but the folder is needed, so pieces made on several machines can be put together and joined. Several
    processes may do so at once: they write the same files.

    Raises:
        InputError: a piece is missing or damaged, the disk is full or the folder cannot be written to.
    """
    try:
        _join(store)
    except (UnreadableError, FileNotFoundError):
        if not _finished(store):  # otherwise another process finished first, and removed the pieces
            raise


def _join(store: Path) -> None:
    pieces = pieces_of(store)
    attributes = _common_attributes(store, pieces)
    if missing := _missing(store, int(attributes["shards_in_all"])):
        raise InputError(
            f"{store} lacks {len(missing)} of {attributes['shards_in_all']} shards, {missing[0]} for one; {RERUN_HINT}"
        )
    index = read_index(store)
    ranges = _plan(pieces) if index is None else [(first, end) for first, end in (part.shards for part in index.parts)]
    files = [store / f"part-{number:05d}.h5" for number in range(len(ranges))]
    for file, (first, end) in zip(files, ranges, strict=True):
        joined = [Part(piece) for (shard, _, _), piece in pieces.items() if first <= shard < end]
        if joined and not _is_part(file, first, end):
            write_part(file, attributes | {"shards": [first, end]}, joined)
    write_index(store, [Part(file) for file in files])
    tidy(store)


def tidy(store: Path) -> None:
    """Remove what a finished store no longer needs, and nothing that a writer did not put there: its pieces, and the
    unfinished files of killed runs.
    """
    folder = store / "pieces"
    pieces = [] if folder.is_symlink() else [file for file in _listed(folder) if WRITTEN.fullmatch(file.name)]
    for file in [*pieces, *(file for file in _listed(store) if UNFINISHED.fullmatch(file.name))]:
        file.unlink(missing_ok=True)
    with suppress(OSError):  # it holds something else, or is gone
        folder.rmdir()


def _listed(folder: Path) -> list[Path]:
    """The files of a folder; none if it does not exist (any more)."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def write_index(store: Path, parts: Sequence[Part], attributes: dict[str, Any] | None = None) -> None:
    """Write `skipped.csv` and then `index.json`, which finishes the store, from its parts.

    `attributes` are those of the store; None: of its parts.
    """
    with atomic_write(store / "skipped.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(["id", "file", "reason"])
        skipped = (skip for part in parts for skip in part.skipped())
        rows.writerows(map(as_cell, (skip.id, skip.file, skip.reason)) for skip in skipped)
    entries = [describe(part) for part in parts]
    splits: dict[str, Counter[str]] = {}
    for entry in entries:
        for name, counts in entry["splits"].items():
            splits.setdefault(name, Counter()).update(counts)
    attributes = attributes or parts[0].attributes
    encoder = EncoderIdentity(
        attributes["encoder"], attributes["encoder_digest"], attributes["preprocessing"], int(attributes["dim"])
    )
    index = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "encoder": asdict(encoder),
        "source": attributes["source"],
        "image_root": attributes["image_root"],
        "job": attributes["job"],
        "made_with": json.loads(attributes["made_with"]),
        "images": sum(entry["images"] for entry in entries),
        "captions": sum(entry["captions"] for entry in entries),
        "splits": splits,
        "parts": entries,
    }
    atomic_write_text(store / "index.json", json.dumps(index, indent=1, ensure_ascii=False) + "\n")


def pieces_of(store: Path) -> dict[tuple[int, int, int], Path]:
    """The pieces that exist: (number of the shard, number of the piece in it, pieces of the shard) -> file."""
    files = {}
    for path in _listed(store / "pieces"):
        if numbers := PIECE.fullmatch(path.name):
            shard, number, pieces = map(int, numbers.groups())
            files[shard, number, pieces] = path
    return files


def parts_of(store: Path) -> list[Path]:
    """The parts that exist."""
    return [path for path in _listed(store) if re.fullmatch(PART_NAME, path.name)]


def _finished(store: Path) -> bool:
    """Whether the index and all parts exist and are complete."""
    index = read_index(store)
    return index is not None and not any(find_damage(store, entry) for entry in index.parts)


def _missing(store: Path, shards: int) -> list[int]:
    """The shards of which a piece is missing and that are in no part."""
    pieces = pieces_of(store)
    counts = Counter(shard for shard, _, _ in pieces)
    complete = {shard for shard, _, num_pieces in pieces if counts[shard] == num_pieces}
    index = read_index(store)
    wanted = (
        range(shards)
        if index is None
        else [shard for entry in index.parts if find_damage(store, entry) for shard in range(*entry.shards)]
    )
    return [shard for shard in wanted if shard not in complete]


def _common_attributes(store: Path, pieces: dict[tuple[int, int, int], Path]) -> dict[str, Any]:
    """The attributes that all pieces share; those of the parts if there is no piece."""
    attributes: dict[str, Any] = {}
    features: dict[str, Any] | None = None
    for file in pieces.values() or parts_of(store):
        part = Part(file)
        own, rows = part.attributes, {name: part.row_of(name) for name in part.features}
        attributes, features = attributes or own, rows if features is None else features
        if own["job"] != attributes["job"]:
            raise InputError(f"{file} is of another job than the other files of {store}: remove it")
        if rows != features:
            raise InputError(f"{file} has other features than the other files of {store}: delete it and {RERUN_HINT}")
    if not attributes:
        raise InputError(f"{store} holds no piece of a feature store")
    return {name: value for name, value in attributes.items() if name not in ("digest", "shards")}


def _is_part(file: Path, first: int, end: int) -> bool:
    """Whether the part exists with those shards, and can be read."""
    try:
        part = Part(file)
        return bool(part.attributes.get("shards") == [first, end]) and not any(part.problems())
    except UnreadableError:
        return False


def _plan(pieces: dict[tuple[int, int, int], Path]) -> list[tuple[int, int]]:
    """The shards of each part, from first up to end: as many as fit `PART_BYTES`, and at least one."""
    sizes = Counter[int]()
    for (shard, _, _), file in pieces.items():
        piece = Part(file)
        sizes[shard] += sum(piece.mapped(name).nbytes for name in piece.features)
    ranges: list[tuple[int, int]] = []
    first = size = 0
    for shard in sorted(sizes):
        if shard > first and size + sizes[shard] > PART_BYTES:
            ranges.append((first, shard))
            first, size = shard, 0
        size += sizes[shard]
    return [*ranges, (first, max(sizes) + 1)]


def describe(part: Part) -> dict[str, Any]:
    """The entry of one part in the index."""
    names = part.split_names
    split_of_image = part.mapped("images/split")
    images = np.bincount(split_of_image, minlength=len(names)).tolist()
    captions = np.bincount(split_of_image[part.images_of(slice(None))], minlength=len(names)).tolist()
    return {
        "file": part.path.name,
        "bytes": part.path.stat().st_size,
        "digest": part.attributes["digest"],
        "shards": part.attributes["shards"],
        "images": sum(images),
        "captions": sum(captions),
        "longest_caption": int(np.diff(part.mapped("captions/text_end"), prepend=0).max(initial=0)),  # in bytes
        "skipped": len(part.skipped()),
        "splits": {
            name: {"images": images[code], "captions": captions[code]}
            for code, name in enumerate(names)
            if images[code]
        },
    }
