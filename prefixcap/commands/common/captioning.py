"""Captions of the images in a feature store, as a configuration describes them."""

import base64
import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from data_prep.stores import feature_path, open_store
from prefixcap.captioner import Captioner
from prefixcap.consensus import Consensus
from prefixcap.data import require_match
from prefixcap.decoding import random_generator
from prefixcap.encoders.common import state_dict_digest
from prefixcap.encoders.inputs import check_finite
from prefixcap.errors import InputError, name_rows, spell_options
from prefixcap.evaluation.caption_files import read_prompts
from prefixcap.features import EncoderIdentity, Feature
from prefixcap.prompts.datastore import Datastore
from prefixcap.reranking import default_candidates
from prefixcap.sampling import Sampling
from prefixcap.store import FeatureStore, StoreSplit
from prefixcap.textonly.memory import MemoryBank
from prefixcap.utils.files import Journal
from prefixcap.utils.options import Positive, check_value
from prefixcap.zeroshot.magic import Magic
from prefixcap.zeroshot.zerocap import ZeroCap

_KEPT = "unfinished-{}.jsonl"  # what `write_captions` keeps of a split

COPIES = 10  # of the full image, with regions=0: N_cr, the number of regions that MacCap is trained on and reads


def needed_feature(captioner: Captioner, regions: int | None) -> Feature:
    """What captions are written from, by its name in a store: of the whole image where regions=0 asks for that.

    Raises:
        InputError: `regions` is set, and the captioner reads no regions.
    """
    if regions is not None and captioner.features is not Feature.REGIONS:
        raise InputError(
            f"regions={regions} is for captioners that read regions, and this one reads {captioner.features}"
        )
    return Feature.IMAGE if regions == 0 else captioner.features


def open_images(data: DictConfig, captioner: Captioner, regions: int | None = None) -> FeatureStore:
    """The store of a data set that has what a captioner reads of its images. Raises InputError as `open_store` and
    `needed_feature`."""
    encoder, feature = captioner.encoder_identity.name, captioner.features
    if needed_feature(captioner, regions) is Feature.IMAGE and feature is not Feature.IMAGE:
        # A store of what the captioner reads has the embeddings of entire images as well.
        feature = feature if feature_path(data, encoder, feature.option).exists() else Feature.IMAGE
    store = open_store(data, encoder, feature.option)
    require_match(store, captioner)
    return store


def open_memory(config: DictConfig, encoder: EncoderIdentity) -> MemoryBank | None:
    """The captions in the training split of `memory`, with their embeddings by this encoder; None without a memory."""
    if not config.memory:
        return None
    store = FeatureStore(config.memory)
    store.require_encoder(encoder)
    return MemoryBank.from_store(store.split("train"), size=config.memory_size)


def write_captions(
    config: DictConfig, captioner: Captioner, split: StoreSplit, folder: Path, rows: NDArray[np.int64] | None = None
) -> dict[int | str, str]:
    """A caption for each image of a split, or for those in `rows`, by image id.

    Each batch is kept in `folder`, so that a run that was stopped is resumed: with the same captioner and options, the
    captions are those of a run without a stop. `remove_kept` removes what is kept.

    Raises:
        InputError: the store lacks the feature that the captioner reads or the regions that are asked for, a captioner
            of regions is given a memory, the folder cannot be written to, or `Captioner.caption` raises it.
    """
    chosen = np.arange(len(split)) if rows is None else rows
    options: dict[str, Any] = {name: value for name, value in config.decode.items() if name != "method"}
    if options.get("rerank") is None:
        options["rerank"] = default_candidates(captioner.rerank, config.decode.method, options)
    reads = needed_feature(captioner, config.regions)
    if config.memory and reads is not Feature.IMAGE:
        raise InputError(f"memory= is for captioners that read the full image, and this one reads {reads}")
    features = _features(config.regions, split, reads, chosen)
    if reads != captioner.features:  # the full image has no parts
        options.pop("unit_parts", None)
    embeddings, prompts = None, None
    ids = [split.ids[row] for row in chosen.tolist()]
    if config.get("prompts_file"):
        prompts = read_prompts(Path(config.prompts_file), ids)
    with name_rows(ids), spell_options("decode.{}".format):
        if memory := open_memory(config, captioner.encoder_identity):  # all at once: it is read as often as it is asked
            features = memory.project(torch.from_numpy(features), config.memory_temperature).numpy()
        if reads != captioner.features:
            features = np.repeat(features[:, None], COPIES, axis=1)
        check_finite(torch.from_numpy(features))  # of all images, before the first is captioned
        if options["rerank"] or options.get("unit_parts") or captioner.prompts:
            embeddings = split.embeddings[chosen]
            check_finite(torch.from_numpy(embeddings))
        rerank = check_value("rerank", options["rerank"], Annotated[int, Ge(0)])
        batch_size = check_value("batch_size", config.batch_size, Positive)
        at_once = Sampling.take_from(dict(options)).images_at_once(batch_size, rerank or 1)
        generator = random_generator(options.pop("seed", None))
    if generator is not None:
        options["seed"] = generator
    job = _job(config, captioner, features, embeddings, prompts)
    if config.get("consensus"):
        options["consensus"] = Consensus(Datastore.open(config.consensus), config.consensus_nearest)

    def caption(part: list[int]) -> list[str]:
        if embeddings is not None:
            options["embeddings"] = embeddings[part]
        if prompts is not None:
            options["prompts"] = [prompts[row] for row in part]
        with spell_options("decode.{}".format):
            return captioner.caption(features[part], config.decode.method, batch_size, **options)

    kept = Journal(folder / _KEPT.format(split.name), job, anew=True)
    return _caption_the_rest(kept, ids, at_once, caption, generator)


def remove_kept(folder: Path) -> None:
    """Remove what `write_captions` has kept in a folder, now that its captions are stored otherwise."""
    for file in folder.glob(_KEPT.format("*")):
        file.unlink()


def leak_notes(config: DictConfig, references: Collection[Collection[str]]) -> list[str]:
    """What a reader of the scores should know of the stores that captions are retrieved from: whether they have
    references of the images, too."""
    notes = []
    for option in ("datastore", "consensus"):
        if config[option] and (leaks := Datastore.open(config[option]).leaks(references)):
            notes.append(
                f"{leaks:,} of {len(references):,} images have a reference that is in {option}={config[option]}, too, "
                "by the same words: scores may be higher for it"
            )
    return notes


def write_resumably(
    captioner: ZeroCap | Magic, split: StoreSplit, limit: int | None, batch_size: int, folder: Path, job: dict[str, Any]
) -> dict[int | str, str]:
    """A caption for each image of a split, or for `limit` of them drawn at random, by image id. Each batch is
    kept in `folder`.

    Raises:
        InputError: the store has no images, the folder has captions of another job, or `captioner.caption` raises it.
    """
    embeddings, rows = split.embeddings, np.arange(len(split))
    if limit is not None:
        rows = np.sort(np.random.default_rng(0).choice(rows, min(limit, len(rows)), replace=False))

    def caption(part: list[int]) -> list[str]:
        return captioner.caption(torch.from_numpy(embeddings[rows[part]]), batch_size)

    ids = [split.ids[row] for row in rows.tolist()]
    return _caption_the_rest(Journal(folder / "written.jsonl", job), ids, batch_size, caption)


def _caption_the_rest(
    kept: Journal,
    ids: Sequence[int | str],
    at_once: int,
    caption: Callable[[list[int]], list[str]],
    generator: torch.Generator | None = None,
) -> dict[int | str, str]:
    """A caption for each image, by its id: those that are kept and, written batch by batch and kept, the others.

    Args:
        kept: the captions so far, and under None the state of `generator` after them.
        ids: of all images.
        at_once: images of a batch.
        caption: the rows of images -> their captions.
        generator: that it draws from, on the CPU.
    """
    if generator is not None and None in kept.results:
        generator.set_state(torch.frombuffer(bytearray(base64.b64decode(kept.results[None])), dtype=torch.uint8))
    left = [row for row, image_id in enumerate(ids) if image_id not in kept.results]
    with tqdm(total=len(ids), initial=len(ids) - len(left), unit=" images", delay=1) as bar:
        for start in range(0, len(left), at_once):
            part = left[start : start + at_once]
            batch_ids = [ids[row] for row in part]
            with name_rows(batch_ids):
                results: dict[Any, str] = dict(zip(batch_ids, caption(part), strict=True))
            if generator is not None:
                results[None] = base64.b64encode(generator.get_state().numpy().data).decode()
            kept.add(results)
            bar.update(len(part))
    return {image_id: kept.results[image_id] for image_id in ids}


def _job(
    config: DictConfig,
    captioner: Captioner,
    features: NDArray[Any],
    embeddings: NDArray[Any] | None,
    prompts: list[str] | None,
) -> dict[str, Any]:
    """All that captions depend on, in JSON values."""
    read = hashlib.sha256(json.dumps(prompts).encode())
    for array in (features, embeddings):
        if array is not None:
            read.update(np.ascontiguousarray(array).data)
    stores = {option: FeatureStore(config[option]) for option in ("datastore", "consensus") if config.get(option)}
    return {
        "captioner": [captioner.describe(), state_dict_digest(captioner.checkpoint_state_dict())],
        "read": read.hexdigest(),
        "stores": {option: store.split(store.default_split).digest for option, store in stores.items()},
        "consensus_nearest": config.get("consensus_nearest"),
        "decode": OmegaConf.to_container(config.decode),
        "batch_size": config.batch_size,
    }


def _features(regions: int | None, split: StoreSplit, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    """A feature of the images in `rows`; of regions, the first `regions` of each image."""
    column = split.feature(name)
    if not regions:
        complete: NDArray[Any] = column[rows]
        return complete
    if not 0 <= regions <= column.shape[1]:
        raise InputError(f"regions={regions}, but the store has {column.shape[1]} of each image: use at most so many")
    first: NDArray[Any] = column[rows][:, :regions]
    return first
