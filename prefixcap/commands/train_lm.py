"""`prefixcap train-lm`: fine-tune a language model on captions; see conf/train_lm.yaml."""

import math
import warnings
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from data_prep.readers import read_dataset
from data_prep.stores import open_store, require_store
from prefixcap.commands.common.hydra_main import run
from prefixcap.commands.common.run_folder import sole_run
from prefixcap.errors import InputError
from prefixcap.utils.deferred import deferred_imports
from prefixcap.utils.files import atomic_write_text
from prefixcap.utils.options import check_options

with deferred_imports():  # what follows imports torch: it waits until the options are checked
    from lightning.pytorch import seed_everything

    from prefixcap.commands.common.automatic import choose_precision
    from prefixcap.commands.common.trainer import (
        fit,
        half_batch,
        make_trainer,
        open_loggers,
        rank_zero_print,
        used_device,
    )
    from prefixcap.language import load_language_model
    from prefixcap.training.checkpoints import LastCheckpoint
    from prefixcap.zeroshot.caption_lm import BestFolder, CaptionLMTraining, CaptionTexts, Texts


def main(config: DictConfig) -> None:
    if not reads_sentences(config.data):
        require_store(config.data, config.encoder.name)
    with sole_run(Path(config.run_dir)):
        train(config)


def train(config: DictConfig) -> None:
    run_dir = Path(config.run_dir)
    precision = choose_precision(config)
    checkpoint = unfinished(config, run_dir)
    loggers = open_loggers(config, checkpoint)
    lm = cast(dict[str, Any], OmegaConf.to_container(config.lm, resolve=True))
    del lm["lora"]
    train_captions, val_captions = captions(config)
    seed_everything(config.seed, workers=True, verbose=False)  # here, as making a store draws random numbers
    language_model = load_language_model(**check_options("lm", load_language_model, lm | {"tuning": "full"}))
    training = CaptionLMTraining(language_model, config.margin, **config.optimizer)
    data = CaptionTexts(
        language_model, train_captions, val_captions, config.batch_size, config.max_caption_tokens, config.seed
    )
    warnings.filterwarnings("ignore", ".*does not have many workers")  # batches take no time to prepare
    best = BestFolder(run_dir / "language_model")
    last = LastCheckpoint(run_dir / "checkpoints" / "last.ckpt", config.checkpoint_every_n_steps)
    trainer = make_trainer(config, loggers, [best, last])
    rank_zero_print(f"fine-tuning {language_model.name} on {len(data.captions['train']):,} captions in {run_dir}")
    rank_zero_print(f"on {used_device(trainer)}: {precision}")
    fit(trainer, training, data, checkpoint, "the same command continues from there", half_batch(config))
    if not math.isfinite(best.loss):
        raise InputError(
            f"training ended before the first validation: set trainer.val_check_interval to at most "
            f"{config.trainer.max_steps}"
        )
    rank_zero_print(f"best val_loss: {best.loss:.3f} nats a token, a perplexity of {math.exp(best.loss):.2f}")
    rank_zero_print(f"language model: {best.folder}")


def unfinished(config: DictConfig, run_dir: Path) -> str | None:
    """The checkpoint to continue from, if the same command was started before. Raises InputError if another was."""
    file, last = run_dir / "config.yaml", run_dir / "checkpoints" / "last.ckpt"
    text = OmegaConf.to_yaml(config, resolve=True)
    if not last.exists():
        atomic_write_text(file, text)
        return None
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        raise InputError(
            f"{run_dir} holds a run with other options ({file}): give these to continue it, or another run_dir"
        )
    return str(last)


def reads_sentences(data: DictConfig) -> bool:
    """Whether captions come from the files of a data set of sentences, not from a feature store."""
    return not data.store and bool(data.get("sentences", False))


def captions(config: DictConfig) -> tuple[Texts, Texts]:
    """Captions for training and for validation: from the feature store, or without one from the files of sentences."""
    if not reads_sentences(config.data):
        store = open_store(config.data, config.encoder.name)
        return store.split("train").captions, store.split("val").captions
    dataset = read_dataset(config.data.reader)
    texts: dict[str, list[str]] = {"train": [], "val": []}
    for shard in dataset.shards:
        for sample in shard.read()[0]:
            texts.get(sample.record.split, []).extend(sample.record.captions)
    if not texts["val"]:
        raise InputError("there are no sentences to validate on: set data.reader.val_share, e.g. to 0.02")
    return texts["train"], texts["val"]


if __name__ == "__main__":
    run(main, "train_lm")
