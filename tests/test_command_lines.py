"""Paths of every kind on the command line."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from prefixcap.commands.common.paths import LISTS, PATHS, quote_paths
from prefixcap.store import FeatureStore
from tests.conftest import ROOT, run_script

CONF = ROOT / "conf"

NAMES = [
    "2014", "a,b", "[raw] set", "photos (1)", "a=b", "{x}", "$HOME", "${x}", "\\${x}", "a\\\\${x}", "${data.name}",
    "#1", "c:\\x", "it's", 'say "hi"', "both ' and \"", "null", "true", "1e5", "nan", "0x10", "caf\u00e9 \u4e2d", "-x",
    " a", "b ", "a\\", "\\'", "a:b", "[a,b]", "choice(a,b)", "range(1,3)", "*", "?", "~x", "!a", "a;b|c", "%d", "`id`",
    "???", "a\tb", "'q'", "a/b c", "+1",
]  # fmt: skip
NEW = ["2014", "1e5", "true", "new (1)", "a,b", "[raw] set", "[raw]", "it's", "runs/x=1", "a b"]


def composed(script: str, *options: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(script, quote_paths(list(options)))


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_exists_is_that_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    config = composed(
        "embed", "data=folder", f"data.root={name}", f"data.store={name}", f"+data.reader.captions={name}"
    )
    for found in (config.data.root, config.data.reader.root, config.data.store, config.data.reader.captions):
        assert Path(found) == Path(name)
    once = quote_paths([f"ckpt={name}"])
    assert quote_paths(once) == once  # as the further processes of a run are given it


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=20))
def test_any_name_is_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name in (".", "..") or len(name.encode()) > 200:
        return
    Path(name).mkdir(exist_ok=True)
    config = composed("embed", "data=folder", f"data.root={name}")
    assert Path(config.data.root) == Path(config.data.reader.root) == Path(name)


@pytest.mark.parametrize(
    "name", ["2014", "1e5", "true", "new (1)", "a,b", "[raw] set", "[raw]", "it's", "runs/x=1", "a b"]
)
def test_a_path_that_does_not_exist_yet_is_a_text(name: str) -> None:
    assert composed("eval", f"out={name}").out == name


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert composed("embed", "data=folder", "data.root=~/photos").data.root == str(tmp_path / "photos")
    assert composed("eval", "out=~/new").out == str(tmp_path / "new")
    Path("~x").mkdir()
    assert composed("eval", "out=~x").out == "~x"
    assert composed("eval", "out=~nobody-of-that-name/x").out == "~nobody-of-that-name/x"


def test_what_means_something_to_hydra_keeps_its_meaning() -> None:
    assert composed("eval", "out=null").out is None
    assert composed("eval", "out='a b'").out == "a b"
    assert composed("eval", "compare=[a,b]").compare == ["a", "b"]
    assert composed("embed", "data=text", "data.files=[a.txt,b.txt]").data.files == ["a.txt", "b.txt"]
    assert composed("embed", "data=text", "data.files=corpus/*.txt").data.reader.files == "corpus/*.txt"
    assert composed("embed", "data=folder", "data.root=${data.name}").data.root == "folder"
    options = [
        "--multirun",
        "ckpt=a.ckpt,b.ckpt",
        "seed=1,2",
        "split=[a",
        "-m",
        "batch_size=2014",
        "~data",
        "data.root",
    ]
    assert quote_paths(options) == options


def test_several_values_are_one_path_where_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b").mkdir()
    assert quote_paths(["-m", "ckpt=a,b", "out=c,d"]) == ["-m", "ckpt='a,b'", "out=c,d"]


def test_such_options_are_in_the_configurations() -> None:
    compositions = [
        ("train_lm",),
        ("relations",),
        ("train", "data=folder"),
        ("train", "data=coco"),
        ("train", "data=text"),
    ]
    compositions += [("vqa",), ("eval", "method=magic"), ("train", "model=maccap")]
    known = set().union(*(_options(composed(*composition)) for composition in compositions))
    # A reader's arguments need not be listed, and noise takes what training says.
    assert (PATHS | LISTS) - known == {"data.reader.images", "model.noise.offset"}


def _options(config: DictConfig) -> set[str]:
    found: set[str] = set()

    def walk(node: object, name: str) -> None:
        found.add(name)
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{name}.{key}" if name else str(key))

    walk(OmegaConf.to_container(config), "")
    return found


def test_other_options_say_what_to_type(mistake: Callable[..., str]) -> None:
    told = mistake("eval", "decode.prompt=a (b]")
    assert "if this is text, write 'decode.prompt='\"'\"'a (b]'\"'\"''" in told


def test_the_commands_read_such_paths(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = tmp_path / "[store], 1"
    options = ["data=folder", f"data.root={photos}", f"data.store={store}", "encoder=demo"]
    monkeypatch.setattr(sys, "argv", ["embed", *options])
    run_script("data_prep.embed")
    splits = FeatureStore(store).splits
    assert set(splits) == {"train", "val", "test"} and sum(splits.values()) == 24
    assert f"train {splits['train']}" in capsys.readouterr().out
    # A store that is named needs no root; one that is not there says so.
    told = mistake("train", "data=folder", f"data.store={tmp_path / 'no such, one'}", "encoder=demo")
    assert "there is no feature store" in told and "no such, one" in told
    assert "data.root must be given" in mistake("train", "data=folder", "encoder=demo")
    for data in ("folder", "text"):
        told = mistake("train", f"data={data}", f"data.store={store}", "encoder=demo", "lm=demo", "find=both")
        assert told.startswith("error: find must be learning_rate or batch_size")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos (1), [raw] {x}"
    root.mkdir()
    for number in range(24):
        Image.new("RGB", (8, 8), (number * 10, 0, 0)).save(root / f"{number}.png")
        (root / f"{number}.txt").write_text(f"Picture {number}.\n")
    return root
