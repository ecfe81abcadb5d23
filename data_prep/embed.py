"""Images with captions -> feature store, once, offline.

    python -m data_prep.embed data=coco encoder=clip_vit_b32

A run that was stopped goes on where it was when the same command is given again.
"""

import re
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from data_prep.embedding import EmbedReport, embed
from data_prep.records import Dataset
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore


def store_path(data_name: str, store: str | None, encoder_name: str) -> Path:
    """Where the feature store of a data set lies: as configured, else `stores/<data name>-<encoder name>`."""
    return Path(store or f"stores/{data_name}-{re.sub(r'[^A-Za-z0-9.]+', '-', encoder_name).strip('-')}")


def make_store(
    data: DictConfig,
    encoder_name: str,
    device: str = "auto",
    **options: Any,
) -> None:
    """Make or finish the feature store of a configured data set (`conf/data`), and print what is in it.

    Args:
        data: with `name`, `store` and a `reader` to instantiate.
        encoder_name: as `load_encoder` takes it.
        device: "auto" is a GPU if there is one.
        options: of `embed`.

    Raises:
        InputError: as the reader, `load_encoder` and `embed` do.
    """
    path = store_path(data.name, data.store, encoder_name)
    dataset: Dataset = instantiate(data.reader)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    report = embed(dataset, load_encoder(encoder_name, device), path, **options)
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
    if report.missing:
        print(f"embedded {report.written:,} images; {report.missing:,} shards of {path} are left to other processes")
        return
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
    options = {name: config[name] for name in ("batch_size", "num_workers", "max_skipped", "task", "tasks")}
    make_store(config.data, config.encoder.name, config.device, **options)


if __name__ == "__main__":
    from launch import run  # lies beside conf/: the command runs from the repository

    run(main, "embed")
