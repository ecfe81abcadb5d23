"""Measure how well metrics of captions agree with people.

Prints Kendall's tau-b and tau-c of each metric with people's ratings of captions, beside the published figures; of \
Pascal-50S, how often a metric prefers the caption that people prefer. Confidence intervals are by bootstrap over \
images.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from prefixcap.errors import InputError
from prefixcap.utils.files import atomic_write_text, read_json

LISTS = "captions.json"  # beside the judgements, the captions by file name
NOT_HERE = "more than captions and references, which only prefixcap.evaluation.agreement takes: leave it out here"

EXAMPLES = """  prefixcap correlate Flickr8k_text/ExpertAnnotations.txt \\
      Flickr8k_text/CrowdFlowerAnnotations.txt

  prefixcap correlate composite.json --metrics BLEU CIDEr --out composite-agreement.json

  prefixcap correlate AMT_eval --captions Flickr8k.token.txt \\
      dataset_flickr30k.json captions_val2014.json

  prefixcap correlate pyCIDErConsensus"""


def main(
    judgements: Annotated[
        list[Path],
        typer.Argument(
            metavar="JUDGEMENTS",
            help="Flickr8k's ExpertAnnotations.txt or CrowdFlowerAnnotations.txt, a JSON file as CLIPScore's code "
            "makes it, the folder of Pascal-50S, or Composite's folder or one of its CSV files.",
        ),
    ],
    captions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH...",
            help="Flickr8k's captions: a folder or file as data=flickr8k reads it, or JSON lists of captions by file "
            "name (default: in the folder of the judgements). Composite needs those of its images in three data sets: "
            "also Karpathy's files and COCO annotations.",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", help="BLEU, METEOR, ROUGE-L, CIDEr, SPICE (default: all).", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the figures as JSON.", show_default=False)
    ] = None,
) -> None:
    """Print a table for each file."""
    from prefixcap.evaluation.agreement import preference_accuracy, rating_agreement
    from prefixcap.evaluation.judgements import Judgements
    from prefixcap.metrics.registry import REFERENCE_METRICS, REMEDIES, check_metrics

    chosen = metrics or list(REFERENCE_METRICS)
    check_metrics(chosen, (), dict.fromkeys(REMEDIES, NOT_HERE))
    read = [_read(path, captions or ()) for path in judgements]  # all of them, before any takes long
    results = []
    for path, judged in zip(judgements, read, strict=True):
        measure = rating_agreement if isinstance(judged, Judgements) else preference_accuracy
        measured = measure(judged, chosen)
        results.append({"file": str(path)} | measured.as_dict())
        if out is not None:  # before it is printed, to what may end early
            atomic_write_text(out, json.dumps(results, indent=1) + "\n")
        print(f"{measured.table()}\n", flush=True)
    if out is not None:
        print(f"written to {out}")


def _read(path: Path, captions: Sequence[Path]) -> Any:
    """Judgements or preferences."""
    from prefixcap.evaluation.composite import composite_files, read_composite
    from prefixcap.evaluation.judgements import read_judgements
    from prefixcap.evaluation.pascal50s import read_pascal50s

    if composite_files(path) and path.exists():
        return read_composite(path, _composite_captions(path, captions))
    if path.is_dir() or path.suffix.lower() == ".mat":
        return read_pascal50s(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}: name a file of judgements, or a folder of Pascal-50S or Composite")
    if path.suffix.lower() == ".json":
        return read_judgements(path)
    lists = [_flickr8k_captions(each) for each in captions or [path.parent]]
    return read_judgements(path, {image: texts for each in lists for image, texts in each.items()})


def _composite_captions(path: Path, captions: Sequence[Path]) -> dict[int | str, list[str]]:
    """Those of all files, by file name or COCO's number."""
    from prefixcap.evaluation.caption_files import read_references

    if not captions:
        raise InputError(
            f"{path} has captions of images of Flickr8k, Flickr30k and COCO: give the references of all by --captions, "
            "e.g. Flickr8k.token.txt dataset_flickr30k.json captions_val2014.json"
        )
    references: dict[int | str, list[str]] = {}
    for file in captions:
        is_json = file.suffix.lower() == ".json"
        references.update(read_references(file) if is_json else dict[int | str, list[str]](_flickr8k_captions(file)))
    return references


def _flickr8k_captions(path: Path) -> dict[str, list[str]]:
    """The captions of each image, in the order in which caption ids count them."""
    from data_prep.readers.flickr8k import CAPTIONS, read_flickr8k

    if not path.exists():
        raise InputError(f"there is no {path}: give --captions, the folder or the file of Flickr8k's captions")
    if path.is_dir() and (path / LISTS).is_file() and not any((path / name).exists() for name in CAPTIONS):
        path /= LISTS
    if path.suffix.lower() == ".json" and (lists := _caption_lists(path)) is not None:
        return lists
    dataset = read_flickr8k(path) if path.is_dir() else read_flickr8k(path.parent, path.name)
    captions = {
        str(sample.record.id): list(sample.record.captions) for shard in dataset.shards for sample in shard.read()[0]
    }
    for skipped in dataset.skipped:  # a caption, without which the next ones would have other numbers
        captions.pop(str(skipped.id), None)
    return captions


def _caption_lists(path: Path) -> dict[str, list[str]] | None:
    """Captions from a JSON object of lists by file name, or of such objects by split; None: it is Karpathy's file."""
    content = read_json(path)
    if isinstance(content, dict) and "images" in content:
        return None
    parts = list(content.values()) if isinstance(content, dict) else []
    if parts and all(isinstance(part, dict) for part in parts):
        content = {image: texts for part in parts for image, texts in part.items()}
    if not isinstance(content, dict) or not all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in content.values()
    ):
        raise InputError(f"{path} holds no lists of captions by file name; give --captions another file")
    return {image: [" ".join(text.split()) for text in texts] for image, texts in content.items()}
