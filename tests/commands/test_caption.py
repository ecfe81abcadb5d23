"""`prefixcap caption`: what it writes, in every format, and what is left when it cannot go on."""

import csv
import io
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import prefixcap
from prefixcap.commands.common.formats import Row, Stream
from prefixcap.commands.common.inputs import find_images
from prefixcap.decoding import DECODERS, decoder_options, draws
from tests.commands.conftest import QUICK, Command
from tests.processes import Python

Mistaken = Callable[..., str]


READ: dict[Any, Callable[[str], list[list[Any]]]] = {
    "json": lambda text: [list(row.values()) for row in json.loads(text)],
    "jsonl": lambda text: [list(json.loads(line).values()) for line in text.split("\n")[:-1]],
    "csv": lambda text: list(csv.reader(io.StringIO(text)))[1:],
    "text": lambda text: [line.split("\t") for line in text.split("\n")[:-1]],
}


def captions(ckpt: Path, photos: Path, count: int = 1, **options: Any) -> dict[str, list[str]]:
    """Captions of all images of a folder, by the library."""
    images = find_images([str(photos)])
    options = {"decode": "greedy", "max_tokens": 4} | options
    return dict(zip(images, prefixcap.load(ckpt).candidates(images, count, **options), strict=True))


def test_every_format_holds_the_same_captions(command: Command, ckpt: Path, photos: Path, tmp_path: Path) -> None:
    beams = ("--decode", "beam", "--set", "max_tokens=4", "beams=3", "--count", "2", "--batch-size", "2")
    expected = captions(ckpt, photos, 2, decode="beam", beams=3)
    rows = [[image, caption] for image, image_captions in expected.items() for caption in image_captions]
    visible = [[image.replace("\n", "\\n").replace("\t", "\\t"), caption] for image, caption in rows]
    by_image = [[image, texts] for image, texts in expected.items()]
    right = {"json": by_image, "jsonl": by_image, "csv": rows, "text": visible}
    for form, read in READ.items():
        out = tmp_path / "new folder" / f"captions.{form}"
        assert command("caption", photos, "--ckpt", ckpt, *beams, "--format", form, "--out", out)[:2] == (0, "")
        assert read(out.read_text()) == right[form]
    assert {file.suffix[1:] for file in out.parent.iterdir()} == READ.keys()  # and nothing temporary


def test_coco_results(command: Command, mistaken: Mistaken, ckpt: Path, photos: Path) -> None:
    printed = command("caption", photos, "--ckpt", ckpt, *QUICK, "--format", "coco").out
    expected = [{"image_id": Path(image).name, "caption": texts[0]} for image, texts in captions(ckpt, photos).items()]
    assert json.loads(printed) == expected
    told = mistaken("caption", photos, "--ckpt", ckpt, "--format", "coco", "--count", 2)
    assert "--format coco has one caption per image: omit --count 2" in told


def test_sidecars(command: Command, mistaken: Mistaken, ckpt: Path, photos: Path) -> None:
    options = ("--ckpt", ckpt, *QUICK, "--format", "sidecar")
    assert command("caption", photos, *options)[:2] == (0, "")
    expected = captions(ckpt, photos)
    for image, image_captions in expected.items():
        assert Path(image).with_suffix(".txt").read_text() == "".join(f"{caption}\n" for caption in image_captions)
    (photos / "a b.txt").write_text("mine")
    assert "a b.txt" in mistaken("caption", photos / "a b.png", *options, "--existing", "error")
    assert (photos / "a b.txt").read_text() == "mine"
    status, _, err = command("caption", photos / "a b.png", *options, "--overwrite")
    assert status == 0 and "warning: --overwrite is now --existing overwrite\n" in err
    assert (photos / "a b.txt").read_text() == f"{expected[str(photos / 'a b.png')][0]}\n"
    (photos / "a b.jpg").write_bytes((photos / "a b.png").read_bytes())
    assert "share a sidecar" in mistaken("caption", photos, *options, "--existing", "overwrite")
    assert "leave --out out" in mistaken("caption", photos, *options, "--out", "x")
    assert "no folder for a sidecar" in mistaken("caption", "http://x/y.png", *options, "--allow-urls")


def test_drawn_captions_do_not_depend_on_the_batches(command: Command, ckpt: Path, photos: Path) -> None:
    drawn = ("--decode", "nucleus", "--set", "seed=3", "max_tokens=4", "--rerank", "3", "--count", "2")
    options = ("--ckpt", ckpt, *drawn, "--format", "json", "--prompt", "a small", "--batch-size")
    (one, two) = (json.loads(command("caption", photos, *options, size).out) for size in (2, 32))
    found = captions(ckpt, photos, 3, decode="nucleus", seed=3, by_similarity=True, prompt="a small")
    assert one == two == [{"image": image, "captions": of[:2]} for image, of in found.items()]
    assert all(caption.startswith("a small") for row in one for caption in row["captions"])


def test_broken_images_are_skipped_and_told(command: Command, mistaken: Mistaken, ckpt: Path, tmp_path: Path) -> None:
    """Many files, some of which are broken in one way or another."""
    ways = {3: b"", 5: b"<html>", 7: b'<svg xmlns="http://www.w3.org/2000/svg"/>', 11: b"\xff\xd8\xff\xe0half"}
    for number in range(120):
        file = tmp_path / "many" / f"{number:03}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 2 * number, 99)).save(file)
        for divisor, content in ways.items():
            if number % divisor == 1:
                file.write_bytes(content)
    broken = [number for number in range(120) if any(number % divisor == 1 for divisor in ways)]
    status, out, err = command("caption", tmp_path / "many", "--ckpt", ckpt, *QUICK, "--batch-size", 7)
    assert status == 1
    assert [int(Path(line.split("\t")[0]).stem) for line in out.splitlines()] == sorted(set(range(120)) - set(broken))
    lines = err[err.index("skipped") :].splitlines()
    assert lines[0] == f"skipped {len(broken)} of 120 images:" and lines[-1] == f"  and {len(broken) - 5} more"
    assert len(lines) == 7 and lines[1].startswith(f"  {tmp_path}/many/001.png: ")
    assert {line.split(": ")[1] for line in lines[1:-1]} <= {"not an image", "empty file", "cannot be read"}

    empty = tmp_path / "empty.jpg"
    empty.write_bytes(b"")
    out_file = tmp_path / "captions.json"
    message = mistaken("caption", empty, "--ckpt", ckpt, *QUICK, "--out", out_file)
    assert message == f"error: none of 1 images could be read: {empty}: empty file\n"
    assert not out_file.exists()


def test_mistakes(mistaken: Mistaken, ckpt: Path, photos: Path, tmp_path: Path) -> None:
    picture = photos / "a b.png"

    def told(*options: object, images: object = picture, of: object = ckpt) -> str:
        return mistaken("caption", images, "--ckpt", of, *options)

    assert "there is no checkpoint" in told(of=tmp_path / "nothing.ckpt")
    assert "is not a checkpoint of prefixcap, or is damaged" in told(of=picture)
    assert "holds no captioner" in told(of=tmp_path)
    half = tmp_path / "half.ckpt"
    half.write_bytes(ckpt.read_bytes()[:5000])
    assert "is damaged" in told(of=half)
    assert "there is no file or folder" in told(images=tmp_path / "no\nsuch.jpg")
    assert "unknown decoder 'magic': choose one of greedy, beam" in told("--decode", "magic")
    assert "decoder 'greedy' has no option 'beams': it has max_tokens" in told("--decode", "greedy", "--set", "beams=3")
    assert "beams must be an integer, not '2.5'" in told("--set", "beams=2.5")
    assert "has no option 'seed'" in told("--set", "seed=1")
    assert "beams must be between 1 and 10000, not 0" in told("beams=0")
    assert "temperature must be a finite number above 0.0, not nan" in told("--decode", "nucleus", "temperature=nan")
    assert "seed must be at least 0 and below" in told("--decode", "nucleus", "--set", "seed=-1")
    assert "returns one caption for each image, not 3" in told("--decode", "greedy", "--count", "3")
    assert "captions must lie between 1 and beams=5, not 9: give --set beams=9" in told("--count", "9")
    assert "not 10: give --set beams=10\n" in told("--rerank", "10")
    assert "--count" in told("--count", "0")
    message = told("--prompt", "a photograph of a dog " * 2000)
    assert "exceed the context of language model 'demo' (128): shorten the prompt" in message
    assert "device 'cuda:77' cannot be used" in told("--device", "cuda:77")
    assert "tokenizer is for the files that ClipCap published" in told("--tokenizer", "gpt2")
    assert "no such option: --cktp (Possible options: --ckpt" in mistaken("caption", picture, "--cktp", ckpt)
    assert "no image is named" in mistaken("caption", "beams=3", "--ckpt", ckpt)

    (tmp_path / "there.csv").write_text("mine")
    assert "holds something else than captions" in told("--out", tmp_path / "there.csv")
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert "is a folder" in told("--out", tmp_path)
    assert "a file stands where its folder belongs" in told("--out", tmp_path / "there.csv" / "captions.csv")


def test_the_help_knows_the_decoders_and_their_options(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    def mine(language_model: Any, prefix: Any, limits: Any, depth: int, width: int = 3, generator: Any = None) -> Any:
        """A decoder of [my] own.

        Args:
            depth: how deep.
            width: how wide it [searches].
        """

    monkeypatch.setitem(DECODERS, "mine", mine)
    text = command("caption", "--help").out
    first, *blocks = re.split(r"--decode (\w+): ", text[text.index("Options for --set") :])
    shown = dict(zip(blocks[::2], blocks[1::2], strict=True))
    assert list(shown) == list(DECODERS)

    def names(block: str) -> list[str]:
        return re.findall(r"^ {3}(\w+)  ", block.partition("One photograph")[0], re.MULTILINE)

    shared = names(first)
    for decoder, block in shown.items():
        assert set(names(block)) - {"seed"} == decoder_options(decoder).keys() - set(shared)
        assert set(shared) <= decoder_options(decoder).keys() and ("seed" in names(block)) == draws(decoder)
    assert "all groups together [default: 5]" in " ".join(shown["beam"].split())
    assert "A decoder of [my] own" in shown["mine"] and "how wide it [searches] [default: 3]" in shown["mine"]
    assert "how deep [required]" in shown["mine"]


def test_a_full_disk_keeps_the_captions_that_fit(
    command: Command, mistaken: Mistaken, ckpt: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands in for the disk."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would be cut
    out = tmp_path / "captions.json"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(str(photos)) * 3, limits[1]))
    try:
        words = ("caption", photos, "--ckpt", ckpt, *QUICK, "--format", "json", "--batch-size", 1, "--out", out)
        status, _, err = command(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    held = json.loads(out.read_text())
    assert status == 2 and f"no space left on the disk: {out} has the captions of {len(held)} of 5 images" in err
    assert 0 < len(held) < 5
    expected = captions(ckpt, photos)
    assert held == [{"image": image, "captions": expected[image]} for image in list(expected)[: len(held)]]

    assert "no space left on the disk: /dev/full has the captions of 0" in mistaken(
        "caption", photos, "--ckpt", ckpt, *QUICK, "--out", "/dev/full"
    )
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("form", READ)
def test_what_a_stream_wrote_is_whole_after_each_batch(form: Any, tmp_path: Path) -> None:
    rows = [Row(f"{number}, or.jpg", ["a\u2028cat", 'a "dog"'][: number % 3]) for number in range(9)]
    file, memory = tmp_path / "out", io.BytesIO()
    with file.open("wb", buffering=0) as opened:
        into_file, into_pipe = Stream(opened, form, can_rewrite=True), Stream(memory, form, can_rewrite=False)
        for first in range(0, 9, 2):
            into_file.add(rows[first : first + 2])
            into_pipe.add(rows[first : first + 2])
            done = rows[: first + 2]
            image_rows = [[row.image, row.captions] for row in done]
            caption_rows = [[row.image, caption] for row in done for caption in row.captions]
            assert READ[form](file.read_text()) == (image_rows if form.startswith("json") else caption_rows)
    into_pipe.close()
    assert memory.getvalue() == file.read_bytes()


def test_names_that_are_no_text(command: Command, ckpt: Path, photos: Path) -> None:
    odd = os.fsencode(photos) + b"/\xff.png"
    (photos / "a b.png").rename(os.fsdecode(odd))
    out = command("caption", os.fsdecode(odd), "--ckpt", ckpt, *QUICK, "--format", "json").out
    assert [os.fsencode(row["image"]) for row in json.loads(out)] == [odd]


def test_sigterm_keeps_what_was_written(
    command: Command, ckpt: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while captions are written: these are still written to the end."""
    images = [photos / name for name in ("a b.png", "more/UPPER.JPG", "line\nbreak.png")]
    written, add = [], Stream.add

    def add_and_stop(stream: Stream, rows: Any) -> None:
        written.append(len(rows))
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        add(stream, rows)

    monkeypatch.setattr(Stream, "add", add_and_stop)
    before, threads = signal.getsignal(signal.SIGTERM), set(threading.enumerate())
    out = tmp_path / "captions.csv"
    words = ("--ckpt", ckpt, *QUICK, "--batch-size", 1, "--format", "csv", "--out", out)
    status, _, err = command("caption", *images, *words)
    assert status == 128 + signal.SIGTERM and err.endswith("stopped: 2 of 3 images have captions\n")
    with out.open(newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["image", str(images[0]), str(images[1])]
    assert signal.getsignal(signal.SIGTERM) is before
    assert not [thread for thread in set(threading.enumerate()) - threads if "ThreadPool" in thread.name]


def test_ctrl_c_leaves_whole_json(ckpt: Path, tmp_path: Path) -> None:
    """In a process of its own, between its first captions and its last."""
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    for number in range(1, 3000):
        (tmp_path / f"{number}.png").hardlink_to(tmp_path / "0.png")
    words = ("caption", tmp_path, "--ckpt", ckpt, *QUICK, "--batch-size", 2, "--format", "json")
    process = Python("-m", "prefixcap", *words)
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    status, out, err = process.communicate()
    held = json.loads(first + out)
    assert status == 130 and 0 < len(held) < 3000, err
    assert err.splitlines()[-1] == f"stopped: {len(held):,} of 3,000 images have captions" and "Traceback" not in err


def test_out_of_memory_is_told(mistaken: Mistaken, ckpt: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("prefixcap.captioner.Captioner.candidates", fail)
    assert "give a smaller --batch-size than 32" in mistaken("caption", photos, "--ckpt", ckpt)
