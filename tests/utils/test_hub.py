"""What is told where models would come from a network that cannot be reached."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import prefixcap
import prefixcap.commands.common.run_folder  # what configurations are made with
from prefixcap.captioner import Captioner
from prefixcap.encoders import load_encoder
from prefixcap.encoders.missing import missing_encoder
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.language import load_language_model, load_tokenizer
from prefixcap.utils.hub import Unreachable, missing_language_model
from tests.test_captioner import checkpoint
from tests.test_conf import composed

CLIP = "transformers:someone/clip"


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is in the hub's cache, and the hub is not asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(Unreachable) as told:
        call()
    line = str(told.value)
    assert "\n" not in line
    return line


def names_language_model(line: str, name: str) -> bool:
    files = ("config.json", "model.safetensors", "tokenizer.json", f"huggingface.co/{name}/resolve/main/")
    return all(file in line.partition(f"for language model '{name}', fetch ")[2] for file in files)


def names_encoder(line: str) -> bool:
    files = ("config.json", "preprocessor_config.json", "model.safetensors", "/someone/clip/resolve/main/")
    return all(file in line.partition(f"for encoder '{CLIP}', fetch ")[2] for file in files)


def test_each_is_told_with_its_files() -> None:
    for load in (load_language_model, load_tokenizer):
        assert names_language_model(refused(lambda load=load: load("someone/lm")), "someone/lm")  # type: ignore[misc]
    assert names_encoder(refused(lambda: load_encoder(CLIP)))


def test_a_checkpoint_names_both(tmp_path: Path) -> None:
    encoder = EncoderIdentity(CLIP, "0" * 64, "", 16)
    captioner = Captioner(load_language_model("demo"), encoder, {"name": "mlp", "prefix_length": 2})
    captioner.language_model.name = "someone/lm"
    path = checkpoint(captioner, tmp_path / "best.ckpt")
    line = refused(lambda: prefixcap.load(path))
    assert names_language_model(line, "someone/lm") and names_encoder(line)


def test_who_embeds_pictures_is_told_what_training_needs_next_too(mistake: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("image,caption,split\na.png,a star,train\n")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    folder = ["data=folder", f"data.root={tmp_path}", f"data.store={tmp_path / 'store'}", f"encoder.name={CLIP}"]
    line = mistake("data_prep.embed", *folder)
    assert names_language_model(line, "gpt2") and names_encoder(line)


@pytest.mark.parametrize("script", ["train", "train_lm"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["data=folder", "encoder=demo"], "demo"),
        (["data=folder", "encoder.name=demo"], "demo"),
        (["data=folder", "encoder=demo", "lm=gpt2"], "gpt2"),
        (["data=folder", "encoder=demo", "lm.name=some/folder"], "some/folder"),
        (["data=folder", "lm=demo"], "demo"),
        (["data=folder"], "gpt2"),
        (["data=demo"], "demo"),
        (["data=demo", "encoder=clip_vit_b32"], "demo"),
    ],
)
def test_the_small_worlds_encoder_goes_with_its_language_model(script: str, options: list[str], expected: str) -> None:
    assert composed(script, *options).lm.name == expected


def test_what_is_here_is_not_missing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("demo", str(tmp_path / "folder"), str(tmp_path / "none"), "no name of the hub's"):
        assert missing_language_model(name) is None
    for name in ("demo", f"transformers:{tmp_path / 'folder'}", f"clip:{tmp_path}/x.pt", "own:thing"):
        assert missing_encoder(name) is None
    told = missing_encoder("clip:ViT-B/32")
    assert told is not None and "/ViT-B-32.pt as " in told and f"{tmp_path}/.cache/clip/ViT-B-32.pt" in told
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    (tmp_path / ".cache" / "clip" / "ViT-B-32.pt").write_bytes(b"x")
    assert missing_encoder("clip:ViT-B/32") is None


def test_a_model_that_is_not_there_is_no_matter_of_the_network(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot load language model") as told:
        load_language_model(str(tmp_path / "none"))
    assert not isinstance(told.value, Unreachable)


def test_folders_in_place_of_the_hub_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the message says: a folder of that name."""
    load_language_model("demo").save_pretrained(tmp_path / "someone" / "lm")
    monkeypatch.chdir(tmp_path)
    weights = load_language_model("someone/lm").model.get_input_embeddings().weight
    assert torch.equal(weights, load_language_model("demo").model.get_input_embeddings().weight)
