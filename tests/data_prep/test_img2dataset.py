"""What img2dataset writes: tars, parquet files, folders."""

import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from data_prep.embedding import embed
from data_prep.readers.folder import read_folder
from data_prep.readers.img2dataset import read_img2dataset
from data_prep.records import Dataset, ImageRecord, ParquetCell, Sample, Skipped
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore
from tests.data_prep import records
from tests.data_prep.test_embed import MeanColour
from tests.data_prep.test_tar import write as write_tar


def picture(number: int, form: str = "JPEG") -> bytes:
    """A picture in one colour, no two of them in the same."""
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (number * 20 % 256, 255 - number, number)).save(file, form)
    return file.getvalue()


def sample(key: str, number: int, caption: str | None = None, **metadata: object) -> list[tuple[str, bytes]]:
    """The members of a tar, or the files of a folder, as img2dataset writes them."""
    text = f"picture {number}" if caption is None else caption
    told = json.dumps({"caption": text, "key": key, "status": "success"} | metadata, indent=4)
    return [(f"{key}.jpg", picture(number)), (f"{key}.txt", text.encode()), (f"{key}.json", told.encode())]


def tar(root: Path, shard: int = 0, count: int = 5) -> Path:
    path = root / f"{shard:05d}.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tar(path, [file for n in range(count) for file in sample(f"{shard:05d}{n:04d}", shard * count + n)])
    return path


def table(path: Path, columns: dict[str, Any], rows_a_group: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_a_group)
    return path


def read(root: Path, **options: Any) -> tuple[list[Sample], list[Skipped]]:
    """All of a data set."""
    dataset = read_img2dataset(root, **options)
    shards = [shard.read() for shard in dataset.shards]
    assert dataset.skipped == []
    return [each for samples, _ in shards for each in samples], [each for _, skipped in shards for each in skipped]


def is_picture(found: Sample, number: int, form: str = "JPEG") -> bool:
    expected = np.asarray(Image.open(io.BytesIO(picture(number, form))))
    return np.array_equal(np.asarray(found.open()), expected)


def test_tars(tmp_path: Path) -> None:
    for shard in (1, 0):
        tar(tmp_path, shard)
        (tmp_path / f"{shard:05d}.parquet").write_text("not needed, and not read")
    (tmp_path / "00001_stats.json").write_text('{"count": 9, "successes": 5}')
    dataset = read_img2dataset(tmp_path)
    assert [shard.size for shard in dataset.shards] == [None, 5]
    assert dataset.image_root == tmp_path
    samples, skipped = read(tmp_path)
    assert skipped == []
    assert [found.record.id for found in samples] == [f"{shard:05d}{n:04d}" for shard in (0, 1) for n in range(5)]
    assert [found.record.captions for found in samples] == [(f"picture {n}",) for n in range(10)]
    assert samples[7].record.file == "00001.tar/000010002.jpg"
    assert all(is_picture(found, number) for number, found in enumerate(samples))


def test_captions_without_text_files_are_in_the_json(tmp_path: Path) -> None:
    first, second, third = (sample(f"0000000{n}", n, caption=f"json {n}") for n in range(3))
    second[1] = (second[1][0], b"text")
    write_tar(tmp_path / "00000.tar", [first[2], first[0], *second, third[0], ("00000002.json", b'{"width": 9}')])
    samples, skipped = read(tmp_path)
    assert [found.record.captions for found in samples] == [("json 0",), ("text",)]
    assert skipped == [Skipped("00000002", "00000.tar/00000002.jpg", "image without caption")]


def test_blemishes_in_a_tar_are_listed(tmp_path: Path) -> None:
    files = [
        *sample("000001", 1),
        *sample("000001", 2),
        ("000003.png", picture(3, "PNG")),
        ("000004.txt", b"a cat"),
        ("000005.jpg", picture(5)), ("000005.txt", "caf\u00e9".encode("latin-1")),
        ("000006.jpg", picture(6)), ("000006.txt", b" \n"),
        ("000007.jpg", picture(7)), ("000007.json", '{"caption": "caf\u00e9"}'.encode("latin-1")),
        ("000008.jpg", picture(8)), ("000008.json", b'{"caption": null}'),
        ("000009.jpg", picture(9)), ("000009.json", b"{"),
        ("00000a.jpg", picture(10)), ("00000a.json", b'{"caption": 3}'),
        ("notes", b""),
    ]  # fmt: skip
    write_tar(tmp_path / "00000.tar", files)
    samples, skipped = read(tmp_path)
    assert [found.record.id for found in samples] == ["000001"]
    assert is_picture(samples[0], 1)
    assert [(skip.id, skip.reason) for skip in skipped] == [
        ("000001", "id comes twice"),
        ("000003", "image without caption"),
        ("000005", "caption is not valid UTF-8"),
        ("000006", "empty caption"),
        ("000007", "caption is not valid UTF-8"),
        ("000008", "image without caption"),
        ("000009", "image without caption"),
        ("00000a", "caption is not text"),
        ("000004", "caption without image"),
    ]
    assert skipped[1].file == "00000.tar/000003.png"
    assert skipped[-1].file == "00000.tar/000004.txt"


@pytest.mark.parametrize("kept", range(5))
def test_a_tar_cut_short(tmp_path: Path, kept: int) -> None:
    path = tar(tmp_path)
    tar(tmp_path, 1)
    place = path.read_bytes().index(picture(kept))
    path.write_bytes(path.read_bytes()[: place + 100])
    samples, skipped = read(tmp_path)
    assert len(samples) == kept + 5
    assert skipped == [Skipped("", "00000.tar", "the tar is cut short; what comes before is taken")]


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", bytes(100)])
def test_not_a_tar(tmp_path: Path, content: bytes) -> None:
    tar(tmp_path, 1)
    (tmp_path / "00000.tar").write_bytes(content)
    samples, skipped = read(tmp_path)
    assert (len(samples), skipped) == (5, [Skipped("", "00000.tar", "not a tar")])


def test_a_tar_without_images_says_so(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", [])
    assert read(tmp_path) == ([], [Skipped("", "00000.tar", "holds no image")])


def test_names_are_only_names(tmp_path: Path) -> None:
    keys = ["../../up", "/etc/passwd", "./000007", "b/c", "n\u00fcl\0", "caf\udce9"]
    root = tmp_path / "here" / "images"
    root.mkdir(parents=True)
    write_tar(root / "00000.tar", [file for n, key in enumerate(keys) for file in sample(key, n)])
    before = sorted(tmp_path.rglob("*"))
    samples, skipped = read(root)
    assert skipped == []
    ids = ["00000/../../up", "00000//etc/passwd", "000007", "00000/b/c", "00000/n\u00fcl", "00000/caf\ufffd"]
    assert [found.record.id for found in samples] == ids
    assert all(is_picture(found, number) for number, found in enumerate(samples))
    embed(read_img2dataset(root), MeanColour(), tmp_path / "store", progress=False)
    assert sorted(path for path in tmp_path.rglob("*") if tmp_path / "store" not in (path, *path.parents)) == before


@pytest.mark.parametrize("rows_a_group", [2, 100])
def test_parquet(tmp_path: Path, rows_a_group: int) -> None:
    for shard in (0, 1):
        columns = {
            "caption": [f"picture {n}" for n in range(5)],
            "key": [f"{shard:05d}{n:04d}" for n in range(5)],
            "status": ["success"] * 5,
            "jpg": [picture(shard * 5 + n) for n in range(5)],
        }
        table(tmp_path / f"{shard:05d}.parquet", columns, rows_a_group)
    (tmp_path / "00001_stats.json").write_text('{"successes": 4}')
    assert [shard.size for shard in read_img2dataset(tmp_path).shards] == [5, 4]
    samples, skipped = read(tmp_path)
    assert skipped == []
    assert [found.record.id for found in samples] == [f"{shard:05d}{n:04d}" for shard in (0, 1) for n in range(5)]
    assert samples[9].record.captions == ("picture 4",)
    assert samples[9].record.file == "00001.parquet/000010004"
    assert all(is_picture(found, number) for number, found in enumerate(samples))


@pytest.mark.parametrize("caption", ["caption", "text", "TEXT"])
@pytest.mark.parametrize("image", ["jpg", "png", "webp", "image"])
def test_parquet_columns(tmp_path: Path, image: str, caption: str) -> None:
    form = {"png": "PNG", "webp": "WEBP"}.get(image, "JPEG")
    pictures: list[Any] = [picture(n, form) for n in range(3)]
    if image == "image":  # as Hugging Face data sets have it
        pictures = [{"bytes": content, "path": None} for content in pictures]
    table(tmp_path / "train.parquet", {image: pictures, caption: ["a", "b", "c"], "width": [1, 2, 3]}, 2)
    samples, _ = read(tmp_path)
    assert [found.record.id for found in samples] == ["train/0", "train/1", "train/2"]
    assert [found.record.captions for found in samples] == [("a",), ("b",), ("c",)]
    assert all(is_picture(found, number, form) for number, found in enumerate(samples))


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.binary()])
def test_blemishes_in_parquet_are_listed(tmp_path: Path, kind: Any) -> None:
    of_bytes = pyarrow.large_binary() if kind == pyarrow.large_string() else pyarrow.binary()
    texts: list[Any] = [b"a cat", b"failed", b"caf\xe9", None, b"again", b"", b"a dog"]
    columns = {
        "key": [1, 2, 3, 4, 1, 8, None],
        "jpg": [picture(0), None, *[picture(n) for n in range(2, 7)]],
        "caption": pyarrow.array(texts, of_bytes).view(kind),
    }
    table(tmp_path / "00000.parquet", columns, 3)
    samples, skipped = read(tmp_path)
    assert [found.record.id for found in samples] == ["00000/1", "00000/6"]
    assert is_picture(samples[1], 6)
    assert skipped == [
        Skipped("00000/2", "00000.parquet/2", "caption without image"),
        Skipped("00000/3", "00000.parquet/3", "caption is not valid UTF-8"),
        Skipped("00000/4", "00000.parquet/4", "image without caption"),
        Skipped("00000/1", "00000.parquet/1", "id comes twice"),
        Skipped("00000/8", "00000.parquet/8", "empty caption"),
    ]


def test_parquet_files_that_cannot_be_read(tmp_path: Path) -> None:
    whole = table(tmp_path / "00000.parquet", {"jpg": [picture(n) for n in range(50)], "caption": ["a"] * 50}, 10)
    content = whole.read_bytes()
    (tmp_path / "00001.parquet").write_bytes(b"")
    (tmp_path / "00002.parquet").write_bytes(content[:-20])
    (tmp_path / "00003.parquet").write_bytes(content[:-200] + bytes(150) + content[-50:])
    table(tmp_path / "00004.parquet", {"url": ["x"], "caption": ["a"]})
    table(tmp_path / "00005.parquet", {"jpg": [picture(0)], "words": ["a"]})
    table(tmp_path / "00006.parquet", {"image": ["0.jpg"], "caption": ["a"]})
    assert [shard.size for shard in read_img2dataset(tmp_path).shards][:3] == [50, None, None]
    samples, skipped = read(tmp_path)
    assert len(samples) == 50
    damaged = "not a parquet file, or a damaged one"
    columns = "has not a column of images (jpg, png, webp, image) and one of captions (caption, captions, text, TEXT)"
    reasons = [damaged, damaged, damaged, columns, columns, columns]
    assert skipped == [Skipped("", f"{n:05d}.parquet", reason) for n, reason in enumerate(reasons, start=1)]


def test_damaged_rows_of_a_parquet_file(tmp_path: Path) -> None:
    noise = [np.random.default_rng(number).bytes(1000) for number in range(4)]
    path = table(tmp_path / "00000.parquet", {"jpg": noise, "caption": ["a"] * 4}, 2)
    content = bytearray(path.read_bytes())
    place = content.index(noise[2])
    content[place - 8 : place + 900] = b"\xff" * 908
    path.write_bytes(content)
    samples, _ = read(tmp_path)
    for found, message in zip(samples, ["not an image", "not an image", "cannot be", "cannot be"], strict=True):
        with pytest.raises(InputError, match=message):
            found.open()


def test_a_row_group_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path / "00000.parquet", {"jpg": [picture(n) for n in range(64)], "caption": ["a"] * 64}, 16)
    samples, _ = read(tmp_path)
    read_groups = []
    original = parquet.ParquetFile.read_row_group

    def counted(self: Any, group: int, *args: Any, **options: Any) -> Any:
        read_groups.append(group)
        return original(self, group, *args, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    opened: list[Image.Image] = []
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, 64, 12):  # batches, of which some begin in one row group and end in the next
            opened += pool.map(Sample.open, samples[start : start + 12])
    assert sorted(read_groups) == [0, 1, 2, 3]
    assert [image.tobytes() for image in opened] == [Image.open(io.BytesIO(picture(n))).tobytes() for n in range(64)]


def test_images_are_not_read_to_list_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path / "00000.parquet", {"jpg": [picture(0)], "caption": ["a"]})
    columns = []
    original = parquet.ParquetFile.read_row_group

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        columns.extend(options["columns"])
        return original(self, *args, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", noted)
    read(tmp_path)
    assert columns == ["caption"]


def test_pyarrow_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar(tmp_path)
    (tmp_path / "00000.parquet").write_text("about the tar")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert len(read(tmp_path)[0]) == 5
    (tmp_path / "00001.parquet").write_text("")
    with pytest.raises(InputError, match=r"pip install 'prefixcap\[parquet\]'"):
        read_img2dataset(tmp_path)
    with pytest.raises(InputError, match=r"pip install 'prefixcap\[parquet\]'"):
        Sample(ImageRecord(1, "", "val", ()), ParquetCell(tmp_path / "none", "jpg", 0, 0)).open()


def test_folders_of_files(tmp_path: Path) -> None:
    for shard in (0, 1):
        (tmp_path / f"{shard:05d}").mkdir()
        (tmp_path / f"{shard:05d}.parquet").write_text("about the folder")
        for number in (2, 0, 1):
            for name, content in sample(f"{shard:05d}{number:04d}", shard * 3 + number):
                (tmp_path / f"{shard:05d}" / name).write_bytes(content)
    (tmp_path / "00001" / "000010001.txt").unlink()
    (tmp_path / "00001" / "000010002.json").unlink()
    (tmp_path / "00001" / "000010002.txt").write_bytes(b"caf\xe9")
    (tmp_path / "00001" / "000010003.txt").write_text("lonely")
    (tmp_path / "00002").mkdir()
    samples, skipped = read(tmp_path)
    assert [found.record.id for found in samples] == ["000000000", "000000001", "000000002", "000010000", "000010001"]
    assert samples[4].record.file == "00001/000010001.jpg"
    assert samples[4].record.captions == ("picture 4",)
    assert samples[4].where == tmp_path / "00001" / "000010001.jpg"
    assert all(is_picture(found, number) for number, found in enumerate(samples))
    assert skipped == [
        Skipped("000010002", "00001/000010002.jpg", "caption is not valid UTF-8"),
        Skipped("000010003", "00001/000010003.txt", "caption without image"),
    ]


def test_a_tar_comes_before_what_was_unpacked_of_it(tmp_path: Path) -> None:
    tar(tmp_path)
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "000000000.jpg").write_bytes(picture(0))
    assert [found.record.file[:9] for found in read(tmp_path)[0]] == ["00000.tar"] * 5


def test_splits_by_folder(tmp_path: Path) -> None:
    folders = {"train": "train", "val": "val", "validation": "val", "test": "test"}
    for name in folders:
        tar(tmp_path / name)
    tar(tmp_path, 1, count=200)
    samples, skipped = read(tmp_path, val_share=0.5, test_share=0.0)
    splits = {found.record.id: found.record.split for found in samples}
    assert len(splits) == len(samples) == 220
    assert skipped == []
    for name, split in folders.items():
        assert splits.pop(f"{name}/00000/000000003") == split
    drawn = [split for image_id, split in splits.items() if image_id.startswith("00001/")]
    assert abs(drawn.count("val") - 100) < 36 and drawn.count("train") == 200 - drawn.count("val")


def test_splits_are_drawn_as_those_of_a_folder(tmp_path: Path) -> None:
    tar(tmp_path, count=300)
    drawn = {record.id: record.split for record in records(read_img2dataset(tmp_path, 0.3, 0.2, seed=7))}
    (tmp_path / "c.csv").write_text("image,caption\n" + "".join(f"{image_id},a\n" for image_id in drawn))
    folder = read_folder(tmp_path, tmp_path / "c.csv", val_share=0.3, test_share=0.2, seed=7)
    assert {record.id: record.split for record in records(folder)} == drawn
    assert set(drawn.values()) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["00000.tar", "00001.tar"], ["00000x", "00001x"]),
        (["1.tar", "10.tar"], ["1/00000x", "10/00001x"]),
        (["00000.tar", "train/00000.tar"], ["00000/00000x", "train/00000/00001x"]),
        (["train/00000.tar", "val/00001.tar"], ["00000x", "00001x"]),
        (["a.tar", "b.tar"], ["a/00000x", "b/00001x"]),
    ],
)
def test_ids_are_unique_over_shards(tmp_path: Path, names: list[str], ids: list[str]) -> None:
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, sample(f"0000{number}x", 0))
    assert [found.record.id for found in read(tmp_path)[0]] == ids


def test_ids_are_unique_where_one_name_begins_another(tmp_path: Path) -> None:
    for name in ("1", "10"):
        write_tar(tmp_path / f"{name}.tar", sample("100", 0))
    assert [found.record.id for found in read(tmp_path)[0]] == ["1/100", "10/100"]


def prints(root: Path, **options: Any) -> list[str]:
    return [shard.fingerprint() for shard in read_img2dataset(root, **options).shards]


def test_fingerprints(tmp_path: Path) -> None:
    root = tmp_path / "a"
    tar(root)
    table(root / "00001.parquet", {"jpg": [picture(0)], "caption": ["a"]})
    (root / "00002").mkdir()
    for name, content in sample("000020000", 1):
        (root / "00002" / name).write_bytes(content)
    before = prints(root)
    assert len(set(before)) == 3
    shutil.copytree(root, tmp_path / "b", copy_function=shutil.copyfile)  # other times of change
    assert prints(tmp_path / "b") == before
    for options in ({"seed": 1}, {"val_share": 0.5}, {"test_share": 0.5}):
        assert not set(prints(root, **options)) & set(before)
    tar(root, count=50)
    table(root / "00001.parquet", {"jpg": [picture(0)] * 500, "caption": ["a"] * 500})
    (root / "00002" / "000020000.txt").write_text("another caption")
    assert not set(prints(root)) & set(before)


def test_a_split_by_folder_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    tar(tmp_path / "train")
    before = prints(tmp_path)
    assert prints(tmp_path, seed=3, val_share=0.2) == before
    (tmp_path / "train").rename(tmp_path / "test")
    assert prints(tmp_path) != before


def test_shards_and_samples_can_be_pickled(tmp_path: Path) -> None:
    tar(tmp_path)
    table(tmp_path / "00001.parquet", {"jpg": [picture(0)], "caption": ["a"]})
    dataset = read_img2dataset(tmp_path)
    again: Dataset = pickle.loads(pickle.dumps(dataset))
    assert again == dataset
    for shard in again.shards:
        samples, _ = shard.read()
        assert is_picture(pickle.loads(pickle.dumps(samples[0])), 0)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nowhere; set data\.root"):
        read_img2dataset(tmp_path / "nowhere")
    (tmp_path / "train").mkdir()
    (tmp_path / "00000").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"no tar \(00000\.tar\), parquet file \(00000\.parquet\) or folder of images"):
        read_img2dataset(tmp_path)
    with pytest.raises(InputError, match="val_share"):
        read_img2dataset(tmp_path, val_share=2)


def test_a_shard_that_vanishes(tmp_path: Path) -> None:
    path = tar(tmp_path)
    (shard,) = read_img2dataset(tmp_path).shards
    path.unlink()
    with pytest.raises(InputError, match=r"cannot read .*00000\.tar: No such file or directory; run"):
        shard.read()


@pytest.mark.parametrize("name", ["cc3m", "cc12m"])
def test_configured(name: str, mistake: Callable[..., str]) -> None:
    told = mistake("data_prep.embed", f"data={name}", "data.root=no/where", "encoder=demo")
    assert told == "error: there is no folder no/where; set data.root to the output folder of img2dataset\n"


def test_stores_of_all_forms_are_alike(tmp_path: Path) -> None:
    """The same ten pictures, as two tars, two parquet files and two folders."""
    for shard in (0, 1):
        tar(tmp_path / "tars", shard)
        keys = [f"{shard:05d}{n:04d}" for n in range(5)]
        numbers = range(shard * 5, shard * 5 + 5)
        columns = {"key": keys, "caption": [f"picture {n}" for n in numbers], "jpg": [picture(n) for n in numbers]}
        table(tmp_path / "tables" / f"{shard:05d}.parquet", columns, rows_a_group=3)
        (tmp_path / "folders" / f"{shard:05d}").mkdir(parents=True)
        for key, number in zip(keys, numbers, strict=True):
            for name, content in sample(key, number):
                (tmp_path / "folders" / f"{shard:05d}" / name).write_bytes(content)
    stores = []
    for form in ("tars", "tables", "folders"):
        dataset = read_img2dataset(tmp_path / form, val_share=0.3, test_share=0.0)
        report = embed(dataset, MeanColour(), tmp_path / f"store-{form}", batch_size=4, progress=False)
        assert (report.written, report.skipped) == (10, [])
        stores.append(FeatureStore(tmp_path / f"store-{form}"))
    assert len({json.dumps(store.splits) for store in stores}) == 1
    assert sum(stores[0].splits.values()) == 10
    for split in stores[0].splits:
        first, *others = (store.split(split) for store in stores)
        for number, image_id in enumerate(first.ids):
            expected = np.asarray(Image.open(io.BytesIO(picture(int(image_id[4]) * 5 + int(image_id[-1])))))
            assert np.allclose(first.embeddings[number], expected[0, 0], atol=1)
        for other in others:
            assert other.ids == first.ids
            assert other.references() == first.references()
            assert np.array_equal(other.embeddings[:], first.embeddings[:])
