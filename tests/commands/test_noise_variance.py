"""Tables and figures over noise and patches, from runs that are made here of random weights."""

import csv
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prefixcap.captioner import Captioner, load
from prefixcap.commands import main
from prefixcap.commands.noise_variance import (
    Point,
    draw_patches,
    draw_variances,
    evaluate_runs,
    find_runs,
    read_sample,
)
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.language import load_language_model
from prefixcap.metrics import score_captions
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join

IDENTITY = load_encoder("demo").identity
CAPTIONS = ("a red star.", "a blue ring in the snow.", "a large green heart on the left.", "two small dots.")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs, of untrained captioners, beside a store of images with five regions."""
    make_store(tmp_path / "store", regions=True)
    for variance, copies in ((0.001, 2), (0.016, 2), (0.25, 3)):
        save_run(tmp_path / "runs" / str(variance), variance, copies)
    return tmp_path / "runs"


def make_store(path: Path, regions: bool) -> None:
    images = [ImageRecord(number, f"{number}.jpg", "test", CAPTIONS[number % 4 :]) for number in range(6)]
    images.append(ImageRecord(6, "6.jpg", "test", ()))  # there is nothing to score its caption against
    images.append(ImageRecord(7, "7.jpg", "val", ()))
    values = np.random.default_rng(0).normal(size=(len(images), 5, IDENTITY.dim)).astype(np.float16)
    columns = {"images/embedding": values.mean(1)} | ({"images/regions": values} if regions else {})
    writer = StoreWriter(path, IDENTITY, "test", path, job="test", shards=1)
    writer.write_piece(0, 0, 1, images, columns, [])
    join(path)


def save_run(folder: Path, variance: float, copies: int, mapper: str = "adaptor") -> None:
    torch.manual_seed(copies + int(1000 * variance))
    options = {"name": mapper, "prefix_length": 2}
    captioner = Captioner(load_language_model("demo"), IDENTITY, options, normalize_embeddings=True)
    weights = {
        f"captioner.{name}": 3 * weight for name, weight in captioner.checkpoint_state_dict().items()
    }  # to differ more
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"prefixcap": captioner.describe(), "state_dict": weights}, folder / "checkpoints" / "best.ckpt")
    (folder / "config.yaml").write_text(f"model:\n  noise:\n    variance: {variance}\n    copies: {copies}\n")


def test_runs_are_scored_by_as_many_patches_as_wanted_and_once(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def note(path: Path, device: str) -> Captioner:
        opened.append(path.parent.parent.name)
        return load(path)

    monkeypatch.setattr("prefixcap.captioner.load", note)
    found, store = find_runs(runs), FeatureStore(runs.parent / "store")
    assert [(run.name, run.variance, run.copies) for run in found] == [
        ("0.001", 0.001, 2), ("0.016", 0.016, 2), ("0.25", 0.25, 3)
    ]  # fmt: skip
    wanted, file = {found[2]: [3], found[1]: [5, 1]}, runs / "table.csv"
    points = evaluate_runs(wanted, read_sample(store, "test", 100), file, "greedy", 0.5, 0)
    assert sorted(opened) == ["0.016", "0.25"]
    assert [(point.run, point.variance, point.patches) for point in points] == [
        ("0.016", 0.016, 1), ("0.016", 0.016, 5), ("0.25", 0.25, 3)
    ]  # fmt: skip

    regions = store.split("test").feature("images/regions")[:6]
    references = {image: list(CAPTIONS[image % 4 :]) for image in range(6)}
    for point in points:
        captioner = load(runs / point.run / "checkpoints" / "best.ckpt")
        captions = captioner.caption(regions[:, : point.patches], "greedy", noise=0.5, seed=0)
        expected = score_captions(dict(zip(range(6), captions, strict=True)), references, ["BLEU", "CIDEr"]).corpus
        assert (point.bleu_4, point.cider) == pytest.approx((expected["BLEU-4"], expected["CIDEr"]))
    assert len({point.cider for point in points}) == 3

    opened.clear()
    assert evaluate_runs(wanted, read_sample(store, "test", 6), file, "greedy", 0.5, 0) == points and not opened
    newer = file.stat().st_mtime + 10
    os.utime(runs / "0.25" / "checkpoints" / "best.ckpt", (newer, newer))
    assert evaluate_runs(wanted, read_sample(store, "test", 6), file, "greedy", 0.5, 0) == points and opened == ["0.25"]
    (other,) = evaluate_runs({found[1]: [1]}, read_sample(store, "test", 5), file, "greedy", 0.5, 0)
    assert opened == ["0.25", "0.016"] and other.images == 5


def test_the_encoder_chooses_of_several_candidates(runs: Path) -> None:
    store, (first, *_) = FeatureStore(runs.parent / "store"), find_runs(runs)
    sample = read_sample(store, "test", 3)
    (chosen,) = evaluate_runs({first: [2]}, sample, runs / "table.csv", "greedy", 0.5, 4)
    candidates = load(first.checkpoint).candidates(sample.regions[:, :2], 4, "greedy", noise=0.5, seed=0)
    encoder, captions = load_encoder("demo"), {}
    for image_id, of_image, embedding in zip(sample.references, candidates, sample.embeddings, strict=True):
        texts = encoder.encode_texts(of_image)
        closest = torch.cosine_similarity(texts.float(), torch.from_numpy(embedding).float()).argmax().item()
        captions[image_id] = of_image[int(closest)]
    scores = score_captions(captions, sample.references, ["BLEU", "CIDEr"]).corpus
    assert (chosen.bleu_4, chosen.cider) == pytest.approx((scores["BLEU-4"], scores["CIDEr"]))
    (alone,) = evaluate_runs({first: [2]}, sample, runs / "table.csv", "greedy", 0.5, 0)
    assert alone != chosen and alone.rerank == 0


def test_the_command_writes_tables_and_figures(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(runs), "--images", str(runs.parent / "store"), "--decode", "greedy", "--count", "3"]
    main("noise-variance", [*given, "--patches", "1", "3", "3", "5"])
    printed = capsys.readouterr().out
    rows = {}
    for name in ("noise_variance", "patches"):
        with (runs / f"{name}.csv").open() as file:
            rows[name] = list(csv.DictReader(file))
        with Image.open(runs / f"{name}.png") as picture:
            assert picture.width > picture.height > 300
        for row in rows[name]:
            assert f"{row['variance']:>14}  {row['patches']:>7}  {float(row['bleu_4']):7.3f}" in printed
    assert [(row["run"], row["patches"]) for row in rows["noise_variance"]] == [
        ("0.001", "2"), ("0.016", "2"), ("0.25", "3")
    ]  # fmt: skip
    assert [(row["run"], row["patches"]) for row in rows["patches"]] == [("0.016", number) for number in "135"]
    main("noise-variance", [*given, "--patches", "2", "--run", "0.25"])
    assert "captioning with" in (told := capsys.readouterr().err) and "0.016" not in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--patches", "1", "10"], "store has 5 regions of each image, and 10 are asked for: embed the images again"),
        (["--patches", "0", "5"], "--patches are at least 1, not 0"),
        (["--noise", "-1"], "--noise and --rerank are at least 0, not -1 and 0"),
        (["--count", "0"], "--count is at least 1, not 0"),
        (["--run", "0.5"], "0 runs are named '0.5', where one is needed: give --run NAME, one of 0.001, 0.016, 0.25"),
        (["--split", "val"], "val, have no captions to compare with"),
        (["--images", "whole"], "has no images/regions; it has images/embedding: embed again, into another store"),
    ],
)
def test_mistakes_are_told_before_anything_is_captioned(
    runs: Path, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs.parent)
    make_store(Path("whole"), regions=False)
    with pytest.raises(SystemExit) as stopped:
        main("noise-variance", ["runs", "--images", "store", "--patches", "1", *options])
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and printed.startswith("error: ") and printed.count("\n") == 1 and words in printed


def test_folders_without_fitting_runs_are_told(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(runs.parent / "store")

    def mistake(folder: Path) -> str:
        with pytest.raises(SystemExit):
            main("noise-variance", [str(folder), "--images", store, "--patches", "1", "--decode", "greedy"])
        return capsys.readouterr().err

    assert "no run below" in mistake(runs.parent / "store")
    save_run(runs / "again", 0.016, 2)
    assert "2 runs have noise of variance 0.016, where one is needed" in mistake(runs)
    (runs / "again" / "config.yaml").write_text("model: {noise: null}\n")
    assert "config.yaml has no model.noise with variance and copies" in mistake(runs)
    (runs / "again" / "config.yaml").write_text("model: [\n")
    assert "config.yaml has no model.noise with variance and copies" in mistake(runs)
    (runs / "again" / "config.yaml").unlink()
    assert "config.yaml" in mistake(runs)
    save_run(runs / "0.0", 0.0001, 1, mapper="mlp")
    (runs / "again" / "checkpoints" / "best.ckpt").unlink()
    assert "reads images/embedding, not images/regions" in mistake(runs)
    (runs / "noise_variance.csv").write_text("a,b\n1,2\n")
    assert "is not a table that this command wrote" in mistake(runs)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert 'drawing needs matplotlib: pip install "prefixcap[plot]"' in mistake(runs)


def points_of(values: list[tuple[float, int]]) -> list[Point]:
    return [Point(f"{v}-{n}", v, n, "", "test", 9, "beam", 0.016, 0, v + n / 100, 2 * v + n / 10) for v, n in values]


def test_the_figures_have_the_scores_in_order() -> None:
    figure = draw_variances(points_of([(0.25, 10), (0.0, 10), (0.016, 10), (0.001, 10)]))
    assert [panel.get_ylabel() for panel in figure.axes] == ["BLEU-4", "CIDEr"]
    for panel, offset, slope in zip(figure.axes, (0.1, 1.0), (1, 2), strict=True):
        published, line = panel.get_lines()
        assert list(line.get_xdata()) == [0.0, 0.001, 0.016, 0.25]
        assert list(line.get_ydata()) == pytest.approx([offset + slope * v for v in (0.0, 0.001, 0.016, 0.25)])
        assert list(published.get_xdata()) == [0.016, 0.016]
        places = panel.transData.transform([(v, 0) for v in (0.0, 0.001, 0.01, 0.1)])[:, 0]
        steps = np.diff(places)
        assert (
            panel.bbox.x0 < places[0] and steps[0] > 0 and steps[1] == pytest.approx(steps[2], rel=0.01)
        )  # a log axis, with room for 0
    for panel in draw_patches(points_of([(0.016, 20), (0.016, 1), (0.016, 5)]), copies=10).axes:
        copies, line = panel.get_lines()
        assert list(line.get_xdata()) == [1, 5, 20] and list(copies.get_xdata()) == [10, 10]


def test_a_sample_is_the_same_each_time_and_has_no_image_without_captions(runs: Path) -> None:
    store = FeatureStore(runs.parent / "store")
    first, second = read_sample(store, "test", 4), read_sample(store, "test", 4)
    assert list(first.references) == list(second.references) and len(first.references) == 4
    regions = store.split("test").feature("images/regions")
    assert np.array_equal(first.regions, regions[np.array(list(first.references), np.int64)])
    assert list(read_sample(store, "test", 7).references) == list(range(6))
    with pytest.raises(InputError, match="no split 'train'"):
        read_sample(store, "train", 4)
