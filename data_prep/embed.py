"""Images with captions -> feature store, once, offline.

    python -m data_prep.embed data=coco encoder=clip_vit_b32

A run that was stopped goes on where it was when the same command is given again.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from data_prep.records import Dataset, ImageRecord, Skipped
from prefixcap.encoders import Encoder, EncoderIdentity, load_encoder
from prefixcap.errors import InputError
from prefixcap.images import open_image
from prefixcap.store import FeatureStore, StoreWriter, join

# Below this many images, starting worker processes takes longer than they save.
MANY_IMAGES = 2000

# The rows of the images of a batch that could be read, their pixels, and the reason for each of the others.
Batch = tuple[list[int], Tensor, dict[int, str]]


@dataclass(frozen=True)
class EmbedReport:
    """What a run did.

    Attributes:
        written: images embedded by this run.
        resumed: images that were there already.
        skipped: all that the store leaves out.
    """

    written: int
    resumed: int
    skipped: list[Skipped]


def embed(
    dataset: Dataset,
    encoder: Encoder,
    store: Path,
    batch_size: int = 64,
    num_workers: int | None = None,
    shard_size: int = 1000,
    progress: bool = True,
) -> EmbedReport:
    """Embed the images of a data set into a feature store, shard by shard; shards that are there are kept.

    An image that cannot be read, or whose embedding is not finite in float16, is skipped and listed with the
    reason. A rotation in the image's EXIF data is applied; of an animation, the first frame is taken.

    Args:
        dataset: from a reader.
        encoder: makes the embeddings.
        store: the store's folder.
        batch_size: images encoded together.
        num_workers: processes that decode images, 0 for none; None: as many as help.
        shard_size: images a shard: the most that an interruption can cost.
        progress: show a progress bar on stderr.

    Raises:
        InputError: no image can be embedded, the folder holds the store of another job, the disk is full, or
            a batch does not fit into the device's memory.
    """
    _require_whole("batch_size", batch_size, least=1)
    _require_whole("num_workers", 0 if num_workers is None else num_workers, least=0)
    records = dataset.records
    shards = list(_chunks(range(len(records)), shard_size))
    job = _fingerprint(records, encoder.identity, shard_size)
    writer = StoreWriter(store, encoder.identity, dataset.source, dataset.image_root, job, len(shards))
    missing = writer.missing()
    todo = sum(len(shards[number]) for number in missing)
    if num_workers is None:
        num_workers = min(8, _processors() - 1) if todo >= MANY_IMAGES else 0

    # Batches end where shards do, so that a shard is the same whatever was there before it was made.
    batches = {number: [list(rows) for rows in _chunks(shards[number], batch_size)] for number in missing}
    loader = DataLoader(
        _Images(dataset, encoder.preprocess),
        batch_sampler=[batch for number in missing for batch in batches[number]],
        num_workers=num_workers,
        collate_fn=_gather,
    )
    written = 0
    # Shards without a single image wait for one that has some: a wrong folder must leave no store behind.
    barren: list[tuple[int, list[Skipped]]] = []
    nothing_yet = len(missing) == len(shards)
    bar = tqdm(
        desc="embedding",
        unit=" images",
        total=len(records),
        initial=len(records) - todo,
        disable=not (progress and missing),
    )
    with bar:
        stream: Iterator[Batch] = iter(loader)
        for number in missing:
            kept: list[int] = []
            embeddings = [np.empty((0, encoder.identity.dim), np.float16)]
            failed: dict[int, str] = {}
            for batch in batches[number]:
                rows, pixels, unreadable = next(stream)
                encoded = _encode(encoder, pixels)
                finite = np.isfinite(encoded.sum(axis=1, dtype=np.float64))  # of float16: cannot overflow
                kept += [row for row, good in zip(rows, finite, strict=True) if good]
                embeddings.append(encoded[finite])
                failed |= unreadable
                failed |= dict.fromkeys(set(rows) - set(kept), "embedding is not finite")
                bar.update(len(batch))
            skipped = [Skipped(records[row].id, records[row].file, failed[row]) for row in sorted(failed)]
            if number == 0:
                skipped = [*dataset.skipped, *skipped]  # what the reader left out heads the list
            if not kept and nothing_yet:
                barren.append((number, skipped))
                continue
            nothing_yet = False
            features = {"embedding": np.concatenate(embeddings)}
            writer.write_piece(number, 0, 1, [records[row] for row in kept], features, skipped)
            written += len(kept)
    if nothing_yet:
        first = barren[0][1][len(dataset.skipped)]
        raise InputError(
            f"none of the {len(records)} images can be embedded; the first is "
            f"{dataset.image_root / first.file}: {first.reason}"
        )
    for number, skipped in barren:
        writer.write_piece(number, 0, 1, [], {"embedding": np.empty((0, encoder.identity.dim), np.float16)}, skipped)
    if not writer.finished():
        join(store)
    made = FeatureStore(store)
    return EmbedReport(written, sum(made.splits.values()) - written, made.skipped())


class _Images(TorchDataset[tuple[int, Tensor | str]]):
    """(row, pixels) for each image, or (row, reason) if it cannot be read."""

    def __init__(self, dataset: Dataset, preprocess: Callable[[Image.Image], Tensor]) -> None:
        self.dataset, self.preprocess = dataset, preprocess

    def __len__(self) -> int:
        return len(self.dataset.records)

    def __getitem__(self, row: int) -> tuple[int, Tensor | str]:
        path = self.dataset.image_root / self.dataset.records[row].file
        try:
            return row, self.preprocess(open_image(path))
        except InputError as error:
            return row, str(error).removeprefix(f"{path}: ")


def _gather(items: list[tuple[int, Tensor | str]]) -> Batch:
    pixels = {row: image for row, image in items if isinstance(image, Tensor)}
    reasons = {row: reason for row, reason in items if isinstance(reason, str)}
    return list(pixels), torch.stack(list(pixels.values())) if pixels else torch.empty(0), reasons


def _encode(encoder: Encoder, pixels: Tensor) -> NDArray[np.float16]:
    """(batch, 3, height, width) pixels -> (batch, dim) embeddings."""
    if len(pixels) == 0:
        return np.empty((0, encoder.identity.dim), np.float16)
    try:
        with torch.inference_mode():
            embeddings: NDArray[np.float16] = encoder.encode_images(pixels.to(encoder.device)).half().cpu().numpy()
            return embeddings
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"a batch of {len(pixels)} images is too much for {encoder.device}: lower batch_size"
        ) from error


def _fingerprint(records: list[ImageRecord], encoder: EncoderIdentity, shard_size: int) -> str:
    """A hash over all that decides the content of the shards."""
    digest = hashlib.sha256()
    for item in (
        [encoder.digest, encoder.preprocessing, shard_size],
        *([record.id, record.file, record.split, record.domain, *record.captions] for record in records),
    ):
        digest.update(json.dumps(item).encode() + b"\n")
    return digest.hexdigest()


def _chunks(rows: range, size: int) -> Iterator[range]:
    return (rows[first : first + size] for first in range(0, len(rows), size))


def _processors() -> int:
    """How many processors this process may use; a job scheduler often grants fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")


def store_path(data_name: str, store: str | None, encoder_name: str) -> Path:
    """Where the feature store of a data set lies: as configured, else `stores/<data name>-<encoder name>`."""
    return Path(store or f"stores/{data_name}-{re.sub(r'[^A-Za-z0-9.]+', '-', encoder_name).strip('-')}")


def make_store(
    data: DictConfig,
    encoder_name: str,
    device: str = "auto",
    batch_size: int = 64,
    num_workers: int | None = None,
) -> None:
    """Make or finish the feature store of a configured data set (`conf/data`), and print what is in it.

    Args:
        data: with `name`, `store` and a `reader` to instantiate.
        encoder_name: as `load_encoder` takes it.
        device: "auto" is a GPU if there is one.
        batch_size: see `embed`.
        num_workers: see `embed`.

    Raises:
        InputError: as the reader, `load_encoder` and `embed` do.
    """
    path = store_path(data.name, data.store, encoder_name)
    dataset: Dataset = instantiate(data.reader)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    report = embed(dataset, load_encoder(encoder_name, device), path, batch_size, num_workers)
    _print_summary(path, report)


def open_store(data: DictConfig, encoder_name: str) -> FeatureStore:
    """The feature store of a configured data set; the small world's is made if it is not there.

    Raises:
        InputError: there is no such store, or it is not finished; the message names the command that makes it.
    """
    path = store_path(data.name, data.store, encoder_name)
    if not path.exists() and data.name == "demo":
        make_store(data, encoder_name)
    if not path.exists():
        raise InputError(
            f"there is no feature store {path}: make it with `python -m data_prep.embed data={data.name} "
            f"encoder.name={encoder_name}` and the same data.* options, or name one with data.store=…"
        )
    return FeatureStore(path)


def _print_summary(path: Path, report: EmbedReport) -> None:
    store = FeatureStore(path)
    if not report.written:
        print("the store was complete already")
    elif report.resumed:
        print(f"went on after {report.resumed:,} images that were there already")
    splits = ", ".join(f"{name} {count:,}" for name, count in store.splits.items())
    print(f"images: {splits}; captions: {store.captions:,}")
    if report.skipped:
        print(f"skipped: {len(report.skipped):,}, see {path / 'skipped.csv'}")
        for skip in report.skipped[:3]:
            print(f"  {skip.file or skip.id}: {skip.reason}")
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"store: {path} ({size / 1e6:.1f} MB)")


def main(config: DictConfig) -> None:
    """The command. Raises InputError as `make_store` does."""
    make_store(config.data, config.encoder.name, config.device, config.batch_size, config.num_workers)


if __name__ == "__main__":
    from launch import run  # lies beside conf/: the command runs from the repository

    run(main, "embed")
