"""CHAIR in an evaluation: less is better, in tables, files, comparisons and on the page; which objects images have."""

import csv
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

from prefixcap.errors import InputError
from prefixcap.evaluation import Evaluation, evaluate
from prefixcap.evaluation.comparison import compare
from prefixcap.evaluation.report import CaptionedImage, Table, html_report
from prefixcap.metrics.registry import lower_is_better

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
    assert compared.difference["CHAIRs"] == 0.5 and compared.p_values["CHAIRs"] < 0.05
    assert "less is better: CHAIRi, CHAIRs" in compared.table().splitlines()
    written(tmp_path / "known", WRONG, dict(BENCHES))
    assert compare(tmp_path / "known", tmp_path / "known").difference["CHAIRs"] == 0
    with pytest.raises(InputError, match="have different objects of images: score CHAIR of both with the same"):
        compare(tmp_path / "right", tmp_path / "known")


def test_the_best_images_of_the_page_have_the_lowest_scores() -> None:
    images = [CaptionedImage(n, "a", ["b"], {"CHAIRi": n / 9, "CIDEr": n / 9}) for n in (3, 1, 2, 0, 5, 4)]
    page = html_report("title", [Table("scores", {"captions": {"CIDEr": 0.5}})], images)
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    cider, chair = data["metrics"]
    assert (cider["lower"], cider["best"], cider["worst"]) == (False, [4, 5], [3, 1])
    assert (chair["lower"], chair["best"], chair["worst"]) == (True, [3, 1], [4, 5])


def test_names_of_scores_where_less_is_better() -> None:
    assert lower_is_better(["CHAIRs", "CIDEr", "unknown", "BLEU-1", "CHAIRi"]) == ["CHAIRs", "CHAIRi"]
