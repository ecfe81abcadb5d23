"""Captions without training, by the scripts, on a small world of a few pictures."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefixcap.zeroshot.zerocap import ZeroCap
from tests.e2e.conftest import Script

FEW = ("data=demo", "metrics=[BLEU]")
SHORT = ("method=zerocap", "method.prompt=A", "method.beams=2", "method.iterations=1", "method.max_tokens=5")


def captions(folder: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((folder / "captions.json").read_text())
    return found


def test_zerocap_is_scored_and_goes_on_where_it_was_stopped(
    script: Script, folder: Path, monkeypatch: pytest.MonkeyPatch, mistake: Callable[..., str]
) -> None:
    options = (*FEW, *SHORT, "batch_size=2")
    printed = script("eval", *options, "out=whole")
    assert "right attributes" in printed and "results: whole/" in printed
    assert len(captions(folder / "whole")) == 9

    caption, calls = ZeroCap.caption, []

    def stops(self: ZeroCap, *given: object, **options: object) -> list[str]:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return caption(self, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ZeroCap, "caption", stops)
    with pytest.raises(SystemExit):
        script("eval", *options, "out=stopped")
    written = (folder / "stopped" / "written.jsonl").read_text()
    assert len(written.splitlines()) == 1 + 4
    (folder / "stopped" / "written.jsonl").write_text(written + '[2710, "half a li')  # as a kill leaves it
    script("eval", *options, "out=stopped")
    assert len(calls) == 3 + 3  # five images were left
    assert captions(folder / "stopped") == captions(folder / "whole")
    monkeypatch.undo()
    told = mistake("eval", *options, f"out={folder}/stopped", f"data.store={folder}/stores/demo-demo", "limit=3")
    assert "written.jsonl holds results with other settings" in told


def test_some_images_and_the_ablation(script: Script, folder: Path) -> None:
    script("eval", *FEW, *SHORT, "method.guide=clip_and_lm", "limit=4", "out=some")
    assert len(captions(folder / "some")) == 4
    some = {entry["image_id"] for entry in captions(folder / "some")}
    script("eval", *FEW, *SHORT, "limit=4", "out=others")
    assert {entry["image_id"] for entry in captions(folder / "others")} == some


def test_magic_takes_what_train_lm_made(script: Script, folder: Path) -> None:
    training = ("trainer.max_steps=4", "trainer.val_check_interval=2", "batch_size=16")
    printed = script("train_lm", "data=demo", *training, "+trainer.enable_progress_bar=false", "run_dir=lm")
    assert "language model: lm/language_model" in printed
    script("eval", *FEW, "method=magic", "method.lm=lm/language_model", "method.max_tokens=6", "out=magic")
    assert len(captions(folder / "magic")) == 9


def test_mistakes_are_told(mistake: Callable[..., str]) -> None:
    assert "method=zerocap needs images" in mistake("eval", "method=zerocap")
    assert "method.lm must be given" in mistake("eval", "method=magic", "data=demo")
    assert "choose one of clipre, magic, zerocap, zerocap_arithmetic, zerocap_released" in mistake(
        "eval", "method=zero", "data=demo"
    )
