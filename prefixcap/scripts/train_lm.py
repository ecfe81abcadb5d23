"""Fine-tune a language model on captions alone: `prefixcap train-lm [data=…] [lm=…]`; see conf/train_lm.yaml."""

import math
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor
from omegaconf import DictConfig, OmegaConf

from data_prep.embed import open_store
from data_prep.records import Dataset
from prefixcap.errors import InputError
from prefixcap.files import write_text_whole
from prefixcap.language import load_language_model
from prefixcap.machine import out_of_memory
from prefixcap.scripts.launch import run
from prefixcap.scripts.runs import keep_metrics
from prefixcap.training.checkpoints import LastCheckpoint, RandomState, Stopped, WholeCheckpoints
from prefixcap.zeroshot.caption_lm import BestFolder, CaptionLMTraining, CaptionTexts, Texts


def main(config: DictConfig) -> None:
    L.seed_everything(config.seed, workers=True, verbose=False)
    run_dir = Path(config.run_dir)
    checkpoint = unfinished(config, run_dir)
    lm = cast(dict[str, Any], OmegaConf.to_container(config.lm, resolve=True))
    del lm["lora"]
    language_model = load_language_model(tuning="full", **lm)
    training = CaptionLMTraining(language_model, config.margin, **config.optimizer)
    data = CaptionTexts(
        language_model, *captions(config), config.batch_size, config.max_caption_tokens, config.seed
    )  # fmt: skip
    warnings.filterwarnings("ignore", ".*does not have many workers")  # batches are made in no time
    warnings.filterwarnings("ignore", ".*LeafSpec")  # between lightning and torch
    warnings.filterwarnings("ignore", ".*dataloader is not resumable")  # it asks the trainer where to begin
    warnings.filterwarnings("ignore", ".*Previous log files in this directory")  # keep_metrics writes them again
    best = BestFolder(run_dir / "language_model")
    last = LastCheckpoint(run_dir / "checkpoints" / "last.ckpt", config.checkpoint_every_n_steps)
    trainer: L.Trainer = instantiate(
        config.trainer,
        callbacks=[best, last, RandomState(), LearningRateMonitor("step")],
        plugins=[WholeCheckpoints()],
        logger=[keep_metrics(logger, checkpoint) for logger in instantiate(config.logger).values()],
        default_root_dir=str(run_dir),
    )
    print(f"fine-tuning {language_model.name} on {len(data.captions['train']):,} captions in {run_dir}")
    try:
        trainer.fit(training, data, ckpt_path=checkpoint, weights_only=True)
    except Stopped as stopped:
        told = f"{stopped.signal.name} stopped training after step {stopped.step}"
        print(f"{told}: the same command goes on from there", file=sys.stderr)
        raise
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        half, steps = max(1, config.batch_size // 2), 2 * config.trainer.accumulate_grad_batches
        raise InputError(
            f"out of memory: try batch_size={half} (it is {config.batch_size}) with "
            f"trainer.accumulate_grad_batches={steps}"
        ) from error
    if not math.isfinite(best.loss):
        raise InputError(
            f"training ended before the first validation: set trainer.val_check_interval to at most "
            f"{config.trainer.max_steps}"
        )
    print(f"best val_loss: {best.loss:.3f} nats a token, a perplexity of {math.exp(best.loss):.2f}")
    print(f"language model: {best.folder}")


def unfinished(config: DictConfig, run_dir: Path) -> str | None:
    """The checkpoint to go on from, if the same command was given before. Raises InputError if it was another."""
    file, last = run_dir / "config.yaml", run_dir / "checkpoints" / "last.ckpt"
    text = OmegaConf.to_yaml(config, resolve=True)
    if not last.exists():
        write_text_whole(file, text)
        return None
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        raise InputError(
            f"{run_dir} holds a run with other options ({file}): give those, to go on with it, or another run_dir"
        )
    return str(last)


def captions(config: DictConfig) -> tuple[Texts, Texts]:
    """To train on, and to validate on: sentences from their files, captions of images from their feature store."""
    if not config.data.get("sentences", False):
        store = open_store(config.data, config.encoder.name)
        return store.split("train").captions, store.split("val").captions
    dataset: Dataset = instantiate(config.data.reader)
    found: dict[str, list[str]] = {"train": [], "val": []}
    for shard in dataset.shards:
        for sample in shard.read()[0]:
            found.get(sample.record.split, []).extend(sample.record.captions)
    if not found["val"]:
        raise InputError("there are no sentences to validate on: set data.reader.val_share, e.g. to 0.02")
    return found["train"], found["val"]


if __name__ == "__main__":
    run(main, "train_lm")
