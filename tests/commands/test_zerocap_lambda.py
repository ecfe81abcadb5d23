"""The figure of ZeroCap's lambda."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prefixcap.commands import main
from prefixcap.commands.zerocap_lambda import read_points
from prefixcap.errors import InputError


def evaluation(folder: Path, weight: float, scores: dict[str, Any], **options: Any) -> None:
    folder.mkdir(parents=True)
    job = {"method": "zerocap", "options": {"language_weight": weight, "beams": 5, **options}}
    (folder / "written.jsonl").write_text(json.dumps({"job": job}) + '\n[1, "a star"]\n')
    (folder / "metrics.json").write_text(json.dumps(scores))


def scores(clip_score: float, perplexity: float) -> dict[str, Any]:
    return {"CLIPScore": clip_score, "perplexity": {"under gpt2": perplexity}}


def test_a_sweep_becomes_a_table_and_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    evaluation(tmp_path / "b", 0.2, scores(0.7, 30.0))
    evaluation(tmp_path / "a", 0.8, scores(0.6, 20.0))
    evaluation(tmp_path / "c", 0.05, scores(0.8, 90.0))
    main("zerocap-lambda", [str(tmp_path)])
    assert (tmp_path / "lambda.csv").read_text().splitlines() == [
        '"run","language_weight","clip_score","perplexity"',
        '"c",0.05,0.8,90.0', '"b",0.2,0.7,30.0', '"a",0.8,0.6,20.0',
    ]  # fmt: skip
    assert Image.open(tmp_path / "lambda.png").size == (720, 540)
    assert "lambda.png" in capsys.readouterr().out


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no evaluation of ZeroCap below"):
        read_points(tmp_path)
    evaluation(tmp_path / "a", 0.2, {"BLEU-1": 0.5})
    with pytest.raises(InputError, match="lacks CLIPScore or perplexity"):
        read_points(tmp_path)
    evaluation(tmp_path / "sweep" / "a", 0.2, scores(0.7, 30.0))
    evaluation(tmp_path / "sweep" / "b", 0.4, scores(0.6, 20.0), prompt="A")
    with pytest.raises(InputError, match="differ in more than lambda"):
        read_points(tmp_path / "sweep")
