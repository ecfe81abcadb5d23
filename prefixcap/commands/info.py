"""What a checkpoint is, told without building its captioner: weights stay on the disk."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from prefixcap.checkpoints.clipcap_weights import is_clipcap, read_layout
from prefixcap.checkpoints.files import file_with_weights, read_file, require_checkpoint
from prefixcap.checkpoints.pretrained import LANGUAGE_MODEL, downloaded, is_hub_name, read_folder
from prefixcap.errors import InputError
from prefixcap.evaluation.report import table
from prefixcap.language import count_parameters
from prefixcap.utils.files import read_json, read_text

SHOWN = ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE", "CLIPScore")


def describe(path: Path) -> dict[str, Any]:
    """What a checkpoint of training, a folder that `save_pretrained` wrote, or weights that ClipCap published are.

    Returns:
        Plain JSON values. `parameters` are {"trained": …, "frozen": …}, None where what is frozen is not on this
        machine; `family` is None where nothing says what it learned from.

    Raises:
        InputError: it is none of these, or is damaged.
    """
    path = downloaded(str(path)) if is_hub_name(path) else file_with_weights(path)
    if path.is_dir():
        found = _describe_folder(path)
    else:
        content = read_file(path, mapped=True)
        found = _describe_published(content, path) if is_clipcap(content) else _describe_checkpoint(content, path)
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return {"path": str(path), **found, "bytes": sum(file.stat().st_size for file in files)}


def format_description(description: Mapping[str, Any]) -> str:
    """What `describe` gave, as text."""
    encoder, mapper, lm = (description[part] for part in ("encoder", "mapper", "language_model"))
    trained, frozen = description["parameters"].values()
    options = ", ".join(f"{name} {value}" for name, value in mapper.items() if name != "name")
    of_lm = [lm["name"], lm["tuning"], *(str(lm[name]) for name in ("dtype", "quantization") if lm.get(name))]
    on, best = description["trained_on"], description.get("best_val_cider")
    lines = {
        "is": f"{description['kind']}, {description['bytes'] / 1e6:,.1f} MB",
        "family": description["family"],
        "encoder": f"{encoder['name']}, {encoder['dim']} wide"
        + (f", digest {encoder['digest'][:8]}" if encoder["digest"] else ""),
        "mapper": f"{mapper['name']}: {options}; embeddings "
        + ("scaled to length one" if description["normalize_embeddings"] else "as they are"),
        "language model": ", ".join(of_lm),
        "parameters": f"{trained / 1e6:,.1f}M trained, "
        + (f"{frozen / 1e6:,.1f}M frozen" if frozen is not None else f"those of {lm['name']}, not here, frozen"),
        "trained on": on
        and f"{on.get('data')}: " + ", ".join(f"{split} {images:,}" for split, images in on.get("images", {}).items()),
        "trained until": description.get("step") and f"epoch {description['epoch'] + 1}, step {description['step']:,}",
        "best validation": best and f"CIDEr {best['val_cider']:.3f} in epoch {best['epoch'] + 1}",
    }
    told = [description["path"], *(f"  {name:16} {value}" for name, value in lines.items() if value)]
    if rows := description.get("evaluations"):
        shown = {name: {of: row[of] for of in SHOWN if of in row} for name, row in rows.items()}
        told += ["", *(f"  {line}" for line in table(shown).splitlines())]
    return "\n".join(told)


def _describe_checkpoint(content: Any, path: Path) -> dict[str, Any]:
    checkpoint = require_checkpoint(content, path)
    run = path.resolve().parent.parent if path.resolve().parent.name == "checkpoints" else None
    weights = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith("captioner.")}
    described = _described(checkpoint["prefixcap"], _count(weights))
    return {
        "kind": "checkpoint of training",
        "family": _family(run),
        **described,
        "epoch": checkpoint.get("epoch"),
        "step": checkpoint.get("global_step"),
        "best_val_cider": _best(run / "metrics.csv") if run else None,
        "evaluations": _evaluations(run) if run else {},
    }


def _describe_folder(folder: Path) -> dict[str, Any]:
    description, weights = read_folder(folder)
    of_lm = sum(map(_count_in, (folder / LANGUAGE_MODEL).glob("*.safetensors")))
    return {"kind": "folder of save_pretrained", "family": None, **_described(description, _count(weights), of_lm)}


def _describe_published(content: dict[str, Any], path: Path) -> dict[str, Any]:
    config, encoder, mapper, weights = read_layout(content, path)
    of_mapper = _count({name: weight for name, weight in weights.items() if name.startswith("mapper.")})
    # What was published is "Transformer", with GPT-2 as it was, and "MLP + GPT2 tuning" (Table 1 of the paper).
    of_both = _count(weights)
    tuning, trained = ("frozen", of_mapper) if mapper["name"] == "transformer" else ("full", of_both)
    return {
        "kind": "weights that ClipCap published",
        "family": "learned from images with captions",
        "encoder": vars(encoder),
        "mapper": mapper,
        "normalize_embeddings": mapper["name"] == "transformer",
        "language_model": {"name": f"GPT-2, {config.n_layer} layers of {config.n_embd}", "tuning": tuning},
        "parameters": {"trained": trained, "frozen": of_both - trained},
        "trained_on": {},
    }


def _described(description: dict[str, Any], own: int, of_lm: int = 0) -> dict[str, Any]:
    """What `Captioner.describe` said, and how many parameters there are: the `own` ones that were trained, those of a
    language model that lies beside them, and those of one that is only named."""
    lm = {name: value for name, value in description["language_model"].items() if name != "files"}
    is_tuned = lm["tuning"] == "full"
    frozen = 0 if is_tuned else of_lm or count_parameters(lm["name"])
    return description | {
        "language_model": lm, "parameters": {"trained": own + of_lm if is_tuned else own, "frozen": frozen}
    }  # fmt: skip


def _count(weights: Mapping[str, Tensor]) -> int:
    """Parameters, each once where two names stand for one."""
    return sum({weight.data_ptr(): weight.numel() for weight in weights.values()}.values())


def _count_in(file: Path) -> int:
    """Parameters in a safetensors file; it keeps none twice."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is damaged ({error}): export the captioner again") from error


def _family(run: Path | None) -> str | None:
    """What the captioner learned from, as its run's configuration says."""
    import yaml

    if run is None or not (run / "config.yaml").is_file():
        return None
    model = (yaml.safe_load(read_text(run / "config.yaml")) or {}).get("model", {})
    if model.get("learns_from") == "text":
        noise = (model.get("noise") or {}).get("variance")
        return (
            f"learned from captions alone, with noise of variance {noise}" if noise else "learned from captions alone"
        )
    return "learned from images with captions"


def _best(file: Path) -> dict[str, float] | None:
    """The highest CIDEr of a validation, and when that was."""
    if not file.is_file():
        return None
    rows = [row for row in csv.DictReader(io.StringIO(read_text(file))) if row.get("val_cider")]
    if not rows:
        return None
    best = max(rows, key=lambda row: float(row["val_cider"]))
    return {"val_cider": float(best["val_cider"]), "epoch": int(best["epoch"]), "step": int(best["step"])}


def _evaluations(run: Path) -> dict[str, dict[str, float]]:
    """The scores of a run's evaluations, by the name of each folder."""
    return {
        file.parent.name: {name: score for name, score in read_json(file).items() if isinstance(score, float)}
        for file in sorted((run / "eval").glob("*/metrics.json"))
    }
