"""COCO's objects in captions: every category by its name and plural, compounds, and what is no object."""

import pytest

from prefixcap.metrics.coco_objects import CATEGORIES, WORDS, mentions

# COCO's categories with their plurals, typed here from the data set's own list (ids 1 to 90).
PLURALS = {
    "person": "people", "bicycle": "bicycles", "car": "cars", "motorcycle": "motorcycles", "airplane": "airplanes",
    "bus": "buses", "train": "trains", "truck": "trucks", "boat": "boats", "traffic light": "traffic lights",
    "fire hydrant": "fire hydrants", "stop sign": "stop signs", "parking meter": "parking meters",
    "bench": "benches", "bird": "birds", "cat": "cats", "dog": "dogs", "horse": "horses", "sheep": "sheep",
    "cow": "cows", "elephant": "elephants", "bear": "bears", "zebra": "zebras", "giraffe": "giraffes",
    "backpack": "backpacks", "umbrella": "umbrellas", "handbag": "handbags", "tie": "ties", "suitcase": "suitcases",
    "frisbee": "frisbees", "skis": "skis", "snowboard": "snowboards", "sports ball": "sports balls", "kite": "kites",
    "baseball bat": "baseball bats", "baseball glove": "baseball gloves", "skateboard": "skateboards",
    "surfboard": "surfboards", "tennis racket": "tennis rackets", "bottle": "bottles", "wine glass": "wine glasses",
    "cup": "cups", "fork": "forks", "knife": "knives", "spoon": "spoons", "bowl": "bowls", "banana": "bananas",
    "apple": "apples", "sandwich": "sandwiches", "orange": "oranges", "broccoli": "broccoli", "carrot": "carrots",
    "hot dog": "hot dogs", "pizza": "pizzas", "donut": "donuts", "cake": "cakes", "chair": "chairs",
    "couch": "couches", "potted plant": "potted plants", "bed": "beds", "dining table": "dining tables",
    "toilet": "toilets", "tv": "tvs", "laptop": "laptops", "mouse": "mice", "remote": "remotes",
    "keyboard": "keyboards", "cell phone": "cell phones", "microwave": "microwaves", "oven": "ovens",
    "toaster": "toasters", "sink": "sinks", "refrigerator": "refrigerators", "book": "books", "clock": "clocks",
    "vase": "vases", "scissors": "scissors", "teddy bear": "teddy bears", "hair drier": "hair driers",
    "toothbrush": "toothbrushes",
}  # fmt: skip


def categories(caption: str) -> list[str]:
    return [mention.category for mention in mentions(caption)]


def test_the_categories_are_those_of_coco() -> None:
    assert tuple(PLURALS) == CATEGORIES and len(PLURALS) == 80


@pytest.mark.parametrize("category", PLURALS)
def test_every_category_is_read_by_its_name_and_plural(category: str) -> None:
    for name in (category, PLURALS[category]):
        assert categories(f"There is the {name.title()}.") == [category]


def test_each_word_stands_for_one_category() -> None:
    for category, words in WORDS.items():
        for word in words:
            assert categories(f"one {word} here") == [category], word


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("a hot dog on a bun", ["hot dog"]),
        ("two hot-dogs and a dog", ["hot dog", "dog"]),
        ("it is hot, dogs are asleep", ["dog"]),  # a compound does not reach across punctuation
        ("a teddy bear", ["teddy bear"]),
        ("a bear and some stuffed animals", ["bear", "teddy bear"]),
        ("a baby elephant beside its mother", ["elephant", "person"]),
        ("a baby with baby birds", ["person", "bird"]),
        ("adult zebras, a mother duck and baby animals", ["zebra", "bird"]),
        ("a passenger on a passenger train", ["person", "train"]),
        ("passenger jets and a commuter train", ["airplane", "train"]),
        ("a bow tie", ["tie"]),
        ("glasses of wine and wine glasses", ["wine glass", "wine glass"]),
        ("a toilet seat", ["toilet"]),
        ("a toilet with its seat up beside a stool", ["toilet", "chair"]),
        ("seats in a row", ["chair"]),
        ("home plate", []),
        ("train tracks at a bus stop", []),
        ("a dining table, and a table", ["dining table", "dining table"]),
        ("a double-decker bus and two busses", ["bus", "bus"]),
        ("women's purses and the man\u2019s tie", ["person", "handbag", "person", "tie"]),
        ("policemen, a human, humans", ["person"] * 3),
        ("a couple with a couple of dogs, a crowd of people, someone's lunch", ["person", "dog", "person", "person"]),
        ("a family of ducks in the family room", ["bird"]),
        ("geese, calves, oxen, ponies", ["bird", "cow", "cow", "horse"]),
        ("an orange shirt", ["orange"]),  # as the published code counts
        ("a computer keyboard and a mouse", ["keyboard", "mouse"]),
        ("catalogue of scarves; manlike carpets", []),
        ("狗 chien, 2 café", []),
        ("", []),
    ],
)  # fmt: skip
def test_compounds_and_exceptions(caption: str, expected: list[str]) -> None:
    assert categories(caption) == expected


def test_words_are_those_of_the_caption() -> None:
    assert [mention.words for mention in mentions("Two Puppies on a Pick-Up Truck")] == ["puppies", "pick up truck"]
