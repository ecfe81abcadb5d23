"""Embedding JPEG files, beside the encoder alone: images a second, and the ratio (at least 0.95).

The encoder is CLIP's ViT-B/32 with random weights; the pictures are those of the small world's generator as JPEG files
of 640 x 480 pixels, or the `.jpg` files of a folder. The encoder alone takes
batches of the same size with all threads, again and again the same pixels; in turns, in one process.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from clip.model import CLIP
from PIL import Image

from data_prep.embedding import embed
from data_prep.features import Features
from data_prep.records import ImageRecord, dataset_from_files
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import random_scene
from prefixcap.encoders import Encoder, load_encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="images in each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch", type=int, help="size (default: as the command chooses)")
    parser.add_argument("--workers", type=int, help="processes that decode (default: as the command chooses)")
    parser.add_argument("--folder", type=Path, help="take the .jpg files of this folder, again and again")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", help="of the encoder: float32, bfloat16 or float16")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="embed-images-") as name:
        folder = Path(name)
        torch.manual_seed(0)
        torch.save(CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12).state_dict(), folder / "ViT-B-32.pt")
        dtype = getattr(torch, arguments.dtype)
        encoder = load_encoder(f"clip:{folder / 'ViT-B-32.pt'}", arguments.device, dtype)
        files = sorted(arguments.folder.glob("*.jpg")) if arguments.folder else pictures(folder / "images")
        names = [str(files[number % len(files)].resolve()) for number in range(arguments.images)]
        records = [ImageRecord(number, file, "train", ("a picture",)) for number, file in enumerate(names)]
        dataset = dataset_from_files(records, [], Path("/"), "benchmark")
        batch = arguments.batch or Features(["image"], encoder).largest_batch()
        encoder_alone(encoder, 8 * batch, batch)  # warm
        alone, embedded = [encoder_alone(encoder, arguments.images, batch)], []
        for turn in range(arguments.turns):
            store = folder / f"store{turn}"
            start = time.perf_counter()
            embed(dataset, encoder, store, batch_size=batch, num_workers=arguments.workers, progress=False)
            embedded.append(arguments.images / (time.perf_counter() - start))
            alone.append(encoder_alone(encoder, arguments.images, batch))
    for name, speeds in {"encoder alone": alone, "from JPEG files": embedded}.items():
        print(f"{name:16} {np.median(speeds):8.1f} images a second   ({', '.join(f'{speed:.1f}' for speed in speeds)})")
    # Each turn beside the two of the encoder alone around it: a machine's speed wanders.
    ratios = [2 * speed / (alone[turn] + alone[turn + 1]) for turn, speed in enumerate(embedded)]
    print(
        f"ratio            {np.median(ratios):8.3f}   (at least 0.95; {', '.join(f'{ratio:.3f}' for ratio in ratios)})"
    )


def pictures(folder: Path, count: int = 64) -> list[Path]:
    """JPEG files of 640 x 480, the commonest size in COCO."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    files = [folder / f"{number}.jpg" for number in range(count)]
    for file in files:
        picture = draw(random_scene(generator), generator).resize((640, 480), Image.Resampling.BICUBIC)
        noise = generator.normal(0, 12, (480, 640, 3))  # as in photographs; flat colour would decode too quickly
        Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return files


def encoder_alone(encoder: Encoder, images: int, batch: int) -> float:
    """Images a second with pixels that are there already."""
    pixels = torch.zeros(batch, *encoder.preprocess(Image.new("RGB", (640, 480))).shape, dtype=torch.uint8)
    pixels = pixels.random_(0, 256).to(encoder.device)
    start = time.perf_counter()
    for _ in range(0, images, batch):
        encoder.encode_images(pixels)
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
