"""Training steps beside the published recipe: captions a second, and peak memory.

(a) a frozen GPT-2 with the transformer mapper, (b) a fine-tuned one with the MLP; GPT-2 small's architecture with
random weights, random embeddings of 512 numbers, captions as long as COCO's. The published recipe, written out here:
batches of 40 captions, each with a prefix of its own, padded to 40 tokens; logits at every position; gradients of all
weights, also of those that are frozen; fp32. Ours: `Captioner.loss` on the batches of `prefixcap.data`, with the
captions of an image together, and alone. Turns alternate; a ratio is the median over turns. Beside it: the operations
of a step's matrix products, and the rate at which it does them as a share of that of one large product.
"""

import argparse
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from measure import in_own_process, memory
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from prefixcap.captioner import Captioner
from prefixcap.features import EncoderIdentity
from prefixcap.language import LanguageModel, load_language_model
from prefixcap.language.low_precision import cast_frozen_layers
from prefixcap.mappers import build_mapper
from prefixcap.packing import Batch, BatchShape, pack

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BATCH, LONGEST, PREFIX, DIM = 40, 40, 10, 512
MAPPERS = {"frozen": "transformer", "full": "mlp"}
NAMES = {"frozen": "(a) frozen LM, transformer mapper", "full": "(b) fine-tuned LM, MLP"}

Step = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="of each kind in a turn")
    parser.add_argument("--tuning", choices=MAPPERS, nargs="+", default=list(MAPPERS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], help="of ours; default: by device")
    parser.add_argument("--compile", action="store_true", help="ours by torch.compile, too")
    parser.add_argument("--profile", action="store_true", help="show where the time of ours goes")
    given = parser.parse_args()
    device = torch.device(given.device)
    precision = getattr(torch, given.precision or ("bfloat16" if device.type == "cuda" else "float32"))
    for tuning in given.tuning:
        kinds = {
            "published recipe": plain_recipe(tuning, device),
            "ours, captions of an image together": ours(tuning, device, precision, grouped=True),
            "ours, captions alone": ours(tuning, device, precision, grouped=False),
        }
        if given.compile:
            kinds["ours, together and compiled"] = ours(tuning, device, precision, compiled=True)
        took: dict[str, list[float]] = {name: [] for name in kinds}
        for step in kinds.values():
            run(step, 2)  # of two shapes, so that what is compiled for any shape is
        for _ in range(given.turns):
            for name, step in kinds.items():
                start = time.perf_counter()
                run(step, given.steps)
                took[name].append((time.perf_counter() - start) / given.steps)
        print(f"\n{NAMES[tuning]}, {device}, ours in {str(precision).removeprefix('torch.')}")
        plain = took["published recipe"]
        for name, times in took.items():
            ratios = [plain_time / this_time for plain_time, this_time in zip(plain, times, strict=True)]
            print(
                f"  {name:36} {BATCH / median(times):8.1f} captions/s   ratio {median(ratios):5.2f}"
                f"   ({min(ratios):.2f} to {max(ratios):.2f})"
            )
        together = kinds["ours, captions of an image together"]
        with FlopCounterMode(display=False) as counter:
            run(together, 1)
        operations, rate = counter.get_total_flops(), matrix_rate(device, precision)
        share = operations / median(took["ours, captions of an image together"]) / rate
        print(f"  ours, together: {operations / 1e9:.0f} GFLOP a step, {share:.0%} of {rate / 1e12:.2f} TFLOP/s")
        if given.profile:
            with torch.profiler.profile() as profile:
                run(together, 3)
            kind = "device" if device.type == "cuda" else "cpu"
            print(profile.key_averages().table(sort_by=f"self_{kind}_time_total", row_limit=15))
        kinds.clear()
        for name, recipe in (("published recipe", plain_recipe), ("ours", partial(ours, precision=precision))):
            in_own_process(print_peak_memory, name, recipe, tuning, device)


def run(step: Step, steps: int) -> None:
    for _ in range(steps):
        loss = step()
    loss.item()  # a GPU is waited for


def matrix_rate(device: torch.device, precision: torch.dtype) -> float:
    """Operations a second in the product of two large matrices."""
    size, took = (8192 if device.type == "cuda" else 1024), []
    one, other = torch.randn(2, size, size, device=device, dtype=precision)
    for _ in range(5):
        start = time.perf_counter()
        (one @ other)[0, 0].item()
        took.append(time.perf_counter() - start)
    return 2 * size**3 / min(took)


def plain_recipe(tuning: str, device: torch.device, size: int = BATCH, config: GPT2Config | None = None) -> Step:
    """A step of ClipCap's train.py: `ClipCaptionPrefix` (frozen) or `ClipCaptionModel`, with transformers' GPT-2."""
    model = gpt2(config, device).train(tuning == "full")
    mapper = build_mapper(MAPPERS[tuning], DIM, model.config.n_embd, prefix_length=PREFIX).to(device)
    parameters = [*mapper.parameters(), *(model.parameters() if tuning == "full" else ())]
    optimizer = AdamW(parameters, lr=2e-5)
    batches = captions(size)

    def step() -> Tensor:
        model.zero_grad()
        mapper.zero_grad()
        tokens = torch.zeros(size, LONGEST, dtype=torch.long)
        rows = [row for image in next(batches) for row in image]
        for place, row in enumerate(rows):
            tokens[place, : len(row)] = torch.from_numpy(row)
        tokens = tokens.to(device)
        mask = torch.cat((torch.ones(size, PREFIX, device=device), (tokens > 0).float()), dim=1)
        words = model.transformer.wte(tokens)
        prefix = mapper(torch.randn(size, DIM, device=device))
        logits = model(inputs_embeds=torch.cat((prefix, words), dim=1), attention_mask=mask).logits[:, PREFIX - 1 : -1]
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens.flatten(), ignore_index=0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def ours(
    tuning: str, device: torch.device, precision: torch.dtype, grouped: bool = True, compiled: bool = False
) -> Step:
    """A step of `prefixcap.training`, without Lightning around it."""
    captioner = random_captioner(tuning, None, device, precision)
    if compiled:
        captioner.language_model.compile_training("default")
    return eager_step(captioner, precision, packed(device, grouped=grouped))


def random_captioner(
    tuning: str,
    config: GPT2Config | None = None,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> Captioner:
    """A captioner with random weights over GPT-2, to be trained; frozen layers are in the precision of training."""
    tokenizer = load_language_model("demo").tokenizer
    language_model = LanguageModel(gpt2(config, device), tokenizer, "random", tuning)  # type: ignore[arg-type]
    options = {"name": MAPPERS[tuning], "prefix_length": PREFIX}
    captioner = Captioner(language_model, EncoderIdentity("random", "", "", DIM), options).to(device).train()
    if precision != torch.float32:
        cast_frozen_layers(language_model.model, precision)
    return captioner


def eager_step(captioner: Captioner, precision: torch.dtype, batches: Iterator[Batch]) -> Step:
    """A step on the next batch, launched from Python operation by operation."""
    optimizer = AdamW([weight for weight in captioner.parameters() if weight.requires_grad], lr=2e-5, fused=True)

    def step() -> Tensor:
        batch = next(batches)
        with torch.autocast(captioner.device.type, precision, enabled=precision != torch.float32):
            loss = captioner.loss(batch) / len(batch.targets)
        loss.backward()
        nn.utils.clip_grad_norm_(captioner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def packed(
    device: torch.device, size: int = BATCH, grouped: bool = True, shapes: Sequence[BatchShape] = ()
) -> Iterator[Batch]:
    """Batches of random tokens, packed as they are drawn: the captions of an image together, or alone."""
    for images in captions(size):
        rows, owners = [row for image in images for row in image], owners_of(images, grouped)
        yield pack(torch.randn(int(owners[-1]) + 1, DIM), rows, owners, PREFIX, shapes=shapes).to(device)


def owners_of(images: list[list[np.ndarray]], grouped: bool) -> np.ndarray:
    """(C,) the image of each caption."""
    counts = [len(image) for image in images]
    return np.repeat(np.arange(len(images)), counts) if grouped else np.arange(sum(counts))


def gpt2(config: GPT2Config | None = None, device: torch.device | str = "cpu") -> GPT2LMHeadModel:
    """GPT-2 small, or another of its kind, with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        return GPT2LMHeadModel(config or GPT2Config())


def captions(size: int = BATCH) -> Iterator[list[list[np.ndarray]]]:
    """Batches of random tokens, of images with 5 captions each, as long as COCO's (words and signs, and the end)."""
    generator = np.random.default_rng(0)
    images = itertools.cycle(coco_captions())
    while True:
        texts = [next(images) for _ in range(size // 5)]
        lengths = [[len(re.findall(r"\w+|[^\w\s]", text)) + 1 for text in image] for image in texts]
        yield [[generator.integers(1, 50_000, min(length, LONGEST)) for length in image] for image in lengths]


def coco_captions() -> list[list[str]]:
    """Five captions of each image: COCO's, of Karpathy's validation split; without them, random words of such lengths.

    COCO's captions have 7 words or more: 7 + Gamma(2, 1.7) has their quartiles, and their 99% within a word.
    """
    file = SHARED / "captions" / "coco_karpathy_val.json"
    if file.exists():
        return [image["captions"][:5] for image in json.loads(file.read_text())]
    generator = np.random.default_rng(0)
    words = 7 + generator.gamma(2, 1.7, (5000, 5)).round().astype(int)
    return [[" ".join(f"w{word}" for word in generator.integers(0, 9000, n)) + "." for n in image] for image in words]


def print_peak_memory(name: str, kind: Callable[..., Step], tuning: str, device: torch.device) -> None:
    """Of a process that does nothing but two steps of a kind."""
    run(kind(tuning, device), 2)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else memory("VmHWM")
    print(f"  peak memory, {name:22} {peak / 1e9:6.2f} GB", flush=True)


if __name__ == "__main__":
    main()
