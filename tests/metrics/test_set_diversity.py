"""Diversity of sets of captions, against plain loops and the BLEU of the COCO caption tools."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu import Bleu

from prefixcap.errors import InputError
from prefixcap.evaluation import evaluate
from prefixcap.evaluation.comparison import compare
from prefixcap.metrics import MetricInputs, score_captions, score_humans, score_parts
from tests.metrics.coco_tools import needs_shared_data, shared_json

CANDIDATES = {
    "a": ["a dog runs on the beach", "a brown dog runs", "the dog is running fast on the beach"],
    "b": ["a man rides a horse", "a man rides a horse", "a man rides a horse"],
    "c": ["two cats sleep", "a red sofa", "nothing that anybody else would say"],
    "d": ["a dog on the sofa", "", "dog"],
}
REFERENCES = {
    "a": ["A dog runs on the beach.", "The brown dog runs.", "A dog is running at the sea."],
    "b": ["A man rides a horse.", "Somebody on a horse, riding.", "A rider and his horse"],
    "c": ["Two cats sleep on a red sofa.", "Cats asleep on a couch", "Two sleeping cats!"],
    "d": ["A dog on a sofa", "the dog sleeps"],
}
FIRST = {image: texts[0] for image, texts in CANDIDATES.items()}
SCORES = ["Div-1", "Div-2", "self-CIDEr", "mBLEU-4"]


def of_candidates(candidates: dict[str, list[str]]) -> MetricInputs:
    return MetricInputs(candidates=list(candidates.values()))


def words(text: str) -> list[str]:
    return text.lower().replace(",", " ").replace(".", " ").replace("!", " ").split()


def grams(text: str, order: int) -> list[tuple[str, ...]]:
    split = words(text)
    return [tuple(split[start : start + order]) for start in range(len(split) - order + 1)]


def div(texts: list[str], order: int) -> float:
    return len({gram for text in texts for gram in grams(text, order)}) / sum(len(words(text)) for text in texts)


def kernel(texts: list[str], references: list[list[str]]) -> NDArray[np.float64]:
    """CIDEr of each pair of texts, without the factor 10."""
    similarity = np.zeros((len(texts), len(texts)))
    for order in (1, 2, 3, 4):
        documents = Counter(gram for own in references for gram in {g for text in own for g in grams(text, order)})
        vectors = [
            {g: n * math.log(len(references) / max(documents[g], 1)) for g, n in Counter(grams(text, order)).items()}
            for text in texts
        ]
        for i, first in enumerate(vectors):
            for j, second in enumerate(vectors):
                product = sum(weight * second.get(gram, 0) for gram, weight in first.items())
                lengths = math.hypot(*first.values()) * math.hypot(*second.values())
                similarity[i, j] += product / lengths / 4 if lengths else 0
    return similarity


def self_cider(texts: list[str], references: list[list[str]]) -> float:
    """The singular values of vectors whose products are the kernel are the roots of its eigenvalues."""
    values, vectors = np.linalg.eigh(kernel(texts, references))
    singular = np.linalg.svd(vectors * np.sqrt(values.clip(0)), compute_uv=False)
    return float(-np.log(singular[0] / singular.sum()) / np.log(len(texts)))


def mbleu(sets: list[list[str]]) -> float:
    """With the COCO caption tools: each place in the sets against the others."""
    figures = []
    for place in range(len(sets[0])):
        others = {row: [*texts[:place], *texts[place + 1 :]] for row, texts in enumerate(sets)}
        own = {row: [texts[place]] for row, texts in enumerate(sets)}
        figures.append(Bleu(4).compute_score(others, own, verbose=0)[0][3])
    return float(np.mean(figures))


def test_scores_are_those_of_plain_loops_and_of_the_coco_tools() -> None:
    scores = score_captions(FIRST, REFERENCES, ["set-diversity"], of_candidates(CANDIDATES))
    assert sorted(scores.corpus) == sorted(SCORES)
    references = list(REFERENCES.values())
    for image, texts in CANDIDATES.items():
        image_scores = {name: values[image] for name, values in scores.per_image.items()}
        assert image_scores["Div-1"] == pytest.approx(div(texts, 1))
        assert image_scores["Div-2"] == pytest.approx(div(texts, 2))
        assert image_scores["self-CIDEr"] == pytest.approx(self_cider(texts, references), abs=1e-6)
    for name in SCORES[:3]:
        assert scores.corpus[name] == pytest.approx(np.mean(list(scores.per_image[name].values())))
    assert scores.corpus["mBLEU-4"] == pytest.approx(mbleu(list(CANDIDATES.values())))
    assert scores.per_image["self-CIDEr"]["b"] == pytest.approx(0, abs=1e-6)
    assert scores.per_image["mBLEU-4"]["b"] == pytest.approx(1, abs=1e-6)
    assert scores.per_image["Div-1"]["b"] == pytest.approx(4 / 15)
    assert any("of 3 captions an image" in note for note in scores.notes)
    assert "self-CIDEr weighs words by the references of these 4 images: it compares with no score of others" in (
        scores.notes
    )


def test_captions_without_a_common_word_are_as_diverse_as_can_be() -> None:
    long = {"x": ["one two three four five", "six seven eight nine ten"], "y": ["a b c d e", "a b c d e"]}
    references = {"x": ["one two"], "y": ["a b"]}
    scores = score_captions({image: texts[0] for image, texts in long.items()}, references, ["set-diversity"],
                            of_candidates(long))  # fmt: skip
    assert scores.per_image["self-CIDEr"] == pytest.approx({"x": 1.0, "y": 0.0}, abs=1e-6)
    assert scores.per_image["mBLEU-4"] == pytest.approx({"x": 0.0, "y": 1.0}, abs=1e-3)
    assert scores.per_image["Div-2"] == pytest.approx({"x": 0.8, "y": 0.4})


def test_a_part_is_scored_as_if_it_was_all() -> None:
    parts = score_parts(FIRST, REFERENCES, {"dogs": ["d", "a"]}, ["set-diversity"], of_candidates(CANDIDATES))
    own = {image: CANDIDATES[image] for image in ("a", "d")}
    alone = score_captions(
        {image: FIRST[image] for image in own},
        {image: REFERENCES[image] for image in own},
        ["set-diversity"],
        of_candidates(own),
    )
    assert parts["dogs"].corpus == pytest.approx(alone.corpus)
    assert parts["dogs"].corpus["self-CIDEr"] != pytest.approx(
        np.mean([parts["overall"].per_image["self-CIDEr"][image] for image in own])
    )


def test_sets_of_different_sizes() -> None:
    sets = CANDIDATES | {"a": CANDIDATES["a"][:2]}
    scores = score_captions(FIRST, REFERENCES, ["set-diversity"], of_candidates(sets))
    both = mbleu([texts[:2] for texts in sets.values()])
    assert any("of 2 to 3 captions an image" in note for note in scores.notes)
    assert scores.per_image["mBLEU-4"]["b"] == pytest.approx(1, abs=1e-6) and 0 < scores.corpus["mBLEU-4"] != both
    assert scores.per_image["self-CIDEr"]["a"] == pytest.approx(self_cider(sets["a"], list(REFERENCES.values())))


def test_evaluations_have_intervals_and_are_compared(tmp_path: Path) -> None:
    evaluation = evaluate(FIRST, REFERENCES, ["ROUGE-L", "set-diversity"], candidates=CANDIDATES)
    for name in SCORES:
        low, high = evaluation.intervals[name]
        assert low <= evaluation.scores.corpus[name] <= high
    assert "less is better: mBLEU-4" in evaluation.table()
    assert evaluation.humans is not None and list(evaluation.humans.corpus) == ["ROUGE-L"]
    evaluation.write(tmp_path / "three", "three")
    same = {image: [texts[0]] * 3 for image, texts in CANDIDATES.items()}
    evaluate(FIRST, REFERENCES, ["set-diversity"], candidates=same).write(tmp_path / "same", "same")
    compared = compare(tmp_path / "three", tmp_path / "same")
    assert compared.pair("self-CIDEr").difference == pytest.approx(evaluation.scores.corpus["self-CIDEr"], abs=1e-6)
    assert compared.pair("mBLEU-4").difference < 0
    two = {image: texts[:2] for image, texts in CANDIDATES.items()}
    evaluate(FIRST, REFERENCES, ["set-diversity"], candidates=two).write(tmp_path / "two", "two")
    text = compare(tmp_path / "three", tmp_path / "two").table()
    assert "not compared, as the numbers of captions an image differ: mBLEU-4" in text
    assert "not compared, as not all have them: ROUGE-L" in text


def test_people_have_a_row_of_as_many_captions() -> None:
    """As if the first of their captions were a captioner's; where an image has too few of them, there is none."""
    metrics = ["ROUGE-L", "set-diversity"]
    two = {image: texts[:2] for image, texts in CANDIDATES.items()}
    people = {image: texts[:2] for image, texts in REFERENCES.items()}
    as_captions = evaluate(FIRST, REFERENCES, metrics, candidates=people).scores
    evaluation = evaluate(FIRST, REFERENCES, metrics, candidates=two)
    humans = evaluation.humans
    assert humans is not None and list(humans.corpus) == ["ROUGE-L", *SCORES]
    for name in SCORES:
        assert humans.corpus[name] == pytest.approx(as_captions.corpus[name])
        assert humans.per_image[name] == pytest.approx(as_captions.per_image[name])
        low, high = evaluation.human_intervals[name]
        assert low <= humans.corpus[name] <= high
    [table] = evaluation.tables()
    assert set(SCORES) <= table.rows["humans"].keys()
    assert "mBLEU-4" not in table.rows["captions / humans"] and "Div-1" in table.rows["captions / humans"]
    assert not any("none of people" in note for note in evaluation.all_notes())
    note = "diversity of sets: none of people, as an image has fewer references than captions"
    assert note in evaluate(FIRST, REFERENCES, metrics, candidates=CANDIDATES).all_notes()
    without = score_humans(REFERENCES, metrics)
    assert without is not None and list(without.corpus) == ["ROUGE-L"]


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (None, "set-diversity needs several captions of each image: give candidates="),
        ({}, r"images without several candidates \(4\): 'a', 'b', 'c', 'd'; give each image a list of two"),
        (CANDIDATES | {"c": ["one"]}, r"images without several candidates \(1\): 'c'"),
        (CANDIDATES | {"c": "two"}, r"images without several candidates \(1\): 'c'"),
        (CANDIDATES | {"c": ["two", 2]}, r"images with a candidate that is not a string \(1\): 'c'"),
    ],
)
def test_mistakes_are_told(candidates: dict[str, list[str]] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(FIRST, REFERENCES, ["set-diversity"], candidates=candidates)
    with pytest.raises(InputError, match="candidates of 1 images, 4 images"):
        score_captions(FIRST, REFERENCES, ["set-diversity"], MetricInputs(candidates=[["a", "b"]]))


@needs_shared_data
def test_people_are_diverse() -> None:
    """Of 500 images of COCO, with their references as captions."""
    entries = shared_json("results/magic_coco_test.json")[:500]
    people = {n: [text for text in entry["captions"] if text.strip()][:5] for n, entry in enumerate(entries)}
    first = {n: texts[0] for n, texts in people.items()}
    scores = evaluate(first, people, ["set-diversity"], candidates=people).scores.corpus
    assert 0.8 < scores["self-CIDEr"] < 1 and scores["mBLEU-4"] < 0.3 and scores["Div-1"] < scores["Div-2"]
