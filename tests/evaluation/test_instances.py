"""COCO's instances as a user has them: which objects an image has, wrong files, and the option of `prefixcap eval`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefixcap.errors import InputError
from prefixcap.evaluation.instances import read_instances
from prefixcap.metrics.coco_objects import CATEGORIES
from tests.evaluation.test_eval import evaluate

NAMED = [{"id": 3 * number + 1, "name": name} for number, name in enumerate(CATEGORIES)]  # with gaps, as COCO's ids
IDS = {category["name"]: category["id"] for category in NAMED}


def instances(objects: dict[Any, list[str]], images: list[Any] | None = None) -> dict[str, Any]:
    annotations = [
        {"id": 1, "image_id": image, "category_id": IDS[name], "bbox": [0, 0, 1, 1]}
        for image, names in objects.items()
        for name in names
    ]
    listed = [{"id": image, "file_name": f"{image}.jpg"} for image in (objects if images is None else images)]
    return {"images": listed, "annotations": annotations, "categories": NAMED}


def test_objects_of_several_files(tmp_path: Path) -> None:
    first, second = tmp_path / "instances_val2014.json", tmp_path / "instances_train2014.json"
    first.write_text(json.dumps(instances({1: ["dog", "dog", "cat"], 2: []})))
    second.write_text(json.dumps(instances({3: ["teddy bear"]})))
    assert read_instances([first, second]) == {1: {"dog", "cat"}, 2: set(), 3: {"teddy bear"}}
    assert read_instances(first) == {1: {"dog", "cat"}, 2: set()}


WRONG: dict[str, tuple[Any, str]] = {
    "captions": (
        {"images": [], "annotations": [{"image_id": 1, "caption": "a dog"}]},
        "holds no instances: its categories are missing; give COCO's instances_*.json",
    ),
    "a list": ([{"image_id": 1, "caption": "a dog"}], "holds no instances: it is a list; give COCO's instances_"),
    "persons only": (
        instances({1: ["person"]}) | {"categories": NAMED[:1]},
        "its categories are 1 of COCO's 80; give",
    ),
    "LVIS": (
        instances({1: ["person"]}) | {"categories": [*NAMED, {"id": 999, "name": "aerosol_can"}]},
        "has a category 'aerosol_can', which is none of COCO's 80",
    ),
    "panoptic": (
        instances({}) | {"annotations": [{"image_id": 1, "segments_info": []}]},
        "annotation 0 has the category missing",
    ),
    "an unknown category": (
        instances({}) | {"annotations": [{"image_id": 1, "category_id": 5}]},
        "annotation 0 has the category 5",
    ),
    "a category that is no number": (
        instances({}) | {"annotations": [{"image_id": 1, "category_id": [4]}]},
        "annotation 0 has the category [4]",
    ),
    "no image": (
        instances({}) | {"annotations": [{"image_id": None, "category_id": 1}]},
        "annotation 0 has the image missing",
    ),
    "annotations that are none": (instances({}) | {"annotations": {"1": 2}}, "its annotations are {'1': 2}, not"),
    "an annotation that is none": (instances({}) | {"annotations": [7]}, "annotation 0 is 7"),
    "images that are none": (instances({}) | {"images": [3]}, "image 0 is 3"),
    "categories that are none": (instances({}) | {"categories": ["dog"]}, "category 0 is 'dog'"),
    "no image at all": (instances({}), "names no image"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_told_in_one_line(kind: str, tmp_path: Path) -> None:
    content, message = WRONG[kind]
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as told:
        read_instances(file)
    assert str(told.value).startswith(f"{file}") and message in str(told.value) and "\n" not in str(told.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"images": [')
    for name, message in (("cut.json", "is not JSON"), ("none.json", "none.json")):
        with pytest.raises(InputError, match=message):
            read_instances(tmp_path / name)
    with pytest.raises(InputError, match="no file of instances is named"):
        read_instances([])


def test_the_option(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mistake: Callable[..., str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {n: f"COCO_val2014_{n:012}.jpg" for n in (7, 8)}
    references = [{"image_name": name, "captions": ["a dog", "a puppy"]} for name in names.values()]
    (tmp_path / "references.json").write_text(json.dumps(references))
    captions = [{"image_id": n, "caption": "a dog on a bench"} for n in names]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    (tmp_path / "a.json").write_text(json.dumps(instances({7: ["bench"]})))
    (tmp_path / "b.json").write_text(json.dumps(instances({8: ["dog"]})))
    options = ["captions=captions.json", "references=references.json", "metrics=[CHAIR]", "out=scores"]
    rates = []
    for given in ([], ["instances=a.json"], ["instances=[a.json,b.json]"]):
        evaluate(monkeypatch, *options, *given)
        rates.append(json.loads((tmp_path / "scores" / "metrics.json").read_text())["CHAIRs"])
    printed = capsys.readouterr().out
    assert rates == [1, 0.5, 0.5]
    assert printed.count("without those of COCO's instances") == 1 == printed.count("1 of 2 images have no instances")
    absent = ["captions=absent.json", "references=absent.json"]
    for given, message in (
        (["instances=a.json"], "instances= is for metrics=[CHAIR]: leave it out, or name CHAIR"),
        (["metrics=[CHAIR]", "instances=none.json"], "none.json"),
        (["metrics=[CHAIR]", "instances=7"], "instances=7 is not a list of names: give instances=[A,B]"),
    ):
        assert message in mistake("eval", *absent, *given), given
    assert "not for compare=" in mistake("eval", "compare=[scores,scores]", "instances=a.json")
