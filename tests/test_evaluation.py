"""Evaluations as they are read again: tables, files, comparisons; and what each metric needs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prefixcap.caption_files import read_references
from prefixcap.comparison import compare
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.evaluation import Evaluation, evaluate
from prefixcap.language import load_language_model
from prefixcap.metrics.clip_score import PROMPT

WITHOUT_JAVA = ["BLEU", "ROUGE-L", "CIDEr"]
COLOURS = ["red", "blue", "green", "yellow", "white", "black", "grey", "brown"]
REFERENCES = {
    f"{n}.jpg": [f"a {colour} circle at the top", f"one {colour} ball {n}", f"the ball is {colour}"]
    for n, colour in enumerate(COLOURS)
}
GOOD = {image: texts[0] for image, texts in REFERENCES.items()}
POOR = {image: f"a {COLOURS[n // 2]} square at the top" for n, image in enumerate(REFERENCES)}
DOMAINS = {image: "near-domain" if n % 3 else "in-domain" for n, image in enumerate(REFERENCES)}


def written(captions: dict[str, str], folder: Path, metrics: list[str] = WITHOUT_JAVA) -> Evaluation:
    evaluation = evaluate(captions, REFERENCES, metrics)
    evaluation.write(folder, "test")
    return evaluation


def test_what_is_written(tmp_path: Path) -> None:
    evaluation = written(POOR, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {name: metrics[name] for name in evaluation.scores.corpus} == evaluation.scores.corpus
    for name, (low, high) in metrics["intervals"].items():
        assert low <= metrics[name] <= high
    assert evaluation.humans is not None
    ratio = evaluation.scores.corpus["CIDEr"] / evaluation.humans.corpus["CIDEr"]
    assert metrics["captions / humans"]["CIDEr"] == ratio
    printed = evaluation.table().splitlines()
    assert [line.split("  ")[0] for line in printed[1:5]] == ["captions", "captions ±", "humans", "captions / humans"]


def test_domains_are_scored_alone() -> None:
    evaluation = evaluate(POOR, REFERENCES, WITHOUT_JAVA, domains=DOMAINS)
    assert list(evaluation.domains) == ["in-domain", "near-domain", "overall"]
    for domain in ("in-domain", "near-domain"):
        own = [image for image in REFERENCES if DOMAINS[image] == domain]
        alone = evaluate({i: POOR[i] for i in own}, {i: REFERENCES[i] for i in own}, WITHOUT_JAVA)
        assert evaluation.domains[domain] == pytest.approx(alone.scores.corpus)
    assert evaluation.domains["overall"] == evaluation.scores.corpus
    assert "in-domain" in evaluation.table()


def test_metrics_that_need_models(tmp_path: Path) -> None:
    encoder, lm = load_encoder("demo"), load_language_model("demo")
    images = encoder.encode_texts([texts[0] for texts in REFERENCES.values()])  # for want of pictures
    everything = {
        "domains": DOMAINS, "encoder": encoder, "embeddings": images, "language_model": lm,
        "training_captions": [GOOD["0.jpg"]],
    }  # fmt: skip
    metrics = ["CIDEr", "CLIPScore", "diversity", "perplexity"]
    good, poor = (evaluate(captions, REFERENCES, metrics, **everything) for captions in (GOOD, POOR))  # type: ignore[arg-type]
    texts = encoder.encode_texts([f"{PROMPT} {caption}" for caption in POOR.values()])
    expected = 2.5 * torch.cosine_similarity(images, texts).clamp(min=0)
    assert list(poor.scores.per_image["CLIPScore"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert poor.scores.corpus["CLIPScore"] == pytest.approx(float(expected.mean()), abs=1e-5)
    of_first = [score for score, domain in zip(expected.tolist(), DOMAINS.values(), strict=True) if domain[0] == "i"]
    assert poor.domains["in-domain"]["CLIPScore"] == pytest.approx(float(np.mean(of_first)), abs=1e-5)
    assert poor.scores.corpus["RefCLIPScore"] < good.scores.corpus["RefCLIPScore"]
    assert good.extra["diversity"]["Novel"] == 7 / 8 and poor.extra["diversity"]["Novel"] == 1.0
    assert good.extra["perplexity"]["under demo"] > 1
    good.write(tmp_path / "good", "test")
    poor.write(tmp_path / "poor", "test")
    assert "CLIPScore" in compare(tmp_path / "good", tmp_path / "poor").difference


def test_an_image_that_comes_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "references.json"
    entry = {"image_name": "a.jpg", "captions": ["a dog"]}
    for content in ([entry, entry], {"images": [{"filename": "a.jpg", "sentences": [{"raw": "a dog"}]}] * 2}):
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"references.json: image 'a.jpg' comes twice \(entry 1 is the second\)"):
            read_references(file)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["CIDEr", "bleu"], "unknown metric 'bleu': choose from BLEU, METEOR, ROUGE-L, CIDEr, SPICE, CLIPScore"),
        (["CLIPScore"], "CLIPScore needs the images' embeddings"),
        (["perplexity"], "perplexity needs a language model"),
    ],
)
def test_metrics_that_cannot_be_had(metrics: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(GOOD, REFERENCES, metrics)


def test_comparison(tmp_path: Path) -> None:
    good, poor = written(GOOD, tmp_path / "good"), written(POOR, tmp_path / "poor")
    found = compare(tmp_path / "good", tmp_path / "poor")
    assert found.scores == (pytest.approx(good.scores.corpus), pytest.approx(poor.scores.corpus))
    assert list(found.difference) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]
    assert found.difference["CIDEr"] == pytest.approx(good.scores.corpus["CIDEr"] - poor.scores.corpus["CIDEr"])
    assert found.p_values["CIDEr"] < 0.01 and found.intervals["CIDEr"][0] > 0
    same = compare(tmp_path / "good", tmp_path / "good")
    assert set(same.difference.values()) == {0.0} and set(same.p_values.values()) == {1.0}
    assert f"A: {tmp_path / 'good'}" in found.table() and "p-value" in found.table()


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    written(GOOD, tmp_path / "good")
    with pytest.raises(InputError, match=r"absent holds no evaluation \(statistics.npz: .*give two folders"):
        compare(tmp_path / "good", tmp_path / "absent")
    few = {image: GOOD[image] for image in list(GOOD)[:5]}
    evaluate(few, {image: REFERENCES[image] for image in few}, WITHOUT_JAVA).write(tmp_path / "few", "test")
    with pytest.raises(InputError, match=r"different images, '5.jpg' for one \(3 in all\)"):
        compare(tmp_path / "good", tmp_path / "few")
    others = {image: [*texts, "a ball"] for image, texts in REFERENCES.items()}
    evaluate(GOOD, others, WITHOUT_JAVA).write(tmp_path / "others", "test")
    with pytest.raises(InputError, match="different references"):
        compare(tmp_path / "good", tmp_path / "others")
    written(GOOD, tmp_path / "rouge", ["ROUGE-L"])
    written(GOOD, tmp_path / "cider", ["CIDEr"])
    with pytest.raises(InputError, match="no metric in common"):
        compare(tmp_path / "rouge", tmp_path / "cider")
    (tmp_path / "good" / "statistics.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="holds no evaluation"):
        compare(tmp_path / "good", tmp_path / "cider")
