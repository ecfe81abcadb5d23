"""Two sections of `gpu.py` that call `prefixcap train`: its time a step, and equality of captured and eager steps.

The data are a store of random embeddings with COCO's captions again and again, as many as COCO has; the language model,
GPT-2 small's architecture with random weights and a tokenizer learned from those captions.
"""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gpu import Row, Setting
from gpu_training import TINY, ours, seconds_a_step
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from train_steps import BATCH, DIM, coco_captions, gpt2
from transformers import GPT2Config, PreTrainedTokenizerFast

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.features import EncoderIdentity
from prefixcap.language import load_language_model
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join

ROOT = Path(__file__).resolve().parents[1]
IMAGES, VALIDATED = 113_287, 5_000  # of Karpathy's split of COCO, five captions each
EPOCHS, EPOCH = 10, 566_747 // BATCH  # of ClipCap's run, and the steps of one
SHARD = 5_000
ALLOWED = {"bf16-mixed": 1e-3, "32-true": 1e-5}  # relative differences of losses
END = "<|endoftext|>"


def command(setting: Setting) -> Iterator[Row]:
    """The time of a step of `prefixcap train`, beside the bare step; and of ClipCap's COCO run, by extrapolation."""
    few, more = (2, 4) if setting.tiny else (200, 5_000)
    options = prepared(setting)

    def seconds(steps: int, option: str) -> float:
        start = time.perf_counter()
        Training(setting.folder / str(start), *options, f"trainer.limit_train_batches={steps}", option).finish()
        return time.perf_counter() - start

    short = seconds(few, "trainer.limit_val_batches=0")
    step = (seconds(few + more, "trainer.limit_val_batches=0") - short) / more
    validation = seconds(few, "val_max_tokens=20") - short
    bare = seconds_a_step(ours("frozen", torch.device(setting.device), BATCH, config_of(setting)), setting.seconds)
    yield {"what": f"a step, from {more:,} of them", "ms": 1e3 * step, "over the bare step": step / bare}
    yield {"what": "start and end", "s": short - few * step}
    yield {"what": "a validation, greedy, 20 tokens", "s": validation}
    whole = short - few * step + EPOCHS * (EPOCH * step + validation)
    yield {"what": f"ClipCap's COCO run: {EPOCHS * EPOCH:,} steps, {EPOCHS} validations", "minutes": whole / 60}


def equality(setting: Setting) -> Iterator[Row]:
    """Losses of 50 captured steps beside eager ones; weights of a captured run that was killed and went on."""
    steps = 4 if setting.tiny else 50
    options = [*prepared(setting), f"trainer.limit_train_batches={steps}", "trainer.limit_val_batches=0"]
    options += ["trainer.log_every_n_steps=1", "optimizer.warmup_steps=2"]
    kinds = {"eager": ["cuda_graphs=false"], "captured": ["cuda_graphs=true"]}
    if setting.device == "cpu":  # where nothing can be captured
        kinds = {"eager": [], "captured": []}
    runs = {
        (precision, kind): Training(
            setting.folder / f"{precision}-{kind}", *options, f"trainer.precision={precision}", *graphs
        )
        for precision in ALLOWED
        for kind, graphs in kinds.items()
    }
    more = [*options, "trainer.precision=bf16-mixed", *kinds["captured"], f"checkpoint_every_n_steps={steps // 2}"]
    killed = Training(setting.folder / "killed", *more)
    while killed.process.poll() is None and not killed.last.exists():
        time.sleep(0.01)
    killed.process.kill()
    killed.process.wait()
    at = torch.load(killed.last, weights_only=False)["global_step"]
    again = Training(killed.run_dir, f"ckpt={killed.last}")
    for run in (*runs.values(), again):
        run.finish()
    for precision, allowed in ALLOWED.items():
        one, other = runs[precision, "captured"].losses(), runs[precision, "eager"].losses()
        what = f"losses of {len(one)} steps, {precision}: largest relative difference"
        yield {"what": what, "figure": float(np.max(np.abs(one / other - 1))), "allowed": allowed}
    whole, weights = runs["bf16-mixed", "captured"].weights(), again.weights()
    different = sum(not weight.equal(weights[name]) for name, weight in whole.items())
    yield {"what": f"weights that differ after a kill at step {at}", "figure": different, "allowed": 0}


class Training:
    """`prefixcap train` in a process of its own, which prints into `RUN_DIR.log`."""

    def __init__(self, run_dir: Path, *options: str) -> None:
        self.run_dir, self.log = run_dir, run_dir.with_name(f"{run_dir.name}.log")
        self.last = run_dir / "checkpoints" / "last.ckpt"
        words = [sys.executable, "-m", "prefixcap", "train", f"run_dir={run_dir}", *options]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]), "HF_HUB_OFFLINE": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=run_dir.parent)

    def finish(self) -> None:
        """Wait for its end; an error has what it printed last."""
        if self.process.wait():
            raise RuntimeError(self.log.read_text()[-2000:])

    def losses(self) -> np.ndarray:
        """(steps,)"""
        with (self.run_dir / "metrics.csv").open() as file:
            return np.array([float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]])

    def weights(self) -> dict[str, torch.Tensor]:
        """Those that were trained, at the end."""
        weights: dict[str, torch.Tensor] = torch.load(self.last, weights_only=False)["state_dict"]
        return weights


def prepared(setting: Setting) -> list[str]:
    """Write the store and the language model, with the tokens kept; -> options of `prefixcap train`."""
    folder = setting.folder / "prepared"
    store, language_model = folder / "store", folder / "gpt2"
    if not folder.exists():
        texts = coco_captions()
        gpt2(config_of(setting)).save_pretrained(language_model)
        learned_tokenizer(texts).save_pretrained(language_model)
        write_store(store, texts, *((200, 40) if setting.tiny else (IMAGES, VALIDATED)))
        mapper = {"name": "mlp", "prefix_length": 10}
        CaptionData(store, Captioner(load_language_model(str(language_model)), FeatureStore(store).encoder, mapper))
    chosen = ["experiment=clipcap_coco_transformer", "encoder.name=random", "trainer.max_epochs=1"]
    return [*chosen, f"data.store={store}", f"lm.name={language_model}"]


def config_of(setting: Setting) -> GPT2Config:
    return TINY if setting.tiny else GPT2Config()


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


def write_store(store: Path, texts: list[list[str]], images: int, validated: int) -> None:
    """Random embeddings of so many images for training, and for validation, with these captions again and again."""
    generator = np.random.default_rng(0)
    shards = range(0, images + validated, SHARD)
    writer = StoreWriter(store, EncoderIdentity("random", "0" * 64, "none", DIM), "random", store, "gpu", len(shards))
    for number, first in enumerate(shards):
        rows = range(first, min(first + SHARD, images + validated))
        records = [
            ImageRecord(n, f"{n}.jpg", "train" if n < images else "val", tuple(texts[n % len(texts)])) for n in rows
        ]
        embeddings = generator.standard_normal((len(rows), DIM), np.float32).astype(np.float16)
        writer.write_piece(number, 0, 1, records, {"images/embedding": embeddings}, [])
    join(store)
