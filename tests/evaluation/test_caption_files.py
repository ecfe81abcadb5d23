"""Captions and references that others wrote: what is read of each form, and one line for what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefixcap.commands.common.formats import Row
from prefixcap.commands.common.outputs import Destination
from prefixcap.errors import InputError
from prefixcap.evaluation.caption_files import read_candidates, read_captions, read_references


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "given.json"


def karpathy(split: str, number: int, **entry: Any) -> dict[str, Any]:
    sentences = [{"raw": f"a dog {number}"}, {"raw": "a dog"}]
    return {"filename": f"{number}.jpg", "cocoid": number, "split": split, "sentences": sentences} | entry


def test_the_forms_of_captions(file: Path) -> None:
    entries = [{"image_id": 7, "caption": "a dog"}, {"image_name": "a.jpg", "prediction": "a cat", "captions": []}]
    file.write_text(json.dumps(entries))
    assert read_captions(file) == {7: "a dog", "a.jpg": "a cat"}


def test_the_forms_of_pycocoevalcap(file: Path) -> None:
    """Its dictionaries, `gts` and `res`, as a file has them."""
    for captions in ({"7": "a dog", "a.jpg": "a cat"}, {"7": ["a dog", "dogs"], "a.jpg": [{"caption": "a cat"}]}):
        file.write_text(json.dumps(captions))
        assert read_captions(file) == {"7": "a dog", "a.jpg": "a cat"}
    assert read_candidates(file)["7"] == ["a dog", "dogs"]
    file.write_text(json.dumps({"7": ["a dog", "dogs"], "a.jpg": [{"caption": "a cat", "id": 1}]}))
    assert read_references(file) == {"7": ["a dog", "dogs"], "a.jpg": ["a cat"]}


NAMES = [
    "a.jpg",
    "new folder/b c.png",
    "=1+1.jpg",
    "tab\there.png",
    'quote".png',
    "line\nbreak.png",
    "-x,y;z.jpg",
    "'=a.png",
]


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "text"])
def test_what_the_command_writes_is_read_again(form: Any, tmp_path: Path) -> None:
    texts = ["a dog", "=HYPERLINK(1)", "-0.3", "'-quoted", 'a, b; "c"', "caf\u00e9 \u72d7", "+", "@x"]
    rows = [Row(name, [text, f"{text} again"]) for name, text in zip(NAMES, texts, strict=True)]
    file = tmp_path / {"text": "captions.txt"}.get(form, f"captions.{form}")
    with Destination([row.image for row in rows], form, file).open() as output:
        output.add(rows[:3])
        output.add(rows[3:])
    assert read_candidates(file) == {row.image: row.captions for row in rows}
    assert read_captions(file) == dict(zip(NAMES, texts, strict=True))


def test_coco_results_are_read_again(tmp_path: Path) -> None:
    names = ["val2014/COCO_val2014_000000391895.jpg", "000000000139.jpg", "x/1000092795.jpg", "http://h/a%20b.png?x=1"]
    with Destination(names, "coco", tmp_path / "results.json").open() as output:
        output.add([Row(name, [f"a dog {number}"]) for number, name in enumerate(names)])
    written = json.loads((tmp_path / "results.json").read_text())
    ids = [391895, 139, "1000092795.jpg", "a b.png"]
    assert written == [{"image_id": image, "caption": f"a dog {number}"} for number, image in enumerate(ids)]
    assert list(read_captions(tmp_path / "results.json")) == ids
    for same in (["a/x.jpg", "b/x.jpg"], ["COCO_train2014_000000000139.jpg", "val2017/000000000139.jpg"]):
        with pytest.raises(InputError, match="several images would share an id"):
            Destination(same, "coco")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", "id,text\n1,a\n", "has the columns id, text: give it image and caption"),
        ("c.csv", "", "has the columns none"),
        ("c.csv", "image,caption\na\n", "row 0 lacks an image or a caption"),
        ("c.csv", 'image,caption\na,"b', r"line \d: unexpected end of data"),
        ("c.csv", "image,caption\na,b\nc,d\na,e\n", r"image 'a' has two captions \(entry 2 is the second\)"),
        ("c.txt", "a.jpg a dog\n", "line 1 has no tab: give IMAGE<tab>CAPTION"),
        ("c.jsonl", '{"image": "a", "captions": ["b"]}\n{"image"', "line 2 is not JSON"),
        ("c.jsonl", '{"image": "a", "captions": []}\n', "the captions of image 'a' are \\[\\]: give a list of texts"),
        ("c.jsonl", '{"image": "a", "captions": "b"}\n', "the captions of image 'a' are 'b': give a list of texts"),
        ("c.jsonl", "[1]\n", "entry 0 of the captions is not an object"),
    ],
)
def test_mistakes_in_what_the_command_writes(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_captions(tmp_path / name)


def test_annotations_are_in_the_order_of_their_images(file: Path) -> None:
    """As `COCO.getImgIds` gives them; what the list of images lacks comes last."""
    annotations = [{"image_id": image, "caption": f"{image}"} for image in (3, 1, 2, 1)]
    file.write_text(
        json.dumps({"images": [{"id": 1}, {"id": 9}, {}, {"id": [2]}, {"id": 2}], "annotations": annotations})
    )
    assert list(read_references(file).items()) == [(1, ["1", "1"]), (2, ["2"]), (3, ["3"])]


def test_the_forms_of_references(file: Path) -> None:
    file.write_text(json.dumps([{"image_name": "a.jpg", "captions": ["a cat", "a pet"]}]))
    assert read_references(file, "test") == {"a.jpg": ["a cat", "a pet"]}
    annotations = [{"image_id": 7, "caption": "a dog"}, {"image_id": 8, "caption": "x"}, {"image_id": 7, "caption": ""}]
    file.write_text(json.dumps({"images": [{"id": 7}], "annotations": annotations}))
    assert read_references(file, "test") == {7: ["a dog", ""], 8: ["x"]}


def test_a_split_of_a_karpathy_file(file: Path) -> None:
    images = [karpathy("train", 1), karpathy("restval", 2), karpathy("test", 3)]
    del images[2]["cocoid"]
    file.write_text(json.dumps({"images": images, "dataset": "coco"}))
    assert read_references(file, "test") == {"3.jpg": ["a dog 3", "a dog"]}
    assert list(read_references(file, "train")) == [1, 2]
    assert list(read_references(file)) == [1, 2, "3.jpg"]
    with pytest.raises(InputError, match=r"given.json has no images of split 'val', but of test, train: .*split="):
        read_references(file, "val")


def test_half_a_surrogate_pair_becomes_a_character_that_can_be_written(file: Path) -> None:
    file.write_text(r'[{"image_id": "a\udc00", "caption": "a \ud83d dog \ud83d\ude00"}]')
    assert read_captions(file) == {"a\ufffd": "a \ufffd dog \U0001f600"}
    file.write_text(r'[{"image_name": 1, "captions": ["\ud83d"]}]')
    assert read_references(file) == {1: ["\ufffd"]}


def test_an_image_that_comes_twice_is_refused(file: Path) -> None:
    entry = {"image_name": "a.jpg", "captions": ["a dog"]}
    for content in ([entry, entry], {"images": [karpathy("val", 1), karpathy("test", 1)]}):
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"given.json: image .* comes twice \(entry 1 is the second\)"):
            read_references(file)
    file.write_text(json.dumps([{"image_id": image, "caption": "a dog"} for image in (7, 8, 7)]))
    with pytest.raises(InputError, match=r"given\.json: image 7 has two captions \(entry 2 is the second\)"):
        read_captions(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"caption": "a dog"}, "captions are not a list, but {'caption': 'a dog'}"),
        (["a dog"], "entry 0 of the captions is not an object, but 'a dog'"),
        ([{"image_id": 1}], "entry 0 has neither 'image_id' and 'caption'"),
        ([{"image_id": [1], "caption": "a"}], r"the image id of entry 0 is \[1\]: give a number or a text"),
        ([{"image_id": None, "caption": "a"}], "the image id of entry 0 is missing"),
        ([{"image_id": True, "caption": "a"}], "the image id of entry 0 is True"),
        ([{"image_id": 1, "caption": None}], "a caption of image 1 is missing: give a text"),
        ([{"image_id": 1, "caption": ["a"]}], r"a caption of image 1 is \['a'\]"),
    ],
)
def test_mistakes_in_captions(file: Path, content: Any, message: str) -> None:
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"given.json: {message}"):
        read_captions(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_name": "a", "captions": "a dog"}], ": the references of image 'a' are 'a dog': give a list of texts"),
        ([{"image_name": "a", "captions": ["a", 1]}], ": a caption of image 'a' is 1: give a text"),
        ([{"image_id": 1, "caption": "a dog"}], r" holds no references \(entry 0\): give COCO annotations, a Karp"),
        ("a dog", " holds no references: give COCO annotations"),
        ({"dog": 1}, " holds no references: give COCO annotations"),
        ({}, " holds no references: give COCO annotations"),
        ({"dog": ["a", 1]}, ": a caption of image 'dog' is 1: give a text"),
        ({"dog": [{"text": "a"}]}, ": a caption of image 'dog' is missing: give a text"),
        ({"images": [["a"]]}, r": entry 0 of the images is not an object, but \['a'\]"),
        ({"images": {"a": 1}}, r": images are not a list, but {'a': 1}; is it the right file\?"),
        ({"images": [karpathy("test", 1, sentences=None)]}, ": image '1.jpg': sentences are not a list, but missing"),
        ({"images": [karpathy("test", 1, cocoid=[1])]}, r": the image id of entry 0 is \[1\]"),
        ({"images": [karpathy("test", 1, sentences=[{}])]}, ": a caption of image 1 is missing: give a text"),
        ({"annotations": [{"caption": "a"}]}, ": the image id of entry 0 is missing"),
        ({"annotations": [{"image_id": 1}]}, ": a caption of image 1 is missing"),
    ],
)
def test_mistakes_in_references(file: Path, content: Any, message: str) -> None:
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"given.json{message}"):
        read_references(file)
