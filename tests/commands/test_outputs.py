"""Where `prefixcap caption` puts captions, what happens to those that are there, and what a killed run leaves."""

import itertools
import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prefixcap.commands.common.formats import Row, Stream, read_written
from prefixcap.commands.common.outputs import Destination
from prefixcap.commands.common.wording import Wording
from prefixcap.errors import InputError
from tests.commands.conftest import QUICK, Command
from tests.processes import Python

Mistaken = Callable[..., str]

NAMES = [
    "COCO_val2014_000000391895.jpg",
    "a.jpg",
    'b "c", d.png',
    "line\nbreak.png",
    "=1+1.jpg",
    "caf\u00e9.png",
    "t\tab.png",
]
ROWS = [Row(name, [f"a \u2028 cat {number}", 'a "dog"\u00e9']) for number, name in enumerate(NAMES)]


def bytes_of(form: Any, rows: list[Row], file: Path) -> bytes:
    """What is in a file after these rows."""
    with file.open("wb", buffering=0) as opened:
        Stream(opened, form, can_rewrite=True).add(rows)
    return file.read_bytes()


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "text", "coco"])
def test_a_file_cut_short_at_any_byte_is_continued(form: Any, tmp_path: Path) -> None:
    """The rest is added, no image comes twice, and the bytes are those of a run that nobody stopped."""
    file, whole = tmp_path / "out", bytes_of(form, ROWS, tmp_path / "whole")
    first = len(bytes_of(form, ROWS[:1], tmp_path / "first").removesuffix(b"\n]\n"))
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        written = read_written(file, form, NAMES, 1 if form == "coco" else 2)
        done = [row for row in ROWS if row.image in written.images]
        assert done == ROWS[: len(done)] and len(done) == written.entries
        assert (len(done) > 0) == (length >= first)
        with file.open("rb+", buffering=0) as opened:
            Stream(opened, form, can_rewrite=True, written=written).add(ROWS[len(done) :])
        assert file.read_bytes() == whole, length


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "text", "coco"])
def test_other_files_are_not_touched(form: Any, tmp_path: Path) -> None:
    others = [b"mine", b"mine\n", b"[1, 2]\n", b'[{"image": "a.jpg", "captions": ["x"]}]\n', b"\n", b"\x00\xff\n\x01"]
    others += [b"name,text\na,b\n", b"first line\nsecond\n", json.dumps([{"image": 1}], indent=1).encode()]
    others += [b"PK\x03\x04", b"{}"]
    file = tmp_path / "file"
    for content in others:
        file.write_bytes(content)
        with pytest.raises(InputError, match="holds something else than captions in this format"):
            _ = Destination(NAMES, form, file).done
        assert file.read_bytes() == content
    later = bytes_of(form, ROWS, file)
    with pytest.raises(InputError, match="something else"):
        middle = later.index(b"\n", len(later) // 3) + 1
        file.write_bytes(later[:middle] + b"mine\n" + later[middle:])
        _ = Destination(NAMES, form, file).done


def test_captions_that_are_there(
    command: Command, mistaken: Mistaken, ckpt: Path, photos: Path, tmp_path: Path
) -> None:
    """Images without any are captioned; by other policies the others are, too, or nothing is."""
    out = tmp_path / "captions.json"
    words = ("caption", photos, "--ckpt", ckpt, *QUICK, "--format", "json", "--out", out)
    assert command("caption", photos / "more", *words[2:]).status == 0
    two = json.loads(out.read_text())
    status, _, err = command(*words)
    assert status == 0 and err.startswith("2 of 5 images have captions already; --existing overwrite replaces them\n")
    all_five = json.loads(out.read_text())
    assert all_five[:2] == two and len({entry["image"] for entry in all_five}) == 5 == len(all_five)
    before = out.stat().st_mtime_ns
    status, printed, err = command(*words)
    assert (status, printed) == (0, "") and err.startswith("5 of 5 images have captions already")
    assert out.stat().st_mtime_ns == before
    assert "captions.json is there already" in mistaken(*words, "--existing", "error")
    assert "--existing append is for --format sidecar" in mistaken(*words, "--existing", "append")
    assert command(*words, "--existing", "overwrite").status == 0
    again = json.loads(out.read_text())
    assert sorted(again, key=str) == sorted(all_five, key=str) and again != all_five  # in the order of a new file


def test_lines_are_added_to_sidecars_once(command: Command, ckpt: Path, photos: Path) -> None:
    picture = photos / "a b.png"
    sidecar = photos / "a b.caption"
    words = ("caption", picture, "--ckpt", ckpt, *QUICK, "--format", "sidecar", "--caption-extension", ".caption")
    assert command(*words).status == 0
    new = sidecar.read_text()
    for policy, expected in (("append", f"mine\n\nof two lines\n{new}"), ("prepend", f"{new}mine\n\nof two lines\n")):
        sidecar.write_text("mine\n\nof two lines")
        for _ in range(2):
            assert command(*words, "--existing", policy).status == 0
            assert sidecar.read_text() == expected
    assert not picture.with_suffix(".txt").exists()


def test_a_file_for_each_caption(command: Command, mistaken: Mistaken, ckpt: Path, photos: Path) -> None:
    words = ("--ckpt", ckpt, "--set", "max_tokens=4", "beams=3", "--count", "3", "--format", "sidecar")
    assert command("caption", photos / "more", *words).status == 0
    lines = (photos / "more" / "UPPER.txt").read_text().splitlines()
    words = (*words, "--separate", "--existing", "overwrite")
    assert command("caption", photos / "more", *words).status == 0
    files = [photos / "more" / name for name in ("UPPER.txt", "UPPER_2.txt", "UPPER_3.txt")]
    assert [file.read_text() for file in files] == [f"{line}\n" for line in lines]
    (photos / "more" / "UPPER_2.jpg").write_bytes((photos / "more" / "UPPER.JPG").read_bytes())
    assert "share a sidecar" in mistaken("caption", photos / "more", *words)


def test_what_is_written_around_a_caption(command: Command, mistaken: Mistaken, ckpt: Path, photos: Path) -> None:
    words = ("caption", photos / "more" / "UPPER.JPG", "--ckpt", ckpt, *QUICK, "--format", "json")
    (plain,) = json.loads(command(*words).out)[0]["captions"]
    given = ("--before", "ohwx, ", "--after", " \\1 {name}", "--template", "{caption} of {folder}, {name}")
    assert json.loads(command(*words, *given).out)[0]["captions"] == [f"ohwx, {plain} of more, UPPER \\1 {{name}}"]
    assert Wording(template="{caption}{caption}").of(["{name}"], "x.jpg") == ["{name}{name}"]
    for template, message in (("{name}", "has no {caption}"), ("{caption} {tag}", "has an unknown field {tag}")):
        assert message in mistaken(*words, "--template", template)
    assert "--before has several lines" in mistaken(*words, "--before", "a\nb")


def test_words_that_no_caption_has(command: Command, mistaken: Mistaken, ckpt: Path, photos: Path) -> None:
    words = ("caption", photos, "--ckpt", ckpt, "--decode", "greedy", "--set", "max_tokens=12", "--format", "json")

    def said(*options: str) -> list[str]:
        return [text for entry in json.loads(command(*words, *options).out) for text in entry["captions"]]

    frequent, second = (word for word, _ in Counter(" ".join(said()).split()).most_common(2))
    after = " ".join(said("--forbid", frequent, "--forbid", f"{second} "))
    assert after and not {frequent, second} & set(after.split())
    assert "a word to avoid must be a text" in mistaken(*words, "--forbid", " ")


def test_words_that_every_caption_has(command: Command, mistaken: Mistaken, ckpt: Path, photos: Path) -> None:
    words = ("caption", photos, "--ckpt", ckpt, "--set", "max_tokens=12", "--format", "json", "--count", "2")
    captions = [
        text
        for entry in json.loads(command(*words, "--force", "zebra", "--force", " in  the").out)
        for text in entry["captions"]
    ]
    assert captions
    for text in captions:
        assert re.search(r"\b[Zz]ebra\b", text) and re.search(r"\b[Ii]n the\b", text)
    for options, message in (
        (("--force", " "), "a word to force must be a text"),
        (("--force", "a red cat", "--forbid", "Red "), "--force 'a red cat' has 'Red', which --forbid rules out"),
        (("--force", "cat", "--decode", "greedy"), "--force needs beam search, and --decode greedy is none"),
        (("--force", "one two three four five six seven eight nine"), "give --set max_tokens="),
    ):
        assert message in mistaken(*words, *options)


def test_names_from_a_list(
    command: Command, mistaken: Mistaken, ckpt: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--ckpt", ckpt, "--dry-run")
    pictures = [photos / "line\nbreak.png", photos / "a b.png"]
    (tmp_path / "zero").write_bytes(b"\0".join(os.fsencode(picture) for picture in pictures) + b"\0")
    expected = "".join(f"{picture}\n" for picture in pictures)
    assert command("caption", "--filelist", tmp_path / "zero", *words).out == expected
    (tmp_path / "lines").write_text(f"\ufeff{pictures[1]}\r\n\n{photos / 'more'}\n")
    printed = command("caption", pictures[1], "--filelist", tmp_path / "lines", *words).out
    assert printed.splitlines()[0] == str(pictures[1]) and "UPPER.JPG" in printed and printed.count(str(photos)) == 3
    with (tmp_path / "zero").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert command("caption", "--filelist", "-", *words).out == expected
    assert "UPPER" not in command("caption", photos, "--no-recursive", *words).out
    (tmp_path / "empty").touch()
    assert "empty names no image" in mistaken("caption", "--filelist", tmp_path / "empty", *words)
    assert "cannot read" in mistaken("caption", "--filelist", tmp_path / "nowhere", *words)
    assert "no image is named" in mistaken("caption", *words)


def test_a_dry_run_writes_nothing(command: Command, ckpt: Path, photos: Path) -> None:
    (photos / "a b.txt").write_text("mine")
    before = sorted(photos.rglob("*"))
    status, out, err = command("caption", photos, "--ckpt", ckpt, "--format", "sidecar", "--dry-run")
    assert status == 0 and err.startswith("1 of 5 images have captions already")
    assert f"{photos}/more/UPPER.JPG\t{photos}/more/UPPER.txt\n" in out and "a b.png" not in out
    assert sorted(photos.rglob("*")) == before


def test_mistakes_in_names_of_sidecars(mistaken: Mistaken, ckpt: Path, photos: Path) -> None:
    words = ("caption", photos, "--ckpt", ckpt, "--caption-extension")
    for extension in ("txt", ".", "", "./x", ".a.b"):
        assert "is none: give one such as .txt" in mistaken(*words, extension, "--format", "sidecar")
    assert "is that of pictures" in mistaken(*words, ".PNG", "--format", "sidecar")
    assert "--caption-extension is for --format sidecar" in mistaken(*words, ".caption")
    assert "--separate is for --format sidecar" in mistaken(*words[:-1], "--separate")


def test_drawn_captions_are_those_of_a_run_that_was_not_stopped(command: Command, ckpt: Path, photos: Path) -> None:
    """Also where images in the middle have captions: of each the same random numbers are drawn."""
    drawn = ("--decode", "nucleus", "--set", "seed=3", "max_tokens=4", "--rerank", "2", "--format", "sidecar")
    words = ("caption", photos, "--ckpt", ckpt, *drawn, "--batch-size", "2")
    assert command(*words).status == 0
    sidecars = sorted(file for file in photos.rglob("*.txt") if file.name != "notes.txt")
    expected = [file.read_bytes() for file in sidecars]
    assert len(set(expected)) > 2
    for kept in itertools.product((False, True), repeat=len(sidecars)):
        for file, is_kept in zip(sidecars, kept, strict=True):
            if not is_kept:
                file.unlink(missing_ok=True)
        assert command(*words).status == 0
        assert [file.read_bytes() for file in sidecars] == expected


def test_a_file_that_another_process_writes(command: Command, ckpt: Path, photos: Path, tmp_path: Path) -> None:
    """Is refused, and has what that process says, whatever happens to captions that are there."""
    out = tmp_path / "captions.json"
    words = ("caption", photos, "--ckpt", ckpt, *QUICK, "--batch-size", "1", "--format", "json", "--out", out)
    other = Python("-m", "prefixcap", *words)
    try:
        while not (out.exists() and out.stat().st_size) and other.poll() is None:
            time.sleep(0.002)
        other.send_signal(signal.SIGSTOP)
        for existing in ("skip", "overwrite"):
            status, printed, err = command(*words, "--existing", existing)
            assert (status, printed) == (2, "")
            assert "captions.json is being written by another process" in err.splitlines()[-1]
    finally:
        other.send_signal(signal.SIGCONT)
    assert other.communicate()[0] == 0
    assert len(json.loads(out.read_text())) == 5


def test_a_file_that_another_process_has_written_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "out"
    destination = Destination(NAMES, "json", file, count=2)
    assert not destination.done
    before = bytes_of("json", ROWS[:1], file)
    with pytest.raises(InputError, match="written by another process meanwhile"), destination.open():
        pass
    assert file.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sidecar", "json", "jsonl", "coco", "csv", "text"])
def test_killed_at_random_moments(form: str, ckpt: Path, tmp_path: Path) -> None:
    """20 starts of a process of its own for each format, which takes a minute: most are killed while they write."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(200):
        Image.new("RGB", (8, 8), (number, 99, number // 2)).save(pictures / f"{number:03}.png")
    out, generator = tmp_path / "captions", random.Random(form)
    drawn = ("--decode", "nucleus", "--set", "seed=3", "max_tokens=4")
    words: list[Any] = ["-m", "prefixcap", "caption", pictures, "--ckpt", ckpt, *drawn, "--batch-size", 2]

    def results() -> list[bytes]:
        return [file.read_bytes() for file in ([out] if form != "sidecar" else sorted(pictures.glob("*.txt")))]

    def start(out: Path) -> Python:
        return Python(*words, "--format", form, *(() if form == "sidecar" else ("--out", out)))

    assert start(out).communicate()[0] == 0
    expected = results()
    for file in [out] if form != "sidecar" else pictures.glob("*.txt"):
        file.unlink()
    progress = []
    for _ in range(20):
        process = start(out)
        before, deadline = results_of(out, pictures, form), time.monotonic() + 60
        while results_of(out, pictures, form) == before and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        progress.append(results_of(out, pictures, form))
    assert len(set(progress)) > 5
    assert start(out).communicate()[0] == 0
    assert results() == expected


def results_of(out: Path, pictures: Path, form: str) -> int:
    """How much has been written."""
    if form == "sidecar":
        return sum(entry.name.endswith(".txt") for entry in os.scandir(pictures))
    return out.stat().st_size if out.exists() else 0
