"""The feature stores of the study, from the shared data: no photograph is read, as their features are there already."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.embedding import embed
from data_prep.readers.inputs import clean_caption
from data_prep.records import Dataset, FileShard
from prefixcap.encoders import Encoder
from prefixcap.encoders.heads import Head
from prefixcap.encoders.photo import load_heads
from prefixcap.errors import InputError
from prefixcap.features import Feature
from prefixcap.store import ImageRecord, StoreWriter, join
from prefixcap.utils.files import read_json

COCO_FILES = ("coco_karpathy_val.json", "coco_karpathy_test.json")
FLICKR30K_FILES = ("flickr30k_val.json", "flickr30k_test.json")
COCO_VAL = 0.05  # share of the images whose captions choose the checkpoint of a captioner that learns from COCO's
AT_ONCE = 8192  # rows through a head


def make_flickr8k(store: Path, data: Path, encoder: Encoder) -> None:
    """The photographs of Flickr8k and their captions, as the encoder embeds them, unless the store is complete.

    Args:
        store: the folder to write.
        data: the folder `flickr8k` of the shared data.
        encoder: `load_encoder("photo")`, whose heads are applied to the features of its two networks.

    Raises:
        InputError: a file is missing or has another number of rows, or the store is one of other data or heads.
    """
    captions, images, texts = (data / name for name in ("captions.json", "image_features.npy", "caption_features.npy"))
    job = hashlib.sha256(encoder.identity.digest.encode())
    for file in (captions, images, texts):
        require(file)
        job.update(file.read_bytes())
    writer = StoreWriter(
        store, encoder.identity, f"features in {data}", data / "test_images", job.hexdigest(), shards=1
    )
    if writer.finished():
        return
    records = list(flickr8k_records(data))
    image_head, text_head = load_heads()
    columns = {
        Feature.IMAGE.value: through(image_head, images, len(records)),
        Feature.CAPTION.value: through(text_head, texts, sum(len(record.captions) for record in records)),
    }
    writer.write_piece(0, 0, 1, records, columns, [])
    join(store)


def flickr8k_records(data: Path) -> Iterator[ImageRecord]:
    """The images in the order of the rows of their features; only those of the test split are there as files."""
    for split, images in read_json(data / "captions.json").items():
        for name, captions in images.items():
            file = name if (data / "test_images" / name).is_file() else ""
            yield ImageRecord(name, file, split, tuple(map(as_sentence, captions)))


def as_sentence(caption: str) -> str:
    """A caption with a capital and a full stop, without quotation marks or spaces before punctuation: what is learned
    is what people will read.

    Flickr8k's are tokenized ("a dog runs ."), COCO's end with a full stop or without. The metrics' tokenizer removes
    case and punctuation, so that scores are the same. Features of Flickr8k's captions are of the captions before.

    Examples:
        >>> as_sentence('a dog \'s ball , and a sign " stop " .')
        "A dog's ball, and a sign stop."
    """
    text = clean_caption(re.sub(r"[\"“”`]|''", "", caption))
    text = re.sub(r" (?=[.,;:!?]|'(?:s|t|re|ve|ll|d|m)\b)", "", text).rstrip(" .,;:")
    return text[:1].upper() + text[1:] + ("" if text.endswith(("!", "?")) else ".")


@torch.inference_mode()
def through(head: Head, file: Path, rows: int) -> NDArray[np.float16]:
    """(rows, features) in a file -> (rows, dim), by a head. Raises InputError if the file has another number."""
    features = np.load(file, mmap_mode="r", allow_pickle=False)
    if len(features) != rows:
        raise InputError(f"{file} has {len(features):,} rows for {rows:,}: give the file that belongs to captions.json")
    parts = [
        head(torch.from_numpy(np.array(features[start : start + AT_ONCE], np.float32))).half().numpy()
        for start in range(0, rows, AT_ONCE)
    ]
    return np.concatenate(parts)


def make_texts(store: Path, data: Path, records: list[ImageRecord], encoder: Encoder) -> None:
    """Captions without images, embedded by the encoder, unless the store is complete.

    Args:
        store: the folder to write.
        data: the folder that the captions are from.
        records: the captions of each image.
        encoder: `load_encoder("photo")`.

    Raises:
        InputError: the store is one of other data or of another encoder.
    """
    shards = [FileShard(records[first : first + 1000], data) for first in range(0, len(records), 1000)]
    dataset = Dataset(shards, [], data, f"captions in {data}", has_images=False)
    embed(dataset, encoder, store, features=[Feature.CAPTION.option])


def coco_records(data: Path) -> list[ImageRecord]:
    """The images of Karpathy's val and test splits, without files: some drawn at random as "val", the rest "train"."""
    entries = [entry for file in COCO_FILES for entry in read_json(require(data / file))]
    drawn = set(np.random.default_rng(0).permutation(len(entries))[: round(COCO_VAL * len(entries))].tolist())
    return [
        ImageRecord(number, "", "val" if number in drawn else "train", tuple(map(as_sentence, entry["captions"])))
        for number, entry in enumerate(entries)
    ]


def flickr30k_records(data: Path) -> list[ImageRecord]:
    """The images of Flickr30k's val and test splits, without files, as "train", but for those that are in the splits of
    Flickr8k on which captioners are chosen and evaluated.

    Args:
        data: the shared data.
    """
    splits = read_json(require(data / "flickr8k" / "captions.json"))
    used = {
        Path(name).stem.partition("_")[0] for split, images in splits.items() if split != "train" for name in images
    }
    entries = [entry for file in FLICKR30K_FILES for entry in read_json(require(data / "captions" / file))]
    return [
        ImageRecord(number, "", "train", tuple(map(as_sentence, entry["captions"])))
        for number, entry in enumerate(entries)
        if Path(entry["image_name"]).stem not in used
    ]


def training_captions(data: Path) -> Iterator[str]:
    """The captions that a tokenizer may learn from: those of Flickr8k's and of COCO's images to train on.

    Args:
        data: the shared data.
    """
    for record in (*flickr8k_records(data / "flickr8k"), *coco_records(data / "captions")):
        if record.split == "train":
            yield from record.captions


def require(file: Path) -> Path:
    """The file, if it exists. Raises InputError otherwise."""
    if not file.is_file():
        raise InputError(f"there is no {file}: name the folder of the shared data with --data")
    return file
