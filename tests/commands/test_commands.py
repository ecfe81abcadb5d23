"""The command as a whole: help, completion, what is passed on, how it ends."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

import prefixcap
from prefixcap.commands import COMMANDS
from prefixcap.commands.common import hydra_main
from prefixcap.commands.common.conf_options import choices, group_options, groups, option_names, read_file
from prefixcap.interpretation import interpret
from tests.commands.conftest import Command
from tests.conftest import ROOT
from tests.training.test_training import make_store

Mistaken = Callable[..., str]

HYDRA = {name: command.module for name, command in COMMANDS.items() if command.uses_hydra}
WIDTH = 80


def python(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def test_the_list_of_commands(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    status, out, _ = command("--help")
    assert status == 0 and out == command().out == command("-h").out
    for name, (_, _, panel, about, _) in COMMANDS.items():
        (line,) = (line for line in out.splitlines() if line.startswith(f"│ {name} "))  # one line each
        assert line.strip("│ ").removeprefix(name).strip() == about and f"─ {panel} ─" in out
    assert max(map(len, out.splitlines())) <= WIDTH


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_shows_examples_and_fits_a_terminal(
    name: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    status, out, err = command(name, "--help")
    examples = [line for line in out.splitlines() if line.strip().startswith(("prefixcap ", "PREFIXCAP_"))]
    assert (status, err) == (0, "") and any(f"prefixcap {name}" in line for line in examples)
    assert out.split()[:3] == ["Usage:", "prefixcap", name] and out == command(name, "-h").out
    assert max(map(len, out.splitlines())) <= WIDTH


@pytest.mark.parametrize(("called", "expected"), [("train.py", "python eval.py"), ("prefixcap", "prefixcap eval")])
def test_other_commands_are_named_as_this_one_was_called(
    called: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`prefixcap train` runs a module of the package, whose path is then its first argument."""
    file = str(ROOT / "prefixcap" / "commands" / "train.py") if called == "prefixcap" else called
    monkeypatch.setattr(sys, "argv", [file])
    assert hydra_main.command("eval") == expected


def test_brackets_in_examples_are_no_markup(command: Command) -> None:
    assert "'features=[image,regions,caption]'" in command("gap", "--help").out
    assert "'metrics=[CLIPScore,perplexity]'" in command("zerocap-lambda", "--help").out
    assert "pip install 'prefixcap[plot]'" in " ".join(command("prefix-length", "--help").out.split())


@pytest.mark.parametrize("config", HYDRA.values())
def test_every_option_of_the_configuration_is_described(config: str) -> None:
    """Experiments and recipes change options that are described where they come from."""
    options = read_file(config).options
    for group in groups(config):
        assert group.about or group.name == "data", group
        for choice in [] if group.name == "experiment" else choices(group.name):
            assert all(option.name.startswith(f"{group.name}.") for option in group_options(group.name, choice))
            options = [*options, *group_options(group.name, choice)]
    assert not [option.name for option in options if not option.about]


@pytest.mark.parametrize("config", HYDRA.values())
def test_the_help_knows_the_options_that_hydra_composes(config: str, command: Command) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = OmegaConf.to_container(compose(config))
    names = {*option_names(config)}

    def check(node: object, prefix: str) -> None:
        if prefix.rstrip(".") in names or not isinstance(node, dict):
            assert prefix.rstrip(".") in names, prefix
            return
        for key, value in node.items():
            if key != "_target_":
                check(value, f"{prefix}{key}.")

    check(composed, "")
    helped = command(config.replace("_", "-"), "--help").out
    assert all(name.rpartition(".")[2] in helped for name in names)


def test_the_help_describes_the_choices_of_the_command_line(command: Command) -> None:
    plain, chosen = command("train", "-h").out, command("train", "model=maccap", "callbacks=[ema]", "-h").out
    assert (
        "─ model=transformer ─" in plain and "model.mapper.clip_length=10" in plain and "ema.decay=0.999" not in plain
    )
    assert "─ model=maccap ─" in chosen and "model.mapper.clip_length" not in chosen
    assert "callbacks.ema.decay=0.999" in chosen and "model.learns_from=text" in chosen
    experiment = command("train", "experiment=capdec", "-h").out
    assert "─ model=capdec ─" in experiment and "─ data=coco_text ─" in experiment and "─ recipe=" not in experiment
    assert "─ recipe=demo ─" in plain


def test_help_and_completion_wait_for_no_model_code() -> None:
    code = (
        "import sys; from prefixcap.commands import app\n"
        "print({'torch', 'numpy', 'transformers', 'hydra'} & {*sys.modules})"
    )
    assert python("-c", code).stdout == "set()\n"
    code = (
        "import sys; from prefixcap.commands import COMMANDS, main\n"
        "for name in COMMANDS: main(name, ['--help'])\n"
        "print({'torch', 'transformers', 'lightning', 'hydra'} & {*sys.modules})"
    )
    assert python("-c", code).stdout.splitlines()[-1] == "set()"
    words = {"COMP_WORDS": "prefixcap cap", "COMP_CWORD": "1", "_PREFIXCAP_COMPLETE": "complete_bash"}
    done = python("-X", "importtime", "-m", "prefixcap", **words)
    assert done.stdout.split() == ["caption"] and "| torch" not in done.stderr
    words |= {"COMP_WORDS": "prefixcap caption --o", "COMP_CWORD": "2"}
    assert "--out" in python("-m", "prefixcap", **words).stdout
    shown = python("-m", "prefixcap", "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_PREFIXCAP_COMPLETE=complete_bash" in shown.stdout


@pytest.mark.parametrize(("name", "module"), HYDRA.items())
def test_all_words_are_passed_on(name: str, module: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["data=coco", "--multirun", "-m", "--cfg", "job", "x=a b", "'features=[image]'", "--info", "~y"]
    seen = {}

    def note(called: str, **options: object) -> None:
        seen.update(options, module=called, words=sys.argv[1:])

    with monkeypatch.context() as patch:
        patch.setattr("runpy.run_module", note)
        assert command(name, *words).status == 0
    assert seen == {"module": f"prefixcap.commands.{module}", "run_name": "__main__", "alter_sys": True, "words": words}


def test_commands_run(command: Command, mistaken: Mistaken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "choose one of" in mistaken("train", "model=nonsense")
    make_store(tmp_path / "store")
    status, out, _ = command("verify", tmp_path / "store")
    assert status == 0 and out.startswith(f"{tmp_path / 'store'}: intact; ")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("train", "--epochs", "3"), "there is no option --epochs 3: did you mean trainer.max_epochs=3?"),
        (("train", "--epochs=3"), "there is no option --epochs=3: did you mean trainer.max_epochs=3?"),
        (("train", "epochs=3"), "there is no option 'epochs'; did you mean trainer.max_epochs?"),
        (("train", "--trainer.max_epochs=3"), "cannot understand --trainer.max_epochs=3: write trainer.max_epochs=3"),
        (("train", "--model", "mlp"), "cannot understand --model mlp: write model=mlp"),
        (("train", "model", "mlp"), "cannot understand model mlp: write model=mlp"),
        (("train", "data=coco", "--batch-size", "32"), "cannot understand --batch-size 32: write batch_size=32"),
        (("train", "--lr", "1e-4"), "there is no option --lr 1e-4: did you mean optimizer.learning_rate=1e-4?"),
        (("train", "--lora"), "there is no option --lora: did you mean lm.lora=VALUE?"),
        (("train", "model=maccap", "--copies", "5"), "--copies 5: did you mean model.noise.copies=5?"),
        (("train", "--copies", "5"), "options are written OPTION=VALUE; `prefixcap train --help` lists them"),
        (("train-lm", "--nonsense"), "options are written OPTION=VALUE; `prefixcap train-lm --help` lists them"),
        (("eval", "runs/best.ckpt"), "cannot understand runs/best.ckpt: write ckpt=runs/best.ckpt"),
        (("eval", "--ckpt", "a b.ckpt"), "cannot understand --ckpt a b.ckpt: write ckpt='a b.ckpt'"),
        (("caption", "a.png", "ckpt=x y"), "cannot understand ckpt=x y: write --ckpt 'x y'"),
        (("caption", "a.png", "--ckpt", "x", "batch_size=3"), "cannot understand batch_size=3: write --batch-size 3"),
        (("caption", "a.png", "--ckpt", "x", "overwrite=true"), "cannot understand overwrite=true: write --overwrite"),
        (("import-features", "a.npy", "store=x"), "cannot understand store=x: write --store x"),
        (("compare-systems", "--systems", "Baseline", "MagCap"), "there is no system 'MagCap': choose from CLIPRe; "),
        (("verify",), "missing argument 'STORE'; see `prefixcap verify --help`"),
        (("trian",), "no such command 'trian'. Did you mean 'train'"),
    ],
)
def test_another_spelling_is_answered_with_the_right_one(
    words: tuple[str, ...], answer: str, mistaken: Mistaken
) -> None:
    assert answer in mistaken(*words)


@pytest.mark.parametrize("module", ["verify", "import_features", "export_features"])
def test_modules_of_data_prep_name_the_command(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["python", "--help"])
    runpy.run_module(f"data_prep.{module}", run_name="__main__")
    assert capsys.readouterr().out.split()[:3] == ["Usage:", "prefixcap", module.replace("_", "-")]


@pytest.mark.parametrize("old", ["training.ablation", "textonly.figures", "zeroshot.figures"])
def test_old_names_of_figures_run(
    old: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["python", "nowhere"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(f"prefixcap.{old}", run_name="__main__")
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith("error: ")


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
    assert "no place to export to: give a FOLDER, or --push OWNER/NAME" in mistaken("export", ckpt)
    assert "leave out --format onnx, or --space" in mistaken("export", ckpt, "x", "--space", "--format", "onnx")
    assert "--private is for an upload: add --push OWNER/NAME" in mistaken("export", ckpt, "x", "--private")
    assert "'mine' is no name of a repository on the model hub: give OWNER/NAME" in mistaken(
        "export", ckpt, "--push", "mine"
    )
    assert "is there already: name a new or empty folder" in mistaken("import", ckpt, ckpt)
    assert "there is no checkpoint" in mistaken("import", tmp_path / "nothing.pt", tmp_path / "new")


def test_doctor(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--gpt2" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    status, out, _ = command("doctor", "--json")
    found = {finding["name"]: finding for finding in json.loads(out)}
    assert status == 0 and not [name for name, finding in found.items() if finding["state"] == "broken"]
    assert found["torch"]["note"] == torch.__version__.partition("+")[0] or found["torch"]["note"] == torch.__version__
    assert found["gpt2"]["state"] == "ok"
    assert found["gpt2-medium"] == found["gpt2-medium"] | {"state": "missing", "note": f"1.5 GB, to {tmp_path / 'hub'}"}
    assert found["SPICE"]["state"] == "missing" and "setup-spice" in found["SPICE"]["note"]
    assert found["matplotlib"]["note"].endswith("(plot)")

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


def test_without_the_packages_of_the_page_serve_says_what_to_install() -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from prefixcap.commands import main; main('serve', [])"
    done = python("-c", code)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the web page needs uvicorn: pip install 'prefixcap[serve]'\n"
