"""Which image a name is of."""

import doctest

import pytest

import prefixcap.utils.image_ids
from prefixcap.errors import InputError
from prefixcap.utils.image_ids import by_image


@pytest.mark.parametrize(
    ("given", "images", "found"),
    [
        ("photos/dog.png", ["dog.png", "cat.png"], "dog.png"),
        ("dog", ["pets/dog.png"], "pets/dog.png"),
        ("photos/pets/dog.png", ["pets/dog.png", "wild/dog.png"], "pets/dog.png"),
        (391895, ["COCO_val2014_000000391895.jpg"], "COCO_val2014_000000391895.jpg"),
        ("000000391895.jpg", ["COCO_val2014_000000391895.jpg", 391895], 391895),
        ("000000391895.jpg", ["COCO_val2014_000000391895.jpg"], "COCO_val2014_000000391895.jpg"),
        ("1000092795.jpg", [1000092795], "1000092795.jpg"),  # no number of COCO's: Flickr's names are numbers, too
        ("7", [7], 7),
        (7, ["7"], "7"),
        ("7", ["7", 7], "7"),
        ("000000391895", [391895], 391895),
        ("007", [7], "007"),
        ("v1.5", ["v1"], "v1.5"),  # .5 is no ending of an image
        ("http://host/a/dog.png?size=2", ["dog.png"], "dog.png"),
        ("", ["dog.png"], ""),
    ],
)
def test_names(given: int | str, images: list[int | str], found: int | str) -> None:
    if given == "000000391895.jpg" and len(images) == 2:
        with pytest.raises(InputError, match=r"may be of image 'COCO_val2014_000000391895.jpg' or 391895"):
            by_image({given: "x"}, images)
    else:
        assert by_image({given: "x"}, images) == {found: "x"}


def test_names_that_are_of_no_one_image() -> None:
    with pytest.raises(InputError, match=r"caption of 'dog.png' may be of image 'pets/dog.png' or 'wild/dog.png'"):
        by_image({"dog.png": "x"}, ["pets/dog.png", "wild/dog.png"])
    with pytest.raises(InputError, match=r"'a/dog.png' and 'b/dog.png' are both captions of image 'dog.png'"):
        by_image({"a/dog.png": "x", "b/dog.png": "y"}, ["dog.png"])


def test_files_of_images_are_names_too() -> None:
    assert by_image({"photos/7.jpg": "x", 8: "y"}, [1, 8], {1: "7.jpg"}) == {1: "x", 8: "y"}


def test_examples() -> None:
    failed, attempted = doctest.testmod(prefixcap.utils.image_ids)
    assert attempted > 0 and failed == 0
