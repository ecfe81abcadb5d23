"""A folder of images with a table of captions."""

from pathlib import Path

import pytest

from data_prep.readers.folder import read_folder
from data_prep.records import ImageRecord, Skipped
from prefixcap.errors import InputError
from tests.data_prep import records


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_with_splits(tmp_path: Path) -> None:
    rows = '\ufeffimage,caption,split\na.jpg,"a cat,\nasleep",train\nb/c.jpg,a dog,test\n./a.jpg,cat,train\n'
    dataset = read_folder(tmp_path, write(tmp_path, "captions.csv", rows))
    assert records(dataset) == [
        ImageRecord("a.jpg", "a.jpg", "train", ("a cat, asleep", "cat")),
        ImageRecord("b/c.jpg", "b/c.jpg", "test", ("a dog",)),
    ]
    assert dataset.skipped == []
    assert dataset.image_root == tmp_path


def test_tsv_keeps_quotation_marks(tmp_path: Path) -> None:
    rows = 'caption\timage\n"stop", says the sign\ta.jpg\n'
    (record,) = records(read_folder(tmp_path, write(tmp_path, "captions.tsv", rows)))
    assert record.captions == ('"stop", says the sign',)


def test_jsonl(tmp_path: Path) -> None:
    rows = '{"image": "a.jpg", "captions": ["a cat", "cat"], "split": "val"}\n\n{"image": "a.jpg", "caption": "one"}\n'
    (record,) = records(read_folder(tmp_path, write(tmp_path, "captions.jsonl", rows)))
    assert record == ImageRecord("a.jpg", "a.jpg", "val", ("a cat", "cat", "one"))


def test_split_depends_on_path_and_seed_alone(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(2000)]

    def splits(names: list[str], seed: int) -> dict[str, str]:
        path = write(tmp_path, "captions.csv", "image,caption\n" + "".join(f"{name},a cat\n" for name in names))
        dataset = read_folder(tmp_path, path, val_share=0.1, test_share=0.2, seed=seed)
        return {record.file: record.split for record in records(dataset)}

    drawn = splits(names, 0)
    counts = {split: list(drawn.values()).count(split) for split in ("train", "val", "test")}
    assert abs(counts["val"] - 200) < 60 and abs(counts["test"] - 400) < 80  # over 4 standard deviations
    assert splits(names[500:][::-1], 0).items() <= drawn.items()
    assert splits(names, 1) != drawn


def test_blemishes_are_listed(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a.jpg", "b/lonely.PNG", "notes.txt", "mute.jpg"):
        (tmp_path / name).touch()
    rows = '{"image": "a.jpg", "captions": ["a cat", " ", 3]}\n{"image": "mute.jpg", "captions": []}\n'
    dataset = read_folder(tmp_path, write(tmp_path, "captions.jsonl", rows))
    assert [record.captions for record in records(dataset)] == [("a cat",)]
    assert dataset.skipped == [
        Skipped("a.jpg", "a.jpg", "empty caption"),
        Skipped("a.jpg", "a.jpg", "caption is not text"),
        Skipped("b/lonely.PNG", "b/lonely.PNG", "image without caption"),
        Skipped("mute.jpg", "mute.jpg", "image without caption"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", "file,caption\na.jpg,a cat\n", r"c\.csv has no column 'image'; it has file, caption"),
        ("c.csv", "image\na.jpg\n", r"c\.csv has no column 'caption'; it has image"),
        ("c.csv", "", r"c\.csv has no column 'image'; it has none"),
        ("c.csv", "image,caption\n", r"c\.csv has no caption"),
        ("c.csv", "image,caption\na.jpg,a cat, a dog\n", r"c\.csv, line 2: the row has not 2 fields"),
        ("c.csv", "image,caption\na.jpg\n", r"c\.csv, line 2: the row has not 2 fields"),
        ("c.csv", 'image,caption\na.jpg,"a cat\n', r"c\.csv, line 1: unexpected end of data"),
        ("c.csv", "image,caption\n../a.jpg,a cat\n", r"line 2: the image '\.\./a\.jpg' is not inside"),
        ("c.csv", "image,caption\n/etc/a.jpg,a cat\n", r"line 2: the image '/etc/a\.jpg' is not inside"),
        ("c.csv", "image,caption\nb/..,a cat\n", r"is not inside"),
        ("c.csv", "image,caption\n,a cat\n", "'image' must be a path"),
        ("c.csv", "image,caption,split\na.jpg,b,train\na.jpg,c,val\n", "line 3: a.jpg has the split 'val'; give"),
        ("c.jsonl", '{"image": "a.jpg"}\n', r"c\.jsonl, line 1 has no column 'caption'; it has image"),
        ("c.jsonl", "{}\n{", r"c\.jsonl, line 1 has no column 'image'; it has none"),
        ("c.jsonl", "[]\n", "line 1 is no JSON object"),
        ("c.jsonl", "{\n", "line 1 is not JSON"),
        ("c.txt", "", r"must be a \.csv, \.tsv or \.jsonl file"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_folder(tmp_path, write(tmp_path, name, text))


def test_missing_and_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*c\.csv: No such file"):
        read_folder(tmp_path, tmp_path / "c.csv")
    with pytest.raises(InputError, match="there is no folder"):
        read_folder(tmp_path / "nothing", tmp_path / "c.csv")
    (tmp_path / "c.csv").write_bytes("image,caption\na.jpg,caf\xe9\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"c\.csv is not UTF-8 text \(byte 23\)"):
        read_folder(tmp_path, tmp_path / "c.csv")


@pytest.mark.parametrize("share", [-0.1, 1.0, "abc"])
def test_shares(tmp_path: Path, share: float) -> None:
    with pytest.raises(InputError, match="val_share"):
        read_folder(tmp_path, tmp_path / "c.csv", val_share=share, test_share=0.1)
