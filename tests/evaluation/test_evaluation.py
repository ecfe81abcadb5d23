"""Evaluations as they are read again: tables and files; and what each metric needs."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.evaluation import Evaluation, evaluate
from prefixcap.evaluation.comparison import compare
from prefixcap.language import load_language_model
from prefixcap.metrics import Scores
from prefixcap.metrics.clip_score import PROMPT
from prefixcap.metrics.diversity import Diversity
from prefixcap.metrics.perplexity import Perplexity, negative_log_likelihood
from prefixcap.utils.files import from_cell

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
    assert [line.split("  ")[0] for line in printed[1:6]] == [
        "captions", "captions ±", "humans", "humans ±", "captions / humans",
    ]  # fmt: skip


def test_intervals_of_people_and_of_domains(tmp_path: Path) -> None:
    """Against a bootstrap in a plain loop over references with as many captions for each image, and not."""
    uneven = {image: texts[: 2 + n % 2] for n, (image, texts) in enumerate(REFERENCES.items())}
    for references in (REFERENCES, uneven):
        evaluation = evaluate(POOR, references, ["ROUGE-L", "CIDEr"], domains=DOMAINS)
        assert evaluation.humans is not None
        generator = np.random.default_rng(1)
        of_images = evaluation.humans.per_image["CIDEr"]  # the mean over the captions of an image
        captions = np.array([len(references[image]) for image in of_images])
        drawn = generator.integers(len(of_images), size=(20000, len(of_images)))
        sums = (np.array(list(of_images.values())) * captions)[drawn].sum(axis=1)
        expected = np.quantile(sums / captions[drawn].sum(axis=1), (0.025, 0.975))
        low, high = evaluation.human_intervals["CIDEr"]
        assert low <= evaluation.humans.corpus["CIDEr"] <= high
        assert (low, high) == pytest.approx(expected, rel=0.05)
    own = {image: POOR[image] for image in REFERENCES if DOMAINS[image] == "in-domain"}
    alone = evaluate(own, {image: uneven[image] for image in own}, ["ROUGE-L", "CIDEr"])
    assert evaluation.domain_intervals["in-domain"] == alone.intervals
    assert evaluation.domain_intervals["overall"] == evaluation.intervals
    evaluation.write(tmp_path, "test")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert tuple(metrics["humans"]["intervals"]["CIDEr"]) == evaluation.human_intervals["CIDEr"]
    assert metrics["domains"]["in-domain"]["CIDEr"] == alone.scores.corpus["CIDEr"]
    assert tuple(metrics["domains"]["in-domain"]["intervals"]["CIDEr"]) == alone.intervals["CIDEr"]


def test_a_metric_that_only_people_have_is_no_ratio() -> None:
    """METEOR of people came from a file, and Java is gone."""
    scores = Scores({"CIDEr": 0.5}, missing={"METEOR": "no Java"})
    evaluation = Evaluation(GOOD, REFERENCES, scores, Scores({"CIDEr": 1.0, "METEOR": 0.5}))
    line = next(line for line in evaluation.table().splitlines() if line.startswith("captions / humans"))
    assert line.split()[3:] == ["0.5000", "-"]


def test_no_ratio_to_people_who_score_next_to_nothing(tmp_path: Path) -> None:
    """BLEU-4 of short captions comes from the constants against division by 0."""
    references = {1: ["a dog", "the pet"], 2: ["a cat", "a cat"]}
    evaluation = evaluate({1: "a dog", 2: "a cat"}, references, ["BLEU", "CIDEr"])
    assert evaluation.humans is not None and 0 < evaluation.humans.corpus["BLEU-4"] < 0.001
    evaluation.write(tmp_path, "test")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["captions / humans"]) == {"BLEU-1", "BLEU-2", "BLEU-3", "CIDEr"}
    assert metrics["images"] == 2 and metrics["notes"] == evaluation.all_notes()
    assert "captions / humans: none for BLEU-4, where people score less than 0.001" in metrics["notes"]
    ratios = next(line for line in evaluation.table().splitlines() if line.startswith("captions / humans"))
    assert ratios.split()[6] == "-"


def test_one_image(tmp_path: Path) -> None:
    evaluation = evaluate({"a": "a dog runs"}, {"a": ["a dog", "a dog runs fast"]}, ["ROUGE-L", "CIDEr"])
    assert evaluation.intervals == evaluation.human_intervals == {}
    printed = evaluation.table()
    assert "±" not in printed and "\none image has no confidence interval\n" in printed
    assert "CIDEr is 0 whatever the captions say: no word of the references is rarer than another in one im" in printed
    evaluation.write(tmp_path / "one", "test")
    assert "CIDEr is 0 whatever" in (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="evaluate one image, which cannot tell which is better"):
        compare(tmp_path / "one", tmp_path / "one")
    domains = {image: "single" if image == "0.jpg" else "others" for image in REFERENCES}
    several = evaluate(POOR, REFERENCES, ["ROUGE-L", "CIDEr"], domains=domains)
    assert several.domain_intervals["single"] == {} and several.domain_intervals["others"]
    assert "\nsingle: CIDEr is 0 whatever the captions say" in several.table()


def test_few_images_and_scripts_without_spaces_are_noted() -> None:
    few = evaluate(POOR, REFERENCES, ["CIDEr"]).all_notes()
    assert "CIDEr weighs words by the references of these 8 images: it compares with no score of others" in few
    many = {number: [f"a dog {number}"] for number in range(100)}
    notes = evaluate(dict.fromkeys(many, "a dog"), many, ["CIDEr"]).all_notes()
    assert not any(note.startswith(("CIDEr", "scripts")) for note in notes)
    chinese = evaluate(dict.fromkeys(many, "狗"), many, ["CIDEr"]).all_notes()
    assert "scripts without spaces are scored character by character, not word by word" in chinese
    bare = evaluate(dict.fromkeys(many, "a dog"), many | {3: ["...", ""]}, ["CIDEr"]).all_notes()
    assert "references have no word: image 3" in bare


def test_captions_without_any_word_have_no_perplexity() -> None:
    evaluation = evaluate(
        dict.fromkeys(REFERENCES, " "), REFERENCES, ["CIDEr", "diversity", "perplexity"],
        language_model=load_language_model("demo"),
    )  # fmt: skip
    assert "perplexity is missing: no caption has a word" in evaluation.table()
    assert evaluation.extra["diversity"]["Vocabulary"] == 0


def test_intervals_of_perplexity_length_and_novelty(tmp_path: Path) -> None:
    """Against a plain loop over images; the figures are those of the metrics for training loops."""
    lm = load_language_model("demo")
    known = [GOOD["0.jpg"], GOOD["3.jpg"].upper() + "."]
    evaluation = evaluate(GOOD, REFERENCES, ["CIDEr", "diversity", "perplexity"], language_model=lm,
                          training_captions=known)  # fmt: skip
    metric, perplexity = Diversity(known), Perplexity(lm)
    metric.update(list(GOOD.values()))
    perplexity.update(list(GOOD.values()))
    assert evaluation.extra["diversity"] == pytest.approx({name: float(v) for name, v in metric.compute().items()})
    assert evaluation.extra["diversity"]["Novel"] == 6 / 8
    assert evaluation.extra["perplexity"] == {"under demo": pytest.approx(float(perplexity.compute()), rel=1e-5)}

    nats, tokens = (part.numpy() for part in negative_log_likelihood(lm, list(GOOD.values())))
    novel = np.array(
        [caption not in ("a red circle at the top", "a yellow circle at the top") for caption in GOOD.values()]
    )
    drawn = np.random.default_rng(1).integers(8, size=(20000, 8))
    expected = {
        "under demo": np.exp(nats[drawn].sum(1) / tokens[drawn].sum(1)),
        "Novel": novel[drawn].mean(1),
        "Length": np.array([len(caption.split()) for caption in GOOD.values()])[drawn].mean(1),
    }
    intervals = evaluation.figure_intervals
    assert set(intervals["diversity"]) == {"Length", "Novel"}  # others are not determined by sums
    for name, (low, high) in (intervals["diversity"] | intervals["perplexity"]).items():
        assert (low, high) == pytest.approx(np.quantile(expected[name], (0.025, 0.975)), rel=0.06)
    evaluation.write(tmp_path, "test")
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["perplexity"] == evaluation.extra["perplexity"] and "Vocabulary" in written["diversity"]
    assert written["intervals of figures"]["perplexity"]["under demo"] == [*intervals["perplexity"]["under demo"]]
    assert "\nperplexity ±" in evaluation.table()
    one = evaluate({1: "a dog"}, {1: ["a dog", "the dog"]}, ["ROUGE-L", "diversity"])
    assert one.extra["diversity"]["Length"] == 2 and one.figure_intervals == {}


def test_figures_that_json_has_no_number_for(tmp_path: Path) -> None:
    evaluation = evaluate(POOR, REFERENCES, ["CIDEr"])
    evaluation.extra["perplexity"] = {"under gpt2": float("inf"), "x": float("nan"), "y": 1.0}
    evaluation.write(tmp_path, "test")
    text = (tmp_path / "metrics.json").read_text()
    assert "Infinity" not in text and "NaN" not in text
    assert json.loads(text)["perplexity"] == {"under gpt2": None, "x": None, "y": 1.0}


def test_no_cell_of_a_table_is_a_formula(tmp_path: Path) -> None:
    captions = {image: f"{sign}cmd|' /C calc'!A0;=1+1" for image, sign in zip(REFERENCES, "=+-@\t\r'a", strict=True)}
    renamed = {f"={image}": texts for image, texts in REFERENCES.items()}
    evaluate({f"={image}": text for image, text in captions.items()}, renamed, ["CIDEr"]).write(tmp_path, "test")
    with (tmp_path / "per_image.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for row in rows for cell in row)
    assert [[from_cell(cell) for cell in row[:2]] for row in rows] == [[f"={i}", text] for i, text in captions.items()]
    assert all(float(row[2]) >= 0 for row in rows)
    assert ';=1+1",' in (tmp_path / "per_image.csv").read_text(encoding="utf-8")  # in quotes, whatever divides cells


def test_captions_without_words_are_named() -> None:
    one = evaluate(GOOD | {"3.jpg": "..."}, REFERENCES, ["ROUGE-L"]).table()
    assert "\n1 caption has no word: image '3.jpg'\n" in one
    references = {number: ["a dog"] for number in range(12)}
    many = evaluate(dict.fromkeys(references, ""), references, ["ROUGE-L"]).table()
    assert "\n12 captions have no word: images 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more\n" in many


def test_domains_are_scored_alone() -> None:
    evaluation = evaluate(POOR, REFERENCES, WITHOUT_JAVA, domains=DOMAINS)
    assert list(evaluation.domains) == ["in-domain", "near-domain", "overall"]
    for domain in ("in-domain", "near-domain"):
        own = [image for image in REFERENCES if DOMAINS[image] == domain]
        alone = evaluate({i: POOR[i] for i in own}, {i: REFERENCES[i] for i in own}, WITHOUT_JAVA)
        assert evaluation.domains[domain].corpus == pytest.approx(alone.scores.corpus)
    assert evaluation.domains["overall"].corpus == evaluation.scores.corpus
    assert "in-domain" in evaluation.table()


def counted(encode_texts: Any, embedded: list[str]) -> Any:
    """`encode_texts` of an encoder, which keeps what it embeds."""

    def encode(self: Any, texts: list[str]) -> torch.Tensor:
        embedded.extend(texts)
        return encode_texts(self, texts)  # type: ignore[no-any-return]

    return encode


def test_metrics_that_need_models(tmp_path: Path) -> None:
    encoder, lm = load_encoder("demo"), load_language_model("demo")
    images = encoder.encode_texts([texts[0] for texts in REFERENCES.values()])  # for want of pictures
    everything = {
        "domains": DOMAINS, "encoder": encoder, "embeddings": images, "language_model": lm,
        "training_captions": [GOOD["0.jpg"]],
    }  # fmt: skip
    metrics = ["CIDEr", "CLIPScore", "diversity", "perplexity"]
    embedded: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(encoder), "encode_texts", counted(type(encoder).encode_texts, embedded))
        good, poor = (evaluate(captions, REFERENCES, metrics, **everything) for captions in (GOOD, POOR))  # type: ignore[arg-type]
    assert len(embedded) == 2 * 4 * len(REFERENCES)  # a caption and three references of an image, each once
    texts = encoder.encode_texts([f"{PROMPT} {caption}" for caption in POOR.values()])
    expected = 2.5 * torch.cosine_similarity(images, texts).clamp(min=0)
    assert list(poor.scores.per_image["CLIPScore"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert poor.scores.corpus["CLIPScore"] == pytest.approx(float(expected.mean()), abs=1e-5)
    of_first = [score for score, domain in zip(expected.tolist(), DOMAINS.values(), strict=True) if domain[0] == "i"]
    assert poor.domains["in-domain"].corpus["CLIPScore"] == pytest.approx(float(np.mean(of_first)), abs=1e-5)
    assert poor.scores.corpus["RefCLIPScore"] < good.scores.corpus["RefCLIPScore"]
    assert good.extra["diversity"]["Novel"] == 7 / 8 and poor.extra["diversity"]["Novel"] == 1.0
    assert good.extra["perplexity"]["under demo"] > 1
    good.write(tmp_path / "good", "test")
    poor.write(tmp_path / "poor", "test")
    compared = compare(tmp_path / "good", tmp_path / "poor")
    assert {"CLIPScore", "perplexity under demo", "diversity Novel", "diversity Length"} <= set(compared.pairs)
    assert compared.pair("diversity Novel").difference == pytest.approx(-1 / 8)
    low, high = good.figure_intervals["perplexity"]["under demo"]
    compared_low, compared_high = (
        getattr(compared.systems["perplexity under demo"][0], end) for end in ("low", "high")
    )
    assert (compared_low, compared_high) == pytest.approx((low, high), rel=0.1)  # of 10,000 samples and of 1,000
    assert "the vocabulary and distinct n-grams, which are no sums" in compared.table()


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            ["CIDEr", "bleu"],
            "unknown metric 'bleu': choose from BLEU, METEOR, ROUGE-L, CIDEr, SPICE, SPIDEr, CHAIR, entities",
        ),
        (["CLIPScore"], "CLIPScore needs the images' embeddings"),
        (["perplexity"], "perplexity needs a language model"),
    ],
)
def test_metrics_that_cannot_be_had(metrics: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefixcap.metrics.captions.TOKENIZERS", None)  # which may take long
    with pytest.raises(InputError, match=message):
        evaluate(GOOD, REFERENCES, ["CIDEr", *metrics])


def test_images_and_captions_that_a_model_cannot_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, lm = load_encoder("demo"), load_language_model("demo")
    images = encoder.encode_texts([texts[0] for texts in REFERENCES.values()])
    long = {"4.jpg": "a red ball " * 100}
    with pytest.raises(InputError, match=r"^captions: image '4.jpg' longer than the \d+ tokens"):
        evaluate(GOOD | long, REFERENCES, ["ROUGE-L", "perplexity"], language_model=lm)
    images = images * torch.tensor([1.0, 1.0, torch.nan, 1.0, 1.0, 0.0, 1.0, 1.0])[:, None]
    monkeypatch.setattr("prefixcap.metrics.captions.TOKENIZERS", None)
    with pytest.raises(InputError, match=r"^image embeddings: images '2.jpg', '5.jpg' NaN, infinite or all zero: embe"):
        evaluate(GOOD, REFERENCES, ["ROUGE-L", "CLIPScore"], encoder=encoder, embeddings=images)
