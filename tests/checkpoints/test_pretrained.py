"""Captioners in folders and on the model hub: what is written, the card, what is refused."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.evaluation import evaluate
from prefixcap.language import LanguageModel, Tuning, load_language_model
from tests.test_captioner import checkpoint


def captioner_of(lm: str = "demo", tuning: Tuning = "frozen") -> Captioner:
    torch.manual_seed(0)
    trained_on = {"data": "demo", "store": "/home/someone/stores/demo", "images": {"train": 2500, "val": 200}}
    identity = load_encoder("demo").identity
    mapper = {"name": "mlp", "prefix_length": 4}
    return Captioner(load_language_model(lm, tuning), identity, mapper, trained_on=trained_on).eval()


def changed(language_model: LanguageModel) -> LanguageModel:
    """The same, with weights that no name stands for."""
    with torch.no_grad():
        words = language_model.model.get_input_embeddings().weight
        words += torch.randn(words.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    return language_model


def run_with_checkpoints(captioner: Captioner, run: Path) -> Path:
    """A training run with two checkpoints, of which each was evaluated; -> the best one."""
    (run / "checkpoints").mkdir(parents=True)
    config = {
        "model": {"objective": "cross_entropy", "noise": None},
        "trainer": {"max_epochs": 7},
        "optimizer": {"learning_rate": 2e-05},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    checkpoint(captioner, run / "checkpoints" / "last.ckpt")
    references = {
        1: ["a red ring", "one ring of red"],
        2: ["a blue star", "a star in blue"],
        3: ["grass", "green grass"],
    }
    for name, words in (("demo-test-beam", "a red ring"), ("demo-test-beam-last", "a blue star")):
        evaluation = evaluate(dict.fromkeys(references, words), references, ["BLEU", "CIDEr"])
        evaluation.write(run / "eval" / name, name)
    return checkpoint(captioner, run / "checkpoints" / "best.ckpt")


def test_a_card_is_filled_from_the_run(tmp_path: Path) -> None:
    best = run_with_checkpoints(captioner_of(tuning="full"), tmp_path / "run")
    captioner = prefixcap.load(best)
    captioner.save_pretrained(tmp_path / "exported", license="cc-by-4.0")
    assert {file.name for file in (tmp_path / "exported").iterdir()} == {
        "README.md", "config.json", "language_model", "mapper.safetensors",
    }  # fmt: skip
    assert not [file for file in tmp_path.glob("exported/**/*") if file.suffix in (".bin", ".pt", ".ckpt", ".py")]

    card = ModelCard.load(tmp_path / "exported" / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0" and data["library_name"] == "prefixcap"
    assert data["pipeline_tag"] == "image-to-text" and data["datasets"] == ["demo"]
    metrics = json.loads((tmp_path / "run/eval/demo-test-beam/metrics.json").read_text())
    results = {result.metric_name: result for result in card.data.eval_results}
    assert results.keys() == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr"}
    assert results["CIDEr"].metric_value == pytest.approx(metrics["CIDEr"], abs=1e-4)
    assert {result.dataset_name for result in results.values()} == {"demo-test-beam"}  # not that of the last checkpoint

    low, high = metrics["intervals"]["CIDEr"]
    row = f"| CIDEr | {metrics['CIDEr']:.3f} | {low:.3f} to {high:.3f} | {metrics['humans']['CIDEr']:.3f} |"
    trained = sum(weight.numel() for weight in captioner.parameters())
    for line in (
        row,
        "| images in train | 2,500 |",
        "| epochs | 7 |",
        "| learning rate | 2e-05 |",
        f"| digest of its weights | `{captioner.encoder_identity.digest}` |",
        f"| parameters | {trained / 1e6:.1f}M trained, 0.0M frozen |",
        'captioner = prefixcap.load("exported")  # this folder, or its name on the model hub',
    ):
        assert line in card.content.splitlines(), line
    assert "/home/someone" not in "".join(file.read_text() for file in tmp_path.glob("exported/*.[jm][sd]*"))


def test_a_card_that_was_written_by_hand_is_kept(tmp_path: Path) -> None:
    captioner_of().save_pretrained(tmp_path / "first")
    card = tmp_path / "first" / "README.md"
    assert "None are known." in card.read_text() and "2,500" in card.read_text()
    card.write_text("mine")
    captioner_of().save_pretrained(tmp_path / "first")
    assert card.read_text() == "mine"
    prefixcap.load(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert (tmp_path / "second" / "README.md").read_text() == "mine"


def test_a_frozen_language_model_in_a_folder_goes_along(tmp_path: Path) -> None:
    changed(load_language_model("demo")).save_pretrained(tmp_path / "own")
    captioner = captioner_of(str(tmp_path / "own"))
    embeddings = torch.randn(3, 128)
    expected = captioner.caption(embeddings, max_tokens=9)
    assert expected != captioner_of().caption(embeddings, max_tokens=9)
    captioner.save_pretrained(tmp_path / "first")
    (tmp_path / "own").rename(tmp_path / "gone")
    again = prefixcap.load(tmp_path / "first")
    assert again.language_model.tuning == "frozen" and again.caption(embeddings, max_tokens=9) == expected
    again.save_pretrained(tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "moved")
    assert prefixcap.load(tmp_path / "second").caption(embeddings, max_tokens=9) == expected
    captioner_of().save_pretrained(tmp_path / "second")  # its language model is only named: the other's is not taken
    assert prefixcap.load(tmp_path / "second").caption(embeddings, max_tokens=9) != expected


def test_what_cannot_be_loaded_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    message = (
        r"^there is no file or folder someone/captioner, and it cannot be downloaded, as the model hub cannot be "
        r"reached: connect to the network once$"
    )
    for load in (prefixcap.load, Captioner.from_pretrained):
        with pytest.raises(InputError, match=message):
            load("someone/captioner")
    with pytest.raises(InputError, match=r"there is no checkpoint runs/best\.ckpt"):  # no name on the hub
        prefixcap.load("runs/best.ckpt")
    with pytest.raises(InputError, match=r"'captioner' is no name of a repository on the model hub: give OWNER/NAME"):
        captioner_of().push_to_hub("captioner")


@pytest.mark.parametrize("damaged", ["mapper.safetensors", "language_model/model.safetensors", "config.json"])
def test_a_damaged_file_is_told(damaged: str, tmp_path: Path) -> None:
    captioner_of(tuning="full").save_pretrained(tmp_path)
    file = tmp_path / damaged
    for content in (file.read_bytes()[:100], b""):
        file.write_bytes(content)
        with pytest.raises(InputError, match=str(tmp_path)) as told:
            prefixcap.load(tmp_path)
        assert "\n" not in str(told.value)


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for tuning in ("frozen", "full"):
        with pytest.raises(InputError, match=r"cannot write .*: a file stands where its folder belongs"):
            captioner_of(tuning=tuning).save_pretrained(tmp_path / "file" / "exported")  # type: ignore[arg-type]
    assert (tmp_path / "file").read_text() == "mine"
