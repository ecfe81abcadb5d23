"""Train a captioner: `python train.py [model=…] [data=…] [lm=…] [encoder=…] [experiment=…]`; see conf/train.yaml."""

import csv
import warnings
from pathlib import Path
from typing import Any, cast

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger
from omegaconf import DictConfig, OmegaConf

from data_prep.embed import open_store
from launch import run
from prefixcap.captioner import Captioner, read_checkpoint
from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.files import write_text_whole
from prefixcap.language import load_language_model
from prefixcap.store import FeatureStore
from prefixcap.training import CaptionTraining, best_and_last, trainable_parameters


def main(config: DictConfig) -> None:
    if config.ckpt:
        config = resumed(Path(config.ckpt), HydraConfig.get().overrides.task)
    L.seed_everything(config.seed, workers=True, verbose=False)
    run_dir = Path(config.run_dir)

    store = open_store(config.data, config.encoder.name)
    require_encoder_name(store, config.encoder.name)
    captioner = Captioner(
        load_language_model(config.lm.name, config.model.lm_tuning),
        store.encoder,
        cast(dict[str, Any], OmegaConf.to_container(config.model.mapper, resolve=True)),
        config.model.normalize_embeddings,
        trained_on={"data": config.data.name, "store": store.location, "images": store.splits},
    )
    data = CaptionData(store, captioner, config.batch_size, config.num_workers, config.max_caption_tokens, config.seed)
    training = CaptionTraining(
        captioner,
        data.val_split,
        **config.optimizer,
        max_tokens=config.val_max_tokens,
        samples=run_dir / "samples",
    )
    best, last = best_and_last(run_dir / "checkpoints")
    trainer: L.Trainer = instantiate(
        config.trainer,
        callbacks=[best, last, LearningRateMonitor("step")],
        logger=[keep_metrics(logger) for logger in instantiate(config.logger).values()],
        default_root_dir=str(run_dir),
    )
    write_text_whole(run_dir / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training")  # a frozen language model is
    warnings.filterwarnings("ignore", ".*LeafSpec")  # between lightning and torch
    trained, frozen = trainable_parameters(captioner)
    print(f"training {trained / 1e6:.1f}M parameters ({frozen / 1e6:.1f}M frozen) in {run_dir}")
    trainer.fit(training, data, ckpt_path=config.ckpt, weights_only=True)

    print(f"best checkpoint: {best.best_model_path} (val_cider {best.best_model_score:.3f})")
    print(f"evaluate it:     python eval.py ckpt={best.best_model_path}")


def require_encoder_name(store: FeatureStore, name: str) -> None:
    """Refuse embeddings of another encoder than the one that is asked for."""
    if store.encoder.name != name:
        raise InputError(
            f"the feature store {store.location} was made by encoder '{store.encoder.name}', but '{name}' is "
            f"asked for: set encoder.name={store.encoder.name}, or embed the images again"
        )


def resumed(checkpoint: Path, overrides: list[str]) -> DictConfig:
    """The configuration of the run that wrote `checkpoint`, with the command line's changes of single values."""
    read_checkpoint(checkpoint)
    run_dir = checkpoint.resolve().parent.parent
    if not (run_dir / "config.yaml").is_file():
        raise InputError(
            f"{checkpoint} lies in no run's folder ({run_dir} has no config.yaml): resume where it was written"
        )
    config = OmegaConf.load(run_dir / "config.yaml")
    for override in overrides:
        key = override.partition("=")[0]
        if key in HydraConfig.get().runtime.choices:
            raise InputError(f"a resumed run keeps its {key}: leave out '{override}', or start a new run without ckpt=")
    config = OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides)), {"run_dir": str(run_dir)})
    return cast(DictConfig, config)


def keep_metrics(logger: Logger) -> Logger:
    """Let a resumed run's CSV logger go on in its file; by itself it would start an empty one."""
    if isinstance(logger, CSVLogger):
        file = Path(logger.log_dir) / "metrics.csv"
        rows = list(csv.DictReader(file.open())) if file.exists() else []
        logger.experiment.metrics = rows
        logger.save()
    return logger


if __name__ == "__main__":
    run(main, "train")
