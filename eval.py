"""Evaluate a captioner, `python eval.py ckpt=PATH`, or captions made elsewhere, `python eval.py captions=FILE …`."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from data_prep.embed import open_store
from launch import run
from prefixcap.captioner import load
from prefixcap.data import require_match
from prefixcap.demo.scenes import attribute_accuracy
from prefixcap.demo.world import ANNOTATIONS, read_scenes
from prefixcap.errors import InputError
from prefixcap.evaluation import Evaluation, evaluate, read_captions, read_references
from prefixcap.store import FeatureStore


def main(config: DictConfig) -> None:
    if bool(config.ckpt) == bool(config.captions):
        raise InputError(
            "give either ckpt=PATH, to caption and score, or captions=FILE, to score captions made elsewhere"
        )
    if config.ckpt:
        evaluation, folder, title = evaluate_checkpoint(config)
    else:
        captions = Path(config.captions)
        evaluation = evaluate(
            read_captions(captions), read_references(config.references or captions), tuple(config.metrics)
        )
        folder, title = Path("runs/eval") / captions.stem, captions.name
    folder = Path(config.out or folder)
    evaluation.write(folder, title)
    print(evaluation.table())
    print(f"\nresults: {folder}/ (metrics.json, captions.json, per_image.csv, report.html)")


def evaluate_checkpoint(config: DictConfig) -> tuple[Evaluation, Path, str]:
    """Caption a split with a checkpoint and score it: the evaluation, its folder and its title."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    captioner = load(config.ckpt, device)
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
    captions = dict(zip(split.ids, written, strict=True))
    evaluation = evaluate(
        captions,
        split.references(),
        tuple(config.metrics),
        files=dict(zip(split.ids, split.files, strict=True)),
    )
    if (store.image_root / ANNOTATIONS).exists():
        scenes = read_scenes(store.image_root)
        accuracy = attribute_accuracy(written, [scenes[int(image_id)] for image_id in split.ids])
        evaluation.extra["right attributes"] = accuracy
    ckpt = Path(config.ckpt).resolve()
    folder = ckpt.parent.parent / "eval" if ckpt.parent.name == "checkpoints" else Path("runs/eval") / ckpt.stem
    title = f"{store.path.name} {config.split} {config.decode.method}".replace(" ", "-")
    return evaluation, folder / title, title


if __name__ == "__main__":
    run(main, "eval")
