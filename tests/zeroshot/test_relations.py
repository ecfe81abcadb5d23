"""The Visual Relations benchmark over relations of the small world, with its own models."""

import json
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocoevalcap.bleu.bleu import Bleu

from prefixcap.captioner import Captioner
from prefixcap.demo import relations as demo
from prefixcap.demo.scenes import ATTRIBUTES
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.errors import InputError
from prefixcap.language import load_language_model
from prefixcap.utils.files import Journal
from prefixcap.zeroshot.arithmetic import embed_expressions
from prefixcap.zeroshot.relations import Relation, answer, read_relations, recalled, score, table
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("demo")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten relations of each kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "PER_KIND", 10)
        return demo.write_relations(tmp_path_factory.mktemp("relations") / "demo")


@pytest.fixture(scope="module")
def captioner(encoder: Encoder) -> Captioner:
    torch.manual_seed(0)
    return Captioner(load_language_model("demo"), encoder.identity, {"name": "mlp", "prefix_length": 4})


# ---- the small world ---------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", demo.ASKED)
def test_only_what_is_asked_for_differs_in_the_first_pair(asked: str) -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        a, b, c = map(asdict, demo.random_relation(asked, generator))
        assert {name for name in ATTRIBUTES if a[name] != b[name]} == {asked}
        assert {name for name in ATTRIBUTES if a[name] == c[name]} == {asked}


def test_relations_are_drawn_once_and_whole(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relations = read_relations(file)
    assert [relation.name for relation in relations] == [name for name in demo.ASKED for _ in range(10)]
    assert len({operand for of in relations for operand in (of.a, of.b, of.c)}) == 120
    assert all(of.answer in ATTRIBUTES[of.name] for of in relations)
    pictures = {path.name: path.read_bytes() for path in (file.parent / "images").iterdir()}
    assert len(pictures) == 120

    monkeypatch.setattr(demo, "PER_KIND", 2)
    again = demo.write_relations(tmp_path / "again")
    assert (again.parent / "images" / "colour-02-c.jpg").read_bytes() == pictures["colour-02-c.jpg"]
    before = file.stat().st_mtime_ns
    assert demo.write_relations(file.parent) == file and file.stat().st_mtime_ns == before
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="exists and has no relations"):
        demo.write_relations(tmp_path / "other")


def test_the_small_clip_knows_the_answers(file: Path, encoder: Encoder) -> None:
    """Of all words for what is asked, the answer is the nearest to C + B - A; and never to C."""
    relations = read_relations(file)
    for asks, least, most in (("expression", 0.9, 1.0), ("c", 0.0, 0.05)):
        right = []
        for relation in relations:
            words = ATTRIBUTES[relation.name]
            texts = F.normalize(encoder.encode_texts(list(words)), dim=-1)
            result = embed_expressions([getattr(relation, asks)], encoder, file.parent)[0]
            right.append(words[int((texts @ result).argmax())] == relation.answer)
        assert least <= np.mean(right) <= most


# ---- files -------------------------------------------------------------------------------------------

GIVEN: dict[str, Any] = {"relation": "r", "pair": ["img:a", "txt:'b c'"], "given": "emb:s#1", "answer": "Italy"}


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(json.dumps([GIVEN]))
    (relation,) = read_relations(tmp_path / "file.json")
    assert relation == Relation("r", "img:a", "txt:'b c'", "emb:s#1", "Italy")
    assert relation.expression == "emb:s#1 + txt:'b c' - img:a"  # X ~ C + B - A


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "is not a list of relations"),
        ([], "is not a list of relations"),
        ([GIVEN, 3], "entry 1 must be an object with 'relation', 'pair'"),
        ([GIVEN | {"pair": ["img:a"]}], "entry 0 must be an object with 'relation', 'pair'"),
        ([GIVEN | {"answer": 3}], "entry 0 must be"),
        ([GIVEN | {"answer": "..."}], "entry 0: the answer '...' has no word"),
        ([GIVEN | {"relation": "overall"}], "cannot have the name 'overall'"),
        ([GIVEN | {"given": "a.jpg"}], "entry 0: 'a.jpg' is not an operand"),
        ([GIVEN | {"given": "img:a + img:b"}], "is more than one operand"),
    ],
)
def test_files_of_another_form(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=re.escape(message)):
        read_relations(tmp_path / "file.json")


# ---- answers -----------------------------------------------------------------------------------------


def test_what_was_stopped_goes_on(
    file: Path, captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relations = read_relations(file)[:10]
    options: dict[str, Any] = {"batch_size": 3, "decode": "greedy", "max_tokens": 8}
    job = {"captioner": "untrained"}

    def journal(name: str) -> Journal:
        return Journal(tmp_path / name, job)

    whole = answer(captioner, relations, file.parent, journal("whole.jsonl"), **options)
    embedded = embed_expressions([of.expression for of in relations], captioner.encoder(), file.parent)
    assert whole == captioner.caption(embedded, "greedy", max_tokens=8) and len(set(whole)) > 1

    asked: list[int] = []

    def caption(images: torch.Tensor, **given: Any) -> list[str]:
        asked.append(len(images))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return Captioner.caption(captioner, images, **given)

    monkeypatch.setattr(captioner, "caption", caption)
    with pytest.raises(KeyboardInterrupt):
        answer(captioner, relations, file.parent, journal("stopped.jsonl"), **options)
    assert answer(captioner, relations, file.parent, journal("stopped.jsonl"), **options) == whole
    assert asked == [3, 3, 3, 3, 1]
    assert (tmp_path / "stopped.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


# ---- scores ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "asked", "found"),
    [
        ("The flag of Italy.", "Italy", True),
        ("Italy's flag", "italy", True),
        ("one two three four Italy", "Italy", True),
        ("one, two, three, four, five, Italy", "Italy", False),
        ("The Italian flag", "Italy", False),
        ("A street in New York", "New York", True),
        ("A street in the New York", "New York", False),
        ("New in York", "New York", False),
        ("", "Italy", False),
    ],
)
def test_what_counts_as_recalled(caption: str, asked: str, found: bool) -> None:
    assert recalled(caption, asked) is found


def test_scores_made_by_hand(encoder: Encoder) -> None:
    answers = {"first": ["star", "ring", "red"], "second": ["blue", "left"]}
    captions = ["A red star.", "a ring, a ring", "", "a very large plain square in blue", "on the left"]
    relations = [Relation(name, "txt:a", "txt:b", "txt:c", word) for name, of in answers.items() for word in of]
    scores = score(relations, captions, encoder)
    assert {name: of["Recall@5"] for name, of in scores.items()} == {
        "first": pytest.approx(2 / 3),
        "second": 0.5,
        "overall": 0.6,
    }
    # Unigrams that are in the answer, each once, of all unigrams; captions are longer than answers: no penalty.
    assert [scores[name]["BLEU-1"] for name in scores] == pytest.approx([2 / 7, 2 / 10, 4 / 17])
    rows = {"first": [0, 1, 2], "second": [3, 4], "overall": [0, 1, 2, 3, 4]}
    words = [relation.answer for relation in relations]
    plain = ["a red star", "a ring a ring", "", "a very large plain square in blue", "on the left"]  # tokenized by hand
    for name, of in rows.items():
        (bleu, *_), _ = Bleu(4).compute_score({r: [words[r]] for r in of}, {r: [plain[r]] for r in of}, verbose=0)
        cosines = [
            F.cosine_similarity(
                encoder.encode_texts([captions[r]])[0], encoder.encode_texts([f"Image of {words[r]}"])[0], dim=0
            ).item()
            for r in of
        ]
        assert scores[name]["BLEU-1"] == pytest.approx(bleu)
        assert scores[name]["CLIP-score"] == pytest.approx(np.mean(cosines), abs=1e-5)
    assert re.search(r"^second +0\.200 +0\.500 ", table(scores), re.MULTILINE)


# ---- the script --------------------------------------------------------------------------------------


def run_script(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["relations.py", *options])
    runpy.run_module("prefixcap.commands.relations", run_name="__main__")


def test_the_script_answers_by_zerocap_and_by_a_prefix(
    file: Path,
    captioner: Captioner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    captioner.save_pretrained(tmp_path / "captioner")
    quick = ("method.candidates=8", "method.iterations=1", "method.beams=2", "method.max_tokens=6", "method.lm=demo")
    for way in (
        ("method=zerocap_arithmetic", "method.encoder=demo", *quick),
        (f"ckpt={tmp_path / 'captioner'}", "decode=greedy"),
    ):
        out = tmp_path / way[0][:4]
        given = (*way, f"relations={file}", "names=[shape,size]", f"out={out}")
        run_script(monkeypatch, *given, "first=1")
        first = json.loads((out / "relations.json").read_text())["answers"]
        run_script(monkeypatch, *given, "first=2")  # goes on
        results = json.loads((out / "relations.json").read_text())
        assert [of["relation"] for of in results["answers"]] == ["shape", "shape", "size", "size"]
        assert [of for of in results["answers"] if of in first] == first
        assert list(results["scores"]) == ["shape", "size", "overall"]
        assert "4 relations" in capsys.readouterr().out
    broken = (
        "method=zerocap",
        "method.encoder=demo",
        *quick,
        "method.language_weight=1e39",
        f"out={tmp_path / 'broken'}",
    )
    run_script(monkeypatch, *broken, f"relations={file}", "names=[shape]", "first=1")
    assert "steps of gradient descent were left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give the captioner that answers, ckpt=PATH or method=NAME"),
        (("method=other",), "there is no method=other; choose one of"),
        (("method=clipre", "relations={file}"), "method=clipre cannot answer"),
        (("method=zerocap", "relations=no.json"), "cannot read no.json"),
        (("method=zerocap", "relations={file}", "names=[age]"), "there are no relations 'age': choose from colour"),
        (("method=zerocap", "relations={file}", "first=0"), "first must be at least 1"),
        (("method=zerocap", "relations={file}", "method.lm=demo", "method.encoder=demo", "method.beams=0"), "beams"),
        (("method=zerocap", "out={file}"), "is a file: name a folder"),
    ],
)
def test_mistakes(
    options: tuple[str, ...], message: str, file: Path, tmp_path: Path, mistake: Callable[..., str]
) -> None:
    given = [option.format(file=file) for option in options]
    given += [] if any(option.startswith("out=") for option in options) else [f"out={tmp_path / 'out'}"]
    assert message in mistake("relations", *given)
    assert not (tmp_path / "out").exists()
