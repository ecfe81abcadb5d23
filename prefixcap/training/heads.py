"""Training of the two heads that join an image encoder and a sentence encoder, see `prefixcap.encoders.heads`.

Both networks stay as they are. A head on each puts its features into one space of 512 dimensions,

    skip(x) + down(gelu(up(layer_norm(x)))),    image features standardised first,

trained with CLIP's loss (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML
2021) on features that were computed once: in each batch every image comes with two of its captions, drawn at random,
and while one is compared with the captions of other images, the other is left out. With some thousand images the heads
overfit, hence dropout on features and hidden layers, weight decay, and an exponential moving average of the weights.
docs/methods/photographs.md says how these were chosen.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from prefixcap.encoders.heads import SentenceTower
from prefixcap.errors import InputError
from prefixcap.features import Feature
from prefixcap.store import StoreSplit

DIM, HIDDEN = 512, 1024
FEATURE_DROPOUT, HIDDEN_DROPOUT = {"image": 0.3, "text": 0.0}, {"image": 0.5, "text": 0.3}
WARMUP, WEIGHT_DECAY, AVERAGING = 30, 0.1, 0.99
CUTOFFS = (1, 5, 10)
TEXTS_AT_ONCE = 512
COSINES_AT_ONCE = 2**24  # 64 MB in float32, and a few times as much beside them


@dataclass(frozen=True)
class Pairs:
    """Features of images and of their captions, as the two networks give them.

    Attributes:
        images: (images, image features).
        captions: (captions, text features), image after image.
        image_of: (captions,) the row of each caption's image; each image has one caption at least.
    """

    images: Tensor
    captions: Tensor
    image_of: Tensor


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


def read_pairs(split: StoreSplit, texts: SentenceTower) -> Pairs:
    """The images of a split that have captions, and these, encoded with a progress bar.

    Args:
        split: with embeddings of images.
        texts: a sentence encoder without a head.

    Raises:
        InputError: the store has no embeddings of images.
    """
    with_captions, image_of = torch.from_numpy(split.caption_images[:]).unique(return_inverse=True)
    images = torch.from_numpy(split.feature(Feature.IMAGE)[with_captions.numpy()]).float()
    return Pairs(images, _encode(split.captions[:], texts, split.name), image_of)


def _encode(captions: Sequence[str], texts: SentenceTower, split: str) -> Tensor:
    """(captions, dim), in float32 on the CPU."""
    order = sorted(range(len(captions)), key=lambda row: len(captions[row]))  # together with others of their length
    features = torch.empty(len(captions), texts.dim)
    with tqdm(total=len(captions), desc=f"encoding captions of {split}", unit=" captions", delay=1) as bar:
        for start in range(0, len(order), TEXTS_AT_ONCE):
            rows = order[start : start + TEXTS_AT_ONCE]
            features[rows] = texts.encode([captions[row] for row in rows]).float().cpu()
            bar.update(len(rows))
    return features


def train_heads(
    pairs: Pairs,
    epochs: int = 20,
    batch: int = 500,
    each: int = 2,
    learning_rate: float = 1e-3,
    scale: float = 15.0,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """The weights of both heads, as `prefixcap.encoders.heads.write_heads` takes them.

    They are those of a moving average, in float16; mean and standard deviation of the image features are in float32.

    Args:
        pairs: to learn from, on the CPU.
        epochs: passes over the images; in each, those that fill no batch are left out.
        batch: images in a batch; of fewer images, all of them.
        each: captions of each image in a batch. An image with fewer has them more than once.
        learning_rate: at its highest, after the warm-up; it then falls to 0 along a cosine.
        scale: of cosines in the softmax, at the start; learned. The higher, the further apart stay an image and its own
            captions.
        seed: of weights, dropout and order. On the CPU, the same one gives the same weights.
        device: to train on.

    Raises:
        InputError: there are fewer than two images, or the loss is not finite.

    Examples:
        >>> two_each = Pairs(torch.randn(40, 8), torch.randn(80, 6), torch.arange(40).repeat_interleave(2))
        >>> weights = train_heads(two_each, epochs=1)
        >>> weights["image.skip.weight"].shape, weights["text.skip.weight"].shape
        (torch.Size([512, 8]), torch.Size([512, 6]))
    """
    if len(pairs.images) < 2:
        raise InputError("heads learn to tell images apart: give two images with captions at least")
    device = torch.device(device)
    mean, std = pairs.images.mean(dim=0), pairs.images.std(dim=0) + 1e-3
    standardised = Pairs((pairs.images - mean) / std, pairs.captions, pairs.image_of)
    batch = min(batch, len(pairs.images))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        steps = epochs * (len(pairs.images) // batch)
        averaged = _train(standardised, batches(standardised, batch, each, epochs), steps, learning_rate, scale, device)
    weights = {key: weight.half().cpu() for key, weight in averaged.state_dict().items()}
    return {**weights, "image.mean": mean, "image.std": std}


def _train(
    pairs: Pairs,
    drawn: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    learning_rate: float,
    scale: float,
    device: torch.device,
) -> nn.ModuleDict:
    """The moving average of two heads, "image" and "text", after so many batches."""
    heads = nn.ModuleDict(
        {
            name: TrainedHead(features.shape[1], FEATURE_DROPOUT[name], HIDDEN_DROPOUT[name])
            for name, features in {"image": pairs.images, "text": pairs.captions}.items()
        }
    ).to(device)
    log_scale = nn.Parameter(torch.tensor(math.log(scale), device=device))
    averaged = copy.deepcopy(heads).requires_grad_(False)
    matrices = [weight for weight in heads.parameters() if weight.ndim > 1]
    others = [weight for weight in heads.parameters() if weight.ndim < 2] + [log_scale]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    bar = tqdm(drawn, total=steps, desc="training", unit=" steps")
    for step, (images, captions) in enumerate(bar):
        with torch.autocast(device.type, torch.bfloat16):
            image_embeddings, text_embeddings = heads["image"](images.to(device)), heads["text"](captions.to(device))
        scores = unit_length(image_embeddings) @ unit_length(text_embeddings).T
        loss = clip_loss(log_scale.exp() * scores)
        if not math.isfinite(value := loss.item()):
            raise InputError(f"the loss is not finite at step {step + 1}: check the features, or lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():  # of few steps, at the start
            torch._foreach_lerp_(
                list(averaged.parameters()), list(heads.parameters()), 1 - min(AVERAGING, (step + 1) / (step + 11))
            )
        bar.set_postfix(loss=f"{value:.3f}", refresh=False)
    return averaged


def unit_length(embeddings: Tensor) -> Tensor:
    """(…, dim), scaled to length one, in float32."""
    return F.normalize(embeddings.float(), dim=-1)


def batches(pairs: Pairs, size: int, each: int, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images in random order, (size, image features), with captions of each, one after another, (size * each, text
    features)."""
    counts = pairs.image_of.bincount()  # captions of each image
    first = counts.cumsum(0) - counts
    places = torch.arange(int(counts.max()))
    for _ in range(epochs):
        for chosen in torch.randperm(len(pairs.images)).split(size):
            if len(chosen) == size:
                count = counts[chosen, None]
                keys = torch.rand(size, len(places)).masked_fill(places >= count, torch.inf)
                order = keys.argsort(dim=1)  # an image's own captions first, at random
                drawn = first[chosen, None] + order.gather(1, torch.arange(each) % count)
                yield pairs.images[chosen], pairs.captions[drawn].flatten(0, 1)


def clip_loss(scores: Tensor) -> Tensor:
    """CLIP's symmetric loss of (images, captions) scores, where each image has as many captions, one after another.

    From image to text, each caption of an image competes with the captions of the others, not with those of its own.
    """
    captions = torch.arange(scores.shape[1], device=scores.device)
    image_of = captions // (scores.shape[1] // len(scores))  # (captions,)
    own = image_of == torch.arange(len(scores), device=scores.device)[:, None]  # (images, captions)
    right = scores[own].unflatten(0, (len(scores), -1))  # (images, captions of each)
    wrong = scores.masked_fill(own, -torch.inf).logsumexp(dim=1, keepdim=True)
    to_text = (torch.logaddexp(wrong, right) - right).mean()
    loss: Tensor = (to_text + F.cross_entropy(scores.T, image_of)) / 2
    return loss


@torch.inference_mode()
def recalls(pairs: Pairs, image_head: nn.Module, text_head: nn.Module) -> list[float]:
    """Recall@1, 5 and 10 from image to text, the same from text to image, and the mean cosine of own pairs.

    An image is found if any of its captions is among the first; ties count as errors.
    """
    images, texts = unit_length(image_head(pairs.images)), unit_length(text_head(pairs.captions))
    image_rows = torch.arange(len(images))
    ahead = (_ahead(images, image_rows, texts, pairs.image_of), _ahead(texts, pairs.image_of, images, image_rows))
    found = [(before < first).float().mean().item() for before in ahead for first in CUTOFFS]
    return [*found, (images[pairs.image_of] * texts).sum(dim=1).mean().item()]


def _ahead(queries: Tensor, query_images: Tensor, others: Tensor, other_images: Tensor) -> Tensor:
    """(queries,) how many of another image are as near to each query as the nearest of its own image, or nearer."""
    counts = []
    for rows in torch.arange(len(queries)).split(max(1, COSINES_AT_ONCE // len(others))):
        cosines = queries[rows] @ others.T
        own = query_images[rows, None] == other_images
        best = cosines.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        counts.append((cosines.masked_fill(own, -torch.inf) >= best).sum(dim=1))
    return torch.cat(counts)


def retrieval_row(name: str, numbers: Sequence[float]) -> str:
    """What `recalls` returns as a row: Recall@1 / 5 / 10 both ways, and the mean cosine."""
    ways = [" / ".join(f"{number:.3f}" for number in way) for way in (numbers[:3], numbers[3:6])]
    return f"{name:28} image to text {ways[0]}   text to image {ways[1]}   cosine {numbers[6]:.3f}"
