"""Readers of data sets: files as they were published in, the same records out."""

from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from data_prep.readers.coco import read_coco
from data_prep.readers.demo import read_demo, read_other_demo
from data_prep.readers.flickr8k import read_flickr8k, read_flickr8k_text
from data_prep.readers.folder import read_folder
from data_prep.readers.img2dataset import read_img2dataset
from data_prep.readers.karpathy import read_karpathy
from data_prep.readers.text import read_text
from data_prep.records import Dataset
from prefixcap.errors import InputError
from prefixcap.utils.options import check_options

READERS: dict[str, Callable[..., Dataset]] = {
    "coco": read_coco,
    "demo": read_demo,
    "demo_other": read_other_demo,
    "flickr8k": read_flickr8k,
    "flickr8k_text": read_flickr8k_text,
    "folder": read_folder,
    "img2dataset": read_img2dataset,
    "karpathy": read_karpathy,
    "text": read_text,
}
"""A reader is a function of the options in `data.reader` that returns a `data_prep.records.Dataset`."""


def read_dataset(reader: Mapping[str, Any]) -> Dataset:
    """Read a data set as `data.reader` of a configuration says.

    Args:
        reader: `name`, one of `READERS`, and options of that reader. In place of the name, `_target_` may give a
            function by its full name, as configurations of older runs do.

    Raises:
        InputError: there is no such reader, it does not take one of the options, or it cannot read the files.

    Examples:
        >>> dataset = read_dataset({"name": "demo", "root": "data/demo"})
        >>> samples, skipped = dataset.shards[0].read()
        >>> samples[0].record.split, len(samples[0].record.captions)
        ('train', 5)
    """
    options: Any = OmegaConf.to_container(reader, resolve=True) if OmegaConf.is_config(reader) else dict(reader)
    name = options.pop("name", None)
    if "_target_" in options:
        dataset: Dataset = instantiate(options)
        return dataset
    if name not in READERS:
        raise InputError(f"unknown reader '{name}': choose one of {', '.join(READERS)}")
    return READERS[name](**check_options(f"reader '{name}'", READERS[name], options))
