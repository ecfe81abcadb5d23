"""Tables of captions as people have them, with what programs leave in them; and damaged ones, told in a line."""

import csv
import io
import itertools
import json
import random
import unicodedata
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from data_prep.readers.coco import read_coco
from data_prep.readers.folder import read_folder
from data_prep.readers.img2dataset import read_img2dataset
from data_prep.readers.inputs import draw_split, draw_splits, split_name
from data_prep.readers.karpathy import read_karpathy
from data_prep.readers.tables import read_rows
from data_prep.readers.text import read_text
from data_prep.records import Dataset
from prefixcap.commands.common.formats import Row, Stream
from prefixcap.commands.common.outputs import Destination, Sidecars
from prefixcap.errors import InputError
from tests.data_prep import records

ROWS = [("a.jpg", "A dog, wet."), ("a.jpg", "A dog."), ("b/c.png", "Two chairs; a parasol.")]
FOUND = {"a.jpg": ("A dog, wet.", "A dog."), "b/c.png": ("Two chairs; a parasol.",)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a.jpg and b/c.png."""
    root = tmp_path / "photos"
    (root / "b").mkdir(parents=True)
    for name in FOUND:
        (root / name).touch()
    return root


def captions(dataset: Dataset) -> dict[int | str, tuple[str, ...]]:
    return {record.id: record.captions for record in records(dataset)}


def skipped(dataset: Dataset) -> list[str]:
    return [skip.reason for shard in dataset.shards for skip in shard.read()[1]] + [s.reason for s in dataset.skipped]


def written(rows: list[tuple[str, ...]], delimiter: str = ",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue()


def plain(rows: list[tuple[str, ...]], delimiter: str) -> str:
    return "".join(delimiter.join(row) + "\n" for row in rows)


FORMS = {
    "captions.csv": written([("image", "caption"), *ROWS]),
    "CAPTIONS.csv": "\ufeff" + written([("Image", " Caption "), *ROWS]),
    "metadata.csv": written([("file_name", "text"), *ROWS]),
    "captions.txt": written([("image", "caption"), *ROWS]),  # Flickr8k, as Kaggle has it
    "captions.tsv": plain([("image", "caption"), *ROWS], "\t"),
    "results.csv": plain([("image_name", " comment_number", " comment"), *((i, " 0", f" {c}") for i, c in ROWS)], "|"),
    "Flickr8k.token.txt": plain([(f"{image}#{n}", text) for n, (image, text) in enumerate(ROWS)], "\t"),
    "results_20130124.token": plain([(f"{image}#{n}", text) for n, (image, text) in enumerate(ROWS)], "\t"),
    "metadata.jsonl": "".join(json.dumps({"file_name": image, "text": text}) + "\n" for image, text in ROWS),
    "captions.json": json.dumps({image: list(texts) for image, texts in FOUND.items()}),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_people_have(photos: Path, name: str) -> None:
    (photos / name).write_text(FORMS[name], encoding="utf-8")
    dataset = read_folder(photos)
    assert (captions(dataset), dataset.skipped) == (FOUND, [])
    assert captions(read_folder(photos, photos / name)) == FOUND


def test_other_delimiters_ends_and_columns(photos: Path) -> None:
    forms = [
        written([("Image", "Caption"), *ROWS], ";"),
        written([("", "image", "caption"), *(("7", *row) for row in ROWS)]),  # pandas' index
        written([("image", "caption"), *ROWS]).replace("\n", "\r\n") + "\r\n,\r\n",
        written([("image", "caption"), *ROWS]).replace("\n", "\r"),
        written([("FILE NAME", "caption 1", "Caption_2"), ("a.jpg", *FOUND["a.jpg"]), ("b/c.png", ROWS[2][1], "nan")]),
        written([("image", "captions"), *((image, str(list(texts))) for image, texts in FOUND.items())]),
        written([("filename", "raw"), *((image, json.dumps(texts)) for image, texts in FOUND.items())]),
        written(ROWS),
        '"image"\t"caption"\n' + "".join(f'"{image}"\t"{text}"\n' for image, text in ROWS),
        "image, caption\n" + "".join(f'{image}, "{text}"\n' for image, text in ROWS),
    ]
    for text in forms:
        (photos / "captions.csv").write_bytes(text.encode())
        assert captions(read_folder(photos)) == FOUND, text


def test_what_prefixcap_caption_writes_can_be_read(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    images = [Row(f"photos/{image}", list(texts)) for image, texts in FOUND.items()]
    scored = [row._replace(similarities=[0.5, -0.1][: len(row.captions)], low_similarity=0.25) for row in images]
    forms = (("csv", "captions.csv"), ("json", "a.json"), ("jsonl", "a.jsonl"), ("text", "a.txt"))
    for (form, name), rows in itertools.product(forms, (scored, images)):
        file = io.BytesIO()
        output = Stream(file, form, can_rewrite=False)  # type: ignore[arg-type]
        output.add(rows)
        output.close()
        (photos.parent / name).write_bytes(file.getvalue())
        assert captions(read_folder("photos", name)) == FOUND, form
    Sidecars(Destination([row.image for row in images], "sidecar")).add(images)
    assert captions(read_folder("photos")) == FOUND


def test_text_files_beside_images(photos: Path) -> None:
    (photos / "train").mkdir()
    for name in ("train/d.jpg", "e.jpg", "e.png", "f.jpg", "g.jpg"):
        (photos / name).touch()
    (photos / "train" / "d.txt").write_text("One.\n\nTwo.\r\nnan\n")
    (photos / "a.caption").write_text("A dog.")
    (photos / "e.txt").write_text("Which?")
    (photos / "f.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (photos / "g.txt").write_text("\n")
    dataset = read_folder(photos)
    assert captions(dataset) == {"a.jpg": ("A dog.",), "train/d.jpg": ("One.", "Two.")}
    assert {record.file: record.split for record in records(dataset)}["train/d.jpg"] == "train"
    reasons = Counter(skip.reason for skip in dataset.skipped)
    assert reasons["e.txt may be the captions of files e.jpg, e.png"] == 2
    assert reasons["caption is not valid UTF-8"] == reasons["empty caption"] == reasons["empty caption (nan)"] == 1


def test_hugging_face_folders_of_splits(tmp_path: Path) -> None:
    for folder, name in (("train", "0.jpg"), ("validation", "0.jpg"), ("test", "0.jpg")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
        (tmp_path / folder / "metadata.csv").write_text(f"file_name,text\n{name},of {folder}\n")
    dataset = read_folder(tmp_path)
    assert [(record.file, record.split, record.captions) for record in records(dataset)] == [
        ("test/0.jpg", "test", ("of test",)),
        ("train/0.jpg", "train", ("of train",)),
        ("validation/0.jpg", "val", ("of validation",)),
    ]


def test_which_file_is_taken(photos: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*captions\.csv: No such file .*; put it there"):
        read_folder(photos)
    for name in ("metadata.csv", "results.csv"):
        (photos / name).write_text(f"image,caption\na.jpg,of {name}\n")
    with pytest.raises(InputError, match=r"any of the files .*metadata\.csv, .*results\.csv may have the captions"):
        read_folder(photos)
    assert captions(read_folder(photos, photos / "results.csv")) == {"a.jpg": ("of results.csv",)}
    (photos / "captions.csv").write_text("image,caption\na.jpg,of captions.csv\n")
    assert captions(read_folder(photos)) == {"a.jpg": ("of captions.csv",)}


def test_names_that_are_not_quite_those_of_the_files(photos: Path) -> None:
    decomposed, composed = (unicodedata.normalize(form, "caf\u00e9.jpg") for form in ("NFD", "NFC"))
    assert decomposed != composed
    for name in (decomposed, "UPPER.JPG", "d.png", "b/only.jpg", "x.jpg", "b/x.jpg", "y.jpg", "y.png"):
        (photos / name).touch()
    names = {
        composed: decomposed,
        "upper.jpg": "UPPER.JPG",
        "d.jpeg": "d.png",
        "b\\c.png": "b/c.png",
        "only.jpg": "b/only.jpg",
        str(photos / "a.jpg"): "a.jpg",
        str(photos.resolve() / "b" / ".." / "x.jpg"): "x.jpg",
        "y.jpg": "y.jpg",
        "y.jpeg": "y.png",  # y.jpg is taken
        "nowhere/x.jpg": "nowhere/x.jpg",  # not there, and x.jpg is another
        "z.jpg": "z.jpg",
    }
    text = written([("image", "caption"), *((name, f"says {name}") for name in names)])
    (photos / "captions.csv").write_text(text, encoding="utf-8")
    dataset = read_folder(photos)
    assert captions(dataset) == {file: (f"says {name}",) for name, file in names.items()}
    (note,) = dataset.notes
    assert note.startswith("5 names in the captions are not quite those of the images")


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/etc/passwd.jpg", "b/../../a.jpg", "..\\a.jpg", "b\\..\\..\\a.jpg", "a\0.jpg"]
)
def test_no_path_leads_out_of_the_folder(photos: Path, name: str) -> None:
    (photos.parent / "a.jpg").touch()
    for file, text in (
        ("captions.jsonl", json.dumps({"image": name, "caption": "x"})),
        ("captions.csv", written([("image", "caption"), (name, "x")])),
    ):
        (photos / file).write_text(text)
        if "\\" in name:
            assert [record.file for record in records(read_folder(photos, photos / file))] == [name]
        else:
            with pytest.raises(InputError, match=r"is not inside|must be a path"):
                read_folder(photos, photos / file)


NOTHING = ["nan", "NaN", "NAN", "None", "null", "N/A", "<NA>", "", "  ", " nan "]


def test_cells_that_hold_nothing_are_no_captions(photos: Path, tmp_path: Path) -> None:
    """`None of the people are old.` is one."""
    kept = "None of the people are old."
    texts = [*NOTHING, kept]
    (photos / "captions.csv").write_text(written([("image", "caption"), *(("a.jpg", text) for text in texts)]))
    lines = "".join(json.dumps({"image": "a.jpg", "caption": text}) + "\n" for text in [*texts, None])
    (photos / "captions.jsonl").write_text(lines + '{"image": "a.jpg", "caption": NaN}\n')
    for name, count in (("captions.csv", len(NOTHING)), ("captions.jsonl", len(NOTHING) + 2)):
        dataset = read_folder(photos, photos / name)
        assert captions(dataset) == {"a.jpg": (kept,)}
        assert sum(skip.id == "a.jpg" for skip in dataset.skipped) == count
    (tmp_path / "a.txt").write_text("\n".join(texts))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    (tmp_path / "a.tsv").write_text("\n".join(f"{text}\thttp://x" for text in texts))
    for name in ("a.txt", "a.jsonl", "a.tsv"):
        assert [record.captions for record in records(read_text(tmp_path / name))] == [(kept,)], name
    image = {"cocoid": 1, "filepath": "a", "filename": "a.jpg", "split": "train"}
    sentences = [{"raw": text} for text in texts]
    (tmp_path / "k.json").write_text(json.dumps({"images": [image | {"sentences": sentences}]}))
    assert [record.captions for record in records(read_karpathy(tmp_path, "k.json"))] == [(kept,)]


def test_parquet_that_pandas_wrote(tmp_path: Path) -> None:
    """Without a caption pandas has NaN, which makes the column one of objects, and of floats if there is none."""
    jpg = [b"x"] * 3
    for number, column in enumerate(([None, "nan", "A dog."], [float("nan")] * 3, [["A.", "B."], ["nan"], None])):
        parquet.write_table(pyarrow.table({"jpg": jpg, "caption": column}), tmp_path / f"{number}.parquet")
    dataset = read_img2dataset(tmp_path)
    assert [record.captions for record in records(dataset)] == [("A dog.",), ("A.", "B.")]
    assert Counter(skipped(dataset)) == {"image without caption": 2, "empty caption (nan)": 2, "empty caption": 3}


@pytest.mark.parametrize(
    ("split", "names"),
    {
        "train": ["train", "Train", " training ", "restval"],
        "val": ["val", "Val", "valid", "VALIDATION", "dev", "development"],
        "test": ["test", "Testing"],
        "fold 3": ["fold 3", " fold 3 "],
    }.items(),
)
def test_splits_have_one_name(photos: Path, tmp_path: Path, split: str, names: list[str]) -> None:
    for name in names:
        assert split_name(name) == split
        (photos / "captions.csv").write_text(written([("image", "caption", "Split"), ("a.jpg", "x", name)]))
        assert [record.split for record in records(read_folder(photos))] == [split]
        image = {"cocoid": 1, "filepath": "v", "filename": "a.jpg", "split": name, "sentences": [{"raw": "x"}]}
        annotations = {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "x"}]}
        (tmp_path / "k.json").write_text(json.dumps({"images": [image]}))
        (tmp_path / "captions_x.json").write_text(json.dumps(annotations))
        for dataset in (read_karpathy(tmp_path, "k.json"), read_coco(tmp_path, split_file="k.json")):
            assert [record.split for record in records(dataset)] == [split]
        assert [record.split for record in records(read_text(tmp_path / "k.json"))] == [split]


def test_each_split_has_an_image_where_there_are_three() -> None:
    for count in range(3, 60):
        ids = [f"{count}/{number}.jpg" for number in range(count)]
        drawn = draw_splits(ids, 0.1, 0.1, seed=0)
        assert set(drawn.values()) == {"train", "val", "test"}
        alone = {name: draw_split(name, 0.1, 0.1, seed=0) for name in ids}
        moved = [name for name in ids if alone[name] != drawn[name]]
        assert len(moved) == 3 - len(set(alone.values()))  # as few as it takes
    many = [f"{number}.jpg" for number in range(1000)]
    assert draw_splits(many, 0.1, 0.1, seed=0) == {name: draw_split(name, 0.1, 0.1, seed=0) for name in many}
    assert set(draw_splits(many[:9], 0.5, 0.0, seed=0).values()) == {"train", "val"}
    assert set(draw_splits(many[:9], 0.0, 0.0, seed=0).values()) == {"train"}


def test_a_few_sentences_have_one_to_validate_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A dog.\nA cat.\nA bird.\n")
    (tmp_path / "a.csv").write_text("caption\nA dog.\nA cat.\nA bird.\n")
    for name in ("a.txt", "a.csv"):
        found = Counter(record.split for record in records(read_text(tmp_path / name, val_share=0.02)))
        assert found == {"train": 2, "val": 1}


def test_a_row_that_is_cut_off_stands_alone_where_nothing_is_quoted(photos: Path) -> None:
    """As one of Flickr30k's `results.csv` is."""
    text = 'image_name| comment_number| comment\na.jpg| 4   A dog .\na.jpg| 0| A "wet" dog.\n'
    (photos / "results.csv").write_text(text)
    dataset = read_folder(photos)
    assert captions(dataset) == {"a.jpg": ('A "wet" dog.',)}
    assert dataset.skipped[0].reason == "line 2: the row has not 3 fields as the header has"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption\na.jpg,x\n".encode("utf-16"), "is not UTF-8 text .*; convert it"),
        ("image,caption\na.jpg,x\n".encode("utf-16-le"), "is not UTF-8 text .*; convert it"),
        (b'image,caption\na.jpg,"x\n' + b"b.jpg,y\n" * 30_000, "field larger than field limit .*; is a quote missing"),
        (b"image,caption\na.jpg,x,y\n", "has not 2 fields"),
        (b"\0\0\0\0", "is not UTF-8 text"),
        (b"image\ncaption\n", "has no column 'caption'"),
    ],
)
def test_tables_that_cannot_be_read(photos: Path, content: bytes, message: str) -> None:
    (photos / "captions.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_folder(photos)


HOSTILE_JSON = ["9" * 5000, "[" * 100_000, '{"a":' * 100_000, "", "{", "nul", "\x00", '"\\ud800"', "NaN", "1e999"]


@pytest.mark.parametrize("text", HOSTILE_JSON)
def test_json_that_python_stumbles_over(photos: Path, text: str) -> None:
    good = '{"image": "a.jpg", "caption": "x"}'
    for name, content in (("captions.jsonl", f"{good}\n{text or '{'}\n"), ("captions.json", text)):
        (photos / name).write_text(content)
        with pytest.raises(InputError) as told:
            read_folder(photos, photos / name)
        assert name in str(told.value) and "\n" not in str(told.value) and len(str(told.value)) < 500
    (photos / "sentences.jsonl").write_text(f'"A dog."\n{text}\n')
    dataset = read_text(photos / "sentences.jsonl")
    assert [record.captions for record in records(dataset)] == [("A dog.",)]
    assert len(skipped(dataset)) == 1
    for reader in (lambda: read_text(photos / "captions.json"), lambda: read_karpathy(photos, "captions.json")):
        with pytest.raises(InputError):
            reader()


JUNK = [b'"', b"\n", b"\r", b"\0", b"\xff", b",", b";", b"|", b"\t", b"[", b"{", b"\\", b"../", b"nan"]


def damaged(text: str, draw: random.Random) -> bytes:
    data = bytearray(text.encode())
    for _ in range(draw.choice([1, 2, 5])):
        place = draw.randrange(len(data) or 1)
        junk = draw.choice(
            [b'"', b"\n", b"\r", b"\0", b"\xff", b",", b";", b"|", b"\t", b"[", b"{", b"\\", b"../", b"nan"]
        )
        how = draw.randrange(3)
        if how == 0:
            data[place : place + 1] = junk
        elif how == 1:
            data[place:place] = junk * draw.choice([1, 1, 1000])
        else:
            del data[place : place + draw.randrange(20)]
    return bytes(data)


@pytest.mark.parametrize("name", FORMS)
def test_damaged_tables_are_read_or_told_in_a_line(photos: Path, name: str) -> None:
    draw, told = random.Random(f"{name} 0"), 0
    path = photos / name
    for _ in range(100):
        path.write_bytes(damaged(FORMS[name], draw))
        try:
            dataset = read_folder(photos, path)
        except InputError as error:
            assert "\n" not in str(error).replace(str(path), "") or "'" in str(error)
            told += 1
            continue
        for record in records(dataset):
            assert record.captions and all(
                text == " ".join(text.split()) and "\0" not in text for text in record.captions
            )
            assert not Path(record.file).is_absolute() and ".." not in Path(record.file).parts
            assert record.split in ("train", "val", "test")
        assert all("\n" not in skip.reason for skip in dataset.skipped)
    assert told > 5


def test_rows_name_where_they_are(photos: Path) -> None:
    (photos / "captions.csv").write_text('image,caption\na.jpg,"two\nlines"\nb/c.png,x\n')
    assert [row.where.rpartition(" ")[2] for row in read_rows(photos / "captions.csv")] == ["3", "4"]
