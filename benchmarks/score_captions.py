"""Scores of captions by `prefixcap.metrics`, beside pycocoevalcap's tokenizer and scorers one after another.

Both give BLEU, METEOR, ROUGE-L and CIDEr of the same captions, in this process. The first turn of `prefixcap.metrics`
finds an empty cache; in the second the cache holds what was made of the references, and nothing of the captions.
Where aac-metrics is installed (`pip install aac-metrics torchaudio`, in an environment of its own: it replaces
packages), it is timed beside, with the jars of pycocoevalcap; it refuses recent versions of Java, but by `python -O`.
Reads a JSON list of images with `image_name`, `prediction` and `captions` (the references), as MAGIC publishes its
results.
"""

import argparse
import contextlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from prefixcap.metrics import score_captions
from prefixcap.metrics.java import tools_folder
from prefixcap.utils.files import read_json

METRICS = ("BLEU", "METEOR", "ROUGE-L", "CIDEr")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=SHARED / "results" / "magic_coco_test.json")
    entries = read_json(parser.parse_args().file)
    captions = {entry["image_name"]: entry["prediction"] for entry in entries}
    references = {entry["image_name"]: entry["captions"] for entry in entries}
    print(f"{len(captions):,} captions, {sum(map(len, references.values())):,} references, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="score-captions-") as cache:
        os.environ["PREFIXCAP_CACHE"] = cache
        tools, expected = seconds(lambda: coco_tools(captions, references))
        cold, scores = seconds(lambda: score_captions(captions, references, METRICS))
        warm, again = seconds(lambda: score_captions(captions, references, METRICS))
        aac = seconds(lambda: aac_metrics(captions, references, Path(cache))) if find_spec("aac_metrics") else None
    for name, score in expected.items():
        assert abs(scores.corpus[name] - score) < 1e-9 and again.corpus[name] == scores.corpus[name], name
    print(f"pycocoevalcap      {tools:6.1f} s")
    print(f"prefixcap, cold    {cold:6.1f} s   ratio {cold / tools:.2f}   (at most 0.35)")
    print(f"prefixcap, warm    {warm:6.1f} s   ratio {warm / tools:.2f}   (at most 0.15)")
    if aac:
        duration, others = aac
        print(f"aac-metrics        {duration:6.1f} s   ratio {duration / tools:.2f}")
        differences = [f"{name} {score - expected[name]:+.1g}" for name, score in others.items()]
        print(f"its scores less those of pycocoevalcap: {', '.join(differences)}")


def coco_tools(captions: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    """The scores of pycocoevalcap, one scorer after another."""
    with contextlib.redirect_stdout(io.StringIO()):
        tokenizer = PTBTokenizer()
        gts = tokenizer.tokenize({image: [{"caption": text} for text in texts] for image, texts in references.items()})
        res = tokenizer.tokenize({image: [{"caption": text}] for image, text in captions.items()})
        bleu = Bleu(4).compute_score(gts, res, verbose=0)[0]
        return {
            **{f"BLEU-{order}": score for order, score in enumerate(bleu, 1)},
            "METEOR": Meteor().compute_score(gts, res)[0],
            "ROUGE-L": Rouge().compute_score(gts, res)[0],
            "CIDEr": Cider().compute_score(gts, res)[0],
        }


def aac_metrics(captions: dict[str, str], references: dict[str, list[str]], folder: Path) -> dict[str, float]:
    """The same scores by aac-metrics."""
    from aac_metrics.functional import evaluate

    jars = folder / "aac-metrics"
    jars.mkdir()
    for name, source in (("stanford_nlp", "tokenizer"), ("meteor", "meteor")):
        (jars / name).symlink_to(tools_folder(source))
    wanted = {f"BLEU-{order}": f"bleu_{order}" for order in range(1, 5)}
    wanted |= {"METEOR": "meteor", "ROUGE-L": "rouge_l", "CIDEr": "cider_d"}
    options = {"cache_path": folder, "java_path": shutil.which("java")}
    in_order = [references[image] for image in captions]
    scores = evaluate(list(captions.values()), in_order, metrics=list(wanted.values()), **options)[0]
    return {name: float(scores[other]) for name, other in wanted.items()}


def seconds(function: Callable[[], Result]) -> tuple[float, Result]:
    """How long a call takes, and what it returns."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
