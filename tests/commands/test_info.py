"""`prefixcap info`, beside what the loaded captioner says of itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.training import trainable_parameters
from tests.checkpoints.test_clipcap_weights import PublishedModel, save
from tests.commands.conftest import Command
from tests.test_captioner import checkpoint, demo_captioner


def info(command: Command, path: Path) -> dict[str, Any]:
    status, out, err = command("info", path, "--json")
    assert (status, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_checkpoints_and_folders(command: Command, tuning: str, tmp_path: Path) -> None:
    captioner = demo_captioner(tuning)
    path = checkpoint(captioner, tmp_path / "best.ckpt")
    trained, frozen = trainable_parameters(captioner)
    found = info(command, path)
    assert found["parameters"] == {"trained": trained, "frozen": frozen}
    assert found["bytes"] == path.stat().st_size and found["encoder"]["name"] == captioner.encoder_identity.name
    assert found["mapper"] == captioner.mapper_options and found["trained_on"] == {"data": "test"}
    assert found["language_model"]["tuning"] == tuning and "files" not in found["language_model"]

    captioner.save_pretrained(tmp_path / "shared")
    found = info(command, tmp_path / "shared")
    assert sum(found["parameters"].values()) == sum(
        weight.numel() for weight in prefixcap.load(tmp_path / "shared").parameters()
    )
    assert found["kind"] == "folder of save_pretrained"
    if tuning == "frozen":  # of a folder: it goes into that of the captioner
        captioner.language_model.save_pretrained(tmp_path / "lm")
        captioner.language_model.name = str(tmp_path / "lm")
        captioner.save_pretrained(tmp_path / "with_lm")
        assert info(command, tmp_path / "with_lm")["parameters"] == {"trained": trained, "frozen": frozen}


def test_a_run(command: Command, ckpt: Path) -> None:
    run = ckpt.parent.parent
    model = {"learns_from": "text", "noise": {"variance": 0.016}}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    (run / "metrics.csv").write_text(
        "epoch,step,val_cider,val_loss\n0,999,0.8,3\n,1000,,\n1,1999,0.75,2.5\n2,2999,0.6,\n"
    )
    for name, score in (("demo-test-beam", 0.71), ("demo-test-greedy", 0.65)):
        (run / "eval" / name).mkdir(parents=True)
        metrics = {"CIDEr": score, "intervals": {"CIDEr": [0.1, 0.9]}, "humans": {"CIDEr": 1.0}}
        (run / "eval" / name / "metrics.json").write_text(json.dumps(metrics))
    found = info(command, ckpt)
    assert found["family"] == "trained on captions only, with noise of variance 0.016"
    assert found["validation"] == {"val_cider": 0.75, "val_loss": 2.5, "epoch": 1, "step": 1999}
    assert found["best_val_cider"] == {"val_cider": 0.8, "val_loss": 3, "epoch": 0, "step": 999}
    assert found["evaluations"] == {"demo-test-beam": {"CIDEr": 0.71}, "demo-test-greedy": {"CIDEr": 0.65}}
    told = command("info", ckpt).out.splitlines()
    assert "  trained until    epoch 2, step 2,000" in told and "  validation       CIDEr 0.750, loss 2.500" in told
    assert "  highest CIDEr    0.800, validation of epoch 1" in told
    assert told[-2].split() == ["demo-test-beam", "0.7100"] and told[-3].split() == ["CIDEr"]


@pytest.mark.parametrize(("mapper", "dim"), [("mlp", 512), ("transformer", 640)])
def test_published(command: Command, mapper: str, dim: int, tmp_path: Path) -> None:
    published = PublishedModel(mapper, 300, dim)
    state = published.published_state()
    found = info(command, save(state, tmp_path / "coco.pt"))
    of_mapper = sum(weight.numel() for name, weight in state.items() if name.startswith("clip_project"))
    assert found["kind"] == "weights that ClipCap published" and found["mapper"]["name"] == mapper
    parameters = sum(weight.numel() for weight in published.parameters())
    assert sum(found["parameters"].values()) == parameters
    assert found["parameters"]["trained"] == (of_mapper if mapper == "transformer" else parameters)
    tuning = "frozen" if mapper == "transformer" else "full"
    assert f"GPT-2, 2 layers of 128, {tuning}" in command("info", tmp_path / "coco.pt").out


def test_a_language_model_that_is_not_here(command: Command, tmp_path: Path) -> None:
    captioner: Captioner = demo_captioner()
    captioner.language_model.name = str(tmp_path / "gone")
    path = checkpoint(captioner, tmp_path / "best.ckpt")
    assert info(command, path)["parameters"]["frozen"] is None
    assert "not on this machine, frozen" in command("info", path).out


def test_what_is_no_checkpoint(command: Command, tmp_path: Path) -> None:
    torch.save({"prefixcap": {"format_version": 99}, "state_dict": {}}, tmp_path / "new.ckpt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    for name, message in (
        ("new.ckpt", "is of format 99, but this version of prefixcap reads format 1"),
        ("other.pt", "is not a checkpoint of prefixcap: give one that train.py wrote"),
        ("text.ckpt", "is not a checkpoint of prefixcap, or is damaged"),
        ("nothing.ckpt", "there is no checkpoint"),
        (".", "holds no captioner"),
    ):
        status, out, err = command("info", tmp_path / name)
        assert (status, out) == (2, "") and message in err and err.count("\n") == 1, err
