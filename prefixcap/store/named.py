"""The store that a checkpoint says it was trained on: opened automatically only where that is safe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prefixcap.errors import InputError
from prefixcap.store.reader import FeatureStore
from prefixcap.store.remote import is_remote


def open_training_store(trained_on: Mapping[str, Any], checkpoint: str | Path, *opened: FeatureStore) -> FeatureStore:
    """The store that a captioner was trained on.

    Anyone can write anything into a checkpoint. What it names is opened only if it is a folder, the checkpoint lies in
    its run (`RUN/checkpoints/`), and the folder lies below the working directory or beside the run, or is the
    `data.store` of the run's `config.yaml`; or if it is open already.

    Args:
        trained_on: as of `Captioner`.
        checkpoint: that the captioner was loaded from.
        opened: stores that the user has named.

    Raises:
        InputError: the checkpoint names none, or one that is not to be opened; or as `FeatureStore`.
    """
    location = trained_on.get("store")
    if not isinstance(location, str) or not location or "\0" in location:
        raise InputError(f"{checkpoint} does not say what it was trained on: name the images, e.g. data=coco")
    for store in opened:
        if store.location == location:
            return store
    if is_remote(location) or not _is_of_run(Path(location), Path(checkpoint).resolve()):
        where = "a URL" if is_remote(location) else "a folder outside of its run and of the working directory"
        raise InputError(
            f"{checkpoint} names {location!r} as its store, {where}, which is opened only if you give it: "
            "add data=NAME data.store=… with that, or with another store of yours"
        )
    return FeatureStore(location)


def _is_of_run(store: Path, checkpoint: Path) -> bool:
    """Whether a folder is one that the run of a checkpoint may have learned from; links are followed before."""
    if checkpoint.parent.name != "checkpoints":
        return False
    try:
        store = store.resolve()
    except (OSError, RuntimeError):  # links that lead to each other
        return False
    run = checkpoint.parent.parent
    beside = next((folder.parent for folder in run.parents if folder.name == "runs"), run.parent)
    own = [Path.cwd(), Path("stores").resolve(), beside]
    return any(store.is_relative_to(folder) for folder in own) or store == _store_of_config(run)


def _store_of_config(run: Path) -> Path | None:
    """The `data.store` of a run's configuration; None if it has none."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_bytes())
        return Path(config["data"]["store"]).resolve()
    except (OSError, RuntimeError, yaml.YAMLError, LookupError, TypeError, ValueError):
        return None
