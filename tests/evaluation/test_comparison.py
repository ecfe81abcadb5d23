"""Comparisons of evaluations: what is compared, what is printed and written, and what is refused."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prefixcap.commands import main
from prefixcap.errors import InputError
from prefixcap.evaluation import evaluate
from prefixcap.evaluation.comparison import Runs, compare
from prefixcap.evaluation.evaluation import Evaluation
from prefixcap.metrics import METRICS, score_captions
from prefixcap.metrics.pairwise import Test, compare_systems, holm
from tests.evaluation.test_evaluation import GOOD, POOR, REFERENCES, WITHOUT_JAVA, written

SCORES = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]


def many(folder: Path, systems: int, images: int = 60) -> list[Path]:
    """Folders of systems that leave out fewer and fewer words of the references."""
    words = [*"abcdefghijklmnop"]
    generator = random.Random(0)
    references = {n: [" ".join(generator.choices(words, k=8)) for _ in range(3)] for n in range(images)}
    folders = []
    for system in range(systems):
        kept = 0.3 + 0.6 * system / systems
        captions = {
            n: " ".join(w for w in texts[0].split() if generator.random() < kept) for n, texts in references.items()
        }
        folders.append(folder / f"system-{system}")
        Evaluation(captions, references, score_captions(captions, references, ["BLEU", "CIDEr"]), None).write(
            folders[-1], "test"
        )
    return folders


def test_two(tmp_path: Path) -> None:
    good, poor = written(GOOD, tmp_path / "good"), written(POOR, tmp_path / "poor")
    found = compare(tmp_path / "good", tmp_path / "poor")
    for number, evaluation in enumerate((good, poor)):
        scores = {metric: systems[number].score for metric, systems in found.systems.items()}
        assert scores == pytest.approx(evaluation.scores.corpus)
    assert list(found.pairs) == SCORES
    cider = found.pair("CIDEr")
    assert cider.difference == pytest.approx(good.scores.corpus["CIDEr"] - poor.scores.corpus["CIDEr"])
    assert cider.p_value == cider.corrected_p_value < 0.01 and cider.low > 0 and cider.effect_size > 0
    same = compare(tmp_path / "good", tmp_path / "good")
    assert all((pair.difference, pair.p_value, pair.effect_size) == (0, 1, 0) for (pair,) in same.pairs.values())
    lines = found.table().splitlines()
    assert lines[:2] == [f"A: {tmp_path / 'good'}", f"B: {tmp_path / 'poor'}"]
    assert [line.split("  ")[0] for line in lines[3:11]] == [
        "A", "A ±", "B", "B ±", "A - B", "A - B ±", "p-value", "effect size"
    ]  # fmt: skip


@pytest.mark.parametrize("test", ["bootstrap", "randomization"])
def test_many_at_once_are_compared_as_metric_by_metric(test: Test, tmp_path: Path) -> None:
    folders = many(tmp_path, 4)
    found = compare(*folders, test=test, samples=500)
    for metric in ("BLEU", "CIDEr"):
        statistics = [[np.load(folder / "statistics.npz")[metric]] for folder in folders]
        expected = compare_systems(METRICS[metric].score, statistics, test, 500)
        for column, name in enumerate(METRICS[metric].scores):
            pairs, systems = found.pairs[name], found.systems[name]
            assert [pair.difference for pair in pairs] == pytest.approx(expected.difference[:, column])
            assert [(pair.low, pair.high) for pair in pairs] == [
                pytest.approx(bounds) for bounds in expected.difference_interval[:, column].tolist()
            ]
            assert [pair.p_value for pair in pairs] == pytest.approx(expected.p_value[:, column])
            corrected = [pair.corrected_p_value for pair in pairs]
            assert corrected == pytest.approx(holm(expected.p_value[:, column]))
            assert [system.score for system in systems] == pytest.approx(expected.scores[:, column])
            for pair in pairs:
                a, b = (next(s for s in systems if s.system == name) for name in (pair.first, pair.second))
                assert (pair.corrected_p_value < 0.05) == (not set(a.groups) & set(b.groups))


def test_ten_systems_are_readable_in_a_hundred_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = many(tmp_path, 12)
    monkeypatch.chdir(tmp_path)
    printed = compare(*[Path(folder.name) for folder in folders[:10]], samples=500).table()
    assert max(map(len, printed.splitlines())) <= 100
    block = printed[printed.index("CIDEr: row less column") :].splitlines()
    assert block[1].split() == [*"ABCDEFGHIJ"] and block[2].split()[:2] == ["A", "-"]
    assert float(block[2].split()[2]) < 0 < float(block[3].split()[1]) <= 1  # a difference; a p-value
    assert "45 pairs of a score" in printed
    for line in compare(*folders, samples=200).table().split("CIDEr: row less")[1].splitlines()[1:]:
        assert len(line) <= 100  # columns beyond the tenth are below the others


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = many(tmp_path, 3)
    main(arguments=["eval", f"compare=[{','.join(map(str, folders))}]", f"out={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["images"] == 60 and content["test"] == "bootstrap" and content["samples"] == 10_000
    assert [system["runs"] for system in content["systems"]] == [[str(folder)] for folder in folders]
    assert all(note in printed for note in content["notes"])
    for part in ("systems", "pairs"):
        rows = list(csv.DictReader((tmp_path / "out" / f"{part}.csv").read_text().splitlines()))
        expected = [row for scores in content["scores"].values() for row in scores[part]]
        assert len(rows) == len(expected) == 15
        for row, values in zip(rows, expected, strict=True):
            assert row == {name: str(value) for name, value in values.items()}


def test_runs_of_a_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = many(tmp_path, 5)
    found = compare(folders[:3], folders[3:], samples=300)
    cider = [np.load(folder / "statistics.npz")["CIDEr"] for folder in folders]
    expected = compare_systems(METRICS["CIDEr"].score, [cider[:3], cider[3:]], samples=300)
    assert found.pair("CIDEr").difference == pytest.approx(expected.difference[0, 0])
    assert (found.pair("CIDEr").low, found.pair("CIDEr").high) == pytest.approx(expected.difference_interval[0, 0])
    assert found.names[0] == ", ".join(map(str, folders[:3])) and found.runs[1] == tuple(map(str, folders[3:]))
    runs = [f"[{','.join(map(str, part))}]" for part in (folders[:2], folders[2:4])]
    main(arguments=["eval", f"compare=[{runs[0]},{runs[1]},{folders[4]}]"])
    printed = capsys.readouterr().out
    assert f"A: {folders[0]}, {folders[1]}\nB:" in printed and "over images and runs, 10,000 samples" in printed
    assert "2 runs say little of how much runs differ" in printed and "is not known of systems with one run" in printed


def test_the_order_of_images_does_not_matter(tmp_path: Path) -> None:
    written(GOOD, tmp_path / "good")
    written(POOR, tmp_path / "poor")
    backwards = {image: REFERENCES[image][::-1] for image in reversed(REFERENCES)}
    evaluate(POOR, backwards, WITHOUT_JAVA).write(tmp_path / "backwards", "test")
    expected, found = (compare(tmp_path / "good", tmp_path / other) for other in ("poor", "backwards"))
    for metric in SCORES:
        for name in ("difference", "low", "high", "effect_size", "p_value"):
            assert getattr(found.pair(metric), name) == pytest.approx(getattr(expected.pair(metric), name))


def test_what_not_all_have_is_named(tmp_path: Path) -> None:
    written(GOOD, tmp_path / "good")
    written(POOR, tmp_path / "poor", ["CIDEr", "ROUGE-L", "diversity"])
    found = compare(tmp_path / "good", tmp_path / "poor", tmp_path / "poor")
    assert list(found.pairs) == ["ROUGE-L", "CIDEr"]
    assert "not compared, as not all have them: BLEU, diversity Length" in found.notes


def test_very_many_systems_get_as_many_samples_as_their_correction_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefixcap.evaluation.comparison._SAMPLES", 100)
    folders = many(tmp_path, 2, images=20)
    found = compare(*folders[:1] * 3, folders[1])
    assert found.samples == 1200  # 200 for each of six pairs


def test_what_cannot_be_compared(tmp_path: Path, mistake: Callable[..., str]) -> None:
    written(GOOD, tmp_path / "good")
    with pytest.raises(InputError, match=r"absent holds no evaluation \(statistics.npz: .*give folders"):
        compare(tmp_path / "good", tmp_path / "absent")
    few = {image: GOOD[image] for image in list(GOOD)[:5]}
    evaluate(few, {image: REFERENCES[image] for image in few}, WITHOUT_JAVA).write(tmp_path / "few", "test")
    with pytest.raises(InputError, match=r"different images, '5.jpg' for one \(3 in all\)"):
        compare(tmp_path / "good", tmp_path / "few")
    with pytest.raises(InputError, match=r"good and \S+few evaluate different images"):
        compare(tmp_path / "good", [tmp_path / "good", tmp_path / "few"])
    others = {image: [*texts, "a ball"] for image, texts in REFERENCES.items()}
    evaluate(GOOD, others, WITHOUT_JAVA).write(tmp_path / "others", "test")
    with pytest.raises(InputError, match="different references"):
        compare(tmp_path / "good", tmp_path / "others")
    written(GOOD, tmp_path / "rouge", ["ROUGE-L"])
    written(GOOD, tmp_path / "cider", ["CIDEr"])
    with pytest.raises(InputError, match=r"rouge and .*cider and 1 more have no metric in common"):
        compare(tmp_path / "rouge", tmp_path / "cider", tmp_path / "good")
    evaluate({1: "a dog"}, {1: ["a dog"]}, ["ROUGE-L"]).write(tmp_path / "one", "test")
    with pytest.raises(InputError, match="evaluate one image, which cannot tell which is better"):
        compare(tmp_path / "one", tmp_path / "one")
    several: list[list[Runs]] = [[tmp_path / "good"], [tmp_path / "good", []]]
    for systems in several:
        with pytest.raises(InputError, match="a comparison takes two or more systems, each of one evaluation or more"):
            compare(*systems)
    assert "randomization exchanges captions, not runs" in mistake(
        "eval", f"compare=[[{tmp_path}/good,{tmp_path}/good],{tmp_path}/good]", "test=randomization"
    )
    assert "is a file: name a folder" in mistake("eval", "compare=[a,b]", f"out={tmp_path / 'good/metrics.json'}")
    (tmp_path / "good" / "statistics.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="holds no evaluation"):
        compare(tmp_path / "good", tmp_path / "cider")
