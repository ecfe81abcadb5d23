"""Evaluate a captioner, `python eval.py ckpt=PATH`, or captions made elsewhere, `python eval.py captions=FILE …`."""

from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig

from data_prep.embed import open_store
from launch import run
from prefixcap.caption_files import read_captions, read_references
from prefixcap.captioner import load
from prefixcap.comparison import compare
from prefixcap.data import require_match
from prefixcap.demo.scenes import attribute_accuracy
from prefixcap.demo.world import ANNOTATIONS, read_scenes
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.errors import InputError
from prefixcap.evaluation import Evaluation, evaluate
from prefixcap.language import LanguageModel, load_language_model
from prefixcap.store import FeatureStore


def main(config: DictConfig) -> None:
    if sum(bool(given) for given in (config.ckpt, config.captions, config.compare)) != 1:
        raise InputError(
            "give ckpt=PATH, to caption and score, or captions=FILE, to score captions made elsewhere, or "
            "compare=[FOLDER,FOLDER], to compare two evaluations"
        )
    if config.compare:
        if len(config.compare) != 2:
            raise InputError(f"compare takes two folders of evaluations, not {len(config.compare)}: compare=[A,B]")
        print(compare(*map(Path, config.compare)).table())
        return
    evaluation, folder, title = evaluate_checkpoint(config) if config.ckpt else evaluate_file(config)
    folder = Path(config.out or folder)
    evaluation.write(folder, title)
    print(evaluation.table())
    print(f"\nresults: {folder}/ (metrics.json, captions.json, per_image.csv, report.html)")


def evaluate_checkpoint(config: DictConfig) -> tuple[Evaluation, Path, str]:
    """Caption a split with a checkpoint and score it: the evaluation, its folder and its title."""
    captioner = load(config.ckpt, _device(config), config.tokenizer)
    if config.get("data"):
        store = open_store(config.data, captioner.encoder_identity.name)
    elif "store" in captioner.trained_on:
        store = FeatureStore(captioner.trained_on["store"])
    else:
        raise InputError(f"{config.ckpt} does not say what it was trained on: name the images, e.g. data=coco")
    require_match(store, captioner)
    split = store.split(config.split)
    options = {name: value for name, value in config.decode.items() if name != "method"}
    written = captioner.caption(split.embeddings[:], config.decode.method, config.batch_size, progress=True, **options)
    evaluation = evaluate_split(
        config, store, dict(zip(split.ids, written, strict=True)), captioner.encoder, captioner.language_model
    )
    if (store.image_root / ANNOTATIONS).exists():
        scenes = read_scenes(store.image_root)
        accuracy = attribute_accuracy(written, [scenes[int(image_id)] for image_id in split.ids])
        evaluation.extra["right attributes"] = accuracy
    ckpt = Path(config.ckpt).resolve()
    folder = ckpt.parent.parent / "eval" if ckpt.parent.name == "checkpoints" else Path("runs/eval") / ckpt.stem
    title = f"{store.path.name} {config.split} {config.decode.method}".replace(" ", "-")
    return evaluation, folder / title, title


def evaluate_file(config: DictConfig) -> tuple[Evaluation, Path, str]:
    """Score captions made elsewhere, against a file of references or a split of a data set."""
    file = Path(config.captions)
    captions = read_captions(file)
    if config.get("data"):
        store = open_store(config.data, config.data.default_encoder)
        evaluation = evaluate_split(config, store, captions, lambda: load_encoder(store.encoder.name, _device(config)))
    else:
        references = read_references(config.references or file)
        evaluation = evaluate(captions, references, config.metrics, language_model=_language_model(config))
    return evaluation, Path("runs/eval") / file.stem, file.name


def evaluate_split(
    config: DictConfig,
    store: FeatureStore,
    captions: dict[int | str, str],
    encoder: Callable[[], Encoder],
    language_model: LanguageModel | None = None,
) -> Evaluation:
    """Score captions of a split of a store; its encoder is loaded if a metric needs it."""
    split = store.split(config.split)
    has_domains = any(split.domains)
    return evaluate(
        captions,
        split.references(),
        config.metrics,
        files=dict(zip(split.ids, split.files, strict=True)),
        domains=dict(zip(split.ids, split.domains, strict=True)) if has_domains else None,
        encoder=encoder() if "CLIPScore" in config.metrics else None,
        embeddings=torch.from_numpy(split.embeddings[:]) if "CLIPScore" in config.metrics else None,
        language_model=_language_model(config) or language_model,
        training_captions=store.split("train").captions[:]
        if "diversity" in config.metrics and "train" in store.splits
        else None,
    )


def _language_model(config: DictConfig) -> LanguageModel | None:
    """The one that perplexity is asked for under."""
    if "perplexity" not in config.metrics or not config.perplexity_lm:
        return None
    return load_language_model(config.perplexity_lm).to(_device(config))


def _device(config: DictConfig) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device


if __name__ == "__main__":
    run(main, "eval")
