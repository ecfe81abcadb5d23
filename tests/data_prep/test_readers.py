"""Readers by name, and by the full name of a function, as older configurations have them."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from data_prep.readers import READERS, read_dataset
from data_prep.readers.folder import read_folder
from data_prep.records import Dataset
from prefixcap.commands.common.run_folder import read_config
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore
from tests.conftest import ROOT
from tests.docs.conftest import run_file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(8):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.jpg")
        (tmp_path / f"{number}.txt").write_text(f"A picture {number}.")
    return tmp_path


def contents(dataset: Dataset) -> list[object]:
    return [shard.read() for shard in dataset.shards]


def test_a_name_and_an_older_target_read_the_same(photos: Path) -> None:
    options = {"root": str(photos), "val_share": 0.25, "test_share": 0.0}
    expected = contents(read_folder(**options))
    assert contents(read_dataset({"name": "folder", **options})) == expected
    data = OmegaConf.create({"root": str(photos), "reader": options | {"root": "${data.root}"}})
    for chosen in ({"name": "folder"}, {"_target_": "data_prep.readers.folder.read_folder"}):
        config = OmegaConf.merge({"data": data}, {"data": {"reader": chosen}})
        assert contents(read_dataset(config.data.reader)) == expected


def test_what_is_no_reader_or_option_of_it_is_told(photos: Path) -> None:
    with pytest.raises(InputError, match="unknown reader 'zip': choose one of coco, demo, "):
        read_dataset({"name": "zip", "root": "."})
    with pytest.raises(InputError, match=r"reader 'folder': got an unexpected keyword argument 'split_file'; its"):
        read_dataset({"name": "folder", "root": str(photos), "split_file": "x"})


def test_each_configuration_names_a_reader_and_its_options() -> None:
    """That the file of each data set gives what the function takes, where no base configuration does."""
    used = set()
    for file in (ROOT / "conf" / "data").glob("[!_]*.yaml"):
        reader = OmegaConf.to_container(OmegaConf.load(file))["reader"]  # type: ignore[index, call-overload]
        if reader.get("name", "???") != "???":
            used.add(name := reader.pop("name"))
            inspect.signature(READERS[name]).bind(**reader)
    assert used == set(READERS)


def test_the_command_takes_a_function_by_its_full_name(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    target = "data.reader._target_=data_prep.readers.folder.read_folder"
    run_file(ROOT / "prefixcap" / "commands" / "embed.py", "data=folder", "data.root=.", target, "encoder=demo")
    assert sum(FeatureStore("stores/folder-demo").splits.values()) == 8


def test_the_configuration_of_an_older_run_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for name, known in (("data_prep.readers.coco.read_coco", True), ("os.system", False)):
        OmegaConf.save({"data": {"name": "coco", "reader": {"_target_": name}}}, file)
        if known:
            assert read_config(file).data.reader._target_ == name
        else:
            with pytest.raises(InputError, match=r"builds 'os\.system'"):
                read_config(file)
