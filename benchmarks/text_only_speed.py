"""Text-only training: embedding of captions, and training steps on them, each beside what it cannot be quicker than.

(a) The offline step on COCO's captions (25,010 of shared/data): `data_prep.embedding.embed` on what
`data_prep.readers.text` reads, beside the encoder alone on the same texts, sorted by length, in batches of the same
size. The encoder is the text tower of CLIP's ViT-B/32 with random weights, or the small world's. Of the large one a
CPU encodes some dozens a second: --captions takes fewer.

(b) Training with a frozen GPT-2 small (random weights): `Captioner.loss` on packed batches of captions as long as
COCO's, with CapDec's mapper (one prefix vector by an MLP) and MacCap's (32 queries). From text: each caption's own
embedding, with noise (MacCap: ten copies of it, each with its own). From images: the same captions, each with an
embedding (MacCap: ten regions) of its own that is read as it is; the ratio says what noise and copies cost. Captions of
one image share its features and so their prefix, which those learned from text cannot: beside them, together.

Turns alternate; a ratio is the median over turns.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from clip.model import CLIP
from torch import Tensor, nn
from torch.optim import AdamW
from train_steps import DIM, captions, gpt2, run

from data_prep.embedding import embed
from data_prep.features import Features
from data_prep.readers.text import read_text
from prefixcap.captioner import Captioner
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.features import EncoderIdentity, Feature
from prefixcap.language import LanguageModel, load_language_model
from prefixcap.noise import Noise
from prefixcap.packing import pack

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
REGIONS = 10
MAPPERS: dict[str, dict[str, object]] = {
    "CapDec": {"name": "mlp", "prefix_length": 1, "hidden": [DIM, DIM], "activation": "relu"},
    "MacCap": {"name": "adaptor", "prefix_length": 32, "layers": 1, "heads": 8},
}
NOISE = {"CapDec": Noise(), "MacCap": Noise(copies=REGIONS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", choices=("embed", "train"), nargs="+", default=["embed", "train"])
    parser.add_argument("--encoder", choices=("clip", "demo"), default="clip")
    parser.add_argument("--captions", type=int, help="to embed (default: 600 on a CPU with clip, else all)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--systems", choices=MAPPERS, nargs="+", default=list(MAPPERS), help="to train")
    parser.add_argument("--steps", type=int, default=1, help="of each kind in a turn of training")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    if "embed" in given.parts:
        few = given.encoder == "clip" and device.type == "cpu"
        compare_embedding(given.encoder, given.captions or (600 if few else None), given.turns, device)
    if "train" in given.parts:
        for system in given.systems:
            compare_training(system, given.turns, given.steps, device)


def compare_embedding(name: str, count: int | None, turns: int, device: torch.device) -> None:
    """Print captions a second of the offline step and of the encoder alone."""
    images = json.loads((SHARED / "captions" / "coco_karpathy_val.json").read_text())
    texts = [caption for image in images for caption in image["captions"]][:count]
    with TemporaryDirectory(prefix="text-only-") as folder_name:
        folder = Path(folder_name)
        (folder / "captions.json").write_text(json.dumps(texts))
        if name == "clip":
            torch.manual_seed(0)
            name = f"clip:{folder / 'ViT-B-32.pt'}"
            torch.save(CLIP(DIM, 224, 12, 768, 32, 77, 49408, 512, 8, 12).state_dict(), folder / "ViT-B-32.pt")
        encoder = load_encoder(name, device)
        size = Features(["caption"], encoder).largest_batch()
        encoder_alone(encoder, texts[: 4 * size], size)  # warm
        alone, embedded = [encoder_alone(encoder, texts, size)], []
        for turn in range(turns):
            start = time.perf_counter()
            dataset = read_text(folder / "captions.json")
            report = embed(dataset, encoder, folder / f"store{turn}", ["caption"], progress=False)
            embedded.append(report.written / (time.perf_counter() - start))
            alone.append(encoder_alone(encoder, texts, size))
    print(f"(a) {len(texts)} captions ({report.written} written), {name.partition(':')[0]}, {device}")
    for what, speeds in {"encoder alone": alone, "text store": embedded}.items():
        print(f"  {what:14} {median(speeds):8.1f} captions/s   ({', '.join(f'{speed:.1f}' for speed in speeds)})")
    # Each turn beside the two of the encoder alone around it: a machine's speed wanders.
    ratios = [2 * speed / (alone[turn] + alone[turn + 1]) for turn, speed in enumerate(embedded)]
    print(f"  ratio          {median(ratios):8.3f}   ({', '.join(f'{ratio:.3f}' for ratio in ratios)})", flush=True)


def encoder_alone(encoder: Encoder, texts: list[str], size: int) -> float:
    """Captions a second, with as little padding as there can be."""
    ordered = sorted(texts, key=len)
    start = time.perf_counter()
    for first in range(0, len(ordered), size):
        encoder.encode_texts(ordered[first : first + size])
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    return len(texts) / (time.perf_counter() - start)


def compare_training(system: str, turns: int, steps: int, device: torch.device) -> None:
    """Print captions a second from text and from images."""
    kinds = {
        "from text": step_of(system, device, from_text=True),
        "from images, captions alone": step_of(system, device),
        "from images, captions together": step_of(system, device, together=True),
    }
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    for step in kinds.values():
        run(step, 1)
    for _ in range(turns):
        for name, step in kinds.items():
            start = time.perf_counter()
            run(step, steps)
            speeds[name].append(40 * steps / (time.perf_counter() - start))
    print(f"(b) {system}, {device}")
    for name, turn_speeds in speeds.items():
        ratios = [text / this for text, this in zip(speeds["from text"], turn_speeds, strict=True)]
        print(
            f"  {name:32} {median(turn_speeds):8.1f} captions/s   text over this {median(ratios):5.2f}"
            f"   ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def step_of(system: str, device: torch.device, from_text: bool = False, together: bool = False) -> Callable[[], Tensor]:
    """A step of `prefixcap.training` with 40 captions of 8 images, without Lightning around it."""
    language_model = LanguageModel(gpt2(), load_language_model("demo").tokenizer, "random", "frozen")
    identity = EncoderIdentity("random", "", "", DIM)
    captioner = Captioner(language_model, identity, MAPPERS[system], normalize_embeddings=True).to(device).train()
    optimizer = AdamW(captioner.mapper.parameters(), lr=4e-4, fused=True)
    batches = captions()
    shape = (DIM,) if from_text or captioner.features is Feature.IMAGE else (REGIONS, DIM)

    def step() -> Tensor:
        images = next(batches)
        rows = [row for captions_of_image in images for row in captions_of_image]
        owners = np.repeat(np.arange(len(images)), 5) if together else np.arange(len(rows))
        embeddings = torch.randn(int(owners[-1]) + 1, *shape)
        batch = pack(embeddings, rows, owners, captioner.prefix_length).to(device)
        if from_text:
            batch = replace(batch, embeddings=NOISE[system](batch.embeddings))
        loss = captioner.loss(batch) / len(batch.targets)
        loss.backward()
        nn.utils.clip_grad_norm_(captioner.mapper.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


if __name__ == "__main__":
    main()
