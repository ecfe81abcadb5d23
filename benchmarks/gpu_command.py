"""Two sections of `gpu.py` that call `prefixcap train`: its time a step, and equality of captured and eager steps.

The data are a store of random embeddings with COCO's captions again and again, enough for the steps that are made; the
language model, GPT-2 small's architecture with random weights and a tokenizer learned from those captions.
"""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from gpu import Row, Setting
from gpu_training import captured, config_of, seconds_a_step
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from train_steps import DIM, PREFIX, coco_captions, gpt2
from transformers import PreTrainedTokenizerFast

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.features import EncoderIdentity
from prefixcap.language import load_language_model
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join

ROOT = Path(__file__).resolve().parents[1]
VALIDATED = 5_000  # images of Karpathy's split of COCO, five captions each
EPOCHS, EPOCH = 10, 566_747 // 40  # of ClipCap's run, and the steps of one
SHARD = 5_000
ALLOWED = {"bf16-mixed": 1e-3, "32-true": 1e-5}  # relative differences of losses
END = "<|endoftext|>"
GPU_TESTS = ["-m", "pytest", "-q", "-k", "graphs_of_a_gpu", "tests/training/test_captured.py"]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]), "HF_HUB_OFFLINE": "1"}


def command(setting: Setting) -> Iterator[Row]:
    """The time of a step of `prefixcap train`, beside the bare step; and of ClipCap's COCO run, by extrapolation.

    Captions are drawn one by one, as in the paper, and after that together with those of their image.
    """
    options = [*prepared(setting), "val_max_tokens=20", *(["trainer.log_every_n_steps=1"] if setting.tiny else [])]
    start = validation = 0.0
    for kind, steps in {"one by one": 5_600, "together": 1_600}.items():
        steps, grouped = 8 if setting.tiny else steps, kind == "together"
        step = captured("frozen", torch.device(setting.device), setting.batch, config_of(setting), grouped=grouped)
        bare = seconds_a_step(step, setting.seconds)
        del step
        began, chosen = time.perf_counter(), [f"trainer.limit_train_batches={steps}", f"data.group_captions={grouped}"]
        chosen += ["trainer.limit_val_batches=0"] if validation else []
        training = Training(setting.folder / kind, *options, *chosen)
        seen: list[tuple[int, float]] = []  # steps made, and when; from an eighth on, when all shapes are captured
        took = 0.0
        for now, line in training.follow():
            done = int(line["step"]) + 1
            if line.get("val_loss"):
                start, share = seen[0][1] - began - seen[0][0] * took, images(setting)[1] / VALIDATED
                validation = (now - seen[-1][1] - (steps - seen[-1][0]) * took) / share
                yield {"captions": kind, "what": "start, with captures", "s": start}
                what = f"a validation, greedy, 20 tokens, from {share:.0%} of it"
                yield {"captions": kind, "what": what, "s": validation}
                break
            if line["train_loss"] and done >= steps // 8:
                seen.append((done, now))
                took = (now - seen[0][1]) / max(1, done - seen[0][0])
                if len(seen) > 1 and done % (steps // 4) == 0:
                    row: Row = {"captions": kind, "what": f"a step, from {seen[0][0]:,} to {done:,}", "ms": 1e3 * took}
                    yield row | {"over the bare step": took / bare, "captions/s": setting.batch / took}
        training.finish()
        for printed in (*training.told("CUDA graphs"), *training.told("captions a second")):
            yield {"captions": kind, "what": printed}
        what = f"ClipCap's COCO run: {EPOCHS * EPOCH:,} steps, {EPOCHS} validations"
        whole = start + EPOCHS * (EPOCH * took + validation)
        yield {"captions": kind, "what": what, "minutes": whole / 60}


def equality(setting: Setting) -> Iterator[Row]:
    """Losses of 50 captured steps beside eager ones; weights of a captured run that was killed and went on.

    The batches of eager steps are not padded. As the language model is frozen and nothing is drawn at random in a step,
    padding changes no more than how sums are rounded.
    """
    steps = 5 if setting.tiny else 50
    options = [*prepared(setting), f"trainer.limit_train_batches={steps}", "trainer.limit_val_batches=0"]
    options += ["trainer.log_every_n_steps=1", "optimizer.warmup_steps=2"]
    kinds = {"eager": "cuda_graphs=false", "captured": "cuda_graphs=true"}
    precisions = ALLOWED
    if setting.tiny:  # on a CPU, where nothing can be captured, and bfloat16 may be slow
        kinds["captured"], precisions = kinds["eager"], {"32-true": ALLOWED["32-true"]}
    tests = GPU_TESTS if find_spec("pytest") else ["-c", "print('pytest is not installed')"]
    tested = subprocess.Popen([sys.executable, *tests], env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    runs = {
        (precision, kind): Training(
            setting.folder / f"{precision}-{kind}", *options, f"trainer.precision={precision}", graphs
        )
        for precision in precisions
        for kind, graphs in kinds.items()
    }
    exact = [*options, f"trainer.precision={next(iter(precisions))}", kinds["captured"], "trainer.deterministic=true"]
    whole = Training(setting.folder / "whole", *exact)
    killed = Training(setting.folder / "killed", *exact, f"checkpoint_every_n_steps={steps // 5}")
    while killed.process.poll() is None and not killed.last.exists():
        time.sleep(0.01)
    killed.process.kill()
    killed.process.wait()
    at = torch.load(killed.last, weights_only=True)["global_step"]
    again = Training(killed.run_dir, f"ckpt={killed.last}")
    for run in (*runs.values(), whole, again):
        run.finish()
        for reason in run.told("CUDA graphs:"):  # there are none, and so nothing was compared
            yield {"what": reason, "figure": 1, "allowed": 0}
    for precision, allowed in precisions.items():
        one, other = runs[precision, "captured"].losses(), runs[precision, "eager"].losses()
        what = f"losses of {len(one)} steps, {setting.captured}, {precision}: largest relative difference"
        yield {"what": what, "figure": float(np.max(np.abs(one / other - 1))), "allowed": allowed}
    weights = again.weights()
    different = sum(not weight.equal(weights[name]) for name, weight in whole.weights().items())
    yield {"what": f"weights that differ after a kill at step {at}", "figure": different, "allowed": 0}
    last = tested.communicate()[0].strip().splitlines()[-1]
    yield {"what": f"tests of captured steps on a GPU: {last}", "figure": tested.returncode, "allowed": 0}


class Training:
    """`prefixcap train` in a process of its own, which prints into `RUN_DIR.log`."""

    def __init__(self, run_dir: Path, *options: str) -> None:
        self.run_dir, self.log = run_dir, run_dir.with_name(f"{run_dir.name}.log")
        self.last = run_dir / "checkpoints" / "last.ckpt"
        words = [sys.executable, "-m", "prefixcap", "train", f"run_dir={run_dir}", *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, env=ENVIRONMENT, stdout=log, stderr=log, cwd=run_dir.parent)

    def finish(self) -> None:
        """Wait for its end; an error has what it printed last."""
        if self.process.wait():
            raise RuntimeError(self.log.read_text()[-2000:])

    def told(self, words: str) -> list[str]:
        """The lines that it printed with these words."""
        return [line for line in self.log.read_text().splitlines() if words in line]

    def follow(self) -> Iterator[tuple[float, dict[str, str]]]:
        """Each line of its metrics, and the time at which it was seen, until the process ends."""
        seen, ended = 0, False
        while not ended:
            time.sleep(0.01)
            ended = self.process.poll() is not None
            lines = self.metrics()
            for line in lines[seen:]:
                yield time.perf_counter(), line
            seen = len(lines)

    def metrics(self) -> list[dict[str, str]]:
        """The lines of its metrics so far."""
        file = self.run_dir / "metrics.csv"
        return list(csv.DictReader(file.read_text().splitlines())) if file.exists() else []

    def losses(self) -> np.ndarray:
        """(steps,)"""
        return np.array([float(line["train_loss"]) for line in self.metrics() if line["train_loss"]])

    def weights(self) -> dict[str, torch.Tensor]:
        """Those that were trained, at the end."""
        weights: dict[str, torch.Tensor] = torch.load(self.last, weights_only=True)["state_dict"]
        return weights


def prepared(setting: Setting) -> list[str]:
    """Write the store and the language model, with the tokens kept; -> options of `prefixcap train`."""
    folder = setting.folder / "prepared"
    if not folder.exists():
        texts = coco_captions()
        gpt2(config_of(setting)).save_pretrained(folder / "gpt2")
        learned_tokenizer(texts).save_pretrained(folder / "gpt2")
        write_store(folder / "store", texts, *images(setting))
        training_data(setting)
    chosen = ["experiment=clipcap_coco_transformer", "encoder.name=random", "trainer.max_epochs=1"]
    made = [f"data.store={folder / 'store'}", f"lm.name={folder / 'gpt2'}"]
    return [*chosen, *made, f"batch_size={setting.batch}"]


def training_data(setting: Setting) -> CaptionData:
    """Of what was prepared."""
    folder = setting.folder / "prepared"
    store, language_model = FeatureStore(folder / "store"), load_language_model(str(folder / "gpt2"))
    return CaptionData(store, Captioner(language_model, store.encoder, {"name": "mlp", "prefix_length": PREFIX}))


def images(setting: Setting) -> tuple[int, int]:
    """Those to train on and to validate on: enough for the steps that are made, as tokenizing more takes its time."""
    return (200, 40) if setting.tiny else (50_000, 1_000)


def learned_tokenizer(texts: list[list[str]]) -> PreTrainedTokenizerFast:
    """Bytes joined to at most 50,257 tokens, as GPT-2's are, learned from these captions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=50_257, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    tokenizer.train_from_iterator((text for image in texts for text in image), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END)


def write_store(store: Path, texts: list[list[str]], trained: int, validated: int) -> None:
    """Random embeddings of so many images for training, and for validation, with these captions again and again."""
    generator = np.random.default_rng(0)
    shards = range(0, trained + validated, SHARD)
    writer = StoreWriter(store, EncoderIdentity("random", "0" * 64, "none", DIM), "random", store, "gpu", len(shards))
    for number, first in enumerate(shards):
        rows = range(first, min(first + SHARD, trained + validated))
        records = [
            ImageRecord(n, f"{n}.jpg", "train" if n < trained else "val", tuple(texts[n % len(texts)])) for n in rows
        ]
        embeddings = generator.standard_normal((len(rows), DIM), np.float32).astype(np.float16)
        writer.write_piece(number, 0, 1, records, {"images/embedding": embeddings}, [])
    join(store)
