"""Folders of `save_pretrained` that somebody made to do harm, or that are damaged: one line each."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.commands.info import describe
from prefixcap.errors import InputError
from prefixcap.language import load_language_model
from tests.conftest import IDENTITY
from tests.language_models import save_language_model


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    lm = load_language_model(save_language_model("gpt2", folder / "lm"), "full")
    Captioner(lm, IDENTITY, {"name": "mlp", "prefix_length": 2}).save_pretrained(folder / "captioner")
    return folder / "captioner"


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A good one, to be spoiled."""
    return Path(shutil.copytree(good, tmp_path / "captioner"))


def refused(folder: Path, *loads: Callable[[Path], Any]) -> str:
    """The one line that a folder is refused by."""
    line = ""
    for load in loads or (prefixcap.load,):
        with pytest.raises(InputError) as told:
            load(folder)
        line = str(told.value)
        assert "\n" not in line and len(line) < 1000 and str(folder) in line, line
    return line


def changed(file: Path, **values: object) -> None:
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


CONFIGS: list[Any] = [
    "", "{", "[]", "3", "null", "{}", '{"mapper": {}}', "[" * 100_000, '{"format_version": ' + "9" * 5000 + "}",
    b"\xff",
    {"mapper": ...}, {"language_model": ...}, {"encoder": ...}, {"trained_on": ...}, {"normalize_embeddings": ...},
    {"mapper": []}, {"language_model": None}, {"encoder": "clip:ViT-B/32"}, {"trained_on": [1]}, {"more": 1},
    {"mapper": {"name": "mlp", "prefix_length": 10**9}}, {"mapper": {"name": "mlp", "prefix_length": 10**30}},
    {"mapper": {"name": "mlp", "prefix_length": 2, "hidden": [8] * 10_000}},
    {"language_model": {"name": "x", "tuning": "lora", "lora": None}}, {"trained_on": {"images": {"train": "many"}}},
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_descriptions_that_are_none(config: Any, folder: Path) -> None:
    file = folder / "config.json"
    if isinstance(config, dict):
        changed(file, **config)
    else:
        file.write_bytes(config if isinstance(config, bytes) else config.encode())
    fits_no_weights = isinstance(config, dict) and isinstance(config.get("mapper"), dict)
    refused(folder, *((prefixcap.load,) if fits_no_weights else (prefixcap.load, describe)))


def bomb(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


HEADERS = [
    b"", b"\x00" * 8, bomb(b"{}", 2**63), bomb(b"{}", 10**12), bomb(b"[" * 10**6), bomb(b'{"a": 3}'),
    bomb(b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}') + bytes(4),
    bomb(b'{"a": {"dtype": "F32", "shape": [18446744073709551615, 2], "data_offsets": [0, 4]}}') + bytes(4),
    bomb(b'{"model.0.weight": {"dtype": "F32", "shape": [0, 1000000000000], "data_offsets": [0, 0]}}'),
]  # fmt: skip


@pytest.mark.parametrize("file", ["mapper.safetensors", "language_model/model.safetensors"])
@pytest.mark.parametrize("content", HEADERS, ids=range(len(HEADERS)))
def test_headers_that_are_none(content: bytes, file: str, folder: Path) -> None:
    (folder / file).write_bytes(content)
    refused(folder)


def test_weights_of_another_mapper(folder: Path) -> None:
    file = folder / "mapper.safetensors"
    weights = load_file(file)
    name = "model.0.weight"
    for odd in (
        {name: weights[name].int()}, {name: weights[name][:1].clone()}, {"extra": torch.zeros(1)},
        {name: weights[name] * torch.nan}, {name: torch.full_like(weights[name], torch.inf)},
    ):  # fmt: skip
        save_file(weights | odd, file)
        assert "model.0.weight" in refused(folder) or "'mapper.extra'" in refused(folder)
    save_file({key: value for key, value in weights.items() if key != name}, file)
    assert "lacks weight 'mapper.model.0.weight'" in refused(folder)


def test_a_language_model_that_lacks_weights_is_not_filled_up_at_random(folder: Path) -> None:
    file = folder / "language_model" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("h.1.mlp.c_fc.weight"))
    save_file({key: value for key, value in weights.items() if key != name} | {"pad": weights[name]}, file)
    assert "lacks weights" in refused(folder) and "c_fc.weight" in refused(folder)


LARGER: list[Any] = [
    {"n_layer": 10**9}, {"num_labels": 10**9}, {"vocab_size": 10**12}, {"n_embd": 10**7}, {"n_positions": 10**7},
    {"model_type": "strange"}, {"model_type": "bert"}, {"model_type": ["gpt2"]}, {"n_head": 0}, {"n_embd": "wide"},
]  # fmt: skip


@pytest.mark.parametrize("config", LARGER, ids=str)
def test_configurations_of_larger_models_than_lie_there(config: dict[str, Any], folder: Path) -> None:
    changed(folder / "language_model" / "config.json", **config)
    refused(folder)


def test_code_and_adapters_beside_the_language_model(folder: Path, tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Conf: ...\n"
    (folder / "language_model" / "conf.py").write_text(code)
    names = {"AutoConfig": "conf.Conf", "AutoModelForCausalLM": "conf.Conf", "AutoTokenizer": ["conf.Conf", None]}
    for file in ("config.json", "tokenizer_config.json"):
        changed(folder / "language_model" / file, auto_map=names)
    prefixcap.load(folder)  # GPT-2 is known, and its code is transformers' own
    changed(folder / "language_model" / "config.json", attn_implementation="someone/kernel")
    prefixcap.load(folder)
    assert not (tmp_path / "ran").exists()
    (folder / "language_model" / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    assert "has an adapter beside it" in refused(folder)


def test_pickles_are_not_opened_in_place_of_weights(folder: Path) -> None:
    weights = load_file(folder / "language_model" / "model.safetensors")
    (folder / "language_model" / "model.safetensors").unlink()
    torch.save(weights, folder / "language_model" / "pytorch_model.bin")
    refused(folder)


def test_a_card_that_is_a_link_to_a_secret_is_not_shared(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the private key")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "secret")
    prefixcap.load(folder).save_pretrained(tmp_path / "again")
    assert "library_name: prefixcap" in (tmp_path / "again" / "README.md").read_text()
    assert not [file for file in (tmp_path / "again").rglob("*.[jm][sd]*") if "private key" in file.read_text()]
