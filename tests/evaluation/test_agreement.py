"""Agreement of metrics with people: the published figures, other forms of the same judgements, preferences."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.evaluation.agreement import PUBLISHED, Agreement, preference_accuracy, rating_agreement
from prefixcap.evaluation.judgements import Judgements, read_judgements
from prefixcap.evaluation.pascal50s import Preferences
from prefixcap.metrics import MetricInputs, score_captions
from tests.metrics.coco_tools import needs_java
from tests.metrics.test_spice import needs_corenlp

COLOURS = ["red", "blue", "grey", "black", "white", "brown"]
QUICK = ["BLEU", "ROUGE-L", "CIDEr"]
EXPERT, CROWD = "ExpertAnnotations.txt", "CrowdFlowerAnnotations.txt"


@pytest.fixture
def flickr8k(shared: Path) -> Path:
    return shared / "flickr8k"


@pytest.fixture
def captions(flickr8k: Path) -> dict[str, list[str]]:
    splits = json.loads((flickr8k / "captions.json").read_text())
    return {image: texts for split in splits.values() for image, texts in split.items()}


def assert_published(measured: Agreement) -> None:
    """All figures that are published for the metrics that were computed, to 0.1 on the scale of 100 of papers."""
    published = PUBLISHED[measured.name]
    row = measured.rows[published.measure]
    assert measured.published == published.figures and measured.published_measure == published.measure
    for name, figure in published.figures.items():
        if name in row:
            assert 100 * row[name] == pytest.approx(100 * figure, abs=0.1)
            low, high = measured.intervals[published.measure][name]
            assert low < row[name] < high


def assert_digits(row: Mapping[str, float], expected: Mapping[str, float]) -> None:
    """The three digits that the code of PAC-S (Sarto et al. 2023) prints by its README."""
    assert {name: round(100 * row[name], 3) for name in expected} == expected


def test_published_figures_of_experts(flickr8k: Path, captions: dict[str, list[str]]) -> None:
    judged = read_judgements(flickr8k / EXPERT, captions)
    assert judged.notes == ["captions that are among the references of their image are left out: 158"]
    measured = rating_agreement(judged, QUICK)
    assert (measured.captions, measured.judgements) == (5664, 16992)
    assert_published(measured)
    assert_digits(measured.rows["tau-c"], {"BLEU-1": 32.324, "BLEU-4": 30.776, "ROUGE-L": 32.314, "CIDEr": 43.891})


@pytest.mark.slow
def test_published_figures_of_the_crowd(flickr8k: Path, captions: dict[str, list[str]]) -> None:
    """47,830 captions of four or five references each are scored, which takes half a minute."""
    measured = rating_agreement(read_judgements(flickr8k / CROWD, captions), QUICK)
    assert (measured.captions, measured.images) == (47830, 1000)
    assert_published(measured)
    assert_digits(measured.rows["tau-b"], {"BLEU-1": 17.946, "BLEU-4": 16.863, "ROUGE-L": 19.903, "CIDEr": 24.619})


@needs_java
@needs_corenlp
@pytest.mark.slow
@pytest.mark.parametrize("file", [EXPERT, CROWD])
def test_published_figures_of_metrics_in_java(file: str, flickr8k: Path, captions: dict[str, list[str]]) -> None:
    """SPICE parses 4,992 sentences the first time, and scores 47,830 captions."""
    measured = rating_agreement(read_judgements(flickr8k / file, captions), ["METEOR", "SPICE"])
    assert_published(measured)
    assert_digits(measured.rows["tau-c"], {"METEOR": 41.822 if file == EXPERT else 11.51})
    assert_digits(measured.rows["tau-b"], {"METEOR": 41.538 if file == EXPERT else 22.269})


@pytest.mark.parametrize("file", [EXPERT, CROWD])
def test_the_json_of_clipscore_gives_the_same(
    file: str, flickr8k: Path, captions: dict[str, list[str]], tmp_path: Path
) -> None:
    """Of some of the images, turned into JSON as its `download.py` does."""
    rows = [line.split("\t") for line in (flickr8k / file).read_text().splitlines()]
    chosen = {row[0] for row in rows[:: len(rows) // 20]}
    rows = [row for row in rows if row[0] in chosen]
    (tmp_path / "rows.txt").write_text("".join("\t".join(row) + "\n" for row in rows))
    content: dict[str, dict[str, list[object]]] = {}
    for image, caption_id, *figures in rows:
        owner, number = caption_id.split("#")
        caption = captions[owner][int(number)]
        if file == EXPERT and caption in captions[image]:
            continue
        entry = content.setdefault(image, {"human_judgement": [], "ground_truth": list(captions[image])})
        if caption in entry["ground_truth"]:
            entry["ground_truth"].remove(caption)
        for rating in figures if file == EXPERT else figures[:1]:
            entry["human_judgement"].append({"caption": caption, "rating": float(rating)})
    (tmp_path / "judged.json").write_text(json.dumps(content))
    # There, a caption is in the corpus once for each expert, which changes CIDEr's weight of words of no reference.
    metrics = QUICK if file == CROWD else ["BLEU", "ROUGE-L"]
    one = rating_agreement(read_judgements(tmp_path / "rows.txt", captions), metrics)
    other = rating_agreement(read_judgements(tmp_path / "judged.json"), metrics)
    assert one.judgements == other.judgements and one.published == other.published == {}
    for measure in ("tau-b", "tau-c"):
        for name, tau in one.rows[measure].items():
            assert other.rows[measure][name] == pytest.approx(tau, abs=1e-12)
            assert other.intervals[measure][name] == pytest.approx(one.intervals[measure][name], abs=1e-12)


def judgements(captions: list[str], ratings: list[list[float]]) -> Judgements:
    """Four captions an image, with references of the first image and of the others."""
    images = [f"{number // 4}.jpg" for number in range(len(captions))]
    references = {image: [f"a dog runs on beach {image[0]}", "the wet dog"] for image in images}
    return Judgements("mine", images, captions, np.array(ratings), references)


def test_against_scipy() -> None:
    generator = np.random.default_rng(0)
    words = ["a", "dog", "cat", "runs", "on", "beach", "the", "wet", "0", "1", "2"]
    captions = [" ".join(generator.choice(words, 5)) for _ in range(40)]
    ratings = generator.integers(1, 5, (40, 2)).astype(float)
    judged = judgements(captions, ratings.tolist())
    measured = rating_agreement(judged, ["ROUGE-L"])
    scores = score_captions(
        dict(enumerate(captions)), {n: judged.references[image] for n, image in enumerate(judged.images)}, ["ROUGE-L"]
    ).per_image["ROUGE-L"]
    for measure in ("tau-b", "tau-c"):
        expected = kendalltau(np.repeat(list(scores.values()), 2), ratings.ravel(), variant=measure[-1]).statistic
        assert measured.rows[measure]["ROUGE-L"] == pytest.approx(expected, abs=1e-12)
    assert measured.table().splitlines()[0] == "mine: 40 captions of 10 images, 80 judgements"
    assert measured.notes == ["95% confidence intervals (±: half of one) by bootstrap over images"]


def test_what_has_no_agreement_and_no_interval() -> None:
    one_image = judgements(["a dog", "a wet dog runs", "birds", "nothing"], [[3], [4], [2], [1]])
    measured = rating_agreement(one_image, ["ROUGE-L", "CIDEr"])  # CIDEr is 0 for one image, whatever the captions are
    assert set(measured.rows["tau-b"]) == {"ROUGE-L"} and measured.intervals == {"tau-b": {}, "tau-c": {}}
    assert measured.notes == ["all captions have the same score, which agrees with nothing: CIDEr"]


def test_of_very_many_images_there_are_no_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = judgements(["a dog", "a wet dog runs", "birds", "nothing"] * 3, [[3], [4], [2], [1]] * 3)
    few = rating_agreement(judged, ["ROUGE-L"])
    monkeypatch.setattr("prefixcap.evaluation.agreement._MOST_IMAGES", 2)
    many = rating_agreement(judged, ["ROUGE-L"])
    assert few.rows == many.rows and few.intervals["tau-b"] and not many.intervals["tau-b"]
    assert many.notes == ["no confidence intervals for more than 2 images"]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [(["BLUE"], "unknown metric 'BLUE'"), (["CLIPScore"], "embeddings"), (["diversity"], "diversity: no score")],
)
def test_metrics_that_cannot_agree(metrics: list[str], message: str) -> None:
    calls: list[Callable[[], Agreement]] = [
        lambda: rating_agreement(judgements(["a dog", "a cat"], [[1], [2]]), metrics),
        lambda: preference_accuracy(PREFERRED, metrics),
    ]
    for call in calls:
        with pytest.raises(InputError, match=message):
            call()


PREFERRED = Preferences(
    "Pascal-50S",
    ["1.jpg", "1.jpg", "1.jpg", "2.jpg"],
    [("a dog runs", "a cat"), ("a cat", "a dog runs"), ("a dog", "a dog"), ("birds", "one bird")],
    [["a dog runs"] * 9, ["a dog runs"] * 9, ["a dog"] * 9, ["one bird"] * 3],
    np.array([[9, 0], [9, 0], [9, 0], [3, 3]]),
    ["HC", "HC", "HI", "MM"],
)


def test_preferences() -> None:
    measured = preference_accuracy(PREFERRED, ["ROUGE-L", "BLEU"])
    accuracies = {row: figures["ROUGE-L"] for row, figures in measured.rows.items()}
    assert accuracies == {"HC": 0.5, "HI": 0.5, "MM": 0.5, "mean": 0.5}  # one right, one wrong; ties
    right = preference_accuracy(
        Preferences(**{**vars(PREFERRED), "votes": np.array([[5, 4], [0, 9], [9, 0], [1, 2]])}), ["ROUGE-L"]
    )
    assert {row: figures["ROUGE-L"] for row, figures in right.rows.items()} == {
        "HC": 1.0, "HI": 0.5, "MM": 1.0, "mean": pytest.approx(2.5 / 3),
    }  # fmt: skip
    assert right.table().splitlines()[0] == "Pascal-50S: 4 pairs of captions of 2 images, 30 judgements"


def test_references_of_preferences_are_drawn() -> None:
    """A metric sees as many as it is given, others in each draw, and the same for the same seed."""
    texts = [[f"a {word} dog {number}" for number in range(6)] for word in COLOURS]
    preferred = Preferences(
        "Pascal-50S",
        [f"{number}.jpg" for number in range(6)],
        [(f"a dog {number}", f"the dog {5 - number}") for number in range(6)],
        texts,
        np.array([[9, 0]] * 6),
        ["HM"] * 6,
    )
    few = [preference_accuracy(preferred, ["ROUGE-L"], 1, draws=3, seed=seed) for seed in (0, 0, 1)]
    assert few[0].rows == few[1].rows and few[0].rows != few[2].rows
    for draws, references in ((0, 5), (5, 0)):
        with pytest.raises(InputError, match="give one or more"):
            preference_accuracy(preferred, ["ROUGE-L"], references, draws)


def test_metrics_of_images() -> None:
    """Embeddings are of the image of each judged caption; where they are those of good captions, CLIPScore agrees."""
    encoder = load_encoder("demo")
    captions = [f"a {colour} circle at the {place}" for colour in ("red", "blue") for place in ("top", "left") * 2]
    right = [number % 2 == 0 for number in range(len(captions))]
    judged = judgements(captions, [[4.0] if good else [1.0] for good in right])
    embeddings = encoder.encode_texts([captions[number - number % 2] for number in range(len(captions))])
    measured = rating_agreement(judged, ["CLIPScore"], MetricInputs(embeddings=embeddings, encoder=encoder))
    assert measured.rows["tau-b"]["CLIPScore"] > 0.5 and "RefCLIPScore" in measured.rows["tau-b"]
