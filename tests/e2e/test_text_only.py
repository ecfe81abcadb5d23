"""Captioners that learn from text alone, by the scripts, on a small world of a few pictures."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefixcap.captioner import Captioner
from prefixcap.commands import main
from prefixcap.encoders import load_encoder
from prefixcap.features import EncoderIdentity
from prefixcap.language import load_language_model
from prefixcap.store import ImageRecord, StoreWriter, join
from tests.conftest import run_script
from tests.e2e.conftest import Script


def train(script: Script, *options: str) -> str:
    few = ["batch_size=40", "val_max_tokens=8", "+trainer.enable_progress_bar=false", "trainer.max_epochs=1"]
    return script("train", "data=demo", *options, *few)


def evaluate(script: Script, *options: str) -> None:
    script("eval", "data=demo", *options, "decode.max_tokens=8", "metrics=[BLEU]")


def captions(folder: Path) -> dict[int, str]:
    found = json.loads((folder / "captions.json").read_text())
    return {result["image_id"]: result["caption"] for result in found}


def test_maccap_from_captions_to_captions_of_pictures(script: Script, folder: Path) -> None:
    printed = train(script, "model=maccap", "run_dir=maccap", "model.mapper.prefix_length=4")
    assert printed.rstrip().endswith(
        "python eval.py ckpt=" + str(folder / "maccap/checkpoints/best.ckpt") + " data=demo"
    )
    best = "ckpt=maccap/checkpoints/best.ckpt"
    evaluate(script, best, "decode=maccap", "decode.rerank=3", "out=sampled")
    evaluate(script, best, "decode=greedy", "regions=0", "out=whole")
    assert len(captions(folder / "sampled")) == len(captions(folder / "whole")) == 9
    assert "right attributes" in json.loads((folder / "sampled" / "metrics.json").read_text())
    weights = torch.load(folder / "maccap/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("captioner.mapper.") for name in weights)


def test_a_memory_is_projected_onto_and_retrieved_from(script: Script, folder: Path) -> None:
    train(script, "model=decap_frozen", "run_dir=decap")
    memory = "memory=stores/demo-demo-caption"
    evaluate(script, "ckpt=decap/checkpoints/best.ckpt", memory, "decode=greedy", "out=projected")
    evaluate(script, "ckpt=decap/checkpoints/best.ckpt", "decode=greedy", "out=plain")
    assert captions(folder / "projected") != captions(folder / "plain")
    evaluate(script, "method=clipre", memory, "out=retrieved")
    annotations = json.loads((folder / "data/demo/captions_demo.json").read_text())["annotations"]
    learned = {annotation["caption"] for annotation in annotations}
    assert set(captions(folder / "retrieved").values()) <= learned


def test_a_decap_of_its_own_learns_from_nothing(script: Script, folder: Path) -> None:
    printed = train(script, "model=decap", "run_dir=scratch", "lm=demo", "lm.scratch={n_layer: 1}")
    assert "frozen) in scratch" in printed and "(0.0M" in printed
    evaluate(script, "ckpt=scratch/checkpoints/best.ckpt", "decode=greedy", "out=own")


@pytest.mark.slow
def test_printed_commands_run_as_they_stand(
    script: Script, folder: Path, mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(script, "run_dir=world", "model=mlp", "trainer.limit_val_batches=1", "optimizer.eps=1e-6")  # draws pictures
    photos = folder / "my photos"
    shutil.copytree(folder / "data/demo/images", photos)
    rows = ["image,caption,split"]
    for number, file in enumerate(sorted(photos.iterdir())):
        rows.append(f"{file.name},A red star.,{('train', 'val', 'test')[min(2, number % 10)]}")
    (photos / "captions.csv").write_text("\n".join(rows))
    own = ["data=folder", "data.name=mine", f"data.root='{photos}'", "encoder=demo", "lm=demo", "trainer.max_epochs=1"]
    own += ["trainer.min_steps=null", "trainer.enable_progress_bar=false", "val_max_tokens=8"]
    text = ["model.learns_from=text", "model.normalize_embeddings=true"]
    for number, options in enumerate(([], text)):
        told = mistake("train", *own, *options)
        module, *arguments = shlex.split(re.search("`python -m (.*)`", told)[1])  # type: ignore[index]
        monkeypatch.chdir(folder)
        script(module, *arguments)
        printed = script("train", *own, *options, f"run_dir=own{number}").splitlines()[-1]
        assert printed.startswith("evaluate it:     python eval.py ckpt=")
        shorter = [f"out=out{number}", "metrics=[BLEU]", "decode.max_tokens=8"]
        evaluated = script("eval", *shlex.split(printed)[4:], *shorter)
        assert "BLEU-1" in evaluated and len(captions(folder / f"out{number}"))


def test_mistakes_are_told(folder: Path, mistake: Callable[..., str], script: Script) -> None:
    store = f"data.store={folder}/stores/demo-demo-caption"
    assert "normalize_embeddings=true" in mistake("train", "data=demo", store, "model.learns_from=text")
    noisy = [f"data.store={folder}/stores/demo-demo", "model=mlp", "+model.noise.variance=0.01"]
    assert "model.noise is for embeddings of length one: set model.norm" in mistake("train", "data=demo", *noisy)
    needed = mistake("train", "data=demo", store, "model=maccap", "model.noise.copies=null")
    assert "set model.noise.copies=10: the mapper reads several" in needed
    assert "set model.lm_tuning=full" in mistake(
        "train", "data=demo", store, "model=decap_frozen", "lm.scratch={n_layer: 1}"
    )
    assert "needs memory=STORE" in mistake("eval", "method=clipre", "data=demo")
    assert "there is no feature store" in mistake("train", "data=text", "data.files=no.txt", "model=maccap", "lm=demo")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of texts, of texts with none to validate on, and of images; captioners of images and of regions."""
    root, identity = tmp_path_factory.mktemp("stores"), load_encoder("demo").identity
    for name, column, splits in (
        ("texts", "captions/embedding", ("train", "val")),
        ("unsplit", "captions/embedding", ("train",)),
        ("images", "images/embedding", ("train", "val", "test")),
    ):
        writer = StoreWriter(root / name, identity, "test", root, job="test", shards=1)
        records = [ImageRecord(place, "", split, ("a star",)) for place, split in enumerate(splits)]
        writer.write_piece(0, 0, 1, records, {column: np.ones((len(splits), identity.dim), np.float16)}, [])
        join(root / name)
    for mapper in ("mlp", "adaptor"):
        options = {"name": mapper, "prefix_length": 2}
        Captioner(load_language_model("demo"), identity, options, normalize_embeddings=True).save_pretrained(
            root / mapper
        )
    return root


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("eval ckpt={}/mlp data.store={}/texts split=train", "texts has sentences and no images"),
        ("eval method=clipre data.store={}/texts memory={}/texts split=train", "texts has sentences and no images"),
        ("eval method=zerocap data.store={}/texts split=train", "texts has sentences and no images"),
        (
            "eval ckpt={}/mlp data.store={}/images memory={}/images",
            "images has no captions/embedding; it has images/emb",
        ),
        (
            "eval method=clipre data.store={}/images memory={}/images",
            "images has no captions/embedding; it has images/",
        ),
        ("eval ckpt={}/adaptor data.store={}/images", "images has no images/regions; it has images/embedding"),
        ("eval ckpt={}/adaptor data.store={}/images memory={}/texts", "memory= is for captioners that read the full"),
        ("eval ckpt={}/adaptor data.store={}/images memory={}/texts regions=3", "memory= is for captioners that read"),
        ("eval ckpt={}/mlp data.store={}/images regions=0", "regions=0 is for captioners that read regions, and this"),
        ("eval ckpt={}/adaptor data.store={}/texts regions=0 split=train", "texts has sentences and no images"),
        ("eval ckpt={}/mlp data.store={}/images memory={}/texts memory_size=0", "size must be at least 1"),
        ("train model=maccap data.store={}/images", "images has no captions/embedding; it has images/embedding"),
        ("train model=mlp data.store={}/texts", "texts has sentences and no images"),
        ("train model=maccap data.store={}/unsplit", "has no split 'val', only train: embed into another folder"),
    ],
)
def test_stores_of_the_other_kind_are_told(
    command: str, message: str, stores: Path, tmp_path: Path, mistake: Callable[..., str]
) -> None:
    script, *options = command.replace("{}", str(stores)).split()
    told = mistake(script, *options, "data=demo", f"{'run_dir' if script == 'train' else 'out'}={tmp_path / 'out'}")
    assert message in told and not (tmp_path / "out").exists()


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("decode", ["greedy", "maccap_released"])
def test_the_whole_image_in_place_of_regions_needs_no_regions(
    decode: str, memory: bool, stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The captions are those of ten copies of the image's embedding, or of what it is projected to."""
    command = ["eval", f"ckpt={stores}/adaptor", "data=demo", f"data.store={stores}/images", "regions=0"]
    command += [f"decode={decode}", "decode.max_tokens=6", "metrics=[BLEU]", f"out={tmp_path}"]
    command += ["decode.rerank=2", "decode.noise=0.1"] if decode == "maccap_released" else []
    command += [f"memory={stores}/texts"] if memory else []
    monkeypatch.setattr(sys, "argv", command)
    run_script("eval")
    options: dict[str, Any] = {"decode": "greedy"}
    embeddings = torch.ones(1, 128)  # and the memory's
    if decode == "maccap_released":
        options = {"beams": 4, "noise": 0.1, "seed": 0, "rerank": 2, "embeddings": embeddings}
        options |= {"clean": True, "rerank_characters": 80}
    captioner = Captioner.from_pretrained(stores / "adaptor")
    expected = captioner.caption(embeddings.repeat(10, 1)[None], max_tokens=6, **options)
    assert list(captions(tmp_path).values()) == expected


def test_a_store_with_regions_has_the_whole_images_too(script: Script, folder: Path) -> None:
    """Of the two stores of a data set that which is there is read, and no other is made."""
    train(script, "model=maccap", "model.mapper.prefix_length=2", "run_dir=two")
    best = "ckpt=two/checkpoints/best.ckpt"
    regions, whole = Path("stores/demo-demo-regions"), Path("stores/demo-demo")
    evaluate(script, best, "decode=greedy", "out=two/regions")  # makes the first
    shutil.rmtree(whole, ignore_errors=True)
    evaluate(script, best, "decode=greedy", "regions=0", "out=two/whole")
    assert regions.exists() and not whole.exists()
    shutil.rmtree(regions)
    evaluate(script, best, "decode=greedy", "regions=0", "out=two/again")
    assert whole.exists() and not regions.exists()
    assert captions(folder / "two/whole") == captions(folder / "two/again") != captions(folder / "two/regions")


def test_an_offset_that_the_gap_command_wrote_is_taken(
    folder: Path, script: Script, mistake: Callable[..., str]
) -> None:
    np.save(folder / "offset.npy", np.ones(128, np.float32))
    options = ("model=capdec_frozen", "run_dir=moved")
    train(script, *options, "+model.noise.offset=offset.npy")
    assert "offset: offset.npy" in (folder / "moved" / "config.yaml").read_text()
    store = f"data.store={folder}/stores/demo-demo-caption"
    np.save(folder / "offset.npy", np.ones(5, np.float32))
    options = ("model=capdec_frozen", f"+model.noise.offset={folder}/offset.npy", f"run_dir={folder}/short")
    told = mistake("train", "data=demo", store, *options)
    assert "offset of the noise has the shape (5,)" in told


def test_a_corpus_embedded_by_a_resnet_is_nothing_to_learn_regions_from(
    tmp_path: Path, mistake: Callable[..., str]
) -> None:
    identity = EncoderIdentity("clip:RN50", "1" * 64, "", 16)
    writer = StoreWriter(tmp_path / "store", identity, "test", tmp_path, job="test", shards=1)
    rows = {"captions/embedding": np.ones((2, 16), np.float16)}
    records = [ImageRecord(place, "", split, ("a star",)) for place, split in enumerate(("train", "val"))]
    writer.write_piece(0, 0, 1, records, rows, [])
    join(tmp_path / "store")
    options = ["data=text", f"data.store={tmp_path}/store", "data.files=a.txt", "lm=demo", "encoder.name=clip:RN50"]
    told = mistake("train", *options, "model=maccap")
    assert "clip:RN50 is a ResNet, whose images have no patches" in told and "encoder=clip_vit_b32" in told


def test_copies_in_a_corpus_are_counted_and_kept(script: Script, folder: Path) -> None:
    corpus = folder / "corpus.txt"
    corpus.write_text("a red star\na blue ring\n\na red star\na red star\na blue ring \n")
    printed = script("data_prep.embed", "data=text", f"data.files={corpus}", "encoder=demo", "data.store=copies")
    assert "sentences: train 3, val 2" in printed and "skipped: 1" in printed and "1 blank line" in printed
    assert "copies: 3 sentences" in printed


def test_systems_side_by_side(
    script: Script, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Learned from one style, evaluated on another; what is there is not done again."""
    calls: list[list[str]] = []

    def run(command: list[str]) -> object:
        calls.append(command)
        assert command[1:3] == ["-m", "prefixcap"]
        main(arguments=command[3:])
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("subprocess.run", run)
    few = ["+data.reader.scenes=30", "batch_size=40", "val_max_tokens=8", "+trainer.enable_progress_bar=false"]
    options = ["--source", "demo_other", "--target", "demo", "--systems", "CLIPRe", "Baseline", "MAGIC"]
    options += ["--seeds", "0", "1"]
    options += ["--train", *few, "trainer.max_epochs=1", "--evaluate", "decode.max_tokens=8", "metrics=[BLEU]"]
    main("compare-systems", options)
    printed = capsys.readouterr().out
    assert len(calls) == 2 + 6  # two trainings; for each three evaluations
    assert "method.lm=demo" in calls[-1] and "| MAGIC    |" in printed
    assert "| Baseline |" in printed and "right attributes" in printed and " to " in printed
    main("compare-systems", options)
    assert capsys.readouterr().out.endswith(printed[printed.index("\ndemo_other to demo") :])
    assert len(calls) == 8
