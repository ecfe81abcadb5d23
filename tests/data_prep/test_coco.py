"""COCO annotations with the Karpathy split."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.readers.coco import read_coco
from data_prep.records import ImageRecord, Skipped
from prefixcap.errors import InputError
from tests.data_prep import records


def image(image_id: int, split: str = "train") -> dict[str, Any]:
    return {"cocoid": image_id, "filepath": "val2014", "filename": f"{image_id}.jpg", "split": split}


def caption(image_id: int, text: object) -> dict[str, Any]:
    return {"image_id": image_id, "caption": text}


def write(
    root: Path, images: list[Any], annotations: list[Any], split: list[Any], name: str = "captions_x.json"
) -> None:
    (root / name).write_text(json.dumps({"images": images, "annotations": annotations}))
    (root / "dataset_coco.json").write_text(json.dumps({"images": split}))


def test_captions_from_annotations_and_split_from_the_split_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        [{"id": 1}, {"id": 2, "domain": "near-domain"}],
        [caption(2, " two\n dogs "), caption(1, "a cat"), caption(2, "dogs")],
        [image(2, "restval"), image(1, "test")],
    )
    dataset = read_coco(tmp_path)
    assert records(dataset) == [
        ImageRecord(2, "val2014/2.jpg", "train", ("two dogs", "dogs"), "near-domain"),
        ImageRecord(1, "val2014/1.jpg", "test", ("a cat",)),
    ]
    assert dataset.skipped == []
    assert dataset.image_root == tmp_path


def test_annotation_files_in_their_own_folder(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    write(tmp_path, [{"id": 1}], [caption(1, "a cat")], [image(1), image(2)], "annotations/captions_a.json")
    write(tmp_path, [{"id": 2}], [caption(2, "a dog")], [image(1), image(2)], "annotations/captions_b.json")
    assert [record.captions for record in records(read_coco(tmp_path))] == [("a cat",), ("a dog",)]


def test_blemishes_are_listed(tmp_path: Path) -> None:
    write(
        tmp_path,
        [{"id": 1}, {"id": 2}, {"id": 3}],
        [
            caption(1, "a cat"),
            caption(1, " \n\u3000"),
            caption(1, 17),
            caption(1, "\ud800"),
            caption(8, "nowhere"),
            caption(3, "no split"),
        ],
        [image(1), image(2), image(4)],
    )
    dataset = read_coco(tmp_path)
    assert [record.id for record in records(dataset)] == [1]
    assert dataset.skipped == [
        Skipped(1, "captions_x.json", "empty caption"),
        Skipped(1, "captions_x.json", "caption is not text"),
        Skipped(1, "captions_x.json", "caption is not valid Unicode"),
        Skipped(8, "", "caption of an image that the annotations do not list"),
        Skipped(2, "val2014/2.jpg", "image without caption"),
        Skipped(4, "val2014/4.jpg", "image is not in the annotations"),
        Skipped(3, "", "image is not in the split file"),
    ]


@pytest.mark.parametrize(
    ("images", "annotations", "split", "message"),
    [
        ([{"id": 1}, {"id": 1}], [], [image(1)], r"captions_x\.json: the image id 1 comes twice"),
        ([{"id": 1}], [caption(1, "a")], [image(1), image(1)], r"dataset_coco\.json: the image id 1 comes twice"),
        ([{}], [], [image(1)], r"captions_x\.json: an entry lacks the key 'id'"),
        ([{"id": 1}], [{"image_id": 1}], [image(1)], r"captions_x\.json: an entry lacks the key 'caption'"),
        ([{"id": 1}], [caption(1, "a")], [{"cocoid": 1}], r"dataset_coco\.json: an entry lacks the key 'filepath'"),
        ([{"id": 1}], [caption(1, "a")], [image(1) | {"split": 3}], r"'split' must be a string, not 3"),
        ([{"id": 1.5}], [], [image(1)], "'id' must be a 64-bit integer or a string, not 1.5"),
        ([{"id": 2**63}], [], [image(1)], "must be a 64-bit integer"),
        ([7], [], [image(1)], "entry 0 of 'images' is no object"),
        ([{"id": 1}], [], [image(1)], "no image of .*dataset_coco.json has a caption in .*captions_x.json"),
        ([{"id": 1}], [caption(1, "a")], [image(1) | {"filename": "../../a.jpg"}], "is not inside"),
        ([{"id": 1}], [caption(1, "a")], [image(1) | {"filename": "a\0.jpg"}], "is not inside"),
        ([{"id": 1}, {"id": "b"}], [caption(1, "a"), caption("b", "b")], [image(1), image("b")], "all one kind"),
    ],
)
def test_what_cannot_be_read(
    tmp_path: Path, images: list[Any], annotations: list[Any], split: list[Any], message: str
) -> None:
    write(tmp_path, images, annotations, split)
    with pytest.raises(InputError, match=message):
        read_coco(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file captions_\*\.json in"):
        read_coco(tmp_path)
    (tmp_path / "captions_x.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(InputError, match=r"cannot read .*dataset_coco\.json: No such file"):
        read_coco(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [', r"captions_x\.json is not JSON: .* in line 1"),
        (b"[]", r"captions_x\.json has no list 'images'"),
        (b'{"images": {}}', r"captions_x\.json has no list 'images'"),
        (b'{"images": []}', r"captions_x\.json has no list 'annotations'"),
        (b'{"images": "\xff"}', r"captions_x\.json is not UTF-8 text"),
    ],
)
def test_annotations_of_another_form(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "captions_x.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_coco(tmp_path)


def write_nocaps(root: Path, images: list[Any], captions: list[Any]) -> None:
    """The form of nocaps: COCO's annotations, with file names and domains, without a split file."""
    content = {"images": images, "annotations": captions, "licenses": [], "info": {}}
    (root / "nocaps_val_4500_captions.json").write_text(json.dumps(content))


def nocaps(image_id: int | str, domain: str = "in-domain", file_name: str | None = None) -> dict[str, Any]:
    return {"id": image_id, "open_images_id": "x", "file_name": file_name or f"{image_id}.jpg", "domain": domain}


def test_nocaps(tmp_path: Path) -> None:
    images = [nocaps(3), nocaps(0, "near-domain"), nocaps(1, "out-domain"), nocaps(7)]
    write_nocaps(tmp_path, images, [caption(1, "a bird"), caption(0, "a dog"), caption(3, "a cat"), caption(0, "dog")])
    dataset = read_coco(tmp_path, "nocaps_*.json", split_file=None, images="val")
    assert records(dataset) == [
        ImageRecord(3, "val/3.jpg", "val", ("a cat",), "in-domain"),
        ImageRecord(0, "val/0.jpg", "val", ("a dog", "dog"), "near-domain"),
        ImageRecord(1, "val/1.jpg", "val", ("a bird",), "out-domain"),
    ]
    assert dataset.skipped == [Skipped(7, "val/7.jpg", "image without caption")]


def test_one_split_of_another_name_beside_the_annotations(tmp_path: Path) -> None:
    write_nocaps(tmp_path, [nocaps(1, file_name="a/1.jpg")], [caption(1, "a cat")])
    (record,) = records(read_coco(tmp_path, "nocaps_*.json", split_file=None, split="test"))
    assert (record.file, record.split) == ("a/1.jpg", "test")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([{"id": 1}], r"nocaps_val_4500_captions\.json: an entry lacks the key 'file_name'; it has id"),
        ([nocaps(1, file_name="../../1.jpg")], r"the image 'val/\.\./\.\./1\.jpg' is not inside"),
        ([nocaps(1, file_name="/etc/1.jpg")], r"the image '/etc/1\.jpg' is not inside"),
        ([nocaps(2)], r"no image has a caption in .*nocaps_val_4500_captions\.json"),
        ([nocaps(1), nocaps("b")], r"nocaps_val_4500_captions\.json: some image ids are numbers and some are strings"),
    ],
)
def test_nocaps_that_cannot_be_read(tmp_path: Path, images: list[Any], message: str) -> None:
    write_nocaps(tmp_path, images, [caption(1, "a"), caption("b", "b")])
    with pytest.raises(InputError, match=message):
        read_coco(tmp_path, "nocaps_*.json", split_file=None, images="val")


def test_nocaps_is_configured(mistake: Callable[..., str]) -> None:
    told = mistake("data_prep.embed", "data=nocaps", "data.root=nowhere", "encoder=demo")
    assert told.startswith("error: no file nocaps_val_4500_captions.json in nowhere")


def test_splits_that_are_drawn(tmp_path: Path) -> None:
    ids = range(1000)
    captions = [caption(image_id, "a cat") for image_id in ids]
    write(tmp_path, [{"id": image_id} for image_id in ids], captions, [image(image_id) for image_id in ids])
    drawn = {of.id: of.split for of in records(read_coco(tmp_path, val_share=0.1, test_share=0.2))}
    counts = Counter(drawn.values())
    assert sum(counts.values()) == 1000
    assert 70 < counts["val"] < 130 and 160 < counts["test"] < 240  # three standard deviations
    write(tmp_path, [{"id": 7}, {"id": 5}], captions, [image(7, "val"), image(5, "test")])
    fewer = {of.id: of.split for of in records(read_coco(tmp_path, val_share=0.1, test_share=0.2))}
    assert fewer == {image_id: drawn[image_id] for image_id in (7, 5)}, "where an image goes depends on it alone"
    other = {of.id: of.split for of in records(read_coco(tmp_path, val_share=0.1, test_share=0.9, seed=1))}
    assert set(other.values()) <= {"val", "test"}
    with pytest.raises(InputError, match="together at most 1"):
        read_coco(tmp_path, val_share=0.5, test_share=0.6)


def coco_with_own_splits(root: Path, year: str, below: str = "") -> None:
    """COCO as it is downloaded: two annotation files, whose file names are relative to a folder each."""
    (root / "annotations").mkdir()
    for split, image_id in (("train", 1), ("val", 2)):
        folder = root / below / f"{split}{year}"
        folder.mkdir(parents=True)
        name = f"{image_id:012d}.jpg"
        (folder / name).touch()
        content = {"images": [{"id": image_id, "file_name": name}], "annotations": [caption(image_id, split)]}
        (root / "annotations" / f"captions_{split}{year}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("below", ["", "images"])
@pytest.mark.parametrize("year", ["2014", "2017"])
def test_without_karpathys_file_each_image_is_found_in_its_own_split(tmp_path: Path, year: str, below: str) -> None:
    coco_with_own_splits(tmp_path, year, below)
    dataset = read_coco(tmp_path, f"captions_*{year}.json", split_file=None)
    found = records(dataset)
    assert [(record.id, record.split, record.captions) for record in found] == [
        (1, "train", ("train",)),
        (2, "val", ("val",)),
    ]
    assert all((tmp_path / record.file).is_file() for record in found)
    one_split = records(read_coco(tmp_path, split_file=None, split="train"))
    assert [record.split for record in one_split] == ["train", "train"]


def test_karpathys_splits_hold_for_the_images_of_2017(tmp_path: Path) -> None:
    """Which has the same images by other names, and some in the other folder."""
    coco_with_own_splits(tmp_path, "2017")
    karpathy = [
        {"cocoid": 1, "filepath": "val2014", "filename": "COCO_val2014_000000000001.jpg", "split": "test"},
        {"cocoid": 2, "filepath": "val2014", "filename": "COCO_val2014_000000000002.jpg", "split": "restval"},
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": karpathy}))
    found = records(read_coco(tmp_path))
    assert [(record.id, record.file, record.split) for record in found] == [
        (1, "train2017/000000000001.jpg", "test"),
        (2, "val2017/000000000002.jpg", "train"),
    ]
