"""The feature store of a configured data set: create, complete, open."""

import hashlib
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
from omegaconf import DictConfig, OmegaConf

from data_prep.readers import read_dataset
from data_prep.records import Dataset
from prefixcap.demo import language_model_beside
from prefixcap.errors import InputError
from prefixcap.features import Feature
from prefixcap.store import FeatureStore
from prefixcap.store.remote import is_remote
from prefixcap.utils.hub import missing_language_model, naming
from prefixcap.utils.options import Dtype

if TYPE_CHECKING:
    import torch

    from data_prep.embedding import EmbedReport
    from prefixcap.utils.cluster import Accelerator

SMALL_WORLD = ("demo", "demo_other")  # data sets that are drawn when they are needed
CAPTIONS_AT_ONCE = 65536  # read together, where all captions of a store are read


def store_path(data_name: str, store: str | None, encoder_name: str) -> Path:
    """Where the feature store of a data set lies: as configured, else `stores/<data name>-<encoder name>`."""
    return Path(store or f"stores/{data_name}-{re.sub(r'[^A-Za-z0-9.]+', '-', encoder_name).strip('-')}")


def read_checked(data: DictConfig, dtype: str, store_dtype: str) -> Dataset:
    """Read a configured data set after a check that its store can be made; arguments as in `make_store`.

    Raises:
        InputError: as the reader does, there is no such dtype, or the store is a URL.
    """
    for name, value, known in (("dtype", dtype, get_args(Dtype)), ("store_dtype", store_dtype, ["float16", "float32"])):
        if value not in known:
            raise InputError(f"there is no {name}={value}; choose one of {', '.join(known)}")
    if data.store is not None and is_remote(data.store):
        raise InputError(f"a store is written to a local disk, and then copied: {data.store} is a URL; give a path")
    return read_dataset(data.reader)


def make_store(
    data: DictConfig,
    encoder_name: str,
    device: "str | torch.device" = "cpu",
    dtype: str = "float32",
    store_dtype: str = "float16",
    dataset: Dataset | None = None,
    **options: Any,
) -> "EmbedReport":
    """Create or complete the feature store of a configured data set (`conf/data`).

    Args:
        data: with `name`, `store` and `reader`, see `read_dataset`.
        encoder_name: as `load_encoder` takes it.
        device: of the encoder.
        dtype: of the encoder's weights: "float32", "bfloat16" or "float16".
        store_dtype: of the stored features: "float32" or "float16".
        dataset: as `read_checked` returned it; None: it is read here.
        options: of `embed`; `features` defaults to what the data set has: images or captions.

    Raises:
        InputError: as the reader, `load_encoder` and `embed` do.
    """
    dataset = dataset or read_checked(data, dtype, store_dtype)
    import torch

    from data_prep.embedding import embed
    from prefixcap.encoders import load_encoder

    if options.get("progress", True):
        _print_notes(dataset)
    options["features"] = options.get("features") or _default_features(dataset)
    with naming(missing_language_model, language_model_beside(encoder_name, data.default_lm)):  # training needs it next
        encoder = load_encoder(encoder_name, device, getattr(torch, dtype))
    path = store_path(data.name, data.store, encoder_name)
    return embed(dataset, encoder, path, store_dtype=getattr(torch, store_dtype), **options)


def make_store_on_cluster(
    data: DictConfig,
    encoder_name: str,
    accelerator: "Accelerator",
    dtype: str,
    store_dtype: str,
    dataset: Dataset,
    batch_size: int | None,
    max_skipped: float,
    features: Sequence[str] | None,
    task: int = 0,
    tasks: int = 1,
    **options: Any,
) -> "EmbedReport":
    """Do what `make_store` does on a Ray cluster; arguments as there, those of `ClusterMaker` among them.

    Raises:
        InputError: as `make_store` and `ClusterMaker` do.
    """
    import torch

    from data_prep.cluster import ClusterMaker
    from data_prep.embedding import check_numbers, fill_store

    check_numbers(batch_size, options.get("num_workers"), task, tasks)
    _print_notes(dataset)
    stored_in = getattr(torch, store_dtype)
    with closing(
        ClusterMaker(encoder_name, accelerator, dtype, features or _default_features(dataset), stored_in, **options)
    ) as maker:
        path = store_path(data.name, data.store, encoder_name)
        return fill_store(dataset, maker, path, batch_size, max_skipped=max_skipped, task=task, tasks=tasks)


def _print_notes(dataset: Dataset) -> None:
    for note in dataset.notes:
        print(note)


def _default_features(dataset: Dataset) -> list[str]:
    return [(Feature.IMAGE if dataset.has_images else Feature.CAPTION).option]


def open_store(data: DictConfig, encoder_name: str, feature: Feature | str = Feature.IMAGE) -> FeatureStore:
    """Open the feature store of a configured data set, a folder or a URL; the small world's is created if necessary.

    Args:
        data: with `name` and `store`.
        encoder_name: as `load_encoder` takes it.
        feature: the feature that is needed, or its name: the name of a store with patches or regions ends in it.
            Sentences without images have only `Feature.CAPTION`.

    Raises:
        InputError: there is no such store, or it is incomplete; the message gives the command that creates it.
    """
    if data.store is not None and is_remote(data.store):
        return FeatureStore(data.store)
    path = feature_path(data, encoder_name, feature)
    if not path.exists() and data.name in SMALL_WORLD:
        there = cast(DictConfig, OmegaConf.merge(data, {"store": str(path)}))
        print_summary(path, make_store(there, encoder_name, features=_features(data, feature)))
    require_store(data, encoder_name, feature)
    return FeatureStore(path)


def require_store(data: DictConfig, encoder_name: str, feature: Feature | str = Feature.IMAGE) -> None:
    """Raise InputError unless `open_store` will find a store, or create it; arguments and message as there."""
    path = feature_path(data, encoder_name, feature)
    if data.name in SMALL_WORLD or path.exists() or (data.store is not None and is_remote(data.store)):
        return
    options = data.get("options", [f"data={data.name}"])
    command = ["python -m data_prep.embed", *options, f"encoder.name={encoder_name}"]
    features = _features(data, feature)
    if len(features) > 1:
        command += [f"data.store={path}", f"'features=[{','.join(features)}]'"]
    raise InputError(
        f"there is no feature store {path}: make it with `{' '.join(command)}`, or name one with data.store=…"
    )


def _features(data: DictConfig, feature: Feature | str) -> list[str]:
    """The options of the features in the store of a data set."""
    option = Feature.parse(feature).option
    return (
        [option] if option == Feature.IMAGE.option or data.get("sentences", False) else [Feature.IMAGE.option, option]
    )


def feature_path(data: DictConfig, encoder_name: str, feature: Feature | str) -> Path:
    """The path of the store of a configured data set that has a feature, whether it exists; arguments as in
    `open_store`."""
    path, feature = store_path(data.name, data.store, encoder_name), Feature.parse(feature)
    if data.store is None and feature is not Feature.IMAGE and not data.get("sentences", False):
        return path.with_name(f"{path.name}-{feature.option}")
    return path


def print_summary(path: Path, report: "EmbedReport") -> None:
    """Print what a run did, and what the store holds if it is complete."""
    try:
        store = FeatureStore(path)
    except InputError:
        left = f"{report.missing:,} shards of {path} are left to other processes"
        print(f"embedded {report.written:,} {report.unit}; {left}")
        return
    if not report.written:
        print("the store was complete already")
    elif report.resumed:
        print(f"continued after {report.resumed:,} {report.unit} of earlier runs")
    print_store(store, report.unit)


def print_store(store: FeatureStore, unit: str) -> None:
    """Print what a store holds and what it leaves out; `unit` is "images" or "sentences"."""
    splits = ", ".join(f"{name} {count:,}" for name, count in store.splits.items())
    captions = f"; captions: {store.captions:,}" if unit == "images" else ""
    print(f"{unit}: {splits}{captions}")
    if others := sorted(store.splits.keys() - {"train", "val", "test"}):
        print(f"neither train, val nor test: {', '.join(others)}; read only where they are named, as split={others[0]}")
    if unit == "sentences" and (copies := copies_of_captions(store)):
        print(f"copies: {copies:,} sentences are said a second time or more; they are kept, and count as often")
    if skipped := store.skipped():
        print(f"skipped: {len(skipped):,}, see {store.path / 'skipped.csv'}")
        for skip in skipped[:3]:
            print(f"  {skip.file or skip.id}: {skip.reason}")
    size = sum(file.stat().st_size for file in store.path.iterdir())
    print(f"store: {store.path} ({size / 1e6:.1f} MB)")


def copies_of_captions(store: FeatureStore) -> int:
    """How many captions repeat an earlier one exactly, by 64-bit hashes (8 bytes a caption)."""
    captions = (
        caption
        for name in store.splits
        for start in range(0, len(store.split(name).captions), CAPTIONS_AT_ONCE)
        for caption in store.split(name).captions[start : start + CAPTIONS_AT_ONCE]
    )
    hashes = np.fromiter(
        (int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "big") for caption in captions),
        np.uint64,
    )
    return len(hashes) - len(np.unique(hashes))
