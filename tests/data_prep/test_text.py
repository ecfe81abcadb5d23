"""Sentences without images."""

import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.readers.text import LineShard, read_text
from data_prep.records import Dataset, ImageRecord, Sample, Skipped
from prefixcap.errors import InputError
from tests.data_prep import records


def write(root: Path, name: str, content: str | bytes | list[Any] | dict[str, Any]) -> Path:
    path = root / name
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def sentences(dataset: Dataset) -> dict[int | str, str]:
    found = records(dataset)
    assert all(record.file == "" and len(record.captions) == 1 for record in found)
    assert len({record.id for record in found}) == len(found)
    return {record.id: record.captions[0] for record in found}


def skipped(dataset: Dataset) -> list[Skipped]:
    return [*dataset.skipped, *(skip for shard in dataset.shards for skip in shard.read()[1])]


def test_lines_of_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"\xef\xbb\xbfa cat\r\n\n two\tdogs\xe2\x80\xa8 \ncaf\xe9\n\xc2\xa0\nlast")
    dataset = read_text(path, split="test")
    assert records(dataset) == [
        ImageRecord(0, "", "test", ("a cat",)),
        ImageRecord(2, "", "test", ("two dogs",)),
        ImageRecord(5, "", "test", ("last",)),
    ]
    assert skipped(dataset) == [
        Skipped(3, "a.txt", "caption is not valid UTF-8"),
        Skipped(4, "a.txt", "empty caption"),
        Skipped("", "a.txt", "1 blank line"),
    ]
    assert [shard.size for shard in dataset.shards] == [6]
    assert not dataset.has_images


def test_blank_lines_alone(tmp_path: Path) -> None:
    assert skipped(read_text(write(tmp_path, "a.txt", "\n \n"))) == [Skipped("", "a.txt", "2 blank lines")]


def test_there_is_no_image(tmp_path: Path) -> None:
    for path in (write(tmp_path, "a.txt", "a cat\n"), write(tmp_path, "a.json", ["a cat"])):
        ((sample,), _) = read_text(path).shards[0].read()
        assert sample.where is None
        with pytest.raises(InputError, match="has no image"):
            sample.open()


def test_tsv_with_a_header(tmp_path: Path) -> None:
    rows = b'url\tcaption \thash\r\nx\t"a" cat\ty\r\n\r\nx\nx\t\ty\nx\ta dog'
    dataset = read_text(write(tmp_path, "a.tsv", rows))
    assert sentences(dataset) == {0: '"a" cat', 4: "a dog"}
    assert skipped(dataset) == [
        Skipped(2, "a.tsv", "line without caption"),
        Skipped(3, "a.tsv", "empty caption"),
        Skipped("", "a.tsv", "1 blank line"),
    ]


def test_tsv_without_a_header_is_as_conceptual_captions(tmp_path: Path) -> None:
    rows = "a caption of a cat\thttp://a/b.jpg\na dog\thttp://a/c.jpg\n"
    assert sentences(read_text(write(tmp_path, "a.TSV", rows))) == {0: "a caption of a cat", 1: "a dog"}


def test_csv(tmp_path: Path) -> None:
    dataset = read_text(write(tmp_path, "a.csv", 'image,caption\n1,"a cat,\nasleep"\n2, \n3,a dog\n'))
    assert sentences(dataset) == {0: "a cat, asleep", 2: "a dog"}
    assert dataset.skipped == [Skipped(1, "a.csv", "empty caption")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (["a cat", "a dog"], ["a cat", "a dog"]),
        ([{"caption": "a cat"}, {"captions": ["a dog", "dog"]}, "a bird"], ["a cat", "a dog", "dog", "a bird"]),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": " a\ncat"}]}, ["a cat"]),
    ],
)
def test_json(tmp_path: Path, content: Any, expected: list[str]) -> None:
    found = sentences(read_text(write(tmp_path, "a.json", content)))
    assert found == dict(enumerate(expected))


def test_splits_of_karpathys_file_are_kept(tmp_path: Path) -> None:
    images = [
        {"filename": f"{split}.jpg", "split": split, "sentences": [{"raw": split}, {"raw": f"more {split}"}]}
        for split in ("train", "restval", "val", "test")
    ]
    found = records(read_text(write(tmp_path, "a.json", {"images": images}), split="other", val_share=1.0))
    assert [record.split for record in found] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    assert [record.captions for record in found][2:4] == [("restval",), ("more restval",)]


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        b'"a cat"',
        b'{"captions": ["a dog", "dog"]}',
        b"",
        b"{",
        b'{"text": "?"}',
        b'"caf\xe9"',
        b'{"caption": "a [bird]"}',
        b"7",
    ]
    dataset = read_text([write(tmp_path, "a.jsonl", b"\n".join(lines)), write(tmp_path, "b.txt", "more")])
    assert sentences(dataset) == {0: "a cat", 1: "a dog", 2: "dog", 7: "a [bird]", 9: "more"}
    form = "neither a string nor an object with 'caption' or 'captions'"
    assert [(skip.id, skip.reason.partition(":")[0]) for skip in skipped(dataset)] == [
        (4, "not JSON"),
        (5, form),
        (6, "caption is not valid UTF-8"),
        (8, form),
        ("", "1 blank line"),
    ]


def test_numbers_run_over_files_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.readers.text.SHARD_LINES", 4)
    lines = [f"sentence {number}" if number % 3 else "" for number in range(11)]
    files = [
        write(tmp_path, "b.txt", "\n".join(lines)),
        write(tmp_path, "a.json", ["x", {"caption": 3}, "y", "z", "u", "v"]),
        write(tmp_path, "c.jsonl", "\n".join(['"no"', '{"captions": ["p", "q"]}'] * 3)),
        write(tmp_path, "d.tsv", "caption\n" + "\n".join(lines)),
    ]
    dataset = read_text(files)
    expected = {number: line for number, line in enumerate(lines) if line}
    expected |= dict(zip([11, 13, 14, 15, 16], "xyzuv", strict=True))
    expected |= dict(zip(range(17, 26), ["no", "p", "q"] * 3, strict=True))
    expected |= {26 + number: line for number, line in enumerate(lines) if line}
    assert sentences(dataset) == expected
    assert [shard.size for shard in dataset.shards] == [4, 4, 3, 4, 1, 6, 3, 4, 4, 3]
    left_out = skipped(dataset)
    assert left_out[0] == Skipped(12, "a.json", "caption is not text")
    blank = [sum(not line for line in lines[first : first + 4]) for first in (0, 4, 8)]
    assert [(skip.file, int(skip.reason.split()[0])) for skip in left_out[1:]] == [
        *(("b.txt", count) for count in blank),
        *(("d.tsv", count) for count in blank),
    ]
    last_alone, _ = dataset.shards[-1].read()
    assert [sample.record.id for sample in last_alone] == [34, 36]


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more").mkdir()
    for name in ("b.txt", "a.txt", "more/c.txt", "x[1].txt"):
        write(tmp_path, name, name)
    assert list(sentences(read_text(f"{tmp_path}/?.txt")).values()) == ["a.txt", "b.txt"]
    assert list(sentences(read_text(str(tmp_path / "x[1].txt"))).values()) == ["x[1].txt"]
    monkeypatch.chdir(tmp_path)
    assert list(sentences(read_text("**/*.txt")).values()) == ["a.txt", "b.txt", "more/c.txt", "x[1].txt"]
    dataset = read_text(["b.txt", Path("*.txt")])
    assert list(sentences(dataset).values()) == ["b.txt", "a.txt", "x[1].txt"]
    assert dataset.source == "sentences of b.txt, *.txt"


def test_max_words(tmp_path: Path) -> None:
    lines = [" ".join(["word"] * count) for count in range(1, 9)]
    dataset = read_text([write(tmp_path, "a.txt", "\n".join(lines)), write(tmp_path, "a.json", lines)], max_words=5)
    assert list(sentences(dataset)) == [0, 1, 2, 3, 4, 8, 9, 10, 11, 12]
    assert skipped(dataset) == [
        Skipped("", "a.json", "3 sentences of more than 5 words"),
        Skipped("", "a.txt", "3 sentences of more than 5 words"),
    ]


def test_a_share_is_drawn(tmp_path: Path) -> None:
    lines = [f"sentence {number % 1000}" for number in range(2000)]
    drawn = records(read_text(write(tmp_path, "a.txt", "\n".join(lines)), split="corpus", val_share=0.2))
    splits = [record.split for record in drawn]
    assert abs(splits.count("val") - 400) < 100 and splits.count("corpus") == 2000 - splits.count("val")
    assert splits[:1000] == splits[1000:]  # equal sentences
    fewer = records(read_text(write(tmp_path, "b.json", lines[5:900]), split="corpus", val_share=0.2))
    assert [record.split for record in fewer] == splits[5:900]


def prints(path: Path, **options: Any) -> list[str]:
    return [shard.fingerprint() for shard in read_text(path, **options).shards]


@pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.jsonl", "a.csv", "a.json"])
def test_fingerprints(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.readers.text.SHARD_LINES", 3)
    texts = ["caption", *(f'"sentence {number}"' for number in range(7))]
    content = f"[{','.join(texts[1:])}]" if name == "a.json" else "\n".join(texts[name == "a.jsonl" :])
    (tmp_path / "elsewhere").mkdir()
    before = prints(write(tmp_path, name, content))
    assert len(set(before)) == len(before) == 3
    assert prints(write(tmp_path / "elsewhere", name, content)) == before
    changed = prints(write(tmp_path, name, content.replace("4", "5")))
    assert [a == b for a, b in zip(before, changed, strict=True)] == [True, False, True]
    for options in ({"split": "test"}, {"val_share": 1.0}):
        assert not set(prints(tmp_path / "elsewhere" / name, **options)) & set(before)


def test_a_file_that_changes(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "a cat\na dog\n")
    (shard,) = read_text(path).shards
    write(tmp_path, "a.txt", "a cat\na cow\n")
    with pytest.raises(InputError, match=r"a\.txt has changed since this run began: run the same command again"):
        shard.read()
    path.unlink()
    with pytest.raises(InputError, match=r"cannot read .*a\.txt: No such file"):
        shard.read()


def test_many_lines_are_not_held_in_memory(tmp_path: Path) -> None:
    line = b"a photograph of something that is told in a sentence of some length, number %d\n"
    count = 300_000
    path = write(tmp_path, "a.txt", b"".join(line % number for number in range(count)))
    assert path.stat().st_size > 20e6
    tracemalloc.start()
    dataset = read_text(path)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 100_000 and most < 5_000_000
    assert len(dataset.shards) == 30
    assert len(pickle.dumps(dataset)) < 30_000
    shard = dataset.shards[17]
    assert isinstance(shard, LineShard)
    samples, _ = shard.read()
    number = 17 * 10_000 + 1234
    assert samples[1234] == Sample(ImageRecord(number, "", "train", ((line % number).decode().strip(),)), None)


def test_shards_can_be_pickled(tmp_path: Path) -> None:
    dataset = read_text([write(tmp_path, "a.txt", "a cat"), write(tmp_path, "a.json", ["a dog"])], val_share=0.5)
    again: Dataset = pickle.loads(pickle.dumps(dataset))
    assert again == dataset
    assert records(again) == records(dataset)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "image,text\n1,a\n", r"a\.csv has no column 'caption'; it has image, text"),
        ("a.csv", 'caption\n"a\n', r"a\.csv, line 1: unexpected end of data"),
        ("a.csv", b"caption\ncaf\xe9\n", r"a\.csv is not UTF-8 text"),
        ("a.csv", "caption\n", r"no sentence in .*a\.csv: give a path"),
        ("a.json", "[", r"a\.json is not JSON"),
        ("a.json", "[[]]", r"a\.json: entry 0 is neither a string nor an object with 'caption' or 'captions'"),
        ("a.json", '["a", {"text": "b"}]', r"a\.json: entry 1 is neither"),
        ("a.json", "{}", r"a\.json has no list 'images'"),
        ("a.json", '{"annotations": [{"image_id": 1}]}', r"a\.json: an entry lacks the key 'caption'"),
        ("a.json", '{"images": [{"sentences": []}]}', r"a\.json: an entry lacks the key 'split'"),
        ("a.json", '{"images": [{"split": "val"}]}', r"a\.json has no list 'sentences'"),
        ("a.json", "[]", r"no sentence in .*a\.json"),
        ("a.jsonl", '{"text": "a cat"}\n', r"a\.jsonl, line 1: neither a string nor an object with 'caption'"),
        ("a.jsonl", "a cat\n", r"a\.jsonl, line 1: not JSON"),
        ("a.txt", "", r"no sentence in .*a\.txt"),
        ("a.md", "a cat", r"a\.md must be a \.txt, \.tsv, \.jsonl, \.csv or \.json file"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(InputError, match=message):
        read_text(path)


@pytest.mark.parametrize("pattern", ["nothing.txt", "*.txt", ".", "", "..", "/"])
def test_no_such_file(tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no file .*: give a path, a pattern or a list"):
        read_text(pattern)


def test_no_file() -> None:
    with pytest.raises(InputError, match="no sentence in no file"):
        read_text([])


@pytest.mark.parametrize("options", [{"val_share": 2}, {"val_share": "x"}, {"max_words": 0}, {"max_words": "x"}])
def test_values_that_make_no_sense(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        read_text(write(tmp_path, "a.txt", "a cat"), **options)


def test_configured(mistake: Callable[..., str]) -> None:
    assert mistake("data_prep.embed", "data=text", "encoder=demo") == (
        "error: data.files must be given: add data.files=VALUE\n"
    )
    told = mistake("data_prep.embed", "data=text", "encoder=demo", "data.files=[README.md,nothing.txt]")
    assert told == "error: README.md must be a .txt, .tsv, .jsonl, .csv or .json file\n"
