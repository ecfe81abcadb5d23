"""Three sections of `gpu.py`: embedding JPEG files, decoding captions, packing batches."""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gpu import Row, Setting
from gpu_training import TINY
from torch import Tensor
from train_steps import BATCH, DIM, PREFIX, captions, gpt2
from transformers import GPT2Config

from prefixcap.decoding import decode
from prefixcap.language import LanguageModel, load_language_model
from prefixcap.packing import pack

WORKERS, IMAGES = 16, 16_384
DECODED, DECODED_BATCH, BEAMS, NEW_TOKENS = 2_500, 250, 5, 12


def embedding(setting: Setting) -> Iterator[Row]:
    """Photographs of 640 x 480 through ViT-B/32 by `prefixcap.embed`, from the difference of two runs."""
    from clip.model import CLIP
    from embed_images import encoder_alone, pictures

    from data_prep.embedding import embed
    from data_prep.records import ImageRecord, dataset_from_files
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

    def seconds(images: int, store: Path, **options: bool) -> float:
        records = [ImageRecord(n, str(files[n % len(files)]), "train", ("a picture",)) for n in range(images)]
        dataset = dataset_from_files(records, [], Path("/"), "benchmark")
        start = time.perf_counter()
        embed(dataset, encoder, store, batch_size=batch, num_workers=workers, progress=False, **options)  # type: ignore[arg-type]
        return time.perf_counter() - start

    seconds(batch, folder / "first")  # processes start more slowly the first time
    for what, options in {"exact pixels": {}, "scaled decoding": {"jpeg_scaling": True}}.items():
        short = seconds(few, folder / f"few, {what}", **options)
        rate = 3 * few / (seconds(4 * few, folder / f"more, {what}", **options) - short)
        yield {"what": f"from JPEG, {what}", "images/s": rate, "of the encoder": rate / alone}


def decoding(setting: Setting) -> Iterator[Row]:
    """Captions by beam search (and others) beside `transformers.generate`, in each precision."""
    device = torch.device(setting.device)
    images, batch, turns = (4, 4, 1) if setting.tiny else (DECODED, DECODED_BATCH, 2)
    for dtype in (torch.bfloat16, torch.float32):
        model = gpt2(TINY if setting.tiny else GPT2Config()).eval().to(device, dtype)
        lm = LanguageModel(model, load_language_model("demo").tokenizer, "GPT-2 small, random")
        prefixes = torch.randn(images, PREFIX, lm.dim).to(device, dtype).split(batch)
        theirs = 0.0
        for name, way in ways_of_decoding(lm).items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            way(prefixes[0])  # warm
            took = []
            for _ in range(turns):
                start = time.perf_counter()
                for prefix in prefixes:
                    way(prefix)
                took.append(time.perf_counter() - start)
            rate = images / min(took)
            theirs = rate if name.startswith("transformers") else theirs
            row: Row = {"dtype": str(dtype).removeprefix("torch."), "way": name, "captions/s": rate}
            row |= {"over generate": rate / theirs}
            if device.type == "cuda":
                row["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
            yield row


def ways_of_decoding(lm: LanguageModel) -> dict[str, Callable[[Tensor], object]]:
    """Functions of (B, P, E) prefixes. Those of transformers come before ours that they are compared with."""
    limits = {"max_new_tokens": NEW_TOKENS, "eos_token_id": lm.eos_token_id, "pad_token_id": lm.eos_token_id}

    def generate(prefix: Tensor, beams: int) -> object:
        attention = torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device)
        options = limits | {"num_beams": beams, "do_sample": False}
        return lm.model.generate(inputs_embeds=prefix, attention_mask=attention, **options).tolist()

    return {
        "transformers.generate, beams": partial(generate, beams=BEAMS),
        "beam": partial(decode, lm, method="beam", beams=BEAMS, max_tokens=NEW_TOKENS),
        "clipcap": partial(decode, lm, method="clipcap", beams=BEAMS, max_tokens=NEW_TOKENS),
        "transformers.generate, greedy": partial(generate, beams=1),
        "greedy": partial(decode, lm, method="greedy", max_tokens=NEW_TOKENS),
    }


def packing(setting: Setting) -> Iterator[Row]:
    """Milliseconds on one core to pack a batch."""
    torch.set_num_threads(1)
    for size, grouped in itertools.product((BATCH, 320, 1280), (True, False)):
        images = next(captions(size))
        rows = [row for image in images for row in image]
        owners = np.repeat(np.arange(len(images)), [len(image) for image in images]) if grouped else np.arange(size)
        embeddings, took = torch.randn(int(owners[-1]) + 1, DIM), []
        for _ in range(3 if setting.tiny else 30):
            start = time.perf_counter()
            pack(embeddings, rows, owners, PREFIX)
            took.append(time.perf_counter() - start)
        yield {"captions": size, "of an image": "together" if grouped else "alone", "ms": 1e3 * min(took)}
