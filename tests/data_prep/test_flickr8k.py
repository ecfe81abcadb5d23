"""Flickr8k as published, as on Kaggle and in Karpathy's file."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from data_prep.readers.flickr8k import CAPTIONS, IMAGES, SPLIT_FILES, read_flickr8k, read_flickr8k_text
from data_prep.records import Dataset, Skipped
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore
from tests.conftest import ROOT
from tests.data_prep import records
from tests.docs.conftest import run_file

Captions = dict[str, dict[str, list[str]]]  # by split and file name

SMALL: Captions = {
    "train": {"3.jpg": ["A dog , wet .", "Dogs ."], "1.jpg": ['A "dog" runs .']},
    "val": {"2.jpg": ["Two men ."]},
    "test": {"4.jpg": ["A girl , a boy , and a dog ."]},
}
NO_IMAGE = "2258277193_586949ec62.jpg.1"  # in the published file


def rows(captions: Captions) -> Iterator[tuple[str, str]]:
    """(name, caption), in the order of the names, not of the splits."""
    texts = {name: own for split in captions.values() for name, own in split.items()}
    return ((name, text) for name in sorted(texts) for text in texts[name])


def write_published(folder: Path, captions: Captions, more: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    numbers: Counter[str] = Counter()
    lines = []
    for name, text in rows(captions):
        lines.append(f"{name}#{numbers[name]}\t{text}\n")
        numbers[name] += 1
    (folder / "Flickr8k.token.txt").write_text("".join(lines) + more, encoding="utf-8")


def write_kaggle(folder: Path, captions: Captions, quoted: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    text.write("image,caption\n")
    if quoted:
        csv.writer(text, lineterminator="\n").writerows(rows(captions))
    else:
        text.writelines(f"{name},{caption}\n" for name, caption in rows(captions))
    (folder / "captions.txt").write_text(text.getvalue(), encoding="utf-8")


def write_splits(folder: Path, captions: Captions) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, file in SPLIT_FILES.items():
        (folder / file).write_text("".join(f"{name}\n" for name in captions[split]))


def write_karpathy(folder: Path, captions: Captions) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": text} for text in texts]}
        for split, own in captions.items()
        for name, texts in own.items()
    ]
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": images, "dataset": "flickr8k"}))


def contents(dataset: Dataset) -> Captions:
    splits: Captions = {}
    for record in records(dataset):
        splits.setdefault(record.split, {})[str(record.id)] = list(record.captions)
    return splits


LAYOUTS: dict[str, Callable[[Path, Captions], object]] = {
    "published": lambda root, captions: (write_published(root, captions), write_splits(root, captions)),
    "published, in its folder": lambda root, captions: (
        write_published(root / "Flickr8k_text", captions),
        write_splits(root / "Flickr8k_text", captions),
    ),
    "Kaggle, with the split files": lambda root, captions: (
        write_kaggle(root, captions, quoted=False),
        write_splits(root / "Flickr8k_text", captions),
    ),
    "Kaggle, quoted": lambda root, captions: (
        write_kaggle(root / "archive", captions, quoted=True),
        write_splits(root, captions),
    ),
    "Karpathy": write_karpathy,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_forms_say_the_same(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path, SMALL)
    (tmp_path / "Images").mkdir()
    dataset = read_flickr8k(tmp_path)
    assert contents(dataset) == SMALL
    assert [list(own) for own in contents(dataset).values()] == [list(own) for own in SMALL.values()]  # their order
    assert [record.file for record in records(dataset)] == [f"Images/{number}.jpg" for number in (3, 1, 2, 4)]
    assert (dataset.skipped, list(dataset.notes), dataset.image_root) == ([], [], tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_whole_data_set(shared: Path, tmp_path: Path, layout: str) -> None:
    """The 40,000 captions with all that people wrote in them, in the published splits."""
    captions: Captions = json.loads((shared / "flickr8k" / "captions.json").read_text(encoding="utf-8"))
    LAYOUTS[layout](tmp_path, captions)
    dataset = read_flickr8k(tmp_path)
    folded = {
        split: {name: [" ".join(text.split()) for text in texts] for name, texts in own.items()}
        for split, own in captions.items()
    }
    assert contents(dataset) == folded and not dataset.skipped
    assert {split: len(own) for split, own in folded.items()} == {"train": 6000, "val": 1000, "test": 1000}


def test_images_in_no_split_and_names_of_no_image_are_left_out(tmp_path: Path) -> None:
    more = f"9.jpg#0\tIn no split .\n9.jpg#1\tIn none .\n{NO_IMAGE}#0\tpeople waiting .\n{NO_IMAGE}#1\tpeople .\n"
    write_published(tmp_path, SMALL, more)
    write_splits(tmp_path, SMALL | {"test": SMALL["test"] | {"5.jpg": []}})
    (tmp_path / "Flicker8k_Dataset").mkdir()
    dataset = read_flickr8k(tmp_path)
    assert contents(dataset) == SMALL
    assert dataset.skipped == [
        Skipped(NO_IMAGE, "", "not the name of an image file"),
        Skipped("9.jpg", "Flicker8k_Dataset/9.jpg", "image is in no split file"),
        Skipped("5.jpg", "Flicker8k_Dataset/5.jpg", "image without caption"),
    ]
    assert dataset.notes == ["images with captions that are in no split file are left out: 1"]


def test_without_split_files_the_splits_are_drawn_and_that_is_said(tmp_path: Path) -> None:
    captions = {"train": {f"{number}.jpg": [f"A dog , {number} ."] for number in range(800)}}
    write_kaggle(tmp_path, captions, quoted=False)
    (tmp_path / "images").mkdir()
    dataset = read_flickr8k(tmp_path)
    sizes = Counter(record.split for record in records(dataset))
    assert sizes["train"] + sizes["val"] + sizes["test"] == 800
    assert abs(sizes["val"] - 100) < 30 and abs(sizes["test"] - 100) < 30
    assert contents(read_flickr8k(tmp_path)) == contents(dataset) != contents(read_flickr8k(tmp_path, seed=1))
    (note,) = dataset.notes
    assert "Flickr_8k.trainImages.txt" in note and "12.5% val and 12.5% test with seed 0" in note
    assert set(contents(read_flickr8k(tmp_path, val_share=0.0, test_share=0.0))) == {"train"}


def test_which_files_are_taken(tmp_path: Path) -> None:
    write_karpathy(tmp_path, {"train": {"1.jpg": ["Karpathy's ."]}})
    write_published(tmp_path / "Flickr8k_text", {"train": {"1.jpg": ["as published ."]}})
    write_kaggle(tmp_path, {"train": {"1.jpg": ["Kaggle's ."]}}, quoted=True)
    (tmp_path / "__MACOSX" / "Images").mkdir(parents=True)
    for name in ("Flickr8k_Dataset/Flicker8k_Dataset", "photos"):
        (tmp_path / name).mkdir(parents=True)
    files = {name: str(path.relative_to(tmp_path)) for name in CAPTIONS for path in tmp_path.rglob(name)}
    for name, text in zip(CAPTIONS, ("Karpathy's .", "as published .", "Kaggle's ."), strict=True):
        for captions in (files[name], str(tmp_path / files[name])):
            (record,) = records(read_flickr8k(tmp_path, captions))
            assert (record.captions, record.file) == ((text,), "Flickr8k_Dataset/Flicker8k_Dataset/1.jpg")
        (record,) = records(read_flickr8k(tmp_path, files[name], images="photos"))
        assert record.file == "photos/1.jpg"
    (record,) = records(read_flickr8k(tmp_path))
    assert record.captions == ("Karpathy's .",)


@pytest.mark.parametrize("name", IMAGES)
def test_folders_of_images(tmp_path: Path, name: str) -> None:
    write_karpathy(tmp_path, SMALL)
    (note,) = read_flickr8k(tmp_path).notes
    assert all(folder in note for folder in IMAGES) and note.startswith(f"there is no folder of images in {tmp_path}")
    (tmp_path / name).mkdir()
    dataset = read_flickr8k(tmp_path)
    assert not dataset.notes and {str(Path(record.file).parent) for record in records(dataset)} == {name}


def test_sentences_without_images(tmp_path: Path) -> None:
    write_published(tmp_path, SMALL, f"9.jpg#0\tIn no split .\n{NO_IMAGE}#0\tpeople .\n")
    write_splits(tmp_path, SMALL)
    dataset = read_flickr8k_text(tmp_path)
    expected = [(text, split) for split, own in SMALL.items() for texts in own.values() for text in texts]
    assert [(*record.captions, record.split) for record in records(dataset)] == expected
    assert [record.id for record in records(dataset)] == [0, 1, 2, 3, 4] and not dataset.has_images
    short = read_flickr8k_text(tmp_path, max_words=5)
    assert [record.id for record in records(short)] == [0, 1, 2, 3]
    assert short.skipped[-1].reason == "1 sentences of more than 5 words"
    with pytest.raises(InputError, match=r"all captions of .*Flickr8k\.token\.txt have more than 1 words"):
        read_flickr8k_text(tmp_path, max_words=1)
    with pytest.raises(InputError, match="max_words must be an integer of at least 1"):
        read_flickr8k_text(tmp_path, max_words=0)


def test_embedded_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data" / "flickr8k"
    write_published(root, SMALL, "9.jpg#0\tIn no split .\n")
    write_splits(root, SMALL)
    (root / "Images").mkdir()
    for name in ("1.jpg", "2.jpg", "3.jpg", "4.jpg"):
        Image.new("RGB", (9, 9), (int(name[0]), 0, 0)).save(root / "Images" / name)
    embed = ROOT / "prefixcap" / "commands" / "embed.py"
    run_file(embed, "data=flickr8k", "encoder=demo")
    assert "images with captions that are in no split file are left out: 1" in capsys.readouterr().out
    assert FeatureStore("stores/flickr8k-demo").splits == {"train": 2, "val": 1, "test": 1}
    run_file(embed, "data=flickr8k_text", "encoder=demo", "features=[caption]")
    assert FeatureStore("stores/flickr8k_text-demo").splits == {"train": 3, "val": 1, "test": 1}


def test_told_without_captions(mistake: Callable[..., str]) -> None:
    told = mistake("data_prep.embed", "data=flickr8k", "data.root=.", "encoder=demo")
    assert told == (
        "error: no captions of Flickr8k in .: looked for dataset_flickr8k.json, Flickr8k.token.txt, captions.txt, also "
        "one folder below; set data.root\n"
    )
