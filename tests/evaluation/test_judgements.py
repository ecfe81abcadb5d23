"""Files of judgements in the forms in which they go round, and mistakes in them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from prefixcap.errors import InputError
from prefixcap.evaluation.judgements import read_judgements
from prefixcap.evaluation.matlab import read_matlab
from prefixcap.evaluation.pascal50s import read_pascal50s

CAPTIONS = {
    "a.jpg": ["a dog runs", "a wet dog", "a dog", "the dog", "dogs"],
    "b.jpg": ["a cat", "a cat sleeps", "a dog", "cats", "the cat"],
    "c.jpg": ["a bird", "a bird", "birds"],
}
EXPERT = [
    ("a.jpg", "b.jpg#0", "1", "1", "2"),
    ("a.jpg", "a.jpg#1", "4", "4", "4"),  # an own caption
    ("a.jpg", "b.jpg#2", "3", "4", "4"),  # another image's, in the same words as an own one
    ("b.jpg", "c.jpg#2", "1", "1", "1"),
]
CROWD = [
    ("a.jpg", "a.jpg#1", "1", "3", "0"),
    ("a.jpg", "b.jpg#2", "0.666667", "2", "1"),
    ("a.jpg", "b.jpg#0", "0", "0", "3"),
    ("b.jpg", "c.jpg#2", "0.25", "1", "3"),
    ("c.jpg", "c.jpg#1", "1", "4", "0"),
]


def write_rows(path: Path, rows: list[tuple[str, ...]], end: str = "\n") -> Path:
    path.write_bytes("".join("\t".join(row) + end for row in rows).encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_experts(tmp_path: Path, end: str) -> None:
    judged = read_judgements(write_rows(tmp_path / "any.txt", EXPERT, end), CAPTIONS)
    assert (judged.name, judged.images, judged.captions) == ("Flickr8k-Expert", ["a.jpg", "b.jpg"], ["a cat", "birds"])
    assert judged.ratings.tolist() == [[1, 1, 2], [1, 1, 1]]
    assert judged.references == {image: CAPTIONS[image] for image in ("a.jpg", "b.jpg")}
    assert judged.notes == ["captions that are among the references of their image are left out: 2"]


def test_crowd(tmp_path: Path) -> None:
    judged = read_judgements(write_rows(tmp_path / "any.txt", CROWD), CAPTIONS)
    assert (judged.name, judged.images) == ("Flickr8k-CF", ["a.jpg", "a.jpg", "a.jpg", "b.jpg", "c.jpg"])
    assert judged.captions == ["a wet dog", "a dog", "a cat", "birds", "a bird"]
    assert judged.ratings.tolist() == [[1], [0.666667], [0], [0.25], [1]]
    # Own captions are no references of the image, whichever of its captions is scored; of two alike, one stays.
    assert judged.references == {
        "a.jpg": ["a dog runs", "the dog", "dogs"], "b.jpg": CAPTIONS["b.jpg"], "c.jpg": ["a bird", "birds"],
    }  # fmt: skip
    assert judged.notes == ["captions of the image itself that are judged, and so are none of its references: 3"]


def clipscore_json(path: Path, **entries: Any) -> Path:
    path.write_text(json.dumps({name.replace("_", "."): entry for name, entry in entries.items()}))
    return path


def entry(ratings: dict[str, Any], *references: str) -> dict[str, Any]:
    judgements = [{"caption": caption, "rating": rating, "image_path": "x"} for caption, rating in ratings.items()]
    return {"image_id": "a", "image_path": "x", "human_judgement": judgements, "ground_truth": list(references)}


@pytest.mark.parametrize(("stem", "name"), [("composite", "Composite"), ("mine", "mine")])
def test_json_as_the_code_of_clipscore_makes_it(stem: str, name: str, tmp_path: Path) -> None:
    file = clipscore_json(
        tmp_path / f"{stem}.json",
        a_jpg=entry({"a  dog \n": 5.0, "a cat": 1}, "the dog", "a wet  dog"),
        b_jpg=entry({"birds": 2.0, "nothing": float("nan")}, "a bird"),
        c_jpg=entry({}),
    )
    judged = read_judgements(file)
    assert (judged.name, judged.images) == (name, ["a.jpg", "a.jpg", "b.jpg"])
    assert judged.captions == ["a dog", "a cat", "birds"] and judged.ratings.tolist() == [[5], [1], [2]]
    assert judged.references == {"a.jpg": ["the dog", "a wet dog"], "b.jpg": ["a bird"]}
    assert judged.notes == ["captions without a rating are left out: 1"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "judges no caption"),
        ([("a.jpg", "b.jpg#0", "1")], "line 1 has 3 columns"),
        ([("a.jpg", "b.jpg#0", "1", "1", "good")], "are not three numbers"),
        ([EXPERT[0], ("a.jpg", "b.jpg#1", "0", "0", "3")], "line 2 holds neither"),
        ([CROWD[0], EXPERT[0]], "line 2 holds neither"),
        ([("a.jpg", "b.jpg#1", "0.5", "3", "1")], "line 1 holds neither"),
        ([("a.jpg", "b.jpg#1", "nan", "nan", "1")], "line 1 holds neither"),
        ([("a.jpg", "b.jpg#1", "0", "0", "0")], "line 1 holds neither"),
        ([("z.jpg", "b.jpg#1", "1", "2", "1")], "no captions of the image 'z.jpg'"),
        ([("a.jpg", "b.jpg#5", "1", "2", "1")], "no caption 'b.jpg#5'"),
        ([("a.jpg", "b.jpg", "1", "2", "1")], "'b.jpg' is no caption id"),
        ([("a.jpg", "b.jpg#0", "2", "2", "2")], "all the same"),
        ([("c.jpg", f"c.jpg#{n}", "1", "1", "0") for n in range(3)] + [CROWD[2]], "'c.jpg' has no reference"),
    ],
)
def test_mistakes_in_tables(rows: list[tuple[str, ...]], message: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.txt", rows)
    with pytest.raises(InputError, match=message) as caught:
        read_judgements(file, CAPTIONS)
    assert "\n" not in str(caught.value) and "rows.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is not an object"),
        ('{"a": 3}', "image 'a' lacks 'human_judgement'"),
        ('{"a": {"human_judgement": [], "ground_truth": "dog"}}', "lacks 'ground_truth', a list of texts"),
        ('{"a": {"human_judgement": [{"caption": "dog"}], "ground_truth": ["dog"]}}', "judgement 0 lacks"),
        ('{"a": {"human_judgement": [{"caption": "dog", "rating": true}], "ground_truth": []}}', "judgement 0 lacks"),
        (
            f'{{"a": {{"human_judgement": [{{"caption": "d", "rating": 1{"0" * 400}}}], "ground_truth": ["dog"]}}}}',
            "a rating of 401 digits",
        ),
        ("{}", "0 judgements that are all the same"),
        (
            '{"a": {"human_judgement": [{"caption": "d", "rating": 1}, {"caption": "d", "rating": Infinity}], '
            '"ground_truth": ["dog"]}}',
            "infinite",
        ),
        (
            '{"a": {"human_judgement": [{"caption": "d", "rating": 1}, {"caption": "d", "rating": 2}], '
            '"ground_truth": []}}',
            "no reference",
        ),
        ("{", "is not JSON"),
    ],
)
def test_mistakes_in_json(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "composite.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_judgements(file)
    assert "\n" not in str(caught.value)


# ---- Pascal-50S --------------------------------------------------------------------------------------

PAIRS = [("1.jpg", "a dog", "a wet dog", 1), ("1.jpg", "a dog", "a cat", 2), ("2.jpg", "bird fly", "a bird", 3)]
ANSWERS = [(1, 1, -1), (1, 1, 1), (-1, -1, 1)]


def cell(text: str) -> np.ndarray:
    """A cell that holds a text, as MATLAB has it."""
    made = np.empty((1, 1), object)
    made[0, 0] = text
    return made


def write_pascal50s(folder: Path, turned: int | None = None, packed: bool = False) -> Path:
    """The published files' form: structures of texts, and of votes whose fields are cells."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = np.empty((1, len(PAIRS)), [("image", object), ("sent1", object), ("sent2", object)])
    votes = np.empty((1, 9), [("ref", object), ("b", object), ("c", object), ("winner", object)])
    for number, (image, first, second, _) in enumerate(PAIRS):
        pairs[0, number] = (image, f"{first} ", second)
        for vote, answer in enumerate(ANSWERS[number]):
            shown, said = (first, second), answer
            if 3 * number + vote == turned:  # people may see the captions the other way round
                shown, said = (second, first), -answer
            votes[0, 3 * number + vote] = (cell(f"reference {number} {vote}"), *map(cell, shown), np.array([[said]]))
    category = np.array([[float(pair[3]) for pair in PAIRS]])
    described = {"new_input": pairs, "category": category, "new_data": np.ones((3, 2))}
    savemat(folder / "pair_pascal.mat", described, do_compression=packed)
    savemat(folder / "consensus_pascal.mat", {"triplets": votes}, do_compression=packed)
    return folder


@pytest.mark.parametrize(("below", "packed"), [("", False), ("pyCIDErConsensus", True)])
def test_pascal50s(below: str, packed: bool, tmp_path: Path) -> None:
    write_pascal50s(tmp_path / below, 1, packed)
    preferred = read_pascal50s(tmp_path)
    assert preferred.images == ["1.jpg", "1.jpg", "2.jpg"] and preferred.categories == ["HC", "HI", "HM"]
    assert preferred.captions == [(first, second) for _, first, second, _ in PAIRS]
    assert preferred.votes.tolist() == [[2, 1], [3, 0], [1, 2]]
    assert preferred.references[2] == ["reference 2 0", "reference 2 1", "reference 2 2"]
    again = read_pascal50s(tmp_path / below / "consensus_pascal.mat")
    assert again.votes.tolist() == preferred.votes.tolist()


def test_mistakes_in_pascal50s(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            read_pascal50s(tmp_path)
        assert "\n" not in str(caught.value)

    refused("there is no pair_pascal.mat")
    write_pascal50s(tmp_path)
    whole = {file: file.read_bytes() for file in tmp_path.iterdir()}
    votes = tmp_path / "consensus_pascal.mat"
    votes.unlink()
    refused("cannot read .*consensus_pascal.mat")
    savemat(votes, {"triplets": np.zeros((1, 9))})
    refused("entry 0 of 'triplets' has not 4 fields")
    savemat(votes, {"others": np.zeros((1, 9))})
    refused("no variable 'triplets'")
    other = write_pascal50s(tmp_path / "other")
    savemat(tmp_path / "pair_pascal.mat", {"new_input": np.empty((1, 0), object), "category": np.zeros((1, 0))})
    votes.write_bytes((other / votes.name).read_bytes())
    refused("has 9 votes, .* 0 pairs")
    for file, content in whole.items():
        file.write_bytes(content)
        for size in (0, 50, 128, 150, len(content) // 2, len(content) - 3):
            file.write_bytes(content[:size])
            refused("no file of MATLAB|is damaged|has no variable")
        file.write_bytes(content)


@pytest.mark.parametrize("packed", [False, True])
def test_variables_are_read_as_scipy_writes_them(packed: bool, tmp_path: Path) -> None:
    cells = np.empty((1, 3), object)
    cells[0] = ["naïve 犬", np.array([[1.5, -2.0]]), cell("deep")]
    records = np.array([[("x", 1), ("", 300)]], [("name", object), ("number", object)])
    numbers = {kind: np.arange(5).astype(kind) for kind in ("int8", "uint16", "int64", "float32", "float64")}
    savemat(tmp_path / "all.mat", numbers | {"cells": cells, "records": records}, do_compression=packed)
    read = read_matlab(tmp_path / "all.mat")
    assert all(read[kind] == [0, 1, 2, 3, 4] for kind in numbers)
    assert read["cells"] == ["naïve 犬", [1.5, -2.0], ["deep"]]
    assert read["records"] == [["x", [1.0]], ["", [300.0]]]


def test_any_damage_to_a_file_is_one_line_or_none(tmp_path: Path) -> None:
    """Random bytes in random places: some make other texts, and some a file that no reader can take for one."""
    generator = np.random.default_rng(0)
    refused = 0
    folders = [write_pascal50s(tmp_path / "plain"), write_pascal50s(tmp_path / "packed", packed=True)]
    for file in [file for folder in folders for file in folder.iterdir()]:
        content = np.frombuffer(file.read_bytes(), np.uint8)
        for _ in range(100):
            damaged = content.copy()
            damaged[generator.integers(len(content), size=4)] = generator.choice([0, 255, *range(30)], 4)
            file.write_bytes(damaged.tobytes())
            try:
                read_pascal50s(file)
            except InputError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 400 + 2 * len(str(file))
        file.write_bytes(content.tobytes())
    assert 200 < refused < 400


def test_files_of_other_levels(tmp_path: Path) -> None:
    file = tmp_path / "pair_pascal.mat"
    file.write_bytes(b"MATLAB 7.3 MAT-file".ljust(126) + b"IM" + bytes(64))
    with pytest.raises(InputError, match="save it with -v7"):
        read_matlab(file)
    savemat(file, {"numbers": np.ones(3)}, format="4")
    with pytest.raises(InputError, match="no file of MATLAB, level 5"):
        read_matlab(file)
    with pytest.raises(InputError, match="cannot read"):
        read_matlab(tmp_path / "none.mat")
