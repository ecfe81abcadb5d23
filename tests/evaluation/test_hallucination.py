"""CHAIR in an evaluation: less is better, in tables, files, comparisons and on the page; which objects images have."""

import csv
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefixcap.errors import InputError
from prefixcap.evaluation import Evaluation, evaluate
from prefixcap.evaluation.comparison import compare
from prefixcap.evaluation.report import CaptionedImage, Table, html_report
from prefixcap.metrics.registry import lower_is_better
from tests.conftest import ROOT
from tests.metrics.coco_tools import SHARED_DATA

ANIMALS = ["dog", "cat", "horse", "cow", "sheep", "bear", "zebra", "giraffe"]
REFERENCES = {n: [f"a {animal} in a field", f"one {animal} and a tree"] for n, animal in enumerate(ANIMALS)}
RIGHT = {n: f"the {animal} sleeps" for n, animal in enumerate(ANIMALS)}
WRONG = {n: f"the {animal} sleeps on a {'bench' if n % 2 else 'hill'}" for n, animal in enumerate(ANIMALS)}
BENCHES = {str(n): {"bench"} for n in range(4)}


def written(folder: Path, captions: dict[int, str], objects: dict[str, Collection[str]] | None = None) -> Evaluation:
    evaluation = evaluate(captions, REFERENCES, ["ROUGE-L", "CHAIR"], objects=objects)
    evaluation.write(folder, "test")
    return evaluation


def test_scores_intervals_and_files(tmp_path: Path) -> None:
    evaluation = written(tmp_path, WRONG)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["CHAIRi"], metrics["CHAIRs"]) == (4 / 12, 4 / 8)
    assert metrics["humans"]["CHAIRs"] == 0 and set(metrics["captions / humans"]) == {"ROUGE-L"}
    draw = np.random.default_rng(1).integers(8, size=(20000, 8)) % 2  # of each drawn image: whether it is wrong
    assert metrics["intervals"]["CHAIRs"] == pytest.approx(np.quantile(draw.mean(axis=1), (0.025, 0.975)))
    shares = draw.sum(axis=1) / (8 + draw.sum(axis=1))
    assert metrics["intervals"]["CHAIRi"] == pytest.approx(np.quantile(shares, (0.025, 0.975)), abs=0.02)
    rows = list(csv.DictReader((tmp_path / "per_image.csv").open()))
    assert [(row["CHAIRi"], row["CHAIRs"]) for row in rows[:2]] == [("0.0", "0.0"), ("0.5", "1.0")]
    assert "less is better: CHAIRi, CHAIRs" in metrics["notes"] == evaluation.all_notes()
    assert not any("captions / humans: none" in note for note in metrics["notes"])
    ratios = next(line for line in evaluation.table().splitlines() if line.startswith("captions / humans"))
    assert ratios.split()[4:] == ["-", "-"]
    assert "captions / humans" not in evaluate(WRONG, REFERENCES, ["CHAIR"]).table()


def test_objects_of_images_by_ids_as_texts(tmp_path: Path) -> None:
    evaluation = written(tmp_path, WRONG, dict(BENCHES))
    assert evaluation.scores.corpus["CHAIRs"] == 2 / 8
    assert any("4 of 8 images have no instances" in note for note in evaluation.all_notes())
    domains: dict[int | str, str] = {n: "near" if n < 4 else "far" for n in REFERENCES}
    parts = evaluate(WRONG, REFERENCES, ["CHAIR"], domains=domains, objects=BENCHES).domains
    assert (parts["near"].corpus["CHAIRs"], parts["far"].corpus["CHAIRs"]) == (0, 0.5)
    people = {n: [*texts, "a bench"] for n, texts in REFERENCES.items()}
    humans = evaluate(RIGHT, people, ["CHAIR"], objects=BENCHES).humans
    assert humans is not None and humans.corpus["CHAIRs"] == pytest.approx(4 / 24)
    with pytest.raises(InputError, match="objects are given of other images"):
        evaluate(RIGHT, REFERENCES, ["CHAIR"], objects={"a.jpg": {"bench"}})


def test_comparison(tmp_path: Path) -> None:
    written(tmp_path / "right", RIGHT)
    written(tmp_path / "wrong", WRONG)
    compared = compare(tmp_path / "wrong", tmp_path / "right")
    pair = compared.pair("CHAIRs")
    assert pair.difference == 0.5 and pair.p_value < 0.05
    assert [system.groups for system in compared.systems["CHAIRs"]] == ["b", "a"]  # less is better
    assert "less is better: CHAIRi, CHAIRs" in compared.table().splitlines()
    written(tmp_path / "known", WRONG, dict(BENCHES))
    assert compare(tmp_path / "known", tmp_path / "known").pair("CHAIRs").difference == 0
    with pytest.raises(InputError, match="have different objects of images: score CHAIR of all with the same"):
        compare(tmp_path / "right", tmp_path / "known")


def test_the_best_images_of_the_page_have_the_lowest_scores() -> None:
    images = [CaptionedImage(n, "a", ["b"], {"CHAIRi": n / 9, "CIDEr": n / 9}) for n in (3, 1, 2, 0, 5, 4)]
    page = html_report("title", [Table("scores", {"captions": {"CIDEr": 0.5}})], images)
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    cider, chair = data["metrics"]
    assert (cider["lower"], cider["best"], cider["worst"]) == (False, [4, 5], [3, 1])
    assert (chair["lower"], chair["best"], chair["worst"]) == (True, [3, 1], [4, 5])


def test_published_systems_and_people_are_in_the_expected_order() -> None:
    """With the objects of the references alone, and as the page on evaluation shows them."""
    folder = SHARED_DATA / "results" / "coco_published"
    if not folder.is_dir():
        pytest.skip(f"no captions of published systems at {folder}")

    def read(file: str) -> Any:
        return json.loads((folder / file).read_text(encoding="utf-8"))

    references, magic = read("references.json"), read("../magic_coco_test.json")
    blip2, m2, llava = (
        evaluate(read(f"{name}.json"), references, ["CHAIR"])
        for name in ("blip2_results_xe", "m2_transformer", "llava_long")
    )
    magic_evaluation = evaluate(
        {entry["image_name"]: entry["prediction"] for entry in magic},
        {entry["image_name"]: entry["captions"] for entry in magic},
        ["CHAIR"],
    )
    rows = {
        "BLIP-2": (blip2.scores, blip2.intervals),
        "humans": (blip2.humans, blip2.human_intervals),
        "M2 Transformer": (m2.scores, m2.intervals),
        "MAGIC": (magic_evaluation.scores, magic_evaluation.intervals),
        "LLaVA-1.5, long answers": (llava.scores, llava.intervals),
    }
    rates = {name: scores.corpus["CHAIRs"] for name, (scores, _) in rows.items() if scores is not None}
    assert sorted(rates, key=lambda name: rates[name]) == list(rows)
    roughly = dict(zip(rows, (0.058, 0.087, 0.139, 0.381, 0.400), strict=True))  # with another list of words
    assert rates == pytest.approx(roughly, abs=0.015)
    page = (ROOT / "docs" / "use" / "evaluation.md").read_text(encoding="utf-8")
    for name, (scores, intervals) in rows.items():
        assert scores is not None
        totals = scores.statistics["CHAIR"].reshape(-1, scores.statistics["CHAIR"].shape[-1]).sum(axis=0)
        cells = [
            f"{100 * scores.corpus[score]:.1f} ({100 * intervals[score][0]:.1f} to {100 * intervals[score][1]:.1f})"
            for score in ("CHAIRi", "CHAIRs")
        ]
        assert f"| {name} | {' | '.join(cells)} | {totals[1] / totals[3]:.1f} |" in page


def test_names_of_scores_where_less_is_better() -> None:
    assert lower_is_better(["CHAIRs", "CIDEr", "unknown", "BLEU-1", "CHAIRi"]) == ["CHAIRs", "CHAIRi"]
