"""The two heads of the encoder "photo", trained anew: `python -m studies.photographs.heads --out heads.safetensors`.

EfficientNet-Lite2 and MiniLM stay as published. A head on each puts their features into one space of 512 dimensions,

    skip(x) + down(gelu(up(layer_norm(x)))),    image features standardised first,

trained on the training split of Flickr8k with CLIP's loss (Radford et al., "Learning Transferable Visual Models From
Natural Language Supervision", ICML 2021): in each batch every photograph comes with two of its captions, drawn at
random, and while one is compared with the captions of other photographs, the other is left out. With 6,000 photographs
the heads overfit, hence dropout on features and hidden layers, weight decay, and an exponential moving average of the
weights. It is written in float16, with the mean and the standard deviation of the image features in float32.

Features and captions are those of shared/data/flickr8k. Retrieval is printed of validation and test, beside that of
other heads: Recall@1, 5 and 10 of the photographs of a split among all their captions and back, and the mean
cosine of a photograph and its own captions. Options were chosen on the validation split (docs/methods/photographs.md).
"""

import argparse
import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from prefixcap.encoders.heads import Head
from prefixcap.errors import InputError
from prefixcap.photos import HEADS
from prefixcap.utils.files import atomic_write, read_json

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DIM, HIDDEN = 512, 1024
CUTOFFS = (1, 5, 10)
FEATURE_DROPOUT, HIDDEN_DROPOUT = {"image": 0.3, "text": 0.0}, {"image": 0.5, "text": 0.3}
WARMUP, WEIGHT_DECAY, AVERAGING = 30, 0.1, 0.99


@dataclass(frozen=True)
class Split:
    """Photographs and their captions, as features: (images, 1280) and (images, captions of each, 384)."""

    images: Tensor
    captions: Tensor


class TrainedHead(nn.Module):
    """A head with dropout on its features and on its hidden layer: (…, features) -> (…, dim)."""

    def __init__(self, features: int, feature_dropout: float, hidden_dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.up, self.down, self.skip = nn.Linear(features, HIDDEN), nn.Linear(HIDDEN, DIM), nn.Linear(features, DIM)
        self.feature_dropout, self.hidden_dropout = nn.Dropout(feature_dropout), nn.Dropout(hidden_dropout)

    def forward(self, features: Tensor) -> Tensor:
        features = self.feature_dropout(features)
        hidden = self.hidden_dropout(F.gelu(self.up(self.norm(features))))
        embedding: Tensor = self.skip(features) + self.down(hidden)
        return embedding


class Pair(nn.Module):
    """An image head and a text head."""

    def __init__(self, image: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.image, self.text = image, text

    def forward(self, images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of length one, (images, 512) and (captions, 512)."""
        return F.normalize(self.image(images).float(), dim=-1), F.normalize(self.text(captions).float(), dim=-1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "flickr8k", help="features, captions.json")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--beside", type=Path, default=HEADS, help="heads to compare with (default: the package's)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--each", type=int, default=2, help="captions of each photograph in a batch")
    parser.add_argument("--batch", type=int, default=500, help="photographs")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--scale", type=float, default=15.0, help="of cosines in the softmax, at the start; learned")
    parser.add_argument("--seed", type=int, default=0, help="of weights, dropout and order")
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    splits = read_splits(given.data)
    images = splits["train"].images
    mean, std = images.mean(dim=0), images.std(dim=0) + 1e-3
    standardised = Split((images - mean) / std, splits["train"].captions)
    pair = train(standardised, given.epochs, given.batch, given.each, given.learning_rate, given.scale, given.seed)
    write_heads(given.out, pair, mean, std)
    print(f"{given.out}, {given.out.stat().st_size / 1e6:.1f} MB, after {time.perf_counter() - start:.0f} s")
    for name, file in {"written": given.out, "beside": given.beside}.items():
        for split in ("val", "test"):
            report(f"{name}, {split}", recalls(splits[split], read_heads(file)))


def read_splits(folder: Path) -> dict[str, Split]:
    """The splits of `captions.json` with their features, as the networks give them.

    Raises:
        InputError: a file is missing, or their rows do not fit together.
    """
    listed = read_json(folder / "captions.json")
    try:
        arrays = [np.load(folder / f"{kind}_features.npy", allow_pickle=False) for kind in ("image", "caption")]
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: no such file; --data names the folder of Flickr8k's features") from error
    images, captions = (torch.from_numpy(array).float() for array in arrays)
    sizes = {split: len(files) for split, files in listed.items()}
    count = sum(len(each) for files in listed.values() for each in files.values())
    if len(images) != sum(sizes.values()) or len(captions) != count or count % len(images):
        raise InputError(f"{folder}: {len(images)} and {len(captions)} features for {count} captions in captions.json")
    lengths = list(sizes.values())
    parts = zip(images.split(lengths), captions.unflatten(0, (len(images), -1)).split(lengths), strict=True)
    return {split: Split(*part) for split, part in zip(sizes, parts, strict=True)}


def train(split: Split, epochs: int, batch: int, each: int, learning_rate: float, scale: float, seed: int) -> Pair:
    """The moving average of a pair's weights after so many epochs, of standardised features; see `batches`."""
    torch.manual_seed(seed)
    image, text = (
        TrainedHead(features.shape[-1], FEATURE_DROPOUT[name], HIDDEN_DROPOUT[name])
        for name, features in {"image": split.images, "text": split.captions}.items()
    )
    pair, log_scale = Pair(image, text), nn.Parameter(torch.tensor(math.log(scale)))
    averaged = copy.deepcopy(pair).requires_grad_(False)
    matrices = [weight for weight in pair.parameters() if weight.ndim > 1]
    others = [weight for weight in pair.parameters() if weight.ndim < 2] + [log_scale]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, learning_rate, betas=(0.9, 0.98), fused=True)
    batch = min(batch, len(split.images))
    steps = epochs * (len(split.images) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    bar = tqdm(batches(split, batch, each, epochs), total=steps, desc="training", unit=" steps")
    for step, (images, captions) in enumerate(bar):
        with torch.autocast("cpu", torch.bfloat16):
            image_embeddings, text_embeddings = pair(images, captions)
        loss = clip_loss(log_scale.exp() * (image_embeddings @ text_embeddings.T))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():  # of few steps, at the start
            torch._foreach_lerp_(
                list(averaged.parameters()), list(pair.parameters()), 1 - min(AVERAGING, (step + 1) / (step + 11))
            )
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return averaged.eval()


def batches(split: Split, size: int, each: int, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Photographs in random order, (size, 1280), with captions of each, one after another, (size * each, 384)."""
    for _ in range(epochs):
        for chosen in torch.randperm(len(split.images)).split(size):
            if len(chosen) == size:
                drawn = torch.rand(size, split.captions.shape[1]).argsort(dim=1)[:, :each]
                yield split.images[chosen], split.captions[chosen[:, None], drawn].flatten(0, 1)


def clip_loss(scores: Tensor) -> Tensor:
    """CLIP's symmetric loss of (images, captions) scores, where each image has as many captions, one after another.

    From image to text, each caption of an image competes with the captions of the others, not with those of its own.
    """
    image_of = torch.arange(scores.shape[1]) // (scores.shape[1] // len(scores))  # (captions,)
    own = image_of == torch.arange(len(scores))[:, None]  # (images, captions)
    right = scores[own].unflatten(0, (len(scores), -1))  # (images, captions of each)
    wrong = scores.masked_fill(own, -torch.inf).logsumexp(dim=1, keepdim=True)
    to_text = (torch.logaddexp(wrong, right) - right).mean()
    loss: Tensor = (to_text + F.cross_entropy(scores.T, image_of)) / 2
    return loss


@torch.inference_mode()
def recalls(split: Split, pair: Pair) -> list[float]:
    """Recall@1, 5 and 10 from image to text, the same from text to image, and the mean cosine of own pairs.

    An image is found if any of its captions is among the first; ties count as errors.
    """
    count, each = split.captions.shape[:2]
    captions = split.captions.flatten(0, 1)
    images, texts = pair(split.images, captions)
    cosines = images @ texts.T
    image_of = torch.arange(count).repeat_interleave(each)  # (captions,)
    own = image_of == torch.arange(count)[:, None]  # (images, captions)
    best = cosines.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
    own_cosine = cosines.masked_fill(~own, 0).sum(dim=0)
    ahead_of_best = (cosines.masked_fill(own, -torch.inf) >= best).sum(dim=1)
    ahead_of_image = (cosines.masked_fill(own, -torch.inf) >= own_cosine).sum(dim=0)
    found = [(ahead < first).float().mean().item() for ahead in (ahead_of_best, ahead_of_image) for first in CUTOFFS]
    return [*found, own_cosine.mean().item()]


def report(name: str, numbers: Sequence[float]) -> None:
    """Print a row: Recall@1 / 5 / 10 both ways, and the mean cosine."""
    ways = [" / ".join(f"{number:.3f}" for number in way) for way in (numbers[:3], numbers[3:6])]
    print(f"{name:28} image to text {ways[0]}   text to image {ways[1]}   cosine {numbers[6]:.3f}", flush=True)


def write_heads(path: Path, pair: Pair, mean: Tensor, std: Tensor) -> None:
    """Write weights in float16, and the statistics of image features in float32."""
    weights = {key: weight.half() for key, weight in pair.state_dict().items()}
    with atomic_write(path) as temporary:
        save_file({**weights, "image.mean": mean, "image.std": std}, temporary)


def read_heads(path: Path) -> Pair:
    """The heads of a file, as the encoder has them: the image head reads features that are not standardised."""
    weights = load_file(path)
    heads = (
        Head({key.partition(".")[2]: weight.float() for key, weight in weights.items() if key.startswith(name)})
        for name in ("image.", "text.")
    )
    return Pair(*heads).eval()


if __name__ == "__main__":
    main()
