"""SPIDEr, with a count of words in SPICE's place, which needs no parser."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from prefixcap.errors import InputError
from prefixcap.evaluation import evaluate
from prefixcap.evaluation.comparison import compare
from prefixcap.metrics import mean_of, score_captions
from prefixcap.metrics.caption_metrics import CaptionMetric
from prefixcap.metrics.significance import confidence_interval
from prefixcap.metrics.spice import Spice
from prefixcap.metrics.spider import Spider

CAPTIONS = {1: "a dog runs", 2: "a cat", 3: "two birds in a tree", 4: "a dog on sand"}
REFERENCES = {
    1: ["a dog runs", "the dog is running"],
    2: ["a cat asleep", "a sleeping cat"],
    3: ["two birds in a tree", "birds on a branch", "birds sing"],
    4: ["a brown dog on sand", "a dog at the sea"],
}
DOMAINS: dict[int | str, str] = {1: "dogs", 4: "dogs", 2: "others", 3: "others"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """How many captions each call of SPICE scored; its score of a caption is a tenth of the number of words."""
    counts = []

    def statistics(self: Spice, captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        counts.append(len(captions))
        return mean_of([len(caption.split()) / 10 for caption in captions])

    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path))
    monkeypatch.setattr(Spice, "statistics", statistics)
    return counts


def test_spider_is_the_mean_of_cider_and_spice_which_are_computed_once(calls: list[int], tmp_path: Path) -> None:
    evaluation = evaluate(CAPTIONS, REFERENCES, ["SPIDEr"], domains=DOMAINS)
    assert calls == [4, 9]  # captions, and all captions of people
    assert evaluation.humans is not None
    for scores in (evaluation.scores, evaluation.humans, *evaluation.domains.values()):
        assert list(scores.corpus) == ["CIDEr", "SPICE", "SPIDEr"]
        assert scores.corpus["SPIDEr"] == pytest.approx((scores.corpus["CIDEr"] + scores.corpus["SPICE"]) / 2)
        for image, score in scores.per_image["SPIDEr"].items():
            both = scores.per_image["CIDEr"][image] + scores.per_image["SPICE"][image]
            assert score == pytest.approx(both / 2)
    # CIDEr weighs words within each domain, and so must the part of it that is in SPIDEr.
    within = score_captions({i: CAPTIONS[i] for i in (1, 4)}, {i: REFERENCES[i] for i in (1, 4)}, ["CIDEr"])
    expected = (within.corpus["CIDEr"] + (0.3 + 0.4) / 2) / 2
    assert evaluation.domains["dogs"].corpus["SPIDEr"] == pytest.approx(expected)

    # The interval of both scores drawn together, not the mean of their intervals.
    statistics = evaluation.scores.statistics
    halves = (statistics["CIDEr"][:, 0] + statistics["SPICE"][:, 0]) / 2
    ((low, high),) = confidence_interval(lambda totals: totals[..., :1] / totals[..., 1:], mean_of(halves)).tolist()
    assert evaluation.intervals["SPIDEr"] == pytest.approx((low, high))

    evaluation.write(tmp_path / "all", "all")
    evaluate(dict.fromkeys(REFERENCES, "a bird"), REFERENCES, ["SPIDEr"]).write(tmp_path / "poor", "poor")
    difference = compare(tmp_path / "all", tmp_path / "poor").pair("SPIDEr").difference
    poor = evaluate(dict.fromkeys(REFERENCES, "a bird"), REFERENCES, ["SPIDEr"]).scores.corpus["SPIDEr"]
    assert abs(difference) == pytest.approx(evaluation.scores.corpus["SPIDEr"] - poor)


def test_without_spice_spider_is_missing_for_the_same_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path))  # where no parser is
    evaluation = evaluate(CAPTIONS, REFERENCES, ["SPIDEr", "ROUGE-L"])
    assert evaluation.humans is not None
    for scores in (evaluation.scores, evaluation.humans):
        assert sorted(scores.corpus) == ["CIDEr", "ROUGE-L"]
        assert scores.missing["SPIDEr"] == scores.missing["SPICE"]
    assert "SPIDEr is missing: SPICE needs Stanford CoreNLP" in evaluation.table()


def test_spider_scores_no_captions_by_itself() -> None:
    with pytest.raises(InputError, match="SPIDEr does not score captions against references"):
        CaptionMetric(Spider())
