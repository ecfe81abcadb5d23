"""The calls of other libraries: the same figures, from their dictionaries and lists."""

import random

import pytest
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from prefixcap.errors import InputError
from prefixcap.metrics import METRICS, CaptionScorer, Metric, MetricUnavailable, compute, score_captions
from tests.metrics.coco_tools import needs_java, needs_shared_data, shared_json

GTS = {
    7: ["A dog runs.", "The dog is running!"],
    391895: ["A man (in a hat) rides.", "the rider's horse"],
    "c.jpg": ["a cat", "cats"],
}
RES = {7: ["a dog runs"], 391895: ["a man rides a horse"], "c.jpg": ["two cats"]}
METRICS_ALONE = ["BLEU", "ROUGE-L", "CIDEr"]


@needs_java
@needs_shared_data
def test_dictionaries_of_pycocoevalcap() -> None:
    """Its tokenizer and its scorers beside, on published captions; then on texts that it has tokenized."""
    entries = random.Random(1).sample(shared_json("results/magic_coco_test.json"), 300)
    gts = {number: [{"caption": text} for text in entry["captions"]] for number, entry in enumerate(entries)}
    res = {number: [{"caption": entry["prediction"]}] for number, entry in enumerate(entries)}
    tokenized = [PTBTokenizer().tokenize(texts) for texts in (gts, res)]
    for scores, per_image in (compute(gts, res, METRICS_ALONE), compute(*tokenized, METRICS_ALONE)):
        for name, scorer in {"CIDEr": Cider(), "ROUGE-L": Rouge()}.items():
            total, each = scorer.compute_score(*tokenized)
            assert scores[name] == pytest.approx(total, abs=1e-9)
            assert per_image[name] == pytest.approx(list(each), abs=1e-9)


def test_ids_as_numbers_and_as_texts() -> None:
    expected = compute(GTS, RES, METRICS_ALONE)
    assert expected[0] == score_captions({i: texts[0] for i, texts in RES.items()}, GTS, METRICS_ALONE).corpus
    others = {"c.jpg": "two cats", "391895": ["a man rides a horse", "unused"], "7": ("a dog runs",)}
    assert compute(GTS, others, METRICS_ALONE) == expected
    assert compute({str(image): texts for image, texts in GTS.items()}, RES, METRICS_ALONE) == expected


def test_lists_of_evaluate() -> None:
    captions, references = [texts[0] for texts in RES.values()], list(GTS.values())
    expected = compute(GTS, RES, METRICS_ALONE)[0]
    scorer = CaptionScorer(*METRICS_ALONE)
    assert scorer.compute(predictions=captions, references=references) == expected
    scorer.add(prediction=captions[0], references=references[0])
    scorer.add_batch(predictions=captions[1:], references=references[1:])
    assert scorer.compute() == expected
    assert scorer.compute(predictions=["a dog"], references=["a dog"])["ROUGE-L"] == pytest.approx(1)


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="images with references but no caption"):
        compute(GTS, {7: ["a dog"]}, METRICS_ALONE)
    with pytest.raises(InputError, match="image 7 has an empty list of captions"):
        compute(GTS, {**RES, 7: []}, METRICS_ALONE)
    with pytest.raises(InputError, match="captions that are not strings"):
        compute(GTS, {**RES, 7: [{"text": "a dog"}]}, METRICS_ALONE)
    with pytest.raises(InputError, match="2 predictions and 1 lists of references"):
        CaptionScorer("BLEU").compute(predictions=["a", "b"], references=[["a"]])
    with pytest.raises(InputError, match="there are no captions to score"):
        CaptionScorer("BLEU").compute()

    class Absent(Metric):
        name, scores = "absent", ("absent",)

        def statistics(self, *_: object) -> None:
            raise MetricUnavailable("it needs a machine")

    monkeypatch.setitem(METRICS, "absent", Absent())
    with pytest.raises(MetricUnavailable, match="absent is missing: it needs a machine"):
        compute(GTS, RES, ["absent"])
