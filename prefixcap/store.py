"""The feature store: a folder of HDF5 files that any HDF5 tool opens.

    STORE/part-00000.h5 ...   up to 1,000 images each, in the reader's order; written whole or not at all
    STORE/skipped.csv         what was left out, and why
    STORE/index.json          the parts and their counts; written last: a store without it is unfinished

A part holds `images/{id,embedding,split,file,domain}`, one row an image; `captions/{text,image}`, where
`image` is the row in this part; and `skipped/{id,file,reason}`. Its attributes name the format, the encoder
and the source.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from prefixcap.encoders.protocol import EncoderIdentity
from prefixcap.errors import InputError
from prefixcap.files import write_text_whole, write_whole

FORMAT = "prefixcap feature store"
FORMAT_VERSION = 1
DTYPE = "float16"
TEXT = h5py.string_dtype("utf-8")


@dataclass(frozen=True)
class ImageRecord:
    """One image and what is known about it.

    Attributes:
        id: a whole number or a string, unique in the data set; all ids of a data set are of one kind.
        file: relative to the image root.
        split: usually "train", "val" or "test".
        captions: the references, without line breaks.
        domain: as nocaps has it ("in-domain", ...), "" if there is none.
    """

    id: int | str
    file: str
    split: str
    captions: tuple[str, ...]
    domain: str = ""


@dataclass(frozen=True)
class Skipped:
    """An image or a caption that was left out, with the reason; `id` and `file` are "" where not known."""

    id: int | str
    file: str
    reason: str


@dataclass(frozen=True)
class StoreSplit:
    """The images of one split, in memory.

    Attributes:
        name: of the split.
        ids: N image ids.
        files: N absolute paths.
        domains: N names, "" where there is none.
        embeddings: (N, dim) float16, as the encoder gave them: not normalised.
        captions: C texts.
        caption_images: (C,) int64, the row of each caption's image in the lists above.
    """

    name: str
    ids: list[int | str]
    files: list[Path]
    domains: list[str]
    embeddings: NDArray[np.float16]
    captions: list[str]
    caption_images: NDArray[np.int64]

    def references(self) -> dict[int | str, list[str]]:
        """The captions of each image, by its id."""
        references: dict[int | str, list[str]] = {image_id: [] for image_id in self.ids}
        for caption, row in zip(self.captions, self.caption_images.tolist(), strict=True):
            references[self.ids[row]].append(caption)
        return references


class FeatureStore:
    """A finished store, opened for reading.

    Args:
        path: the store's folder.

    Attributes:
        encoder: who made the embeddings.
        source: what was embedded, as the reader named it.
        image_root: the folder that image files are relative to.
        splits: the number of images of each split.
        captions: the number of captions in all.

    Raises:
        InputError: there is no store at `path`, it is unfinished, of another format or a newer version, or
            a part is missing or truncated.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        index = _read_index(self.path)
        if index is None:
            raise InputError(_why_unfinished(self.path))
        for part in index["parts"]:
            if reason := _damage(self.path, part):
                raise InputError(f"{reason}; run the same `python -m data_prep.embed ...` again to mend it")
        self.encoder = EncoderIdentity(**index["encoder"])
        self.source: str = index["source"]
        self.image_root = Path(index["image_root"])
        self.splits: dict[str, int] = {name: counts["images"] for name, counts in index["splits"].items()}
        self.captions: int = index["captions"]
        self._parts: list[dict[str, Any]] = index["parts"]

    def require_encoder(self, identity: EncoderIdentity) -> None:
        """Check that the embeddings may be mixed with those of another encoder.

        Raises:
            InputError: the weights or the preprocessing differ; the message names both encoders.
        """
        mine, theirs = self.encoder, identity
        if (mine.digest, mine.preprocessing) == (theirs.digest, theirs.preprocessing):
            return
        first, second = mine.name, theirs.name
        if mine.digest == theirs.digest:
            first, second = f"{first} ({mine.preprocessing})", f"{second} ({theirs.preprocessing})"
        elif first == second:
            first, second = f"{first} (weights {mine.digest[:8]})", f"{second} (weights {theirs.digest[:8]})"
        raise InputError(
            f"the feature store {self.path} was made with the encoder {first}, but {second} is asked for; "
            "embed the images again with that encoder, or give the store that it made as data.store=..."
        )

    def split(self, name: str) -> StoreSplit:
        """Read one split into memory.

        Raises:
            InputError: there is no split of that name, or a part cannot be read.
        """
        if name not in self.splits:
            raise InputError(f"{self.path} has no split {name!r}; it has {', '.join(self.splits) or 'none'}")
        ids: list[int | str] = []
        files: list[Path] = []
        domains: list[str] = []
        captions: list[str] = []
        embeddings: list[NDArray[np.float16]] = []
        caption_images: list[NDArray[np.int64]] = []
        for part in self._parts:
            if name not in part["splits"]:
                continue
            with _open_part(self.path / part["file"]) as file:
                chosen = np.asarray(_texts(file["images/split"])) == name
                # The row that each image of this part gets in the split; meaningless where it is not chosen.
                rows = np.cumsum(chosen) - 1 + len(ids)
                ids += [image_id for image_id, take in zip(_ids(file["images/id"]), chosen, strict=True) if take]
                files += [self.image_root / text for text in _pick(_texts(file["images/file"]), chosen)]
                domains += _pick(_texts(file["images/domain"]), chosen)
                embeddings.append(file["images/embedding"][()][chosen])
                images = file["captions/image"][()]
                captions += _pick(_texts(file["captions/text"]), chosen[images])
                caption_images.append(rows[images[chosen[images]]])
        return StoreSplit(
            name, ids, files, domains, np.concatenate(embeddings), captions, np.concatenate(caption_images)
        )


class StoreWriter:
    """Writes a store part by part; parts that are there already, from a run that was stopped, are kept.

    Args:
        path: the store's folder.
        encoder: who makes the embeddings.
        source: what is embedded, in a word or a path.
        image_root: the folder that image files are relative to.
        job: a fingerprint of all that decides the store's content; a folder takes the parts of one job only.
        parts: how many parts the finished store has.

    Raises:
        InputError: the folder holds something else, or the store of another job.
    """

    def __init__(
        self, path: Path, encoder: EncoderIdentity, source: str, image_root: Path, job: str, parts: int
    ) -> None:
        self.path, self.encoder, self.source, self.image_root = path, encoder, source, image_root
        self.job, self.parts = job, parts
        index = _read_index(path)
        if index is not None:
            self._require_same_job(index["job"], index["encoder"]["name"], index["source"])
        for file in sorted(path.glob("part-*.h5")):
            try:
                with _open_part(file) as part:
                    self._require_same_job(part.attrs["job"], part.attrs["encoder"], part.attrs["source"])
            except _UnreadableError:
                continue  # written again, as if it were not there
            break

    def finished(self) -> bool:
        """True if all parts and the index are there, whole."""
        index = _read_index(self.path)
        return index is not None and not any(_damage(self.path, part) for part in index["parts"])

    def has_part(self, number: int) -> bool:
        """True if that part is there, whole; one that cannot be read counts as absent."""
        try:
            with _open_part(self._part(number)) as file:
                return bool(file.attrs["job"] == self.job)
        except _UnreadableError:
            return False

    def write_part(
        self,
        number: int,
        images: Sequence[ImageRecord],
        embeddings: NDArray[np.floating[Any]],
        skipped: Sequence[Skipped],
    ) -> None:
        """Write one part, whole or not at all.

        Args:
            number: from 0.
            images: N records.
            embeddings: (N, dim), the row of each image.
            skipped: what was left out of this part.

        Raises:
            InputError: the disk is full or the folder cannot be written to; earlier parts stay as they are.
        """
        if embeddings.shape != (len(images), self.encoder.dim):
            raise ValueError(f"{len(images)} images of {self.encoder.dim} dimensions, got {embeddings.shape}")
        # Built in memory and then written at once: HDF5 cannot close a file properly when the disk is full.
        with h5py.File(f"part {number}", "w", driver="core", backing_store=False) as file:
            file.attrs.update(
                format=FORMAT,
                format_version=FORMAT_VERSION,
                encoder=self.encoder.name,
                encoder_digest=self.encoder.digest,
                preprocessing=self.encoder.preprocessing,
                dim=self.encoder.dim,
                source=self.source,
                job=self.job,
                parts=self.parts,
            )
            _write_ids(file, "images/id", [image.id for image in images])
            file["images/embedding"] = embeddings.astype(DTYPE)
            for column in ("split", "file", "domain"):
                _write_texts(file, f"images/{column}", [getattr(image, column) for image in images])
            pairs = [(row, caption) for row, image in enumerate(images) for caption in image.captions]
            file["captions/image"] = np.array([row for row, _ in pairs], dtype=np.int64)
            _write_texts(file, "captions/text", [caption for _, caption in pairs])
            _write_ids(file, "skipped/id", [skip.id for skip in skipped])
            for column in ("file", "reason"):
                _write_texts(file, f"skipped/{column}", [getattr(skip, column) for skip in skipped])
            file.flush()
            content = file.id.get_file_image()
        with write_whole(self._part(number)) as temporary:
            temporary.write_bytes(content)

    def skipped(self) -> list[Skipped]:
        """What was left out of the parts that are there."""
        skipped: list[Skipped] = []
        for number in range(self.parts):
            with _open_part(self._part(number)) as file:
                columns = (
                    _ids(file["skipped/id"]),
                    _texts(file["skipped/file"]),
                    _texts(file["skipped/reason"]),
                )
                skipped += [Skipped(*row) for row in zip(*columns, strict=True)]
        return skipped

    def finish(self, skipped_before: Sequence[Skipped] = ()) -> None:
        """Write `skipped.csv` and then the index, which makes the store whole.

        Args:
            skipped_before: what the reader left out; it heads `skipped.csv`.

        Raises:
            InputError: the disk is full or the folder cannot be written to.
        """
        with (
            write_whole(self.path / "skipped.csv") as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            rows = csv.writer(file)
            rows.writerow(["id", "file", "reason"])
            rows.writerows([skip.id, skip.file, skip.reason] for skip in [*skipped_before, *self.skipped()])
        parts = [_describe(self._part(number)) for number in range(self.parts)]
        splits: dict[str, Counter[str]] = {}
        for part in parts:
            for name, counts in part["splits"].items():
                splits.setdefault(name, Counter()).update(counts)
        index = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "encoder": asdict(self.encoder),
            "source": self.source,
            "image_root": str(self.image_root.resolve()),
            "job": self.job,
            "dtype": DTYPE,
            "images": sum(part["images"] for part in parts),
            "captions": sum(part["captions"] for part in parts),
            "splits": splits,
            "parts": parts,
        }
        write_text_whole(self.path / "index.json", json.dumps(index, indent=1, ensure_ascii=False) + "\n")
        for leftover in self.path.glob(".part-*.tmp"):  # of runs that were killed as they wrote
            leftover.unlink(missing_ok=True)

    def _part(self, number: int) -> Path:
        return self.path / f"part-{number:05d}.h5"

    def _require_same_job(self, job: str, encoder: str, source: str) -> None:
        if job != self.job:
            raise InputError(
                f"{self.path} holds the feature store of another job (encoder {encoder}, {source}); "
                f"this one has encoder {self.encoder.name}, {self.source}: "
                "delete that folder, or choose another with data.store=..."
            )


class _UnreadableError(InputError):
    """A part is missing, truncated or of another format."""


@contextmanager
def _open_part(path: Path) -> Iterator[Any]:
    """Open one part for reading. What HDF5 raises on a damaged file, also later, becomes an InputError."""
    try:
        with h5py.File(path, "r") as file:
            _require_format(path, file.attrs.get("format"), int(file.attrs.get("format_version", 0)))
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        reason = "is missing" if not path.exists() else "is damaged or no HDF5 file"
        again = "run the same `python -m data_prep.embed ...` again to mend it"
        raise _UnreadableError(f"{path} {reason}; {again}") from error


def _require_format(path: Path, name: object, version: int) -> None:
    if name != FORMAT:
        raise InputError(f"{path} is not part of a {FORMAT}; give the path of one, or of a new folder")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has version {version} of the store format, and this prefixcap reads {FORMAT_VERSION}; "
            "use the prefixcap that made it, or embed the images again"
        )


def _read_index(store: Path) -> dict[str, Any] | None:
    """The index of a store, None if there is none yet."""
    path = store / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); is {store} a feature store?") from error
    if not isinstance(index, dict):
        index = {}
    _require_format(path, index.get("format"), index.get("format_version", 0))
    return index


def _why_unfinished(store: Path) -> str:
    if not store.exists():
        return f"there is no feature store at {store}; make it with `python -m data_prep.embed ...`"
    parts = sorted(store.glob("part-*.h5"))
    for part in parts:
        try:
            with _open_part(part) as file:
                total = int(file.attrs["parts"])
        except _UnreadableError:
            continue
        return (
            f"the feature store {store} is unfinished ({len(parts)} of {total} parts): "
            "run the same `python -m data_prep.embed ...` again, it goes on where it stopped"
        )
    return f"{store} is not a feature store: it has no index.json and no readable part"


def _describe(path: Path) -> dict[str, Any]:
    """What the index says about one part."""
    with _open_part(path) as file:
        split_of_image = np.asarray(_texts(file["images/split"]), dtype=object)
        images = Counter(split_of_image)
        captions = Counter(split_of_image[file["captions/image"][()]])
        return {
            "file": path.name,
            "bytes": path.stat().st_size,
            "images": len(split_of_image),
            "captions": len(file["captions/image"]),
            "skipped": len(file["skipped/id"]),
            "splits": {name: {"images": images[name], "captions": captions[name]} for name in images},
        }


def _damage(store: Path, part: dict[str, Any]) -> str | None:
    """What is wrong with a part of a finished store, as far as its size tells; None if nothing is."""
    path = store / part["file"]
    if not path.exists():
        return f"{path} is missing"
    size = path.stat().st_size
    return f"{path} has {size} of {part['bytes']} bytes" if size != part["bytes"] else None


def _write_texts(file: Any, name: str, texts: list[str]) -> None:
    file.create_dataset(name, (len(texts),), TEXT, data=texts or None)


def _write_ids(file: Any, name: str, ids: list[int | str]) -> None:
    if any(isinstance(image_id, str) for image_id in ids):
        _write_texts(file, name, [str(image_id) for image_id in ids])
    else:
        file[name] = np.array(ids, dtype=np.int64)


def _texts(dataset: Any) -> list[str]:
    return [text.decode("utf-8") for text in dataset[()]]


def _ids(dataset: Any) -> list[int | str]:
    return dataset[()].tolist() if dataset.dtype.kind == "i" else list(_texts(dataset))


def _pick(values: list[str], chosen: NDArray[np.bool_]) -> list[str]:
    return [value for value, take in zip(values, chosen, strict=True) if take]
