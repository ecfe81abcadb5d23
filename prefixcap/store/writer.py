"""Writing a feature store, part by part."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from prefixcap.encoders.protocol import EncoderIdentity
from prefixcap.errors import InputError
from prefixcap.files import write_text_whole, write_whole
from prefixcap.store.format import (
    DTYPE,
    FORMAT,
    FORMAT_VERSION,
    TEXT,
    ImageRecord,
    Skipped,
    UnreadableError,
    damage_of,
    open_part,
    read_ids,
    read_index,
    read_texts,
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
        index = read_index(path)
        if index is not None:
            self._require_same_job(index["job"], index["encoder"]["name"], index["source"])
        for file in sorted(path.glob("part-*.h5")):
            try:
                with open_part(file) as part:
                    self._require_same_job(part.attrs["job"], part.attrs["encoder"], part.attrs["source"])
            except UnreadableError:
                continue  # written again, as if it were not there
            break

    def finished(self) -> bool:
        """True if all parts and the index are there, whole."""
        index = read_index(self.path)
        return index is not None and not any(damage_of(self.path, part) for part in index["parts"])

    def has_part(self, number: int) -> bool:
        """True if that part is there, whole; one that cannot be read counts as absent."""
        try:
            with open_part(self._part(number)) as file:
                return bool(file.attrs["job"] == self.job)
        except UnreadableError:
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
            with open_part(self._part(number)) as file:
                columns = (
                    read_ids(file["skipped/id"]),
                    read_texts(file["skipped/file"]),
                    read_texts(file["skipped/reason"]),
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


def _describe(path: Path) -> dict[str, Any]:
    """What the index says about one part."""
    with open_part(path) as file:
        split_of_image = np.asarray(read_texts(file["images/split"]), dtype=object)
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


def _write_texts(file: Any, name: str, texts: list[str]) -> None:
    file.create_dataset(name, (len(texts),), TEXT, data=texts or None)


def _write_ids(file: Any, name: str, ids: list[int | str]) -> None:
    if any(isinstance(image_id, str) for image_id in ids):
        _write_texts(file, name, [str(image_id) for image_id in ids])
    else:
        file[name] = np.array(ids, dtype=np.int64)
