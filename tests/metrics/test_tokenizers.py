"""How captions are split into words, and that it is recorded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixcap.errors import InputError
from prefixcap.evaluation import evaluate
from prefixcap.evaluation.comparison import compare
from prefixcap.metrics import MetricInputs, score_captions, score_humans
from prefixcap.metrics.tokenizers import TOKENIZERS, mteval_13a
from tests.evaluation.test_eval import evaluate as evaluate_command

CAPTIONS = {1: "A dog, running.", 2: "一只狗在跑", 3: "2 cats"}
REFERENCES = {1: ["a dog , running .", "The dog runs"], 2: ["一只小狗", "狗在跑步。"], 3: ["two cats", "2 cats"]}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ptb", ["a dog running", "一 只 狗 在 跑", "2 cats"]),
        ("characters", ["a d o g r u n n i n g", "一 只 狗 在 跑", "2 c a t s"]),
        ("13a", ["A dog , running .", "一只狗在跑", "2 cats"]),
        ("none", ["A dog, running.", "一只狗在跑", "2 cats"]),
    ],
)
def test_scores_are_those_of_texts_tokenized_before(name: str, words: list[str]) -> None:
    assert TOKENIZERS[name](CAPTIONS.values()) == words
    inputs = MetricInputs(tokenizer=name, candidates=[["A dog.", "dog a"], ["狗", "狗"], ["x", "y"]])
    metrics = ["BLEU", "ROUGE-L", "CIDEr"]
    scores = score_captions(CAPTIONS, REFERENCES, [*metrics, "set-diversity", "diversity"], inputs)
    tokenized = {image: TOKENIZERS[name](texts) for image, texts in REFERENCES.items()}
    plain = MetricInputs(tokenizer="none")
    before = score_captions(dict(zip(CAPTIONS, words, strict=True)), tokenized, metrics, plain)
    assert {each: scores.corpus[each] for each in before.corpus} == before.corpus
    of_people, people_before = score_humans(REFERENCES, metrics, inputs), score_humans(tokenized, metrics, plain)
    assert of_people is not None and people_before is not None and of_people.corpus == people_before.corpus
    assert scores.figures["diversity"]["Length"] == pytest.approx(sum(len(text.split()) for text in words) / 3)
    different = {"ptb": 2 / 4, "characters": 4 / 8, "13a": 4 / 5, "none": 4 / 4}[name]
    assert scores.per_image["Div-1"][1] == different
    expected = f"tokenizer: {name}, not that of the COCO tools; compare with scores of the same"
    noted = [note for note in scores.notes if note.startswith("tokenizer")]
    assert noted == ([] if name == "ptb" else [expected])
    split = name in ("ptb", "characters")
    assert any("scored character by character" in note for note in scores.notes) == split
    assert any("have no words for this tokenizer" in note for note in scores.notes) != split


@given(st.text(alphabet="aB1.,-&;'\"()<>/ \n$é狗quotampskipped"))
def test_13a_is_that_of_sacrebleu(text: str) -> None:
    sacrebleu = pytest.importorskip("sacrebleu.tokenizers.tokenizer_13a", reason="sacrebleu is not installed")
    assert mteval_13a(text) == sacrebleu.Tokenizer13a()(text)


def test_entities_and_line_breaks_of_13a() -> None:
    assert mteval_13a("&quot;A&amp;B&quot; 1,000.5-2 well-\nknown\nend.") == '" A & B " 1,000.5 - 2 wellknown end .'


def test_the_tokenizer_is_recorded_and_must_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Callable[..., str]
) -> None:
    captions = {str(image): text for image, text in CAPTIONS.items()}
    references = {str(image): texts for image, texts in REFERENCES.items()}
    for name, content in (("captions", captions), ("references", references)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    options = [f"captions={tmp_path}/captions.json", f"references={tmp_path}/references.json", "metrics=[BLEU]"]
    evaluate_command(monkeypatch, *options, "metric_tokenizer=13a", f"out={tmp_path}/13a")
    written = json.loads((tmp_path / "13a" / "metrics.json").read_text())
    ours = evaluate(captions, references, ["BLEU"], tokenizer="13a")
    assert written["tokenizer"] == "13a" and written["BLEU-1"] == ours.scores.corpus["BLEU-1"]
    evaluate(captions, references, ["BLEU"]).write(tmp_path / "ptb", "ptb")
    with pytest.raises(InputError, match="have different tokenizers, ptb and 13a: evaluate both with the same"):
        compare(tmp_path / "ptb", tmp_path / "13a")
    ours.write(tmp_path / "again", "again")
    assert compare(tmp_path / "again", tmp_path / "13a").pair("BLEU-1").difference == 0
    unknown = "'zh': choose from ptb, characters, 13a, none"
    assert f"unknown metric_tokenizer {unknown}" in mistake("eval", *options, "metric_tokenizer=zh")
    for call in (score_captions, lambda *given: score_humans(*given[1:])):
        with pytest.raises(InputError, match=f"unknown tokenizer {unknown}"):
            call(CAPTIONS, REFERENCES, ["BLEU"], MetricInputs(tokenizer="zh"))
