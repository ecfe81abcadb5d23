"""`prefixcap eval ckpt=` goes on where it was stopped, to the captions that it would have written without a stop."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from prefixcap.captioner import Captioner
from prefixcap.encoders import load_encoder
from prefixcap.language import load_language_model
from prefixcap.store import ImageRecord, StoreWriter, join
from tests.conftest import run_script

Evaluate = Callable[..., None]
IMAGES = 7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of images with random embeddings, and an untrained captioner of them."""
    root, identity = tmp_path_factory.mktemp("stopped"), load_encoder("demo").identity
    embeddings = np.random.default_rng(0).standard_normal((IMAGES, identity.dim)).astype(np.float16)
    writer = StoreWriter(root / "images", identity, "test", root, job="test", shards=1)
    records = [ImageRecord(place, "", "test", ("a star", "a red star")) for place in range(IMAGES)]
    writer.write_piece(0, 0, 1, records, {"images/embedding": embeddings}, [])
    join(root / "images")
    torch.manual_seed(0)
    captioner = Captioner(load_language_model("demo"), identity, {"name": "mlp", "prefix_length": 2})
    captioner.save_pretrained(root / "captioner")
    return root


@pytest.fixture
def evaluate(root: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    def run(*options: str) -> None:
        data = ("data=demo", f"data.store={root}/images", "decode.max_tokens=6", "metrics=[BLEU]")
        monkeypatch.setattr(sys, "argv", ["eval", f"ckpt={root}/captioner", *data, *options])
        run_script("eval")

    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of `Captioner.caption` captions; the third is stopped as by Ctrl-C."""
    caption, calls = Captioner.caption, list[int]()

    def stops(self: Captioner, images: np.ndarray, *given: object, **options: object) -> list[str]:
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return caption(self, images, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Captioner, "caption", stops)
    return calls


def captions(folder: Path) -> list[str]:
    return [result["caption"] for result in json.loads((folder / "captions.json").read_text())]


@pytest.mark.parametrize(
    ("options", "at_once"),
    [
        (["decode=greedy", "batch_size=2"], 2),
        (["decode=nucleus", "decode.top_p=0.9", "batch_size=2"], 2),
        (["decode=maccap", "decode.noise=0.1", "decode.rerank=3", "batch_size=6"], 2),  # six rows of noise
    ],
)
def test_it_goes_on_to_the_same_captions(
    options: list[str], at_once: int, root: Path, tmp_path: Path, evaluate: Evaluate, calls: list[int]
) -> None:
    calls += [0, 0, 0]
    evaluate(*options, f"out={tmp_path / 'whole'}")
    del calls[:]
    with pytest.raises(SystemExit):
        evaluate(*options, f"out={tmp_path / 'stopped'}")
    kept = tmp_path / "stopped" / "unfinished-test.jsonl"
    found = kept.read_text()
    assert sum(json.loads(line)[0] is not None for line in found.splitlines()[1:]) == 2 * at_once
    kept.write_text(found + '[5, "half a li')  # as a kill leaves it
    evaluate(*options, f"out={tmp_path / 'stopped'}")
    assert calls == [at_once, at_once, at_once, at_once, 1]  # the third was stopped
    assert captions(tmp_path / "stopped") == captions(tmp_path / "whole")
    assert len(set(captions(tmp_path / "whole"))) > 1 and not kept.exists()


def test_the_batches_are_those_of_python(root: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    """Captions drawn at random are those of one call with the same seed."""
    evaluate("decode=nucleus", "decode.top_p=0.9", "batch_size=2", f"out={tmp_path}")
    embeddings = np.random.default_rng(0).standard_normal((IMAGES, 128)).astype(np.float16)
    options = {"top_p": 0.9, "seed": 0, "max_tokens": 6}
    assert captions(tmp_path) == Captioner.from_pretrained(root / "captioner").caption(
        embeddings, "nucleus", batch_size=2, **options
    )


@pytest.mark.parametrize("change", ["decode.top_p=0.8", "batch_size=3", "weights"])
def test_captions_of_another_job_are_not_kept(
    change: str, root: Path, tmp_path: Path, evaluate: Evaluate, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["decode=nucleus", "decode.top_p=0.9", "batch_size=2", f"out={tmp_path}"]
    with pytest.raises(SystemExit):
        evaluate(*options)
    if change == "weights":
        other = Captioner.from_pretrained(root / "captioner")
        with torch.no_grad():
            next(other.mapper.parameters()).mul_(2)
        other.save_pretrained(tmp_path / "other")
        options.append(f"ckpt={tmp_path / 'other'}")
    else:
        options.append(change)
    evaluate(*options)
    assert sum(calls[3:]) == IMAGES and len(captions(tmp_path)) == IMAGES


def test_a_mistake_leaves_no_folder(tmp_path: Path, root: Path, mistake: Callable[..., str]) -> None:
    out, data = tmp_path / "out", ("data=demo", f"data.store={root}/images")
    told = mistake("eval", f"ckpt={root}/captioner", *data, "decode=nucleus", "decode.top_p=2", f"out={out}")
    assert "top_p" in told and not out.exists()
    for option in ("decode.rerank=abc", "decode.rerank=-1", "batch_size=0"):
        told = mistake("eval", f"ckpt={root}/captioner", *data, "decode=maccap", option, f"out={out}")
        assert option.partition("=")[0].removeprefix("decode.") in told and not out.exists()
