"""Captions of a feature store's images, as a configuration says; for the scripts that write some."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from tqdm import tqdm

from data_prep.embed import open_store
from prefixcap.captioner import Captioner
from prefixcap.data import require_match
from prefixcap.encoders import EncoderIdentity
from prefixcap.errors import InputError, name_rows
from prefixcap.files import Journal
from prefixcap.store import FeatureStore, StoreSplit
from prefixcap.textonly.memory import MemoryBank
from prefixcap.zeroshot.magic import Magic
from prefixcap.zeroshot.zerocap import ZeroCap


def open_images(data: DictConfig, captioner: Captioner) -> FeatureStore:
    """The store of a data set that has what a captioner reads of its images. Raises InputError as `open_store`."""
    reads = captioner.features.removeprefix("images/")
    store = open_store(data, captioner.encoder_identity.name, "image" if reads == "embedding" else reads)
    require_match(store, captioner)
    return store


def open_memory(config: DictConfig, encoder: EncoderIdentity) -> MemoryBank | None:
    """The captions in the training split of `memory`, with embeddings of this encoder; None: there is no memory."""
    if not config.memory:
        return None
    store = FeatureStore(config.memory)
    store.require_encoder(encoder)
    return MemoryBank.from_store(store.split("train"), size=config.memory_size)


def write_captions(
    config: DictConfig, captioner: Captioner, split: StoreSplit, rows: NDArray[np.int64] | None = None
) -> dict[int | str, str]:
    """A caption of each image of a split, or of those in some rows of it, by its id.

    Raises:
        InputError: the store lacks what the captioner reads or `regions` asks for, there is a memory and the captioner
            reads regions, or `Captioner.caption` raises it.
    """
    chosen = np.arange(len(split)) if rows is None else rows
    options: dict[str, Any] = {name: value for name, value in config.decode.items() if name != "method"}
    if config.memory and captioner.features != "images/embedding":
        raise InputError(
            f"memory= is for captioners that read the whole image, and this one reads {captioner.features}"
        )
    features = _features(config.regions, split, captioner.features, chosen)
    if options.get("rerank"):
        options["embeddings"] = split.embeddings[chosen]
    ids = [split.ids[row] for row in chosen.tolist()]
    with name_rows(ids):
        if memory := open_memory(config, captioner.encoder_identity):  # all at once: it is read as often as it is asked
            features = memory.project(torch.from_numpy(features), config.memory_temperature).numpy()
        written = captioner.caption(features, config.decode.method, config.batch_size, progress=True, **options)
    return dict(zip(ids, written, strict=True))


def write_resumably(
    captioner: ZeroCap | Magic, split: StoreSplit, limit: int | None, batch_size: int, folder: Path, job: dict[str, Any]
) -> dict[int | str, str]:
    """A caption of each image of a split, or of `limit` drawn from it, by its id; kept in `folder` as they come.

    Raises:
        InputError: the store has no images, the folder has captions of another job, or the captioner raises it.
    """
    embeddings, rows = split.embeddings, np.arange(len(split))
    if limit is not None:
        rows = np.sort(np.random.default_rng(0).choice(rows, min(limit, len(rows)), replace=False))
    journal = Journal(folder / "written.jsonl", job)
    left = [row for row in rows.tolist() if split.ids[row] not in journal.found]
    with tqdm(total=len(rows), initial=len(rows) - len(left), unit=" images", delay=1) as bar:
        for start in range(0, len(left), batch_size):
            part = left[start : start + batch_size]
            ids = [split.ids[row] for row in part]
            with name_rows(ids):
                written = captioner.caption(torch.from_numpy(embeddings[part]), batch_size)
            journal.add(dict(zip(ids, written, strict=True)))
            bar.update(len(part))
    return {split.ids[row]: journal.found[split.ids[row]] for row in rows.tolist()}


def _features(regions: int | None, split: StoreSplit, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    """What a captioner reads of images; of regions, the first few of each, or (0) the whole image in place of each."""
    column = split.feature(name)
    if regions is not None and name != "images/regions":
        raise InputError(f"regions={regions} is for captioners that read regions, and this one reads {name}")
    if regions is not None and not 0 <= regions <= column.shape[1]:
        raise InputError(f"regions={regions}, but the store has {column.shape[1]} of each image: take so many or fewer")
    if regions == 0:
        return np.repeat(split.embeddings[rows][:, None], column.shape[1], axis=1)
    found: NDArray[Any] = column[rows][:, :regions]
    return found
