"""Composite's tables, in the form in which other code reads them."""

from pathlib import Path

import pytest

from prefixcap.errors import InputError
from prefixcap.evaluation.composite import read_composite

# As of Mechanical Turk: other columns come first, and the last two rows are of no image.
BEFORE = ["HITId", "Title", "Input.image_url"]
REFERENCES: dict[int | str, list[str]] = {
    "1_ab.jpg": ["A dog runs.", "The wet dog", "a dog"],
    "22.jpg": ["Two birds; one flies.", "birds"],
    391895: ["A man on a bike.", "A man on a motorcycle"],
}
ROWS = {
    "8k_correctness.csv": [("http://x.org/8k/1_ab.jpg", ["A dog runs .", "a cat", "the wet dog"], ["5", "1", "4"])],
    "30k_correctness.csv": [("https://x.org/22.jpg", ["two birds ; one flies", "b", "c", "d"], ["4", "", "2", "5"])],
    "coco_correctness.csv": [
        (
            "http://x.org/val/COCO_val2014_000000391895.jpg",
            ["a man on a bike", "bike", "a cat", "x"],
            ["3", "5", "1", "1"],
        )
    ],
}


def write(file: Path, rows: list[tuple[str, list[str], list[str]]]) -> Path:
    count = len(rows[0][1])
    head = [*BEFORE, *(f"Input.text{n + 1}" for n in range(count)), *(f"Answer.Q{n + 1}Answer" for n in range(count))]
    lines = [head, *(["3X", "Rate; captions", url, *texts, *ratings] for url, texts, ratings in rows)]
    lines += [["", ""], ["total", *[""] * (len(head) - 1)]]
    quoted = [[f'"{cell}"' if ";" in cell else cell for cell in line] for line in lines]
    file.write_text("".join(";".join(line) + "\r\n" for line in quoted))
    return file


def write_composite(folder: Path) -> Path:
    folder.mkdir()
    for name, rows in ROWS.items():
        write(folder / name, rows)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_composite(tmp_path / "AMT_eval")


def test_the_three_files_are_one_data_set(folder: Path) -> None:
    judged = read_composite(folder, REFERENCES)
    assert judged.name == "Composite"
    coco = "COCO_val2014_000000391895.jpg"
    assert list(zip(judged.images, judged.captions, judged.ratings[:, 0].tolist(), strict=True)) == [
        ("1_ab.jpg", "A dog runs .", 5), ("1_ab.jpg", "a cat", 1), ("1_ab.jpg", "the wet dog", 4),
        ("22.jpg", "two birds ; one flies", 4), ("22.jpg", "c", 2),
        (coco, "a man on a bike", 3), (coco, "bike", 5), (coco, "a cat", 1),
    ]  # fmt: skip
    # Of the reference that is rated first, not of another that a program hit upon.
    assert judged.references == {
        "1_ab.jpg": ["The wet dog", "a dog"], "22.jpg": ["birds"], coco: ["A man on a motorcycle"],
    }  # fmt: skip
    assert judged.notes == [
        "first captions that are references of their image, and so are none: of 3 images",
        "captions without a rating are left out: 1",
    ]


def test_one_file_and_a_part(folder: Path) -> None:
    assert read_composite(folder / "8k_correctness.csv", REFERENCES).name == "Composite 8k_correctness"
    (folder / "30k_correctness.csv").unlink()
    judged = read_composite(folder, REFERENCES)
    assert len(judged.captions) == 6 and "a part of Composite: there is no 30k_correctness.csv" in judged.notes


URL = "http://x.org/1_ab.jpg"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("http://x.org/3.jpg", ["a", "b"], ["1", "2"])], r"there are no captions of the image '3\.jpg'"),
        ([(URL, ["a", "b"], ["1", "6"])], r"line 2: the rating of caption 2 is '6', not 1 to 5"),
        ([(URL, ["a", "b"], ["good", "1"])], "the rating of caption 1 is 'good'"),
        ([(URL, ["a", "b"], ["nan", "1"])], "the rating of caption 1 is 'nan'"),
        ([(URL, ["a", "b"], ["2", "2"])], "2 judgements that are all the same"),
        ([(URL, ["", ""], ["2", "2"])], "has no caption"),
        ([(URL, ["a"], ["2"])], r"lacks the column 'Input\.text2', between semicolons"),
    ],
)
def test_mistakes(rows: list[tuple[str, list[str], list[str]]], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_composite(write(tmp_path / "x.csv", rows), REFERENCES)
    assert "x.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds none of Composite's files"):
        read_composite(tmp_path, REFERENCES)
    with pytest.raises(InputError, match="cannot read"):
        read_composite(tmp_path / "none.csv", REFERENCES)
