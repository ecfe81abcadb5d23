"""The model hub for real: its own client and our code against a hub on this machine that speaks its HTTP API."""

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from prefixcap.captioner import Captioner
from prefixcap.encoders import load_encoder
from prefixcap.language import load_language_model
from tests.checkpoints.test_pretrained import captioner_of, changed
from tests.language_models import save_language_model
from tests.sharing.hub_client import Client, client
from tests.sharing.hub_server import OWNER, STRANGER, Hub, model_hub
from tests.test_captioner import checkpoint

LOADS = {
    "captioner": 'load("{}").mapper_options["name"]',
    "language model": 'load_language_model("{}").dim',
    "text encoder": 'load_text_encoder("{}").layer',
    "encoder": 'load_encoder("transformers:{}").identity.dim',
}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with model_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(hub: Hub, home: Path) -> Iterator[Client]:
    with client(**hub.environment(home)) as online:
        yield online


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    captioner = captioner_of(tuning="full")
    changed(captioner.language_model)
    return captioner


@pytest.fixture(scope="module")
def exported(captioner: Captioner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "captioner"
    captioner.save_pretrained(folder)
    return folder


def captions_of(name: str, embeddings: Path) -> str:
    return f'load("{name}").caption(torch.load("{embeddings}"), max_tokens=9)'


def test_a_captioner_is_pushed_and_loaded_by_name(
    hub: Hub, online: Client, home: Path, captioner: Captioner, tmp_path: Path
) -> None:
    embeddings = torch.randn(2, 128)
    torch.save(embeddings, tmp_path / "embeddings.pt")
    best = checkpoint(captioner, tmp_path / "best.ckpt")
    push = f'load("{best}").push_to_hub("someone/pushed", license="mit", private=True)'
    for token, told in (
        ("hf_wrong", "(Invalid credentials in Authorization header)"),
        (STRANGER, '(You don\'t have the rights to create a model under the namespace "someone")'),
    ):
        line = online.refused(push, token)
        assert line.startswith(f"cannot upload to someone/pushed on the model hub {told}: ") and "hf auth login" in line
    assert online(push, OWNER) == f"{hub.address}/someone/pushed"
    repo = hub.repos["someone/pushed"]
    assert repo.private and len(repo.commits) == 1
    assert set(repo.files) == {
        "README.md", "config.json", "mapper.safetensors", "language_model/config.json",
        "language_model/generation_config.json", "language_model/model.safetensors", "language_model/tokenizer.json",
        "language_model/tokenizer_config.json",
    }  # fmt: skip
    assert "license: mit" in hub.cards[-1].splitlines()
    card = ModelCard(repo.files["README.md"].decode())
    card.data.to_dict()
    assert card.data.license == "mit" and card.data.library_name == "prefixcap"
    assert card.data.pipeline_tag == "image-to-text" and 'prefixcap.load("someone/pushed")' in card.text

    repo.commit({"onnx/image_encoder.onnx": b"", "run.py": b"raise SystemExit", "evil.bin": b""})
    captions = captioner.caption(embeddings, max_tokens=9)
    assert online(captions_of("someone/pushed", tmp_path / "embeddings.pt"), OWNER) == captions
    cached = {file.name for file in home.glob("hub/models--someone--pushed/snapshots/*/*")}
    assert cached == {"README.md", "config.json", "mapper.safetensors", "language_model"}


def test_the_command_pushes_too(hub: Hub, online: Client, captioner: Captioner, tmp_path: Path) -> None:
    best, folder = checkpoint(captioner, tmp_path / "best.ckpt"), tmp_path / "exported"
    words = f'"export", "{best}", "--push", "someone/exported"'
    printed = online(f'command({words}, "{folder}", "--license", "mit")', OWNER)
    assert printed == f"written to {folder}\nuploaded to {hub.address}/someone/exported\n"
    repo = hub.repos["someone/exported"]
    assert not repo.private
    assert repo.files == {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }
    assert online(f'command({words}, "--private")', OWNER) == f"uploaded to {hub.address}/someone/exported\n"
    assert len(repo.commits) == 2 and not repo.private  # as it was
    assert "cannot upload to someone/exported" in online(f"command({words})", STRANGER)


def test_the_command_pushes_a_space(hub: Hub, online: Client, captioner: Captioner, tmp_path: Path) -> None:
    best = checkpoint(captioner, tmp_path / "best.ckpt")
    printed = online(f'command("export", "{best}", "--space", "--push", "someone/demo")', OWNER)
    assert printed == f"uploaded to {hub.address}/spaces/someone/demo\n"
    repo = hub.repos["spaces/someone/demo"]
    assert {"README.md", "app.py", "requirements.txt", "captioner/mapper.safetensors"} <= repo.files.keys()
    assert "title: demo" in hub.cards[-1].splitlines()


def test_a_revision_is_loaded_by_branch_tag_or_commit(
    hub: Hub, online: Client, captioner: Captioner, exported: Path, tmp_path: Path
) -> None:
    torch.save(torch.randn(1, 128), tmp_path / "embeddings.pt")
    repo = hub.add("someone/revised", exported)
    first = repo.resolve("main")
    assert first is not None
    repo.tags["v1.0"] = first
    captioner_of().save_pretrained(tmp_path / "second")
    repo.commit({file.name: file.read_bytes() for file in (tmp_path / "second").iterdir()})
    tuning = {
        name: online(f"{call}.language_model.tuning")
        for name, call in {
            "latest": 'load("someone/revised")',
            "branch": 'Captioner.from_pretrained("someone/revised", "main")',
            "tag": 'load("someone/revised", revision="v1.0")',
            "in the name": 'load("someone/revised@v1.0")',
            "commit": f'Captioner.from_pretrained("someone/revised@{first}")',
        }.items()
    }
    assert tuning == {"latest": "frozen", "branch": "frozen", "tag": "full", "in the name": "full", "commit": "full"}
    printed = {name: online(f'command("info", "{name}")') for name in ("someone/revised", "someone/revised@v1.0")}
    assert "demo, frozen" in printed["someone/revised"] and "demo, full" in printed["someone/revised@v1.0"]
    line = online.refused('load("someone/revised@v2")')
    assert line.endswith(f"as it has no revision 'v2': give a branch, tag or commit of {hub.address}/someone/revised")
    assert "no revision 'v2'" in online('command("info", "someone/revised@v2")')
    assert "revision is for a name on the model hub" in online.refused(f'load("{exported}", revision="v1.0")')


@pytest.fixture(scope="module")
def folders(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each kind, by what it is."""
    from transformers import CLIPConfig, CLIPModel

    from tests.encoders.conftest import CLIPImageProcessor

    folder = tmp_path_factory.mktemp("models")
    save_language_model("gpt2", folder / "lm")
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    text, vision = {"vocab_size": 470, **size}, {"image_size": 8, "patch_size": 4, **size}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    CLIPModel(config).save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(folder / "clip")
    load_language_model("demo").tokenizer.save_pretrained(folder / "clip")
    models = {"language model": folder / "lm", "text encoder": folder / "lm", "encoder": folder / "clip"}
    return {"captioner": exported, **models}


@pytest.mark.parametrize("kind", LOADS)
def test_private_and_gated_models_ask_for_a_token(
    kind: str, hub: Hub, online: Client, folders: dict[str, Path]
) -> None:
    load, name = LOADS[kind], f"someone/{kind.replace(' ', '-')}"
    hub.add(f"{name}-private", folders[kind], private=True)
    hub.add(f"{name}-gated", folders[kind], gated=True)
    for repository, token, told in (
        (
            "none",
            None,
            "as the model hub has none of that name, or a private one: check the name; for a private one, log",
        ),
        ("private", None, "as the model hub has none of that name, or a private one: check the name"),
        ("private", STRANGER, "as the model hub has none of that name, or a private one: check the name"),
        ("private", "hf_wrong", "as the model hub does not accept your token: log in (hf auth login, or the variable"),
        (
            "gated",
            None,
            f"to those who accept its terms: do so at {hub.address}/{name}-gated, and log in (hf auth login",
        ),
        ("gated", STRANGER, f"to those who accept its terms: do so at {hub.address}/{name}-gated, and log in"),
    ):
        line = online.refused(load.format(f"{name}-{repository}"), token)
        assert told in line and f"{name}-{repository}" in line, line
    expected = load_encoder(f"transformers:{folders[kind]}").identity.dim if kind == "encoder" else None
    for repository in ("private", "gated"):
        found = online(load.format(f"{name}-{repository}"), OWNER)
        assert found == (expected or {"captioner": "mlp", "language model": 64, "text encoder": 2}[kind])


@pytest.mark.slow
def test_offline_the_cache_is_used(hub: Hub, online: Client, home: Path, folders: dict[str, Path]) -> None:
    """Slow because it starts Python, as huggingface_hub reads HF_HUB_OFFLINE when it is imported."""
    for kind, load in LOADS.items():
        hub.add(f"someone/{kind.replace(' ', '-')}-cached", folders[kind])
        online(load.format(f"someone/{kind.replace(' ', '-')}-cached"))
    names = {kind: f"someone/{kind.replace(' ', '-')}" for kind in LOADS}
    known = {kind: online(load.format(f"{names[kind]}-cached")) for kind, load in LOADS.items()}
    hub.down = True
    try:
        assert {kind: online(load.format(f"{names[kind]}-cached")) for kind, load in LOADS.items()} == known
        assert "as the model hub cannot be reached: connect" in online.refused('load("someone/none")')
    finally:
        hub.down = False
    before = len(hub.requests)
    with client(**hub.environment(home), HF_HUB_OFFLINE="1") as offline:
        assert {kind: offline(load.format(f"{names[kind]}-cached")) for kind, load in LOADS.items()} == known
        for kind, load in LOADS.items():
            line = offline.refused(load.format(f"{names[kind]}-none"))
            assert "as it is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it: " in line
    assert len(hub.requests) == before


@pytest.mark.slow
def test_an_interrupted_download_goes_on(hub: Hub, online: Client, home: Path, exported: Path) -> None:
    """Slow because the hub's client waits a second before it tries again, five times."""
    hub.add("someone/cut", exported)
    cached = home / "hub" / "models--someone--cut"
    hub.cut, hub.cuts, before = 2500, 99, len(hub.requests)
    line = online.refused('load("someone/cut")')
    assert "its download broke off (" in line and line.endswith("): try again; files that are complete are kept")
    parts = [part for _, path, part in hub.requests[before:] if path.startswith("lfs/") and part is not None]
    assert parts and set(parts) == {"bytes=2000-"}  # it had tried again, from where it was
    assert not list(cached.rglob("mapper.safetensors")) and not list(cached.rglob("model.safetensors"))

    hub.cuts = 3  # and it is interrupted again
    assert online('load("someone/cut").mapper_options["name"]') == "mlp"
    (folder,) = (cached / "snapshots").iterdir()
    for file in exported.rglob("*.*"):
        assert (folder / file.relative_to(exported)).read_bytes() == file.read_bytes()


class Evil:
    """A pickle of it writes a file when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


def test_nothing_that_a_repository_holds_is_run(
    hub: Hub, online: Client, home: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    pickled = tmp_path / "pickled"
    shutil.copytree(folders["language model"], pickled)
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps({"evil": Evil(ran)}))
    hub.add("someone/pickled", pickled)
    torch.save({"evil": Evil(ran)}, pickled / "pytorch_model.bin")
    hub.add("someone/saved", pickled)
    for name in ("someone/pickled", "someone/saved"):
        assert online.refused(f'load_language_model("{name}")').startswith(f"cannot load language model '{name}': ")

    model = load_language_model(str(folders["language model"])).model
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    hub.add("someone/older", pickled)
    before = len(hub.requests)
    assert online('load_language_model("someone/older").dim') == 64  # without pickled code, its weights are read
    asked = {path.partition("/someone/older/")[2].partition("/")[0] for _, path, _ in hub.requests[before:]}
    assert asked <= {"", "revision", "tree"}  # transformers would ask a service to convert it

    code = tmp_path / "code"
    shutil.copytree(folders["language model"], code)
    config = json.loads((code / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}}
    (code / "config.json").write_text(json.dumps(config))
    (code / "mine.py").write_text(f"import pathlib; pathlib.Path({str(ran)!r}).touch()")
    hub.add("someone/code", code)
    assert "it needs code of its own, which is never run" in online.refused('load_language_model("someone/code")')
    assert not ran.exists() and not list(home.rglob("mine.py"))


def test_what_is_saved_of_a_model_does_not_say_where_the_cache_is(
    hub: Hub, online: Client, home: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    hub.add("someone/saved-again", folders["language model"])
    online(f'load_language_model("someone/saved-again").save_pretrained(Path("{tmp_path}"))')
    assert (tmp_path / "config.json").is_file()
    assert not [file for file in tmp_path.iterdir() if str(home).encode() in file.read_bytes()]
