"""The table and the figure over prefix lengths, from runs that are made here of random weights."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prefixcap.captioner import Captioner, load
from prefixcap.commands import main
from prefixcap.commands.prefix_length import Point, draw, evaluate_runs
from prefixcap.language import load_language_model
from prefixcap.metrics import score_captions
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join
from tests.conftest import IDENTITY

CAPTIONS = ("a red star.", "a blue ring in the snow.", "a large green heart on the left.", "two small dots.")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs, of untrained captioners, with the store that they might have been trained from."""
    images = [ImageRecord(number, f"{number}.jpg", "train", CAPTIONS[number % 4 :]) for number in range(8)]
    images += [ImageRecord(number, f"{number}.jpg", "test", CAPTIONS[number % 4 :]) for number in range(8, 12)]
    images.append(ImageRecord(12, "12.jpg", "test", ()))  # there is nothing to score its caption against
    embeddings = np.random.default_rng(0).normal(size=(len(images), IDENTITY.dim)).astype(np.float16)
    writer = StoreWriter(tmp_path / "store", IDENTITY, "test", tmp_path, job="test", shards=1)
    writer.write_piece(0, 0, 1, images, {"images/embedding": embeddings}, [])
    join(tmp_path / "store")
    for mapper, tuning, length in (("mlp", "full", 1), ("mlp", "full", 3), ("transformer", "frozen", 3)):
        save_run(tmp_path / "runs" / f"{mapper}-{length}", tmp_path / "store", mapper, tuning, length)
    return tmp_path / "runs"


def save_run(folder: Path, store: Path, mapper: str, tuning: Any, length: int) -> None:
    torch.manual_seed(length)
    options = {"name": mapper, "prefix_length": length} | ({"clip_length": 2, "layers": 1} if mapper != "mlp" else {})
    captioner = Captioner(load_language_model("demo", tuning), IDENTITY, options, trained_on={"store": str(store)})
    weights = {f"captioner.{name}": weight for name, weight in captioner.checkpoint_state_dict().items()}
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"prefixcap": captioner.describe(), "state_dict": weights}, folder / "checkpoints" / "best.ckpt")


def test_each_run_is_scored_once_on_both_splits(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def note(path: Path, device: str) -> Captioner:
        opened.append(path.parent.parent.name)
        return load(path)

    monkeypatch.setattr("prefixcap.captioner.load", note)
    points = evaluate_runs(runs, 6, "greedy")
    assert opened == ["mlp-1", "mlp-3", "transformer-3"]
    assert [(point.run, point.split) for point in points] == [(run, s) for run in opened for s in ("train", "test")]
    assert {(point.setting, point.prefix_length) for point in points} == {
        ("mlp, tuned language model", 1), ("mlp, tuned language model", 3), ("transformer, frozen language model", 3)
    }  # fmt: skip

    split = FeatureStore(runs.parent / "store").split("test")
    captions = load(runs / "mlp-3" / "checkpoints" / "best.ckpt").caption(split.embeddings[:4], "greedy")
    references = {image: list(CAPTIONS[image % 4 :]) for image in range(8, 12)}
    expected = score_captions(dict(zip(range(8, 12), captions, strict=True)), references, ["BLEU", "CIDEr"]).corpus
    (found,) = (point for point in points if (point.run, point.split) == ("mlp-3", "test"))
    assert (found.bleu_4, found.cider) == pytest.approx((expected["BLEU-4"], expected["CIDEr"]))

    opened.clear()
    assert evaluate_runs(runs, 6, "greedy") == points and opened == []
    newer = (runs / "prefix_length.csv").stat().st_mtime + 10
    os.utime(runs / "mlp-1" / "checkpoints" / "best.ckpt", (newer, newer))
    assert sorted(evaluate_runs(runs, 6, "greedy"), key=str) == sorted(points, key=str) and opened == ["mlp-1"]
    opened.clear()
    evaluate_runs(runs, 5, "greedy")
    assert len(opened) == 3


def test_the_command_writes_table_and_figure(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main("prefix-length", [str(runs), "--images", "2", "--decode", "greedy"])
    assert capsys.readouterr().out.split()[-1] == str(runs / "prefix_length.png")
    with (runs / "prefix_length.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    with Image.open(runs / "prefix_length.png") as picture:
        assert picture.width > picture.height > 300
    with pytest.raises(SystemExit):
        main("prefix-length", [str(runs.parent / "store")])
    assert "no run below" in capsys.readouterr().err
    (runs / "prefix_length.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit):
        main("prefix-length", [str(runs)])
    assert "is not a table that this command wrote" in capsys.readouterr().err


def test_the_figure_has_a_panel_for_each_setting_and_dashes_training_images() -> None:
    points = [
        Point(f"{setting}-{length}", setting, length, split, 10, "beam", length / 100, length / 10 + (split == "test"))
        for setting in ("mlp, tuned language model", "transformer, frozen language model")
        for length in (10, 2, 5)
        for split in ("train", "test")
    ]
    figure = draw(points)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["mlp, tuned language model", "transformer, frozen language model"]
    lines = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    assert len(lines) == 4 and sum(len(axes.get_lines()) for axes in figure.axes) == 8
    assert {label: line.get_linestyle() for label, line in lines.items()} == {
        "BLEU-4, test": "-", "CIDEr, test": "-", "BLEU-4, train": "--", "CIDEr, train": "--"
    }  # fmt: skip
    assert list(lines["CIDEr, test"].get_xdata()) == [2, 5, 10]
    assert list(lines["CIDEr, test"].get_ydata()) == pytest.approx([1.2, 1.5, 2.0])
