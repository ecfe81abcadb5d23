"""PAC-S in evaluations, with any encoder. Against its published form: tests/encoders/test_pac_score.py."""

import csv
import doctest
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import prefixcap.metrics.pac_score as module
from prefixcap.encoders import load_encoder
from prefixcap.evaluation import evaluate
from prefixcap.evaluation.agreement import rating_agreement
from prefixcap.evaluation.comparison import compare
from prefixcap.evaluation.judgements import Judgements
from prefixcap.metrics import MetricInputs
from prefixcap.metrics.pac_score import PACScore, RefPACScore, pac_score, ref_pac_score

REFERENCES = {1: ["a red circle", "a round red shape"], 2: ["a blue square"], 3: ["a green star", "the star"]}
GOOD = {1: "a red circle in a meadow", 2: "a blue square", 3: "a green star"}
POOR = {1: "a blue square", 2: "a green star", 3: "a blue star"}


def test_the_formula_and_where_it_is_nothing() -> None:
    images = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    captions = torch.tensor([[4.0, 3.0], [-1.0, 0.2], [1.0, 1.0]])
    references = [torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.tensor([[-1.0, 0.0]]), torch.tensor([[-1.0, -1.0]])]
    scores = [2 * 24 / 25, 0, math.sqrt(2)]
    with_references = [2 / (1 / (2 * 24 / 25) + 1 / 0.8), 0, 0]  # no negative ones, and no 0 / 0
    assert pac_score(images, captions).tolist() == pytest.approx(scores)
    assert ref_pac_score(images, captions, references).tolist() == pytest.approx(with_references)
    metric, with_ = PACScore(), RefPACScore()
    metric.update(images, captions)
    with_.update(images, captions, references)
    assert metric.compute().item() == pytest.approx(sum(scores) / 3)
    assert with_.compute().item() == pytest.approx(sum(with_references) / 3)


def test_evaluations_name_the_encoder_and_have_values_of_images(tmp_path: Path) -> None:
    encoder = load_encoder("demo")
    images = encoder.encode_texts([texts[0] for texts in REFERENCES.values()]).clone()  # in place of pictures
    good, poor = (
        evaluate(captions, REFERENCES, ["CLIPScore", "PAC-S"], encoder=encoder, embeddings=images)
        for captions in (GOOD, POOR)
    )
    assert list(good.scores.corpus) == ["CLIPScore", "RefCLIPScore"]  # the table of scores that names no encoder
    assert good.extra.keys() == {"PAC-S", "RefPAC-S"} and good.extra["PAC-S"].keys() == {"demo"}
    assert good.extra["PAC-S"]["demo"] == pytest.approx(0.8 * good.scores.corpus["CLIPScore"])
    per_image = good.scores.per_image
    assert list(per_image) == ["CLIPScore", "RefCLIPScore", "PAC-S demo", "RefPAC-S demo"]
    assert list(per_image["PAC-S demo"]) == [1, 2, 3]
    for image, score in per_image["PAC-S demo"].items():
        assert score == pytest.approx(0.8 * per_image["CLIPScore"][image])
        clip, ref_clip = per_image["CLIPScore"][image], per_image["RefCLIPScore"][image]
        nearest = 1 / (2 / ref_clip - 1 / clip)
        assert per_image["RefPAC-S demo"][image] == pytest.approx(2 / (1 / score + 1 / nearest), rel=1e-4)
    for evaluation, name in ((good, "good"), (poor, "poor")):
        evaluation.write(tmp_path / name, name)
    with (tmp_path / "good/per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["PAC-S demo"]) for row in rows] == pytest.approx(list(per_image["PAC-S demo"].values()), abs=1e-6)
    assert compare(tmp_path / "good", tmp_path / "poor").pair("PAC-S demo").difference > 0


def test_agreement_with_people_takes_it() -> None:
    encoder = load_encoder("demo")
    captions = [*GOOD.values(), *POOR.values()]
    images = [f"{number}.jpg" for number in (1, 2, 3, 1, 2, 3)]
    references = {f"{number}.jpg": texts for number, texts in REFERENCES.items()}
    judged = Judgements("mine", images, captions, np.array([[4.0], [4], [4], [1], [1], [2]]), references)
    embeddings = encoder.encode_texts([references[image][0] for image in images]).clone()
    measured = rating_agreement(judged, ["PAC-S"], MetricInputs(embeddings=embeddings, encoder=encoder))
    assert measured.rows["tau-b"].keys() == {"PAC-S demo", "RefPAC-S demo"}
    assert measured.rows["tau-b"]["PAC-S demo"] > 0.5


def test_examples() -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted > 0 and failed == 0
