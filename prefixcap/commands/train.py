"""`prefixcap train`: train a captioner; see conf/train.yaml."""

import math
import shlex
import warnings
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data_prep.stores import open_store, require_store
from prefixcap.commands.common.hydra_main import command, run
from prefixcap.commands.common.run_folder import keep_config, refuse_kept_run, resolve_run_config, sole_run
from prefixcap.errors import InputError
from prefixcap.features import Feature
from prefixcap.mappers import MAPPERS
from prefixcap.metrics import cider_tells_nothing
from prefixcap.store import FeatureStore, StoreSplit
from prefixcap.store.remote import is_remote
from prefixcap.training.objectives import build_objective, check_objective
from prefixcap.utils.deferred import deferred_imports
from prefixcap.utils.hub import missing_language_model, naming
from prefixcap.utils.options import check_options

with deferred_imports():  # what follows imports torch: it waits until the options are checked
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.utilities import rank_zero_only

    from prefixcap.captioner import Captioner
    from prefixcap.commands.common.automatic import choose_grouping, choose_precision
    from prefixcap.commands.common.prompting import build_prompts, retrieval_options
    from prefixcap.commands.common.starting import Start, learned_before, resumed_language_model
    from prefixcap.commands.common.trainer import (
        fit,
        half_batch,
        make_trainer,
        open_loggers,
        rank_zero_print,
        used_device,
    )
    from prefixcap.data import CaptionData
    from prefixcap.language import LanguageModel, load_language_model
    from prefixcap.language.lora import Lora
    from prefixcap.mappers.projector import fit_to_images
    from prefixcap.noise import Noise, read_offset
    from prefixcap.prompts import Datastore
    from prefixcap.training import CaptionTraining, trainable_parameters
    from prefixcap.training.checkpoints import best_and_last
    from prefixcap.training.cuda_graphs import CapturedTraining
    from prefixcap.training.finders import find_batch_size, find_learning_rate
    from prefixcap.training.nan_guard import FiniteLoss
    from prefixcap.training.throughput import Throughput

# With fewer validation images, chance decides which epoch has the highest CIDEr: half of its 95% interval is 0.16 for
# fifty photographs, and 0.37 for ten, at the CIDEr of 0.5 of captioners of Flickr8k.
FEW = 50


def main(config: DictConfig) -> float | None:
    """Train, and return the best val_cider, or -val_loss (see `monitored`), which a sweep may maximize; None if find=
    asks for a value instead, or nothing was validated."""
    config = resolve_run_config(config)
    if config.find not in (None, "learning_rate", "batch_size"):
        raise InputError(f"find must be learning_rate or batch_size, not {config.find!r}")
    if config.data.on_device not in ("auto", True, False):
        raise InputError(f"data.on_device must be auto, true or false, not {config.data.on_device!r}")
    if config.data.group_captions not in (True, False, "auto"):
        raise InputError(f"data.group_captions must be true, false or auto, not {config.data.group_captions!r}")
    if config.cuda_graphs not in ("auto", True, False):
        raise InputError(f"cuda_graphs must be auto, true or false, not {config.cuda_graphs!r}")
    check_objective(config.model.objective, objective_options(config))
    start = Start(config.start) if config.start and not config.ckpt else None
    overrides = list(HydraConfig.get().overrides.task)
    if start and not any(override.startswith("ckpt=") for override in overrides):  # such a run has its configuration
        start.adopt(config, overrides)
    retrieve_from, retrieval_noise = retrieval_options(config.model)
    reads = required_feature(config.model)
    require_store(config.data, config.encoder.name, reads)
    with sole_run(Path(config.run_dir)):
        refuse_kept_run(config)  # again: another process may have trained there while this one waited for it to end
        return train(config, start, reads, retrieve_from, retrieval_noise)


def train(
    config: DictConfig, start: Start | None, reads: str, retrieve_from: str | None, retrieval_noise: float
) -> float | None:
    """Train by a configuration that was checked, see `main`."""
    run_dir = Path(config.run_dir)
    loggers = open_loggers(config, config.ckpt)  # early, because a package may be missing

    with naming(missing_language_model, config.lm.name):
        store = open_store(config.data, config.encoder.name, reads)
    require_encoder_name(store, config.encoder.name)
    choices = [choose_precision(config), choose_grouping(config, store.split("train"))]
    seed_everything(config.seed, workers=True, verbose=False)  # here, as making a store draws random numbers
    mapper = cast(dict[str, Any], OmegaConf.to_container(config.model.mapper, resolve=True))
    if mapper["name"] == "projector" and config.model.learns_from == "images":
        mapper = fit_to_images(mapper, store.split("train").feature(Feature.parse(reads)).shape[1:])
    captioner = Captioner(
        build_language_model(config, start),
        store.encoder,
        mapper,
        config.model.normalize_embeddings,
        trained_on={"data": config.data.name, "store": store.location, "images": store.splits}
        | ({"before": before} if (before := learned_before(config, start)) else {}),
        start_token=config.model.start_token,
    )
    prompts, max_prompt_tokens = build_prompts(config, captioner, store)
    if start:
        rank_zero_print(start.load_into(captioner))
    if config.compile:
        captioner.language_model.compile_training(config.compile)
    data = CaptionData(
        store, captioner, config.batch_size, config.num_workers, config.max_caption_tokens, config.seed,
        config.data.group_captions, config.data.keep_tokens, config.model.learns_from == "text", config.released_tokens,
        config.data.on_device, prompts, max_prompt_tokens,
        Datastore.open(retrieve_from) if retrieve_from else None, retrieval_noise,
    )  # fmt: skip
    training = CaptionTraining(
        captioner, data.val_split, **config.optimizer, max_tokens=config.val_max_tokens, samples=run_dir / "samples",
        noise=build_noise(config.model, captioner), noise_in_validation=config.model.learns_from == "text",
        objective=build_objective(config.model.objective, captioner, data, **objective_options(config)),
    )  # fmt: skip
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training")  # a frozen language model is
    if config.start:
        warnings.filterwarnings("ignore", "too few steps")  # to learn to caption images, which it has learned
    monitor = monitored(config, data.val_split)
    best, last_checkpoint = best_and_last(run_dir / "checkpoints", config.checkpoint_every_n_steps, monitor)
    chosen = instantiate(monitoring(config.callbacks, monitor)).values()
    throughput, captured = Throughput(), CapturedTraining(False if config.find else config.cuda_graphs)
    callbacks = [best, last_checkpoint, FiniteLoss(config.nonfinite_loss), captured, throughput, *chosen]
    trainer = make_trainer(config, loggers, callbacks)
    if config.find:
        rank_zero_print(run_finder(config.find, trainer, training, data, run_dir))
        return None
    rank_zero_only(keep_config)(config)
    trained, frozen = trainable_parameters(captioner)
    rank_zero_print(f"training {trained / 1e6:.1f}M parameters ({frozen / 1e6:.1f}M frozen) in {run_dir}")
    rank_zero_print(f"on {used_device(trainer)}: {', '.join(choices)}")
    how_to_continue = f"continue with {command('train')} ckpt={last_checkpoint.path}"
    fit(trainer, training, data, config.ckpt, how_to_continue, memory_saving_overrides(config))
    if throughput.captions_per_second is not None:
        rank_zero_print(f"{throughput.captions_per_second:,.0f} captions a second, without validation")
    stopping = trainer.early_stopping_callback
    if stopping is not None and stopping.stopped_epoch:
        rank_zero_print(f"ended after epoch {stopping.stopped_epoch + 1}: {stopping.monitor} no longer improved")
    if best.best_model_score is None:
        rank_zero_print(f"ended before the first validation: {last_checkpoint.path} has the trained weights")
        return None
    rank_zero_print(f"best checkpoint: {best.best_model_path} ({monitor} {best.best_model_score:.3f})")
    if training.same_captions:
        rank_zero_print(
            "warning: all validation images have the same caption, so nothing about images was learned: train longer "
            "(trainer.min_steps), or with another optimizer.learning_rate"
        )
    options = " ".join([f"ckpt={shlex.quote(best.best_model_path)}", *images_to_caption(config, store)])
    rank_zero_print(f"evaluate it:     {command('eval')} {options}")
    return float(best.best_model_score) * (-1 if monitor == "val_loss" else 1)


def build_language_model(config: DictConfig, start: Start | None) -> LanguageModel:
    """The language model to train: that of the captioner from which the run starts, or as configured."""
    if config.ckpt and config.start and config.model.lm_tuning == "full":
        return resumed_language_model(Path(config.ckpt))
    lm = cast(dict[str, Any], OmegaConf.to_container(config.lm, resolve=True))
    lora = Lora(**check_options("lm.lora", Lora, lm.pop("lora", {})))
    lm = check_options("lm", load_language_model, lm | {"tuning": config.model.lm_tuning, "lora": lora})
    return (start and start.language_model(lm)) or load_language_model(**lm)


def monitored(config: DictConfig, split: StoreSplit) -> str:
    """The metric that chooses `best.ckpt`: val_cider; or val_loss, which a line reports, if there are so few validation
    images that CIDEr could only be 0, or that chance decides which epoch's is highest."""
    limit, batches = config.trainer.get("limit_val_batches"), math.ceil(len(split) / config.batch_size)
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    validated = split.ids[: batches * config.batch_size]
    references = {image: texts for image, texts in split.references().items() if texts}
    references = {image: references[image] for image in validated if image in references}
    nothing = bool(references) and cider_tells_nothing(references)
    if not nothing and not 0 < len(references) < FEW:
        return "val_cider"
    images = "1 validation image" if len(references) == 1 else f"{len(references):,} validation images"
    reason = (
        f"val_cider is 0 for any caption: no word of {images} is rarer than another"
        if nothing
        else f"val_cider of {images} is mostly chance"
    )
    rank_zero_print(f"{reason}. val_loss chooses best.ckpt")
    return "val_loss"


def monitoring(callbacks: DictConfig, monitor: str) -> DictConfig:
    """The callbacks, where those that monitor val_cider monitor `monitor` instead."""
    changed = callbacks.copy()
    for options in changed.values():
        if options.get("monitor") == "val_cider" and monitor == "val_loss":
            options.update(monitor=monitor, mode="min")
    return changed


def images_to_caption(config: DictConfig, store: FeatureStore) -> list[str]:
    """Options that name the images to evaluate on, quoted for a shell; none if the checkpoint names them."""
    if config.model.learns_from != "text":  # `eval` opens no URL that a checkpoint names
        return list(config.data.options) if is_remote(store.location) else []
    if "images" in config.data:
        return [f"data={config.data.images}"]
    if config.data.get("sentences", False):
        return ["data=…   (the images to caption, e.g. data=coco)"]
    return [option for option in config.data.options if not option.lstrip("+").startswith("data.store=")]


def required_feature(model: DictConfig) -> str:
    """The feature that the mapper reads, by its name in `features=` of `prefixcap embed`."""
    if model.learns_from not in ("images", "text"):
        raise InputError(f"unknown model.learns_from '{model.learns_from}': choose images or text")
    if model.learns_from == "text":
        return "caption"
    own = getattr(MAPPERS.get(model.mapper.name), "features", Feature.IMAGE)
    return Feature.parse(model.mapper.get("features", own)).option


def build_noise(model: DictConfig, captioner: Captioner) -> Noise | None:
    """The noise on embeddings in training; None: there is none."""
    if model.learns_from == "text" and not captioner.normalize_embeddings:
        raise InputError(
            "embeddings of texts and images agree in direction, not in length: set model.normalize_embeddings=true"
        )
    if model.noise is not None and not captioner.normalize_embeddings:
        raise InputError("model.noise is for embeddings of length one: set model.normalize_embeddings=true")
    options = {"variance": 0.0} if model.noise is None and model.learns_from == "text" else model.noise
    if options is None:
        return None
    options = dict(options)
    if offset := options.get("offset"):
        options["offset"] = read_offset(Path(offset))
    noise = Noise(**check_options("model.noise", Noise, options))
    several = captioner.features is not Feature.IMAGE
    if model.learns_from == "text" and several != (noise.copies is not None):
        needed = "10: the mapper reads several" if several else "null: the mapper reads one"
        raise InputError(f"a text has one embedding; set model.noise.copies={needed}")
    if several and ":RN" in captioner.encoder_identity.name:
        raise InputError(
            f"{captioner.encoder_identity.name} is a ResNet, whose images have no patches to make regions of: "
            "embed the texts with a ViT, e.g. encoder=clip_vit_b32, or choose model=capdec_frozen"
        )
    return noise


def run_finder(what: str, trainer: Trainer, training: CaptionTraining, data: CaptionData, run_dir: Path) -> str:
    """Find a learning rate or a batch size to train with, and return it as an option."""
    if what == "learning_rate":
        table = run_dir / "lr_find.csv"
        rate = find_learning_rate(trainer, training, data, table)
        return f"optimizer.learning_rate={rate:.2g}   # where the loss falls fastest; {table} has all rates"
    return f"batch_size={find_batch_size(trainer, training, data)}   # the largest that fits, less 5%"


def memory_saving_overrides(config: DictConfig) -> list[str]:
    """Options that save memory, those that cost least first."""
    from prefixcap.commands.common.automatic import bfloat16_is_slow

    knobs = []
    if config.trainer.precision == "32-true" and not bfloat16_is_slow(config):
        knobs.append("trainer.precision=bf16-mixed")
    if config.model.objective == "scst":
        knobs.append(f"scst.draws={max(2, config.scst.draws // 2)} (it is {config.scst.draws})")
    elif not config.data.group_captions:
        knobs.append("data.group_captions=true (computes one prefix for all captions of an image)")
    knobs += half_batch(config)
    if not config.lm.gradient_checkpointing:
        knobs.append("lm.gradient_checkpointing=true")
    return knobs


def objective_options(config: DictConfig) -> dict[str, Any]:
    """The options of the objective: `objective.NAME=VALUE`, and those of self-critical training also `scst.NAME`."""
    scst = config.scst if config.model.objective == "scst" else {}
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(scst, config.objective), resolve=True))


def require_encoder_name(store: FeatureStore, name: str) -> None:
    """Raise InputError if the embeddings in a store are those of another encoder than the configured one."""
    if store.encoder.name != name:
        raise InputError(
            f"the feature store {store.location} was made with encoder '{store.encoder.name}', not "
            f"'{name}': set encoder.name={store.encoder.name}, or embed the images again"
        )


if __name__ == "__main__":
    run(main, "train")
