"""Describe a checkpoint and list its scores.

Prints the encoder, the mapper, the language model, the number of parameters and the training data; for a training \
run, also its validation, the run's highest CIDEr and its evaluations. The weights are not loaded.
"""

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefixcap.checkpoints.paths import LANGUAGE_MODEL, require_captioner
from prefixcap.commands.common.options import CAPTIONER, existing_captioner
from prefixcap.errors import InputError
from prefixcap.utils.files import read_json, read_text

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = """  prefixcap info runs/demo-transformer/2025-01-31_12-00-00/checkpoints/best.ckpt

  prefixcap info coco_weights.pt --json

  prefixcap info photos"""
METRICS = ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE", "CLIPScore")
VALIDATION = {"val_cider": "CIDEr", "val_loss": "loss"}  # columns of metrics.csv, and what they are called here


def main(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help=CAPTIONER, callback=existing_captioner)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the description, as text or as JSON."""
    description = describe(checkpoint)
    print(json.dumps(description, indent=2, ensure_ascii=False) if as_json else format_description(description))


def describe(name: str | Path) -> dict[str, Any]:
    """A description of a captioner, which is named as `prefixcap.load` takes it.

    Returns:
        Plain JSON values. `parameters` are {"trained": …, "frozen": …}; a number is None if the frozen language model
        is not on this machine. `family` is None if nothing says what the captioner was trained on.

    Raises:
        InputError: there is none of that name, or it is damaged.
    """
    require_captioner(name)
    from prefixcap.checkpoints.clipcap_weights import is_clipcap
    from prefixcap.checkpoints.files import read_file
    from prefixcap.checkpoints.pretrained import locate

    path = locate(name)
    if path.is_dir():
        description = _describe_folder(path)
    else:
        content = read_file(path, mapped=True)
        description = _describe_published(content, path) if is_clipcap(content) else _describe_checkpoint(content, path)
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return {"path": str(path), **description, "bytes": sum(file.stat().st_size for file in files)}


def format_description(description: Mapping[str, Any]) -> str:
    """The result of `describe` as text, a line for each part."""
    from prefixcap.evaluation.report import table

    encoder, mapper, lm = (description[part] for part in ("encoder", "mapper", "language_model"))
    trained, frozen = description["parameters"].values()
    options = ", ".join(f"{name} {value}" for name, value in mapper.items() if name != "name")
    lm_parts = [lm["name"], lm["tuning"], *(str(lm[name]) for name in ("dtype", "quantization") if lm.get(name))]
    trained_on, own, best, low, rerank = (
        description.get(name) for name in ("trained_on", "validation", "best_val_cider", "low_similarity", "rerank")
    )
    images = ", ".join(f"{split} {images:,}" for split, images in (trained_on or {}).get("images", {}).items())
    frozen_parameters = f"those of {lm['name']}, not on this machine," if frozen is None else f"{frozen / 1e6:,.1f}M"
    lines = {
        "is": f"{description['kind']}, {description['bytes'] / 1e6:,.1f} MB",
        "family": description["family"],
        "encoder": f"{encoder['name']}, {encoder['dim']} wide"
        + (f", digest {encoder['digest'][:8]}" if encoder["digest"] else ""),
        "mapper": f"{mapper['name']}: {options}; embeddings "
        + ("scaled to length one" if description["normalize_embeddings"] else "as they are"),
        "language model": ", ".join(lm_parts),
        "parameters": f"{trained / 1e6:,.1f}M trained, {frozen_parameters} frozen",
        "trained on": trained_on
        and f"{', then '.join([*trained_on.get('before', []), str(trained_on.get('data'))])}: {images}",
        "low similarity": low and f"below {low:.2f}: unlike the images it learned from",
        "caption": rerank and f"the one nearest to the image, by the encoder, of {rerank} candidates of beam search",
        "trained until": description.get("step") and f"epoch {description['epoch'] + 1}, step {description['step']:,}",
        "validation": own
        and ", ".join(f"{label} {own[name]:.3f}" for name, label in VALIDATION.items() if name in own),
        "highest CIDEr": best and f"{best['val_cider']:.3f}, validation of epoch {best['epoch'] + 1}",
        "model card": description.get("card"),
    }
    text = [description["path"], *(f"  {name:16} {value}" for name, value in lines.items() if value)]
    if rows := description.get("evaluations"):
        scores = {name: {metric: row[metric] for metric in METRICS if metric in row} for name, row in rows.items()}
        text += ["", *(f"  {line}" for line in table(scores).splitlines())]
    return "\n".join(text)


def _describe_checkpoint(content: Any, path: Path) -> dict[str, Any]:
    from prefixcap.checkpoints.files import require_checkpoint

    checkpoint = require_checkpoint(content, path)
    run = path.resolve().parent.parent if path.resolve().parent.name == "checkpoints" else None
    validations, step = _validations(run / "metrics.csv") if run else [], checkpoint.get("global_step")
    weights = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith("captioner.")}
    described = _described(checkpoint["prefixcap"], _count(weights))
    return {
        "kind": "checkpoint of training",
        "family": _family(run),
        **described,
        "epoch": checkpoint.get("epoch"),
        "step": step,
        "validation": next((row for row in validations if row["step"] + 1 == step), None),  # steps count from 0 there
        "best_val_cider": max(validations, key=lambda row: row["val_cider"], default=None),
        "evaluations": _evaluations(run) if run else {},
    }


def _describe_folder(folder: Path) -> dict[str, Any]:
    from prefixcap.checkpoints.model_card import scores_on_card
    from prefixcap.checkpoints.pretrained import CARD, read_folder

    description, weights = read_folder(folder)
    lm_parameters = sum(map(_count_in, (folder / LANGUAGE_MODEL).glob("*.safetensors")))
    described = _described(description, _count(weights), lm_parameters)
    card = folder / CARD
    return {
        "kind": "folder of save_pretrained",
        "family": None,
        **described,
        "card": str(card) if card.is_file() else None,
        "evaluations": scores_on_card(card) if card.is_file() else {},
    }


def _describe_published(content: dict[str, Any], path: Path) -> dict[str, Any]:
    from prefixcap.checkpoints.clipcap_weights import read_layout

    config, encoder, mapper, weights = read_layout(content, path)
    in_mapper = _count({name: weight for name, weight in weights.items() if name.startswith("mapper.")})
    # Published were "Transformer", with a frozen GPT-2, and "MLP + GPT2 tuning" (Table 1 of the paper).
    total = _count(weights)
    tuning, trained = ("frozen", in_mapper) if mapper["name"] == "transformer" else ("full", total)
    return {
        "kind": "weights that ClipCap published",
        "family": "trained on images with captions",
        "encoder": vars(encoder),
        "mapper": mapper,
        "normalize_embeddings": mapper["name"] == "transformer",
        "language_model": {"name": f"GPT-2, {config.n_layer} layers of {config.n_embd}", "tuning": tuning},
        "parameters": {"trained": trained, "frozen": total - trained},
        "trained_on": {},
    }


def _described(description: dict[str, Any], saved: int, in_lm_folder: int = 0) -> dict[str, Any]:
    """The result of `Captioner.describe`, with the number of parameters: `saved` ones, those of a language model in a
    folder beside them, and otherwise those of the language model of that name."""
    from prefixcap.language import count_parameters

    lm = {name: value for name, value in description["language_model"].items() if name != "files"}
    is_tuned = lm["tuning"] == "full"
    frozen = 0 if is_tuned else in_lm_folder or count_parameters(lm["name"])
    trained = saved + in_lm_folder if is_tuned else saved
    return description | {"language_model": lm, "parameters": {"trained": trained, "frozen": frozen}}


def _count(weights: Mapping[str, "Tensor"]) -> int:
    """The number of parameters; one that has two names counts once."""
    return sum({weight.data_ptr(): weight.numel() for weight in weights.values()}.values())


def _count_in(file: Path) -> int:
    """The number of parameters in a safetensors file, which stores each once."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is damaged ({error}): export the captioner again") from error


def _family(run: Path | None) -> str | None:
    """What the captioner was trained on, according to its run's configuration."""
    import yaml

    if run is None or not (run / "config.yaml").is_file():
        return None
    model = (yaml.safe_load(read_text(run / "config.yaml")) or {}).get("model", {})
    if model.get("learns_from") == "text":
        noise = (model.get("noise") or {}).get("variance")
        return "trained on captions only" + (f", with noise of variance {noise}" if noise else "")
    return "trained on images with captions"


def _validations(file: Path) -> list[dict[str, float]]:
    """Of each validation of a run, CIDEr and loss, with its epoch and step."""
    if not file.is_file():
        return []
    rows = [row for row in csv.DictReader(io.StringIO(read_text(file))) if row.get("val_cider")]
    return [
        {name: float(row[name]) for name in VALIDATION if row.get(name)}
        | {name: int(row[name]) for name in ("epoch", "step")}
        for row in rows
    ]


def _evaluations(run: Path) -> dict[str, dict[str, float]]:
    """The scores of a run's evaluations, by the name of each folder."""
    return {
        file.parent.name: {name: score for name, score in read_json(file).items() if isinstance(score, float)}
        for file in sorted((run / "eval").glob("*/metrics.json"))
    }
