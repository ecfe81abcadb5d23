"""Flickr8k's files, damaged or made by somebody else: they are read, or told in a line."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.readers.flickr8k import SPLIT_FILES, read_flickr8k, read_flickr8k_text
from prefixcap.errors import InputError
from tests.data_prep import records
from tests.data_prep.test_flickr8k import LAYOUTS, SMALL, contents, write_kaggle, write_published, write_splits
from tests.hostile.test_tables import damaged


@pytest.fixture
def published(tmp_path: Path) -> Path:
    write_published(tmp_path, SMALL)
    write_splits(tmp_path, SMALL)
    (tmp_path / "Flicker8k_Dataset").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("Flickr_8k.devImages.txt", None, r"there is .*Flickr_8k\.trainImages\.txt, but no Flickr_8k\.devImages\.txt"),
        ("Flickr_8k.testImages.txt", b"\n \n", r"Flickr_8k\.testImages\.txt names no image"),
        ("Flickr_8k.testImages.txt", b"4.jpg\n1.jpg\n", r"testImages\.txt: the image '1\.jpg' is in 'train', too"),
        ("Flickr_8k.testImages.txt", b"../4.jpg\n../../5.jpg\n", r"the image '.*5\.jpg' is not inside"),
        ("Flickr_8k.testImages.txt", b"/etc/4.jpg\n", "is not inside"),
        ("Flickr_8k.testImages.txt", b"4\0.jpg\n", "is no name of an image"),
        ("Flickr_8k.testImages.txt", "4.jpg\n".encode("utf-16"), "is not UTF-8 text"),
        ("Flickr8k.token.txt", b"../../1.jpg#0\tA dog .\n", r"line 1: the image '.*1\.jpg' is not inside"),
        (
            "Flickr8k.token.txt",
            b"7.jpg#0\tA dog .\n",
            r"no image of the splits has a caption in .*Flickr8k\.token\.txt",
        ),
        ("Flickr8k.token.txt", b"", r"Flickr8k\.token\.txt"),
        ("Flickr8k.token.txt", b"\x89PNG\r\n\x1a\n\0\0", r"Flickr8k\.token\.txt is not UTF-8 text"),
        ("Flickr8k.token.txt", b"A dog .\nA cat .\n", r"Flickr8k\.token\.txt must be"),
    ],
)
def test_told_in_a_line(published: Path, file: str, content: bytes | None, message: str) -> None:
    (published / file).unlink()
    if content is not None:
        (published / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as told:
        read_flickr8k(published)
    assert "\n" not in str(told.value)


def test_folders_in_the_place_of_files_and_files_in_the_place_of_folders(published: Path, tmp_path: Path) -> None:
    (published / "Flickr_8k.devImages.txt").unlink()
    (published / "Flickr_8k.devImages.txt").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*Flickr_8k\.devImages\.txt: Is a directory"):
        read_flickr8k(published)
    for root in (published / "Flickr8k.token.txt", tmp_path / "nowhere"):
        for reader in (read_flickr8k, read_flickr8k_text):
            with pytest.raises(InputError, match=rf"there is no folder {root}; set data.root"):
                reader(root)
    for options in ({"val_share": 0.7, "test_share": 0.7}, {"val_share": -1.0}):
        with pytest.raises(InputError, match="must be numbers from 0 on"):
            read_flickr8k(published, **options)
    for captions, message in (("other.txt", r"cannot read .*other\.txt"), ("other.png", r"other\.png must be a \.csv")):
        with pytest.raises(InputError, match=message):
            read_flickr8k(published, captions)
    with pytest.raises(InputError, match="is not inside"):
        read_flickr8k(published, images="../elsewhere")


def test_blemishes_that_programs_leave(published: Path) -> None:
    """Line ends of Windows, a byte order mark, blank lines, an image listed twice, captions that hold nothing."""
    for file in (*SPLIT_FILES.values(), "Flickr8k.token.txt"):
        text = (published / file).read_text(encoding="utf-8")
        (published / file).write_bytes(b"\xef\xbb\xbf" + f"{text}\n{text}".replace("\n", "\r\n").encode())
    with (published / "Flickr8k.token.txt").open("a") as file:
        file.write("4.jpg#9\t\n4.jpg#8\tnan\n4.jpg#7 cut off\n")
    dataset = read_flickr8k(published)
    twice = {split: {name: texts * 2 for name, texts in own.items()} for split, own in SMALL.items()}
    assert contents(dataset) == twice
    reasons = [skip.reason for skip in dataset.skipped]
    assert reasons[:2] == ["empty caption", "empty caption (nan)"]
    assert len(reasons) == 3 and reasons[2].endswith("the row has not 2 fields as the header has")


def test_quotation_marks_in_kaggles_table(tmp_path: Path) -> None:
    write_kaggle(tmp_path, SMALL, quoted=False)
    (tmp_path / "captions.txt").write_text('image,caption\n1.jpg,a sign , " Stop " , red\n1.jpg,"a dog , ""Rex"""\n')
    (record,) = records(read_flickr8k(tmp_path))
    assert record.captions == ('a sign , " Stop " , red', 'a dog , "Rex"')
    (tmp_path / "captions.txt").write_text('image,caption\n1.jpg,"a dog\n2.jpg,a cat\n')
    with pytest.raises(InputError, match=r"captions\.txt, line \d: .*is a quote missing"):
        read_flickr8k(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reader", [read_flickr8k, read_flickr8k_text])
def test_damaged_files_are_read_or_told_in_a_line(tmp_path: Path, layout: str, reader: Callable[..., object]) -> None:
    LAYOUTS[layout](tmp_path, SMALL)
    (tmp_path / "Images").mkdir()
    files = {file: file.read_text(encoding="utf-8") for file in sorted(tmp_path.rglob("*")) if file.is_file()}
    draw, told = random.Random(layout), 0
    for _ in range(60):
        file = draw.choice(list(files))
        file.write_bytes(damaged(files[file], draw))
        try:
            dataset = reader(tmp_path)
        except InputError as error:
            assert "\n" not in str(error)
            told += 1
        else:
            for record in records(dataset):  # type: ignore[arg-type]
                assert record.captions and all(text == " ".join(text.split()) for text in record.captions)
                assert not Path(record.file).is_absolute() and ".." not in Path(record.file).parts
                assert record.split and json.dumps(record.id)
        file.write_text(files[file], encoding="utf-8")
    assert told > 5
