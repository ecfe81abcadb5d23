"""The model card of a shared captioner: what it is, how it was trained, its scores, and how to load it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field

import prefixcap
from prefixcap.errors import InputError
from prefixcap.mappers import CrossAttentionMapper
from prefixcap.model import PrefixLM
from prefixcap.utils.files import read_json, read_text
from prefixcap.utils.validation import validate

TRAINING = {
    "objective": "model.objective",
    "trained on": "model.learns_from",
    "noise on embeddings": "model.noise",
    "epochs": "trainer.max_epochs",
    "captions per step": "batch_size",
    "batches of accumulated gradients": "trainer.accumulate_grad_batches",
    "learning rate": "optimizer.learning_rate",
    "warm-up steps": "optimizer.warmup_steps",
    "weight decay": "optimizer.weight_decay",
    "precision": "trainer.precision",
    "seed": "seed",
}  # label on the card -> key in a run's config.yaml


def model_card(captioner: PrefixLM, name: str, license: str) -> str:
    """A model card in the hub's format: YAML for its search, then Markdown.

    Args:
        captioner: if its `source` is a checkpoint of a run, the card has the run's configuration and scores.
        name: to load it by: a folder, or a name on the hub.
        license: of the weights, by its name on the hub.

    Raises:
        InputError: a file of the run cannot be read.
    """
    run = run_folder(captioner.source)
    scores = {} if run is None or captioner.source is None else _scores(run, captioner.source.stem)
    config = {} if run is None else yaml.safe_load(read_text(run / "config.yaml"))
    return CARD.format(
        front_matter=front_matter(captioner, name, license, scores),
        title=name.rpartition("/")[2],
        name=name,
        parts=parts_table(captioner),
        training=training_table(captioner.trained_on, config),
        scores="\n\n".join(
            [*(score_table(*item) for item in scores.items()), INTERVALS if scores else "None are known."]
        ),
        license=license,
        method=CROSS_ATTENTION if isinstance(captioner.mapper, CrossAttentionMapper) else PREFIX,
        version=prefixcap.__version__,
    )


def run_folder(source: Path | None) -> Path | None:
    """The folder of the training run that wrote a checkpoint."""
    run = None if source is None else source.resolve().parent.parent
    return run if run is not None and (run / "config.yaml").is_file() else None


def _scores(run: Path, checkpoint: str) -> dict[str, dict[str, Any]]:
    """The content of `metrics.json` of each evaluation of a run's checkpoint, by the evaluation's name."""
    others = {file.stem for file in (run / "checkpoints").iterdir()} - {"best"}
    scores = {}
    for file in sorted((run / "eval").glob("*/metrics.json")):
        last_word = file.parent.name.rpartition("-")[2]  # the checkpoint, if it is not "best"
        if (last_word if last_word in others else "best") == checkpoint:
            scores[file.parent.name] = read_json(file)
    return scores


class _Metric(BaseModel):
    name: str
    value: float


class _Evaluation(BaseModel):
    """A result on the hub's cards; other keys are not read."""

    class Dataset(BaseModel):
        name: str

    dataset: Dataset
    metrics: list[_Metric]


class _Card(BaseModel):
    class Model(BaseModel):
        results: list[_Evaluation] = []

    models: Annotated[list[Model], Field(alias="model-index")] = []


def scores_on_card(card: Path) -> dict[str, dict[str, float]]:
    """The scores in a model card's front matter, by evaluation and metric; none if it has no front matter.

    Raises:
        InputError: it is no YAML, or the scores are not as the hub has them.
    """
    parts = re.split(r"^---[ \t]*$", read_text(card), maxsplit=2, flags=re.MULTILINE)
    if len(parts) < 3 or parts[0].strip():
        return {}
    remedy = "correct or remove the card"
    try:
        content = yaml.safe_load(parts[1]) or {}
    except yaml.YAMLError as error:
        raise InputError(
            f"{card}: its beginning is no YAML ({' '.join(str(error).split())[:200]}): {remedy}"
        ) from error
    scores: dict[str, dict[str, float]] = {}
    for model in validate(_Card, content, card, remedy).models:
        for result in model.results:
            scores.setdefault(result.dataset.name, {}).update({metric.name: metric.value for metric in result.metrics})
    return scores


def text_on_card(card: Path, title: str) -> list[str]:
    """The paragraphs and the items of lists of a section, as plain text, up to a table, code or the next heading.

    Args:
        card: a model card, in Markdown. It may be a stranger's: no more than its first 64 KB and ten paragraphs are
            read, each of at most 600 characters.
        title: of the section.

    Returns:
        Texts without Markdown's marks; none if there is no such section, or the card cannot be read.
    """
    try:
        with card.open("rb") as file:
            text = file.read(MOST_OF_CARD).decode(errors="replace")
    except OSError:
        return []
    _, found, rest = text.partition(f"\n## {title}\n")
    section = re.split(r"^(?:#|\||```| {4}\S)", rest, maxsplit=1, flags=re.MULTILINE)[0] if found else ""
    paragraphs = re.split(r"\n\s*\n|^[-*] ", section, flags=re.MULTILINE)
    plain = [" ".join(re.sub(r"\[([^]\[]*)\]\([^()\s]*\)|[`*]", r"\1", each).split()) for each in paragraphs]
    return [each[:600] for each in plain if each][:10]


MOST_OF_CARD = 64 * 2**10  # bytes


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, float)}


def front_matter(captioner: PrefixLM, name: str, license: str, scores: Mapping[str, dict[str, Any]]) -> str:
    """What the hub searches, as YAML; arguments as of `model_card`, and `metrics.json` by the evaluation's name."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-to-text",
            dataset_type=evaluation,
            dataset_name=evaluation,
            metric_type=metric.partition("-")[0].lower(),  # the hub knows bleu, not bleu-4
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for evaluation, metrics in scores.items()
        for metric, value in _numbers(metrics).items()
    ]
    data = captioner.trained_on.get("data")
    learned = [*captioner.trained_on.get("before", []), *([data] if data else [])]
    return ModelCardData(
        license=license,
        library_name="prefixcap",
        pipeline_tag="image-to-text",
        tags=["image-captioning", "clip"],
        datasets=learned or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name.rpartition("/")[2] if results else None,
        eval_results=results or None,
    ).to_yaml()


def parts_table(captioner: PrefixLM) -> str:
    """The encoder, the mapper and the language model of a captioner, as Markdown."""
    identity, lm = captioner.encoder_identity, captioner.language_model
    options = ", ".join(f"{key} {value}" for key, value in captioner.mapper_options.items() if key != "name")
    trained = sum(weight.numel() for weight in captioner.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in captioner.parameters()) - trained
    rows = {
        "image encoder": f"`{identity.name}`, which is not in these files",
        "digest of its weights": f"`{identity.digest}`" if identity.digest else "not known",
        "images": identity.preprocessing or "as this encoder has them",
        "embeddings": f"{identity.dim} wide, "
        + ("scaled to unit length" if captioner.normalize_embeddings else "as the encoder returns them"),
        "mapper": f"{captioner.mapper_options['name']} ({options})",
        "language model": f"`{lm.name}`, {TUNING[lm.tuning]}, {lm.quantization or lm.dtype}",
        "parameters": f"{trained / 1e6:.1f}M trained, {frozen / 1e6:.1f}M frozen",
    }
    return _table("part", "what", rows)


TUNING = {
    "frozen": "frozen",
    "lora": "with adapters, which are merged into these files",
    "full": "fine-tuned",
}


def training_table(trained_on: Mapping[str, Any], config: dict[str, Any]) -> str:
    """The data and the settings of a run, from its `config.yaml`, as Markdown."""
    rows = {"data": ", then ".join([*trained_on.get("before", []), str(trained_on.get("data", "not known"))])}
    rows |= {f"images in {split}": f"{count:,}" for split, count in trained_on.get("images", {}).items()}
    for label, key_path in TRAINING.items():
        value: Any = config
        for key in key_path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            rows[label] = value if isinstance(value, str) else json.dumps(value)
    return _table("what", "value", rows)


def score_table(evaluation: str, metrics: dict[str, Any]) -> str:
    """The content of `metrics.json` of an evaluation of this name, as Markdown."""
    intervals, humans = metrics.get("intervals", {}), metrics.get("humans", {})
    lines = [f"**{evaluation}** (data and encoder, split, decoder)", "", "| | captions | 95% interval | people |"]
    lines.append("|---|---:|---:|---:|")
    for name, value in _numbers(metrics).items():
        interval = " to ".join(f"{bound:.3f}" for bound in intervals.get(name, ()))
        human = f"{humans[name]:.3f}" if name in humans else ""
        lines.append(f"| {name} | {value:.3f} | {interval} | {human} |")
    return "\n".join(lines)


def _table(first: str, second: str, rows: Mapping[str, str]) -> str:
    return "\n".join(
        [f"| {first} | {second} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    )


INTERVALS = (
    "Intervals are by bootstrap over images. People: each human caption against the other captions of its image."
)

PREFIX = """a mapper turns a CLIP embedding of an image into a prefix, which a language model continues
([ClipCap](https://arxiv.org/abs/2111.09734))"""
CROSS_ATTENTION = """thin adapters let the layers of a language model attend to what CLIP computes of an image
([SmallCap](https://arxiv.org/abs/2209.15323))"""

CARD = """---
{front_matter}
---

# {title}

An image captioner: {method}. Made with prefixcap {version}.

```python
import prefixcap

captioner = prefixcap.load("{name}")  # this folder, or its name on the model hub
captioner.caption(["photo.jpg"])
```

## What it is

{parts}

The weights are in safetensors; no file contains code.

## Training

{training}

## Scores

{scores}

## Limitations

- Captions resemble the training captions. Things that are rare or absent there are named wrongly, in fluent sentences.
- No caption is checked against the image: objects, counts and relations may be invented.
- The encoder and the language model have the biases of their training data. The captioner is not meant for identifying
  people, nor for decisions about them.

## Licence

These weights: {license}. The encoder, the language model and the training data have their own licences.
"""
