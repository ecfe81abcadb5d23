"""Archives of pictures that somebody else made: several captions, damaged captions, and members made to do harm."""

import io
import json
import os
import random
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep.embedding import embed
from data_prep.readers.img2dataset import read_img2dataset
from data_prep.readers.tar import MOST_HEADER, list_tar
from data_prep.records import Sample, Skipped
from prefixcap.store import FeatureStore
from tests.data_prep.test_embed import MeanColour
from tests.data_prep.test_tar import write as write_tar


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "JPEG")
    return file.getvalue()


JPEG = jpeg()


def read(root: Path, **options: Any) -> tuple[list[Sample], list[Skipped]]:
    shards = [shard.read() for shard in read_img2dataset(root, **options).shards]
    return [each for samples, _ in shards for each in samples], [each for _, skipped in shards for each in skipped]


def captions(root: Path) -> dict[int | str, tuple[str, ...]]:
    return {sample.record.id: sample.record.captions for sample in read(root)[0]}


CAPTIONS: dict[str, tuple[list[tuple[str, bytes]], tuple[str, ...]]] = {
    "lines": ([(".txt", b"One.\nTwo.\r\n\n Three. \n")], ("One.", "Two.", "Three.")),
    "caption": ([(".caption", b"One.\nTwo.")], ("One.", "Two.")),
    "upper": ([(".TXT", b"One.")], ("One.",)),
    "list": ([(".json", b'["One.", "Two."]')], ("One.", "Two.")),
    "string": ([(".json", b'"One."')], ("One.",)),
    "captions": ([(".json", b'{"captions": ["One.", "", "Two."]}')], ("One.", "Two.")),
    "list of caption": ([(".json", b'{"caption": ["One.", "Two."], "width": 3}')], ("One.", "Two.")),
    "text": ([(".json", b'\xef\xbb\xbf{"text": "One."}')], ("One.",)),
    "several lines": ([(".txt", b"One\nand two."), (".json", b'{"caption": "One and two."}')], ("One and two.",)),
    "a caption a line": ([(".txt", b"One.\nTwo."), (".json", b'{"width": 3}')], ("One.", "Two.")),
    "half a character": ([(".json", b'["\\ud800", "Two."]')], ("Two.",)),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_several_captions_an_image(tmp_path: Path, name: str) -> None:
    beside, expected = CAPTIONS[name]
    files = [("0.jpg", JPEG), *((f"0{suffix}", content) for suffix, content in beside)]
    write_tar(tmp_path / "00000.tar", files)
    assert captions(tmp_path) == {"00000/0": expected}
    (tmp_path / "00000.tar").unlink()
    (tmp_path / "00000").mkdir()
    for file, content in files:
        (tmp_path / "00000" / file).write_bytes(content)
    assert captions(tmp_path) == {"00000/0": expected}


BAD_JSON = [
    b"9" * 5000, b"[" * 100_000, b'{"caption":' * 100_000, b'{"caption": ' + b"9" * 5000 + b"}", b"\xff\xfe", b"", b"7",
    b'{"caption": {"a": 1}}', b'{"caption": NaN}', b'{"caption": "nan"}', b'{"caption": "\\ud800"}', b'[["One."]]',
    b"true",
]  # fmt: skip


def test_one_bad_caption_costs_one_image(tmp_path: Path) -> None:
    files = [("good0.jpg", JPEG), ("good0.txt", b"One.")]
    for number, content in enumerate(BAD_JSON):
        files += [(f"bad{number}.jpg", JPEG), (f"bad{number}.json", content)]
    write_tar(tmp_path / "00000.tar", [*files, ("good1.jpg", JPEG), ("good1.json", b'{"caption": "Two."}')])
    samples, skipped = read(tmp_path)
    assert [sample.record.captions for sample in samples] == [("One.",), ("Two.",)]
    assert sorted(str(skip.id) for skip in skipped) == sorted(f"00000/bad{number}" for number in range(len(BAD_JSON)))
    report = embed(read_img2dataset(tmp_path), MeanColour(), tmp_path / "store", max_skipped=1, progress=False)
    assert report.written == 2 and len(report.skipped) == len(BAD_JSON)


def member(name: str, content: bytes = b"", **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in more.items():
        setattr(info, attribute, value)
    return info, content


def test_members_that_would_leave_the_archive(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(JPEG)
    root = tmp_path / "images"
    root.mkdir()
    harmful = [
        member("../../secret.jpg", JPEG), member("../../secret.txt", b"One."),
        member("/etc/passwd.jpg", JPEG), member("/etc/passwd.txt", b"Two."),
        member("link.jpg", type=tarfile.SYMTYPE, linkname=str(secret)), member("link.txt", b"Three."),
        member("hard.jpg", type=tarfile.LNKTYPE, linkname="../secret.jpg"), member("hard.txt", b"Four."),
        member("device.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5), member("device.txt", b"Five."),
        member("pipe.jpg", type=tarfile.FIFOTYPE), member("pipe.txt", b"Six."),
    ]  # fmt: skip
    with tarfile.open(root / "00000.tar", "w") as tar:
        for info, content in harmful:
            tar.addfile(info, io.BytesIO(content))
    before = sorted(tmp_path.rglob("*"))
    samples, skipped = read(root)
    assert [sample.record.captions for sample in samples] == [("One.",), ("Two.",)]
    assert Counter(skip.reason for skip in skipped) == {"caption without image": 4}
    embed(read_img2dataset(root), MeanColour(), tmp_path / "store", max_skipped=1, progress=False)
    splits = FeatureStore(tmp_path / "store")
    for split in splits.splits:
        for file in splits.split(split).files:
            assert ".." not in file.parts and file.is_relative_to(root / "00000.tar")
    assert [path for path in sorted(tmp_path.rglob("*")) if tmp_path / "store" not in (path, *path.parents)] == before


def pax(records: bytes) -> bytes:
    """A tar whose only member has these extended headers, written as they are."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    padding = bytes(-len(records) % 512)
    file, content = member("a.jpg", JPEG)
    return header.tobuf(tarfile.USTAR_FORMAT) + records + padding + file.tobuf() + content + bytes(1536)


@pytest.mark.parametrize(
    "records",
    [
        b"9" * 5000 + b" size=1\n", b"-5 size=1\n", b"0 \n", b"22 size=9" + b"9" * 5000, b"12 size=abc\n",
        b"13 size=1_000\n",
        b"6 a=b\n" * 100_000, b"12 size=-99\n", b"99999999 a=b\n", b"\xff" * 100,
    ],
)  # fmt: skip
def test_extended_headers_that_lie(tmp_path: Path, records: bytes) -> None:
    (tmp_path / "00000.tar").write_bytes(pax(records))
    samples, skipped = read(tmp_path)
    assert samples == [] and skipped  # the image has no caption, or is not to be found


def test_long_headers_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(pax(b"6 a=b\n" * (MOST_HEADER // 6 + 1)))
    assert list_tar(path) == ([], True)


def test_a_member_that_is_too_large(tmp_path: Path) -> None:
    """As large as the disk lets a file with a hole be: nothing of it is read."""
    with (tmp_path / "00000.tar").open("wb") as file:
        for name, size in (("a.jpg", 5 << 30), ("b.txt", 5 << 30)):
            file.write(_sized(name, size))
            file.seek(size, io.SEEK_CUR)
        for name, content in (("b.jpg", JPEG), ("c.jpg", JPEG), ("c.txt", b"One."), ("a.txt", b"Two.")):
            info, _ = member(name, content)
            file.write(info.tobuf() + content + bytes(-len(content) % 512))
        file.write(bytes(1024))
    samples, skipped = read(tmp_path)
    assert [sample.record.captions for sample in samples] == [("One.",)]
    assert [skip.reason for skip in skipped] == ["the file is too large", "the caption is too long"]


def _sized(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf()


@pytest.mark.parametrize("kind", ["empty", "gz", "zip", "text", "folder"])
def test_what_is_no_tar_costs_that_shard(tmp_path: Path, kind: str) -> None:
    write_tar(tmp_path / "00000.tar", [("0.jpg", JPEG), ("0.txt", b"One.")])
    other = tmp_path / "00001.tar"
    if kind == "gz":
        with tarfile.open(other, "w:gz") as tar:
            tar.addfile(member("1.jpg", JPEG)[0], io.BytesIO(JPEG))
    elif kind == "folder":
        other.mkdir()
    else:
        other.write_bytes({"empty": b"", "zip": b"PK\3\4" + bytes(1000), "text": b"<html>404</html>" * 99}[kind])
    samples, skipped = read(tmp_path)
    assert [sample.record.captions for sample in samples] == [("One.",)]
    assert [skip.file for skip in skipped] == ([] if kind == "folder" else ["00001.tar"])


def test_entries_of_a_folder_that_are_no_files(tmp_path: Path) -> None:
    shard = tmp_path / "00000"
    shard.mkdir()
    for name in ("0.jpg", "1.jpg"):
        (shard / name).write_bytes(JPEG)
    (shard / "0.txt").write_text("One.")
    (shard / "1.txt").mkdir()
    os.mkfifo(shard / "1.json")
    os.mkfifo(shard / "2.jpg")
    samples, skipped = read(tmp_path)
    assert [sample.record.captions for sample in samples] == [("One.",)]
    assert [skip.reason for skip in skipped] == ["image without caption"]


def test_each_split_of_a_single_shard_has_an_image(tmp_path: Path) -> None:
    files = [(f"{n}{suffix}", content) for n in range(24) for suffix, content in ((".jpg", JPEG), (".txt", b"One."))]
    write_tar(tmp_path / "00000.tar", files)
    assert {sample.record.split for sample in read(tmp_path)[0]} == {"train", "val", "test"}


@pytest.mark.parametrize("folder", ["train", "Validation", "dev", "TEST"])
def test_folders_named_as_splits(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    write_tar(tmp_path / folder / "00000.tar", [("0.jpg", JPEG), ("0.txt", b"One.")])
    expected = {"train": "train", "Validation": "val", "dev": "val", "TEST": "test"}[folder]
    assert [sample.record.split for sample in read(tmp_path)[0]] == [expected]


def test_damaged_archives(tmp_path: Path) -> None:
    path = tmp_path / "00000.tar"
    files = [(f"{n}{suffix}", content) for n in range(4) for suffix, content in ((".jpg", JPEG), (".txt", b"One."))]
    write_tar(path, [*files, ("5.jpg", JPEG), ("5.json", json.dumps({"captions": ["One.", "Two."]}).encode())])
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 3, 20])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
        samples, skipped = read(tmp_path)
        assert samples or skipped
        assert all("\n" not in skip.reason for skip in skipped)
