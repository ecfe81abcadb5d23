"""Captions without training, by the scripts, on a small world of a few pictures."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prefixcap.encoders import embed_images, load_encoder
from prefixcap.language import load_language_model
from prefixcap.store import FeatureStore
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


def test_clip_score_is_that_of_each_caption_with_its_own_image(
    script: Script, folder: Path, mistake: Callable[..., str]
) -> None:
    script("eval", *FEW[:1], *SHORT, "metrics=[CLIPScore,perplexity]", "limit=4", "out=few")
    encoder, pictures = load_encoder("demo"), folder / "data" / "demo" / "images"
    files = {int(re.findall(r"\d+", file.stem)[-1]): file for file in pictures.rglob("*.*")}
    entries = captions(folder / "few")
    images = torch.cat([embed_images(encoder, [files[int(entry["image_id"])]]) for entry in entries])
    texts = encoder.encode_texts([f"A photo depicts {entry['caption']}" for entry in entries])
    cosines = torch.cosine_similarity(images.float(), texts.float())
    expected = pytest.approx(2.5 * cosines.clamp(min=0).mean().item(), abs=2e-3)  # the store has float16
    assert json.loads((folder / "few" / "metrics.json").read_text())["CLIPScore"] == expected

    script("eval", *FEW[:1], *SHORT, "metrics=[CLIPScore]", "out=each")
    reverse = captions(folder / "each")[::-1]
    (folder / "reverse.json").write_text(json.dumps(reverse))
    script("eval", "captions=reverse.json", "data=demo", "metrics=[CLIPScore]", "out=again")
    scores = [json.loads((folder / name / "metrics.json").read_text())["CLIPScore"] for name in ("each", "again")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    given = (f"captions={folder}/few.json", "data=demo", f"data.store={folder}/stores/demo-demo", f"out={folder}/no")
    (folder / "few.json").write_text(json.dumps(reverse[:-1]))
    assert "no caption" in mistake("eval", *given)
    (folder / "few.json").write_text(json.dumps([*reverse, {"image_id": 77, "caption": "a star"}]))
    assert "no references" in mistake("eval", *given)


def test_the_encoder_may_compute_in_another_type(script: Script, folder: Path) -> None:
    script("eval", *FEW[:1], *SHORT, "metrics=[CLIPScore]", "method.encoder_dtype=bfloat16", "out=narrow")
    store = FeatureStore(folder / "stores" / "demo-demo").split("test")
    encoder, lm = load_encoder("demo", dtype=torch.bfloat16), load_language_model("demo")
    zerocap = ZeroCap(encoder, lm, prompt="A", beams=2, iterations=1, max_tokens=5)
    expected = zerocap.caption(torch.from_numpy(store.embeddings[:]))
    assert [entry["caption"] for entry in captions(folder / "narrow")] == expected
    given = ("data=demo", "metrics=[CLIPScore]", "out=again")  # scores are always computed in single precision
    script("eval", "captions=narrow/captions.json", *given)
    scores = [json.loads((folder / name / "metrics.json").read_text())["CLIPScore"] for name in ("narrow", "again")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_magic_takes_what_train_lm_made(script: Script, folder: Path) -> None:
    training = ("trainer.max_steps=4", "trainer.val_check_interval=2", "batch_size=16")
    printed = script("train_lm", "data=demo", *training, "+trainer.enable_progress_bar=false", "run_dir=lm")
    assert "language model: lm/language_model" in printed
    script("eval", *FEW, "method=magic", "method.lm=lm/language_model", "method.max_tokens=6", "out=magic")
    assert len(captions(folder / "magic")) == 9


def test_mistakes_are_told(mistake: Callable[..., str]) -> None:
    assert "method=zerocap needs images" in mistake("eval", "method=zerocap")
    assert "method.lm must be given" in mistake("eval", "method=magic", "data=demo")
    assert "choose one of clipre, magic, magic_flickr30k, zerocap, zerocap_arithmetic, zerocap_released" in mistake(
        "eval", "method=zero", "data=demo"
    )
