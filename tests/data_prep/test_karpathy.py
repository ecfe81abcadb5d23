"""Flickr30k as Karpathy's file has it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.readers.karpathy import read_karpathy
from data_prep.records import ImageRecord, Skipped
from prefixcap.errors import InputError
from tests.data_prep import records


def image(name: str, *captions: object, split: str = "train", **more: Any) -> dict[str, Any]:
    sentences = [{"raw": caption, "tokens": [], "imgid": 0, "sentid": 0} for caption in captions]
    return {"filename": name, "split": split, "sentences": sentences, "imgid": 0, "sentids": [0], **more}


def write(root: Path, images: list[Any], name: str = "dataset_flickr30k.json") -> None:
    (root / name).write_text(json.dumps({"images": images, "dataset": "flickr30k"}))


def test_captions_and_splits(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            image("1000092795.jpg", " Two\n men .", "Men", split="restval"),
            image("10002456.jpg", "A dog", split="test"),
        ],
    )
    dataset = read_karpathy(tmp_path)
    assert records(dataset) == [
        ImageRecord("1000092795.jpg", "flickr30k-images/1000092795.jpg", "train", ("Two men .", "Men")),
        ImageRecord("10002456.jpg", "flickr30k-images/10002456.jpg", "test", ("A dog",)),
    ]
    assert dataset.skipped == []
    assert dataset.image_root == tmp_path


def test_another_folder_and_paths_below_it(tmp_path: Path) -> None:
    write(tmp_path, [image("1.jpg", "a", filepath="val2014"), image("2.jpg", "b")], "other.json")
    assert [record.file for record in records(read_karpathy(tmp_path, "other.json", images=""))] == [
        "val2014/1.jpg",
        "2.jpg",
    ]
    assert [record.file for record in records(read_karpathy(tmp_path, "other.json", images="a/b"))] == [
        "a/b/val2014/1.jpg",
        "a/b/2.jpg",
    ]


def test_blemishes_are_listed(tmp_path: Path) -> None:
    write(tmp_path, [image("1.jpg", "", 3, "a cat"), image("2.jpg"), image("3.jpg", "\ud800")])
    dataset = read_karpathy(tmp_path)
    assert [record.id for record in records(dataset)] == ["1.jpg"]
    assert dataset.skipped == [
        Skipped("1.jpg", "flickr30k-images/1.jpg", "empty caption"),
        Skipped("1.jpg", "flickr30k-images/1.jpg", "caption is not text"),
        Skipped("2.jpg", "flickr30k-images/2.jpg", "image without caption"),
        Skipped("3.jpg", "flickr30k-images/3.jpg", "caption is not valid Unicode"),
        Skipped("3.jpg", "flickr30k-images/3.jpg", "image without caption"),
    ]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([image("1.jpg", "a"), image("1.jpg", "b")], r"dataset_flickr30k\.json: the image '1\.jpg' comes twice"),
        ([{"split": "val"}], r"dataset_flickr30k\.json: an entry lacks the key 'filename'"),
        ([{"filename": "1.jpg", "sentences": []}], "an entry lacks the key 'split'"),
        ([{"filename": "1.jpg", "split": "val"}], "has no list 'sentences'"),
        ([image("1.jpg") | {"sentences": [{}]}], "an entry lacks the key 'raw'"),
        ([image("1.jpg", split=3)], "'split' must be a string, not 3"),
        ([image(1, "a")], "'filename' must be a string, not 1"),
        ([image("../../1.jpg", "a")], "is not inside"),
        ([image("/etc/1.jpg", "a")], "is not inside"),
        ([image("1.jpg", "a", filepath="/etc")], "is not inside"),
        ([image("1.jpg")], r"no image of .*dataset_flickr30k\.json has a caption"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, images: list[Any], message: str) -> None:
    write(tmp_path, images)
    with pytest.raises(InputError, match=message):
        read_karpathy(tmp_path)


def test_configured(mistake: Callable[..., str]) -> None:
    told = mistake("data_prep.embed", "data=flickr30k", "data.root=nowhere", "encoder=demo")
    assert told == "error: cannot read nowhere/dataset_flickr30k.json: No such file or directory\n"
