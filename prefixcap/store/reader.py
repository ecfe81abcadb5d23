"""Reading a finished feature store."""

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity, Feature
from prefixcap.store.format import MOST_INDEX_BYTES, RERUN_HINT, PartEntry, Skipped, find_damage, index_in, read_index
from prefixcap.store.layout import SPLIT
from prefixcap.store.part import Part, UnreadableError
from prefixcap.store.remote import cache_folder, fetch, is_remote, lock, remove_leftovers
from prefixcap.utils.files import atomic_write_text

Rows = NDArray[np.int64]


class Column:
    """One column of a split, on disk. Indexing it, by a row, a slice or an array of rows, reads those rows.

    Args:
        counts: how many rows lie in each part.
        read: returns rows of a part, given the part's number and positions within the split's share of that part, or a
            slice of it.
        shape: of one row.
        dtype: of the rows; `object` for strings.
    """

    def __init__(
        self, counts: list[int], read: Callable[[int, Any], Any], shape: tuple[int, ...] = (), dtype: Any = object
    ) -> None:
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._read, self._shape, self.dtype = read, shape, np.dtype(dtype)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._shape)

    def __getitem__(self, which: slice | ArrayLike) -> Any:
        """The rows in the order asked for: an array, or a list of strings."""
        rows = np.arange(*which.indices(len(self))) if isinstance(which, slice) else np.asarray(which, np.int64)
        if rows.ndim == 0:
            return self[rows[None]][0]
        if len(self._ends) == 1:
            return self._read(0, rows)
        # One visit to each part. Within it rows rise, which is also the quickest order to read them in.
        order = np.argsort(rows)
        cuts = np.searchsorted(rows[order], self._ends)
        values = np.empty((len(rows), *self._shape), self.dtype)
        start = 0
        for part, end in enumerate(cuts.tolist()):
            if end > start:
                places = order[start:end]
                values[places] = self._read(part, rows[places] - (self._ends[part - 1] if part else 0))
                start = end
        return values.tolist() if self.dtype == object else values

    def runs(self, size: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """All rows in order, at most `size` at once, each time the number of the first and the rows. They are not
        copied where a part belongs entirely to the split, and must not be changed."""
        first = 0
        for part, end in enumerate(self._ends.tolist()):
            for start in range(first, end, size):
                yield start, self._read(part, slice(start - first, min(start + size, end) - first))
            first = end


class StoreSplit:
    """The images of one split and their captions. Large columns stay on disk until they are indexed.

    A split can be pickled, and used after a fork.

    Attributes:
        name: of the split.
        captions: C texts.
        caption_images: (C,) the row of each caption's image, in ascending order.
        digest: SHA-256 (hex) of the files that hold the split.
    """

    def __init__(self, name: str, parts: list[Part], entries: list[PartEntry], image_root: Path | None) -> None:
        self.name, self._parts, self._image_root = name, parts, image_root
        self.digest = hashlib.sha256(" ".join(entry.digest for entry in entries).encode()).hexdigest()
        counts = [entry.splits[name] for entry in entries]
        # Where a part belongs entirely to the split, its rows need no list.
        self._is_entire = [entry.images == own.images for entry, own in zip(entries, counts, strict=True)]
        self._longest = [entry.longest_caption for entry in entries]
        self._chosen: dict[tuple[int, str], Rows] = {}
        self._rows_in_parts = {"images": [own.images for own in counts], "captions": [own.captions for own in counts]}
        self._first_image = np.cumsum([0, *self._rows_in_parts["images"]]).tolist()
        captions = self._rows_in_parts["captions"]
        self.captions = Column(captions, self._texts)
        self.caption_images = Column(captions, self._images_of_captions, (), np.int64)

    def __len__(self) -> int:
        """The number of images; in a store of sentences, the number of sentences."""
        return sum(self._rows_in_parts["images"])

    @cached_property
    def embeddings(self) -> Column:
        """(N, dim) embeddings of the images, as the encoder computed them: not normalised. Raises as `feature` does."""
        return self.feature(Feature.IMAGE)

    @property
    def features(self) -> list[str]:
        """The names of the columns that hold features."""
        return self._parts[0].features

    def feature(self, name: str) -> Column:
        """A feature of the N images or of the C captions: a column of that many rows.

        Args:
            name: of the column, e.g. `Feature.IMAGE` or "images/patches".

        Raises:
            InputError: the store has no such feature, or not in one shape.
        """
        features, folder = self.features, self._parts[0].path.parent
        if name not in features:
            if name.startswith("images/") and features and all(other.startswith("captions/") for other in features):
                raise InputError(f"{folder} has sentences and no images: give a store with {name}")
            option = next((each.option for each in Feature if each == name), name.rpartition("/")[2])
            raise InputError(
                f"the store {folder} has no {name}; it has {', '.join(features) or 'no features'}: embed again, into "
                f"another store, with {option} among features=[...]"
            )
        row = self._parts[0].row_of(name)
        for part in self._parts:
            if name not in part.features or part.row_of(name) != row:
                raise InputError(
                    f"{part.path} has other rows of {name} than {self._parts[0].path}; {RERUN_HINT} to repair it"
                )
        kind = name.partition("/")[0]
        return Column(self._rows_in_parts[kind], partial(self._features, name, kind), *row)

    @cached_property
    def ids(self) -> list[int | str]:
        """N image ids."""
        return self._all("images/id")

    @cached_property
    def files(self) -> list[Path | None]:
        """N absolute paths; None where the store names no file below its image root, or was fetched from a URL."""
        root = self._image_root
        return [None if root is None else _below(root, file) for file in self._all("images/file")]

    @cached_property
    def domains(self) -> list[str]:
        """N domains, e.g. "near-domain"; "" where there is none."""
        return self._all("images/domain")

    def references(self) -> dict[int | str, list[str]]:
        """The captions of each image, by its id."""
        references: dict[int | str, list[str]] = {image_id: [] for image_id in self.ids}
        for caption, row in zip(self.captions[:], self.caption_images[:].tolist(), strict=True):
            references[self.ids[row]].append(caption)
        return references

    def captions_longer_than(self, size: int) -> Rows:
        """The rows of the captions that are longer than `size` bytes."""
        rows, start = [np.empty(0, np.int64)], 0
        for part, captions in enumerate(self._rows_in_parts["captions"]):
            if self._longest[part] > size:
                rows.append(np.flatnonzero(self._caption_sizes(part) > size) + start)
            start += captions
        return np.concatenate(rows)

    def longest_captions(self) -> Rows:
        """The rows of the captions that have at least three quarters of the bytes of the longest, or more rows."""
        size = max(self._longest, default=0) * 3 // 4  # of the parts, which may have longer ones in other splits
        while not len(rows := self.captions_longer_than(size - 1)) and size:
            size = size * 3 // 4
        return rows

    def caption_sizes(self) -> Rows:
        """C lengths of the captions, in bytes."""
        return np.concatenate([np.empty(0, np.int64), *map(self._caption_sizes, range(len(self._parts)))])

    def _caption_sizes(self, part: int) -> Rows:
        sizes = np.diff(self._parts[part].mapped("captions/text_end"), prepend=0)
        return sizes if self._is_entire[part] else sizes[self._rows(part, "captions")]

    def _all(self, column: str) -> list[Any]:
        values: list[Any] = []
        for number, part in enumerate(self._parts):
            every = part[column]
            rows = self._rows(number, "images").tolist() if not self._is_entire[number] else None
            values += every if rows is None else [every[row] for row in rows]
        return values

    def _features(self, name: str, kind: str, part: int, places: Rows | slice) -> NDArray[Any]:
        rows: NDArray[Any] = self._parts[part].mapped(name)[self._in_part(part, kind, places)]
        return rows

    def _texts(self, part: int, places: Rows) -> list[str]:
        return self._parts[part].texts(self._in_part(part, "captions", places))

    def _images_of_captions(self, part: int, places: Rows) -> Rows:
        images = self._parts[part].images_of(self._in_part(part, "captions", places))
        if not self._is_entire[part]:
            images = np.searchsorted(self._rows(part, "images"), images)
        images += self._first_image[part]
        return images

    def _in_part(self, part: int, kind: str, places: Any) -> Any:
        """Positions within the split's share of a part -> rows of that part."""
        return places if self._is_entire[part] else self._rows(part, kind)[places]

    def _rows(self, part: int, kind: str) -> Rows:
        """The rows of a part, of its "images" or its "captions", that belong to the split."""
        if (part, kind) not in self._chosen:
            opened = self._parts[part]
            belongs = opened.mapped(SPLIT) == opened.split_names.index(self.name)
            if kind == "captions":
                belongs = belongs[opened.images_of(slice(None))]
            rows = np.flatnonzero(belongs)
            if len(rows) != (stated := self._rows_in_parts[kind][part]):
                problem = f"has {len(rows)} {kind} of split {self.name!r}, but the index says {stated}"
                raise InputError(f"{opened.path} {problem}; {RERUN_HINT} to repair it")
            self._chosen[part, kind] = rows
        return self._chosen[part, kind]


class FeatureStore:
    """A finished store, opened for reading.

    Args:
        location: the store's folder; or a URL (https://, s3://, gs:// and others of `remote.PROTOCOLS`): the index is
            then fetched at once, and each part when a split that needs it is opened. Files are kept on the local disk
            if they are what the index says.

    Attributes:
        location: the absolute path of the folder, or the URL.
        path: the folder, or where the files of a remote store are kept.
        encoder: the encoder that computed the embeddings.
        source: what was embedded, as the reader named it.
        image_root: the folder that image files are relative to; None: the store was fetched from a URL, and paths of
            another machine mean nothing here.
        splits: the number of images in each split.
        captions: the number of captions in all splits.
        made_with: the settings that the store was made with, by name.

    Raises:
        InputError: there is no store there, it is unfinished or of another format or version, a part is missing or
            truncated, or a remote file cannot be fetched (`split` and `skipped` as well).

    Examples:
        >>> store = FeatureStore("stores/demo-demo")
        >>> store.encoder.name, sorted(store.splits)
        ('demo', ['test', 'train', 'val'])
        >>> val = store.split("val")
        >>> val.embeddings[:2].shape  # reads two rows
        (2, 128)
        >>> rows = val.caption_images[:3]  # whose captions the first three are
        >>> [val.ids[row] for row in rows] == [val.ids[0]] * 3
        True
    """

    def __init__(self, location: str | Path) -> None:
        if is_remote(location):
            self.location = str(location).rstrip("/")
            self.path = cache_folder(self.location)
            with lock(self.path):
                remove_leftovers(self.path)
                fetch(f"{self.location}/index.json", self.path / "index.json", MOST_INDEX_BYTES, index_in)
        else:
            self.path = Path(location)
            self.location = str(self.path.resolve())
        index = read_index(self.path)
        if index is None:
            raise InputError(_why_unfinished(self.path))
        for entry in index.parts:
            if not is_remote(location) and (reason := find_damage(self.path, entry)):
                raise InputError(f"{reason}; {RERUN_HINT} to repair it")
        self.encoder = EncoderIdentity(**index.encoder.model_dump())
        self.source: str = index.source
        self.image_root = None if is_remote(location) or is_remote(index.image_root) else Path(index.image_root)
        self.splits: dict[str, int] = {name: counts.images for name, counts in index.splits.items()}
        self.captions: int = index.captions
        self.made_with: dict[str, str | int | bool] = index.made_with
        self._entries = index.parts

    def require_encoder(self, identity: EncoderIdentity) -> None:
        """Check that the embeddings may be mixed with those of another encoder.

        Raises:
            InputError: the weights or the preprocessing differ; the message names both encoders.
        """
        mine, theirs = self.encoder, identity
        if mine.agrees_with(theirs):
            return
        first, second = mine.name, theirs.name
        if mine.digest == theirs.digest:
            first, second = f"{first} ({mine.preprocessing})", f"{second} ({theirs.preprocessing})"
        elif first == second:
            first, second = f"{first} (weights {mine.digest[:8]})", f"{second} (weights {theirs.digest[:8]})"
        raise InputError(
            f"the feature store {self.path} was made with the encoder {first}, but {second} is needed; "
            "embed the images again with that encoder, or give a store that it made"
        )

    @property
    def default_split(self) -> str:
        """Where captions are retrieved from unless a split is named: "train", or the largest if there is none."""
        if not self.splits or "train" in self.splits:
            return "train"
        return max(self.splits, key=lambda name: self.splits[name])

    def split(self, name: str) -> StoreSplit:
        """The images of one split; no column is read yet.

        Raises:
            InputError: there is no split of that name.
        """
        if name not in self.splits:
            there = ", ".join(self.splits) or "none"
            remedy = f": give one of these, e.g. split={max(self.splits)}" if self.splits else ""
            raise InputError(f"{self.path} has no split {name!r}; it has {there}{remedy}")
        entries = [entry for entry in self._entries if name in entry.splits]
        return StoreSplit(name, self._opened(entries), entries, self.image_root)

    def parts(self) -> list[Part]:
        """The files of the store, opened. Raises InputError as the class, if it is remote."""
        return self._opened(self._entries)

    def skipped(self) -> list[Skipped]:
        """The images and captions that were left out, with the reasons."""
        return [skip for part in self.parts() for skip in part.skipped()]

    def _opened(self, entries: list[PartEntry]) -> list[Part]:
        if is_remote(self.location):
            with lock(self.path):
                for entry in entries:
                    self._fetch(entry)
        parts = [Part(self.path / entry.file, entry) for entry in entries]
        for part in parts:
            self._require_width(part)
            part.hold()
        return parts

    def _require_width(self, part: Part) -> None:
        """Refuse a part whose embeddings have another width than its encoder's."""
        for name in (set(Feature) - {Feature.HIDDEN}) & {*part.features}:
            if part.row_of(name)[0][-1] != self.encoder.dim:
                raise InputError(
                    f"{part.path} has rows of {part.row_of(name)[0]} in {name}, but those of encoder "
                    f"{self.encoder.name} are {self.encoder.dim} wide; {RERUN_HINT} to repair it"
                )

    def _fetch(self, entry: PartEntry) -> None:
        """Fetch a part, unless it was fetched before and the remote store has not changed since."""
        file = self.path / entry.file
        checked = file.with_suffix(".sha256")  # the digest of what lies there
        if find_damage(self.path, entry) or not checked.is_file() or checked.read_bytes() != entry.digest.encode():
            fetch(f"{self.location}/{entry.file}", file, entry.bytes, partial(_require_announced, entry))
            atomic_write_text(checked, entry.digest)


def _below(root: Path, file: str) -> Path | None:
    """The path of an image; None if it is not below the image root: a stranger's store may name any file."""
    path, root = Path(os.path.normpath(root / file)), Path(os.path.normpath(root))
    return path if "\0" not in file and path != root and path.is_relative_to(root) else None


def _require_announced(entry: PartEntry, file: Path) -> None:
    """Check that a file that was fetched is the part that the index of its store says."""
    part = Part(file, entry)
    if file.stat().st_size != entry.bytes:
        raise InputError(f"{file} has {file.stat().st_size} bytes, but the index of its store says {entry.bytes}")
    if part.digest() != entry.digest:
        raise InputError(f"{file} is not as the index of its store says (its digest differs)")


def _why_unfinished(store: Path) -> str:
    if not store.exists():
        return f"there is no feature store at {store}; make it with `prefixcap embed ...`"
    files = sorted((store / "pieces").glob("*.h5"))
    for file in files:
        try:
            shards = Part(file).attributes["shards_in_all"]
        except UnreadableError:
            continue
        done = len({file.name.partition("-")[0] for file in files})
        return (
            f"the feature store {store} is unfinished ({done} of {shards} shards): {RERUN_HINT}, it continues where it "
            "stopped"
        )
    return f"{store} is not a feature store: it has no index.json and no readable piece"
