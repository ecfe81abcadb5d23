"""Three sections of `gpu.py`: embedding JPEG files, decoding captions, packing batches."""

import itertools
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decode import random_lm, ways_of_decoding
from gpu import Row, Setting
from gpu_command import prepared, training_data
from gpu_training import config_of, forget_peak, peak_memory
from packing import least_ms, lengths_of_texts, measure
from train_steps import DIM, PREFIX, coco_captions

from prefixcap.data.dataset import CaptionDataset
from prefixcap.data.device import DeviceCopy
from prefixcap.data.shapes import choose_shapes
from prefixcap.store import FeatureStore

WORKERS, IMAGES = 15, 8_192
DECODED, DECODED_BATCH = 2_500, 250


def embedding(setting: Setting) -> Iterator[Row]:
    """Photographs of 640 x 480 through ViT-B/32 by `prefixcap.embed`, from the difference of two runs."""
    from clip.model import CLIP
    from embed_images import encoder_alone, pictures

    from data_prep.embedding import embed
    from data_prep.fast_decode import SCALED, choose_reader, cosines
    from data_prep.features import Features
    from data_prep.records import Dataset, ImageRecord, dataset_from_files
    from prefixcap.encoders import load_encoder

    folder, few = setting.folder, 32 if setting.tiny else IMAGES // 4
    torch.manual_seed(0)
    vision = (32, 1, 64, 32) if setting.tiny else (224, 12, 768, 32)  # input, layers, width, patch
    torch.save(CLIP(DIM, *vision, 77, 49408, 512, 8, 12).state_dict(), folder / "ViT-B-32.pt")
    dtype = torch.float32 if setting.device == "cpu" else torch.float16
    encoder = load_encoder(f"clip:{folder / 'ViT-B-32.pt'}", setting.device, dtype)
    files = pictures(folder / "images", 8 if setting.tiny else 64)
    batch = 16 if setting.tiny else 256
    encoder_alone(encoder, 8 * batch, batch)  # warm
    alone = encoder_alone(encoder, few, batch)
    yield {"what": "encoder alone", "images/s": alone, "of the encoder": 1.0}
    workers = 1 if setting.tiny else WORKERS

    def data(images: int) -> Dataset:
        records = [ImageRecord(n, str(files[n % len(files)]), "train", ("a picture",)) for n in range(images)]
        return dataset_from_files(records, [], Path("/"), "benchmark")

    def seconds(images: int, store: Path, **options: Any) -> float:
        start = time.perf_counter()
        embed(data(images), encoder, store, batch_size=batch, progress=False, **{"num_workers": workers} | options)
        return time.perf_counter() - start

    def rate(what: str, **options: bool) -> Row:
        forget_peak()
        short = seconds(few, folder / f"few, {what}", **options)
        found = 3 * few / (seconds(4 * few, folder / f"more, {what}", **options) - short)
        return {"what": f"from JPEG, {what}", "images/s": found, "of the encoder": found / alone, **peak_memory()}

    stores = folder / "one process", folder / "several"
    for store, number in zip(stores, (0, workers), strict=True):  # processes start more slowly the first time
        seconds(2 * batch, store, num_workers=number)
    yield rate("exact pixels")
    one, other = (FeatureStore(store).split("train").embeddings[:] for store in stores)
    same = "the same" if np.array_equal(one, other) else f"differ by {np.abs(one - other).max():.2g}"
    yield {"what": f"embeddings, images resized by {setting.device}, beside those of one process alone: {same}"}
    reader = choose_reader(encoder, SCALED * Features(["image"], encoder).image_size, workers)
    near = cosines(data(64), encoder, reader, workers)
    yield {"what": "fast decoding: cosine to exact pixels", "mean": f"{near.mean():.5f}", "lowest": f"{near.min():.5f}"}
    yield rate("fast decoding", fast_decode=True)


def decoding(setting: Setting) -> Iterator[Row]:
    """Captions by beam search beside `transformers.generate`, in each precision."""
    device = torch.device(setting.device)
    images, batch, turns = (4, 4, 1) if setting.tiny else (DECODED, DECODED_BATCH, 2)
    for dtype in (torch.bfloat16, torch.float32):
        lm = random_lm(dtype, device, config_of(setting))
        prefixes = torch.randn(images, PREFIX, lm.dim).to(device, dtype).split(batch)
        captions: dict[str, list[list[int]]] = {}
        theirs = 0.0
        for name, way in ways_of_decoding(lm).items():
            forget_peak()
            for _ in range(1 if setting.tiny else 3):
                way(prefixes[0])  # the second batch prepares graphs, the third captures them
            took = []
            for _ in range(turns):
                start = time.perf_counter()
                captions[name] = [caption for prefix in prefixes for caption in way(prefix)]
                took.append(time.perf_counter() - start)
            rate = images / min(took)
            theirs = theirs or rate
            row: Row = {"dtype": str(dtype).removeprefix("torch."), "way": name, "captions/s": rate}
            row |= {"over generate": rate / theirs, **peak_memory()}
            if (eager := captions.get(f"{name}, eager")) is not None:
                same = sum(a == b for a, b in zip(captions[name], eager, strict=True))
                row["the same as eager"] = f"{same:,} of {images:,}"
            yield row


def packing(setting: Setting) -> Iterator[Row]:
    """Milliseconds of one core to make a batch, there or on the device; and how much of batches is padding."""
    torch.set_num_threads(1)
    prepared(setting)
    data, lengths, turns = training_data(setting), lengths_of_texts(coco_captions()), 3 if setting.tiny else 20
    copy: DeviceCopy | None = None
    for size, together in itertools.product((40,) if setting.tiny else (40, 1280, 320), (True, False)):
        items = lengths if together else [own[place, None] for own in lengths for place in range(len(own))]
        taken = round(size * len(items) / sum(map(len, lengths)))
        row: Row = {"captions": size, "of an image": "together" if together else "alone"}
        row |= measure(items, taken, turns, 100)
        dataset = CaptionDataset(data.train_split, data.features, data.train_tokens, PREFIX, together)
        order = np.random.default_rng(0).permutation(len(dataset))[: 32 * taken]
        drawn = np.array_split(order, len(order) // taken)
        dataset.shapes = choose_shapes([dataset.layout(batch.tolist()) for batch in drawn])
        copy = copy or DeviceCopy(dataset.features, dataset.tokens, torch.device(setting.device))
        for what, dataset.copy in {"ms, read as well": None, "ms of the host, made on the device": copy}.items():
            made = map(dataset.__getitems__, itertools.cycle([batch.tolist() for batch in drawn]))
            row[what] = least_ms(partial(next, made), turns)
        yield row
