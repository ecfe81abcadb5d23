import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from prefixcap.errors import InputError
from prefixcap.metrics import METRICS, cider, cider_tells_nothing, score_captions, score_humans, score_parts
from prefixcap.metrics.ptb import tokenize
from tests.metrics.coco_tools import needs_java, needs_shared_data, shared_json

WITHOUT_JAVA = ["BLEU", "ROUGE-L", "CIDEr"]
WITHOUT_SPICE = ["BLEU", "METEOR", "ROUGE-L", "CIDEr"]
NAMES = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]

REFERENCES = {
    1: ["A dog runs on the beach.", "The brown dog runs.", "A dog is running at the sea."],
    2: ["A man rides a horse.", "Somebody on a horse, riding.", "A rider and his horse"],
    "three": ["Two cats sleep on a red sofa.", "Cats asleep on a couch", "Two sleeping cats!"],
}
CAPTIONS = {1: "A dog runs on sand.", 2: "A man on a horse.", "three": "A red sofa with two cats on it"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path / "cache"))


def java_processes() -> list[str]:
    """Java processes that this one started and that still run, or wait to be collected."""
    lines = subprocess.run(["ps", "-o", "args", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    return [line for line in lines.splitlines() if "java" in line]


@needs_java
@needs_shared_data
def test_scores_are_those_of_the_coco_tools_with_their_java_tokenizer() -> None:
    entries = random.Random(0).sample(shared_json("results/magic_coco_test.json"), 300)
    captions = {entry["image_name"]: entry["prediction"] for entry in entries}
    references = {entry["image_name"]: entry["captions"] for entry in entries}
    tokenizer = PTBTokenizer()
    gts = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in references.items()})
    res = tokenizer.tokenize({i: [{"caption": text}] for i, text in captions.items()})
    expected: dict[str, tuple[float, Any]] = {}
    for n, corpus, per_image in zip("1234", *Bleu(4).compute_score(gts, res, verbose=0), strict=True):
        expected[f"BLEU-{n}"] = corpus, per_image
    expected["ROUGE-L"] = Rouge().compute_score(gts, res)
    expected["CIDEr"] = Cider().compute_score(gts, res)

    scores = score_captions(captions, references, WITHOUT_JAVA)

    assert scores.missing == {}
    assert list(scores.corpus) == list(scores.per_image) == [*expected]
    assert list(scores.statistics) == WITHOUT_JAVA
    for metric, statistics in scores.statistics.items():
        of_corpus = METRICS[metric].score(statistics.sum(axis=0))
        assert of_corpus == pytest.approx([scores.corpus[name] for name in METRICS[metric].scores], abs=1e-12)
    for name, (corpus, per_image) in expected.items():
        assert scores.corpus[name] == pytest.approx(corpus, abs=1e-12)
        assert scores.per_image[name] == pytest.approx(dict(zip(gts, per_image, strict=True)), abs=1e-12)
    for name in ("ROUGE-L", "CIDEr"):
        mean = sum(scores.per_image[name].values()) / len(captions)
        assert scores.corpus[name] == pytest.approx(mean)
    assert cider(captions, references) == scores.corpus["CIDEr"]


@needs_java
@needs_shared_data
def test_captions_whose_end_depends_on_the_next_score_as_by_the_coco_tools() -> None:
    """In the order of each mapping, which differ, and as parts."""
    entries = shared_json("results/magic_coco_test.json")[:300]
    generator = random.Random(0)

    def ended(text: str) -> str:
        begin = generator.choice(["The", "a", "In", "Its"])
        return f"{begin} {text.rstrip(' .')} {generator.choice(['t.', 'b.', 'U.S.', 'on a', 'fig.'])}"

    references = {entry["image_name"]: [ended(text) for text in entry["captions"]] for entry in entries}
    captions = {entry["image_name"]: ended(entry["prediction"]) for entry in reversed(entries)}

    def by_tools(images: list[str]) -> dict[str, float]:
        tokenizer = PTBTokenizer()
        gts = tokenizer.tokenize({i: [{"caption": text} for text in references[i]] for i in images})
        res = tokenizer.tokenize({i: [{"caption": text}] for i, text in captions.items() if i in gts})
        scores = {f"BLEU-{n}": score for n, score in enumerate(Bleu(4).compute_score(gts, res, verbose=0)[0], 1)}
        for name, scorer in (("ROUGE-L", Rouge()), ("CIDEr", Cider())):
            scores[name] = scorer.compute_score(gts, res)[0]
        return scores

    images = list(references)
    alone = {image: tokenize(text) for image, text in captions.items()}
    assert score_captions(alone, references, WITHOUT_JAVA).corpus["CIDEr"] != pytest.approx(by_tools(images)["CIDEr"])
    scores = score_parts(captions, references, {"odd": images[1::2]}, WITHOUT_JAVA)
    assert scores["overall"].corpus == pytest.approx(by_tools(images), abs=1e-12)
    assert scores["odd"].corpus == pytest.approx(by_tools(images[1::2]), abs=1e-12)
    assert score_captions(captions, references, WITHOUT_JAVA).corpus == scores["overall"].corpus


@needs_java
def test_empty_captions_score_zero_and_leave_the_others_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    captions = {**CAPTIONS, 2: "", 4: "...!", 5: CAPTIONS[1], 6: "a cat"}
    references = {**REFERENCES, 4: REFERENCES[2], 5: [*REFERENCES[1], "..."], 6: ["...", ""]}
    before = java_processes()
    scores = score_captions(captions, references, WITHOUT_SPICE)
    assert scores.missing == {}
    assert scores.empty == (2, 4)
    for name in NAMES:
        per_image = scores.per_image[name]
        assert list(per_image) == [1, 2, "three", 4, 5, 6]
        assert [per_image[image] for image in (2, 4, 6)] == pytest.approx([0, 0, 0], abs=1e-6)
        assert per_image["three"] > 1e-5 < per_image[1]
        if name != "CIDEr":  # a mean over references
            assert per_image[5] == pytest.approx(per_image[1])
    assert java_processes() == before
    assert capfd.readouterr() == ("", "")


def test_references_without_words_are_like_no_caption() -> None:
    assert cider({2: "a cat"}, {2: ["...", ""]}) == 0


def test_without_java_all_but_meteor_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = score_captions(CAPTIONS, REFERENCES, WITHOUT_SPICE)
    assert list(scores.corpus) == [name for name in NAMES if name != "METEOR"]
    assert list(scores.statistics) == WITHOUT_JAVA
    assert list(scores.missing) == ["METEOR"]
    assert "install a JRE" in scores.missing["METEOR"]
    assert "\n" not in scores.missing["METEOR"]
    humans = score_humans(REFERENCES, WITHOUT_SPICE)
    assert humans is not None
    assert list(humans.missing) == ["METEOR"]


@pytest.mark.parametrize("reads", ["", "read line;"])
def test_a_java_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reads: str) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{reads} echo 'no runtime here' >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = score_captions(CAPTIONS, REFERENCES, WITHOUT_SPICE)
    assert "no runtime here" in scores.missing["METEOR"]
    assert list(scores.corpus) == [name for name in NAMES if name != "METEOR"]


@pytest.mark.slow
@needs_java
def test_humans_are_scored_against_each_other() -> None:
    """Against a plain loop, with numbers of captions that differ: 4, 3, 2 and 1."""
    references: dict[int | str, list[str]] = {**REFERENCES, 4: ["A bird"], 5: ["A red bus", "A big red bus"]}
    references[1] = [*references[1], "Dog on a beach"]
    folds = []
    for i in range(4):
        images = [image for image, texts in references.items() if len(texts) >= max(2, i + 1)]
        captions = {image: [tokenize(references[image][i])] for image in images}
        others = {image: [tokenize(text) for j, text in enumerate(references[image]) if j != i] for image in images}
        folds.append((others, captions))
    assert [len(captions) for _, captions in folds] == [4, 4, 3, 1]

    humans = score_humans(references, WITHOUT_SPICE)

    assert humans is not None
    assert humans.missing == {}
    meteor = Meteor()
    for name, score in (
        ("METEOR", meteor.compute_score),
        ("ROUGE-L", Rouge().compute_score),
        ("CIDEr", Cider().compute_score),
    ):
        results = [score(*fold) for fold in folds]
        weighted = sum(len(fold[1]) * corpus for fold, (corpus, _) in zip(folds, results, strict=True))
        assert humans.corpus[name] == pytest.approx(weighted / 12)
        of_first = [per_image[0] for _, per_image in results]  # image 1 is the first in all folds
        assert humans.per_image[name][1] == pytest.approx(sum(of_first) / 4)
        assert list(humans.per_image[name]) == [1, 2, "three", 5]
    bleu = [Bleu(4).compute_score(*fold, verbose=0)[0][3] for fold in folds]
    assert humans.corpus["BLEU-4"] == pytest.approx(sum(b * n for b, n in zip(bleu, [4, 4, 3, 1], strict=True)) / 12)


def test_human_scores_are_computed_once_for_the_same_references(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [text for of_image in REFERENCES.values() for text in of_image]
    references = {i: [texts[i % 9], texts[i % 7], texts[i % 5]][: i % 3 + 1] for i in range(600)}
    first = score_humans(references, WITHOUT_JAVA)
    for scorer in ("BLEU", "ROUGE-L", "CIDEr"):
        monkeypatch.setattr(METRICS[scorer], "statistics", None)
    again = score_humans(references, WITHOUT_JAVA)
    assert first is not None and again is not None
    assert (again.corpus, again.per_image) == (first.corpus, first.per_image)
    references[2][1] += " again"
    with pytest.raises(TypeError):
        score_humans(references, ["CIDEr"])


@needs_shared_data
def test_a_part_scores_as_if_it_were_all() -> None:
    entries = shared_json("results/magic_coco_test.json")[:60]
    captions = {entry["image_name"]: entry["prediction"] for entry in entries}
    references = {entry["image_name"]: entry["captions"] for entry in entries}
    images = list(references)
    parts = {"near": images[40:][::-1], "in": set(images[:30]), "one": [images[7]]}
    scores = score_parts(captions, references, parts, WITHOUT_JAVA)
    assert list(scores) == ["near", "in", "one", "overall"]
    for name, members in {**parts, "overall": images}.items():
        of_part = [image for image in images if image in members]
        alone = score_captions(
            {image: captions[image] for image in of_part}, {image: references[image] for image in of_part}, WITHOUT_JAVA
        )
        assert list(scores[name].per_image["CIDEr"]) == of_part
        assert scores[name].corpus == pytest.approx(alone.corpus, abs=1e-12)
        for metric in WITHOUT_JAVA:
            assert scores[name].statistics[metric] == pytest.approx(alone.statistics[metric], abs=1e-12)
    assert scores["near"].corpus["CIDEr"] != pytest.approx(
        sum(scores["overall"].per_image["CIDEr"][image] for image in parts["near"]) / 20
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"in": [1], "near": []}, "part 'near' has no images: leave it out, or name its images"),
        ({"in": [1, 9, "1"]}, "images of part 'in' without references (2): 9, '1'; leave them out of the part"),
    ],
)
def test_mistakes_in_parts_are_told_in_one_line(parts: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        score_parts(CAPTIONS, REFERENCES, parts, WITHOUT_JAVA)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("references", "nothing"),
    [
        ({1: ["a dog runs", "the dog"]}, True),
        ({1: ["a dog"], 2: ["a dog"]}, True),
        ({1: ["", "..."], 2: ["!"]}, True),
        ({}, True),
        ({1: ["a dog"], 2: ["a dog barks"]}, False),
        ({1: ["a dog"], 2: ["..."]}, False),
    ],
)
def test_references_of_which_cider_tells_nothing(references: dict[int, list[str]], nothing: bool) -> None:
    """Whatever the captions are: those of others, the references themselves, none."""
    assert cider_tells_nothing(references) == nothing
    scores = [
        cider({image: text or texts[0] for image, texts in references.items()}, references)
        for text in ("", "a dog barks", "a dog", "a cat sleeps")
        if references
    ]
    assert nothing == (max(scores, default=0.0) == 0)


def test_humans_need_two_references() -> None:
    assert score_humans({1: ["a dog"], 2: ["a cat"]}) is None
    assert score_humans({}) is None


def test_only_the_metrics_asked_for_are_computed() -> None:
    assert list(score_captions(CAPTIONS, REFERENCES, ["CIDEr"]).corpus) == ["CIDEr"]
    assert list(score_captions(CAPTIONS, REFERENCES, ["ROUGE-L", "BLEU"]).corpus) == ["ROUGE-L", *NAMES[:4]]


MANY: dict[int, list[str]] = {i: ["a dog"] for i in range(7)}


@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        (
            dict.fromkeys(MANY, "a"),
            {6: ["a"]},
            "images with a caption but no references (6): 0, 1, 2, 3, 4, ...; leave these captions out",
        ),
        ({6: "a"}, MANY, "images with references but no caption (6): 0, 1, 2, 3, 4, ...; caption these, too"),
        ({"x": "a"}, {"x": []}, "images with an empty list of references (1): 'x'; leave them out"),
        ({1: None}, {1: ["a"]}, "captions that are not strings (1): 1; give one each"),
        ({1: ["a"]}, {1: ["a"]}, "captions that are not strings (1): 1; give one each"),
        ({1: "a"}, {1: ["a", 5]}, "images with a reference that is not a string (1): 1; correct these references"),
        ({1: "a"}, {1: "a dog"}, "images with a string where a list of references belongs (1): 1; put it into a list"),
        ({}, {}, "there are no captions to score"),
        (
            {"a": "a", "2": "b"},
            {"a": ["a"], 2: ["b"]},
            "the captions have an image '2', the references an image 2: write ids as numbers in both or as texts in "
            "both",
        ),
    ],
)
def test_mistakes_in_captions_are_told_in_one_line(captions: Any, references: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        score_captions(captions, references, WITHOUT_JAVA)
    assert str(error.value) == message


def test_mistakes_in_what_is_asked_for_are_told_in_one_line() -> None:
    names = [
        "BLEU",
        "METEOR",
        "ROUGE-L",
        "CIDEr",
        "SPICE",
        "SPIDEr",
        "CHAIR",
        "entities",
        "CLIPScore",
        "RefCLIPScore",
        "PAC-S",
        "RefPAC-S",
        "diversity",
        "perplexity",
        "set-diversity",
        "mBLEU-4",
        "BERTScore",
        "BERTScore-idf",
        "sentence-similarity",
    ]
    assert list(METRICS) == [metric.name for metric in METRICS.values()] == names
    expected = f"unknown metric 'SPICY': choose from {', '.join(names)}"
    for call in (
        lambda: score_captions(CAPTIONS, REFERENCES, ["BLEU", "SPICY"]),
        lambda: score_humans(REFERENCES, ["BLEU", "SPICY"]),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value) == expected
    with pytest.raises(InputError, match=r"empty list of references \(1\): 1"):
        score_humans({1: []})
