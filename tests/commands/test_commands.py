"""The command as a whole: help, completion, what is passed on, how it ends."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import prefixcap
from prefixcap.commands import app
from prefixcap.commands.scripts import SCRIPTS
from prefixcap.interpretation import interpret
from tests.commands.conftest import Command
from tests.conftest import ROOT
from tests.training.test_training import make_store

Mistaken = Callable[..., str]

OWN = ("caption", "serve", "info", "interpret", "arithmetic", "gap", "export", "import", "doctor", "setup-spice")


def python(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def test_help_teaches(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = command("--help")
    assert status == 0 and out == command().out
    for name in (*OWN, *(script[0] for script in SCRIPTS)):
        assert f"│ {name} " in out
    assert max(map(len, out.splitlines())) <= 80
    for name in OWN:
        status, out, _ = command(name, "--help")
        examples = [line for line in out.splitlines() if line.strip().startswith(("prefixcap ", "PREFIXCAP_"))]
        assert status == 0 and any(f"prefixcap {name}" in line for line in examples), name
        assert max(map(len, out.splitlines())) <= 80
    assert "'features=[image,regions,caption]'" in command("gap", "--help").out  # brackets are no markup


def test_help_and_completion_wait_for_no_model_code() -> None:
    code = (
        "import sys; from prefixcap.commands import app\n"
        "print({'torch', 'numpy', 'transformers', 'hydra'} & {*sys.modules})"
    )
    assert python("-c", code).stdout == "set()\n"
    words = {"COMP_WORDS": "prefixcap cap", "COMP_CWORD": "1", "_PREFIXCAP_COMPLETE": "complete_bash"}
    done = python("-X", "importtime", "-m", "prefixcap", **words)
    assert done.stdout.split() == ["caption"] and "| torch" not in done.stderr
    words |= {"COMP_WORDS": "prefixcap caption --o", "COMP_CWORD": "2"}
    assert "--out" in python("-m", "prefixcap", **words).stdout
    shown = python("-m", "prefixcap", "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_PREFIXCAP_COMPLETE=complete_bash" in shown.stdout


@pytest.mark.parametrize(("name", "module"), [script[:2] for script in SCRIPTS])
def test_all_words_are_passed_on(name: str, module: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["data=coco", "--multirun", "-m", "--help", "a b", "'features=[image]'", "--", "--x=1", "~y"]
    seen = {}

    def note(called: str, **options: object) -> None:
        seen.update(options, module=called, words=sys.argv[1:])

    with monkeypatch.context() as patch:
        patch.setattr("runpy.run_module", note)
        assert command(name, *words).status == 0
    assert seen == {"module": module, "run_name": "__main__", "alter_sys": True, "words": words}


def test_scripts_run(command: Command, mistaken: Mistaken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of Hydra's, which name other commands as they were called themselves, and one with its own parser."""
    monkeypatch.chdir(tmp_path)
    assert "choose one of" in mistaken("train", "model=nonsense")
    assert "== Configuration groups ==" in command("eval", "--help").out
    make_store(tmp_path / "store")
    status, out, _ = command("verify", tmp_path / "store")
    assert status == 0 and out.startswith(f"{tmp_path / 'store'}: whole; ")


def test_the_version_and_how_a_command_ends(command: Command, mistaken: Mistaken, tmp_path: Path) -> None:
    assert command("--version").out == f"prefixcap {prefixcap.__version__}\n"
    assert "no such command 'captoin'. Did you mean 'caption'?" in mistaken("captoin")
    full = subprocess.run(
        f"{sys.executable} -m prefixcap --help > /dev/full",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (full.returncode, full.stderr) == (2, "error: no space left on the disk: free some and run again\n")
    piped = subprocess.run(
        f"{sys.executable} -m prefixcap --help | true; echo ${{PIPESTATUS[0]}}", shell=True, cwd=ROOT,
        executable="/bin/bash", capture_output=True, text=True,
    )  # fmt: skip
    assert piped.stdout.strip() in ("0", "1") and piped.stderr == ""


def test_interpret(command: Command, mistaken: Mistaken, ckpt: Path, photos: Path, tmp_path: Path) -> None:
    images = [photos / "a b.png", photos / "more" / "UPPER.JPG"]
    out = tmp_path / "prefixes.png"
    status, printed, _ = command("interpret", *images, "--ckpt", ckpt, "--count", 2, "--out", out)
    captioner = prefixcap.load(ckpt)
    captions, found = captioner.caption(images), interpret(captioner, images, 2)
    assert status == 0 and len(printed.split("\n\n")) == 3
    for image, caption, tokens, block in zip(images, captions, found, printed.split("\n\n"), strict=False):
        lines = block.splitlines()
        assert lines[0] == f"{image}: {caption}" and lines[1].split() == ["vector", *["token", "cosine"] * 2]
        for number, (row, line) in enumerate(zip(tokens, lines[2:], strict=True), 1):
            words = [word for token, cosine in row for word in (token.strip() or repr(token)[1:-1], f"{cosine:.3f}")]
            assert line.split() == [str(number), *" ".join(words).split()]
    with Image.open(out) as picture:
        assert picture.width == 1200 and picture.height == 720
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 200  # the photographs are in it
    assert "name a file that ends in .png" in mistaken("interpret", *images, "--ckpt", ckpt, "--out", "x.gif")
    assert "not an image" in mistaken("interpret", photos / "notes.txt", "--ckpt", ckpt)
    assert "--out draws 20 images at most" in mistaken("interpret", *images * 11, "--ckpt", ckpt, "--out", out)


def test_export_and_its_folder(command: Command, mistaken: Mistaken, ckpt: Path, tmp_path: Path) -> None:
    assert command("export", ckpt, tmp_path / "shared").status == 0
    embeddings = torch.randn(2, 128)
    options = {"decode": "greedy", "max_tokens": 5}
    exported, original = (prefixcap.load(path).caption(embeddings, **options) for path in (tmp_path / "shared", ckpt))
    assert exported == original
    assert "is there already: name a new or empty folder" in mistaken("export", ckpt, tmp_path / "shared")
    assert "is there already: name a new or empty folder" in mistaken("import", ckpt, ckpt)
    assert "there is no checkpoint" in mistaken("import", tmp_path / "nothing.pt", tmp_path / "new")


def test_every_command_is_tested_for_help() -> None:
    names = {command.name for group in app.registered_groups for command in group.typer_instance.registered_commands}
    assert {*OWN, *(script[0] for script in SCRIPTS)} >= {name for name in names if name}


def test_doctor(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--gpt2" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    status, out, _ = command("doctor", "--json")
    found = {finding["name"]: finding for finding in json.loads(out)}
    assert status == 0 and not [name for name, finding in found.items() if finding["state"] == "broken"]
    assert found["torch"]["told"] == torch.__version__.partition("+")[0] or found["torch"]["told"] == torch.__version__
    assert found["gpt2"]["state"] == "ok"
    assert found["gpt2-medium"] == found["gpt2-medium"] | {"state": "missing", "told": f"1.5 GB, to {tmp_path / 'hub'}"}
    assert found["SPICE"]["state"] == "missing" and "setup-spice" in found["SPICE"]["told"]
    assert found["matplotlib"]["told"].endswith("(plot)")

    monkeypatch.setenv("PATH", str(tmp_path / "java"))
    (tmp_path / "java").mkdir()
    java = tmp_path / "java" / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_392\"' >&2\n")
    java.chmod(0o755)
    monkeypatch.setitem(sys.modules, "lightning", None)  # as if it were not installed
    status, out, _ = command("doctor")
    lines = [line.split(maxsplit=2) for line in out.splitlines()]
    assert status == 1 and [line[2] for line in lines if line[:2] == ["Java", "ok"]] == ["8, enough for both"]
    assert [line[0] for line in lines if "broken" in line[1:2]] == ["lightning"]
