"""The code in the documentation runs: blocks of Python, docs/examples, doctests."""

import csv
import doctest
import importlib
import json
import re
import shutil
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import torch

import prefixcap
from data_prep.readers import READERS
from prefixcap.decoding import DECODERS
from prefixcap.encoders import BACKENDS, embed_images, load_encoder
from prefixcap.mappers import MAPPERS
from prefixcap.metrics import METRICS
from prefixcap.metrics.ptb import tokenize
from prefixcap.prompts import PROVIDERS, build_provider
from prefixcap.store import FeatureStore
from prefixcap.training.objectives import OBJECTIVES
from tests.conftest import ROOT
from tests.docs.conftest import SHORT, run_file
from tests.docs.pages import PAGES, code_blocks, name_of

EXAMPLES = ROOT / "docs" / "examples"
REGISTERS: tuple[MutableMapping[str, Any], ...] = (
    MAPPERS,
    DECODERS,
    BACKENDS,
    METRICS,
    READERS,
    OBJECTIVES,
    PROVIDERS,
)
WITH_DOCTESTS = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in sorted([*(ROOT / "prefixcap").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py")])
    if ">>> " in file.read_text(encoding="utf-8")
]


@pytest.fixture(autouse=True)
def registers_as_before() -> Iterator[None]:
    """Parts that an example adds are gone after it."""
    before = [dict(register) for register in REGISTERS]
    yield
    for register, content in zip(REGISTERS, before, strict=True):
        register.clear()
        register.update(content)


@pytest.mark.parametrize("page", [page for page in PAGES if code_blocks(page)], ids=name_of)
def test_the_blocks_of_a_page_run_in_their_order(page: Path, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in code_blocks(page):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("module", WITH_DOCTESTS)
def test_docstrings_show_what_is_so(module: str, folder: Path) -> None:
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_doctests_in_many_modules() -> None:
    assert {"prefixcap.captioner.captioner", "prefixcap.encoders", "prefixcap.zeroshot.zerocap"} <= set(WITH_DOCTESTS)


def test_a_mapper_of_ones_own(folder: Path) -> None:
    options = ("model=mlp", "model.mapper.name=linear", "model.mapper.prefix_length=8")
    run_file(EXAMPLES / "add_mapper.py", *options, "run_dir=runs/mapper", *SHORT)
    captioner = prefixcap.load("runs/mapper/checkpoints/best.ckpt")
    assert type(captioner.mapper).__name__ == "LinearMapper" and captioner.prefix_length == 8
    first, second = captioner.prefix(captioner.embed(["photo.jpg", "another.png"]))
    assert (first[:4] == second[:4]).all() and (first[4:] != second[4:]).any()
    assert all(captioner.caption(["photo.jpg", "another.png"]))


def test_a_decoder_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("decode=greedy", "decode.method=avoiding", "metrics=[CIDEr]", "out=decoded")
    said = prefixcap.load("best.ckpt").caption(["photo.jpg"], decode="greedy")[0].split()
    unsaid = next(word for word in said[1:] if word.isalpha())
    run_file(EXAMPLES / "add_decoder.py", "eval", "ckpt=best.ckpt", "data=demo", *options, f"decode.words={unsaid}")
    captions = [entry["caption"] for entry in json.loads(Path("decoded/captions.json").read_text())]
    assert len(captions) == 9 and not any(unsaid in caption.split()[1:] for caption in captions)
    same = prefixcap.load("best.ckpt").caption(["photo.jpg"], decode="avoiding")
    assert same == [" ".join(said)]
    options = ("photo.jpg", "--ckpt", "best.ckpt", "--decode", "avoiding", "--set", f"words={unsaid} {said[-1]}")
    capsys.readouterr()
    run_file(EXAMPLES / "add_decoder.py", "caption", *options)
    words = f"{unsaid} {said[-1]}"
    assert capsys.readouterr().out == (
        f"photo.jpg\t{prefixcap.load('best.ckpt').caption(['photo.jpg'], decode='avoiding', words=words)[0]}\n"
    )


def test_an_encoder_of_ones_own(folder: Path) -> None:
    run_file(EXAMPLES / "add_encoder.py", "encoder.name=colours", "model=mlp", "run_dir=runs/encoder", *SHORT)
    captioner = prefixcap.load("runs/encoder/checkpoints/best.ckpt")
    assert captioner.encoder_identity.name == "colours"
    embeddings = captioner.embed(["photo.jpg", "another.png"])
    assert embeddings.shape == (2, 216) and embeddings.norm(dim=-1).allclose(embeddings.new_ones(2))
    assert all(captioner.caption(["photo.jpg"]))
    with pytest.raises(prefixcap.InputError, match="encoder 'colours' reads no texts"):
        captioner.caption(["photo.jpg"], rerank=2)


def test_a_reader_of_ones_own(folder: Path) -> None:
    names = [f"a star, number {number}.png" for number in range(20)]
    for name in names:
        shutil.copy("photo.jpg", Path("data", name))
    options = ("data=custom", "data.reader.name=file_names", "data.root=data", "encoder=demo")
    run_file(EXAMPLES / "add_reader.py", *options, "data.reader.pattern=*.png", "data.reader.val_share=0.5")
    store = FeatureStore("stores/file_names-demo")
    rows = [
        (file.name, *captions)
        for split in map(store.split, store.splits)
        for file, captions in zip(map(Path, split.files), split.references().values(), strict=True)
    ]
    assert sorted(rows) == sorted((name, name.removesuffix(".png")) for name in names)
    assert store.splits["val"] > store.splits["test"] > 0 and store.splits["train"] > 3
    expected = embed_images(load_encoder("demo"), ["photo.jpg"]).expand(store.splits["val"], -1)
    embeddings = torch.from_numpy(store.split("val").embeddings[:]).float()
    torch.testing.assert_close(embeddings, expected, rtol=2e-3, atol=2e-3)


def test_a_metric_of_ones_own(folder: Path) -> None:
    run_file(EXAMPLES / "add_metric.py", "ckpt=best.ckpt", "data=demo", "metrics=[CIDEr,repetition]", "out=scored")
    metrics = json.loads(Path("scored/metrics.json").read_text())
    words = [tokenize(entry["caption"]).split() for entry in json.loads(Path("scored/captions.json").read_text())]
    repeated = sum(len(caption) - len(set(caption)) for caption in words) / sum(map(len, words))
    low, high = metrics["intervals"]["repetition"]
    assert metrics["repetition"] == pytest.approx(repeated) and low <= metrics["repetition"] <= high
    assert metrics["humans"]["repetition"] < 0.3


def test_prompts_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file(EXAMPLES / "add_prompts.py", "photo.jpg", "another.png")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    provider = PROVIDERS["thing_and_place"](load_encoder("demo"), None, things=["a star", "a ring"], places=["a", "b"])
    assert all(re.fullmatch(r"There is a (circle|square|star|heart), (in|on|by) (a|the) \w+\.", line) for line in lines)
    assert provider.compose(["a star"]) == "There is a star." and provider.compose([]) == ""
    again = build_provider(provider.describe(), load_encoder("demo"))
    embeddings = load_encoder("demo").encode_texts(["a star", "a ring"])
    assert [prompt.items[0].text for prompt in again.prompts(embeddings)] == ["a star", "a ring"]


def test_an_objective_of_ones_own(folder: Path) -> None:
    """That its loss is right is shown by tests/training/test_objectives.py."""
    options = ("model=mlp", "model.objective=label_smoothing", "trainer.log_every_n_steps=1", *SHORT)
    losses = {}
    for smoothing in (0.0, 0.5):
        run_dir = f"runs/smoothing-{smoothing}"
        run_file(EXAMPLES / "add_objective.py", *options, f"objective.smoothing={smoothing}", f"run_dir={run_dir}")
        with Path(run_dir, "metrics.csv").open() as file:
            losses[smoothing] = [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]
        assert all(prefixcap.load(f"{run_dir}/checkpoints/best.ckpt").caption(["photo.jpg"]))
    run_file(ROOT / "train.py", "model=mlp", "trainer.log_every_n_steps=1", *SHORT, "run_dir=runs/unsmoothed")
    with Path("runs/unsmoothed/metrics.csv").open() as file:
        expected = [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]
    assert losses[0.0] == pytest.approx(expected, rel=1e-3) and len(expected) == 4
    assert losses[0.5][0] > 1.2 * expected[0]
