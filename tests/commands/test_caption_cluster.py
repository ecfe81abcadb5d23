"""`prefixcap caption --engine ray`: the same bytes as one process writes, whatever is lost on the way.

The tests are slow because Ray starts a cluster, and in it each worker and its replacement import torch anew.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from PIL import Image

from prefixcap import commands
from prefixcap.commands.common.batches import BatchCaptioner, plan_batches
from prefixcap.commands.common.formats import Stream
from prefixcap.commands.common.inputs import find_images
from prefixcap.utils.cluster import Workers
from tests.commands.conftest import QUICK, Command
from tests.processes import start

SIDECARS = (*QUICK, "--before", "ohwx, ", "--format", "sidecar")
DRAWN = ("--decode", "nucleus", "--set", "seed=3", "max_tokens=4", "--count", 2, "--rerank", 3, "--prompt", "a")
DAMAGED = (7, 20, 21, 22, 23)  # of which the last four are a batch


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of noise in two folders, with files that are no images."""
    for number in range(60):
        file = tmp_path / "pictures" / f"{number // 30}" / f"{number:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((60, 50), 10 + number).save(file)
        if number in DAMAGED:
            file.write_bytes(b"no image")
    return tmp_path / "pictures"


def words(pictures: Path, ckpt: Path, *options: object) -> list[object]:
    return ["caption", pictures, "--ckpt", ckpt, "--batch-size", 4, *options]


def drawn(pictures: Path, ckpt: Path, out: Path) -> list[object]:
    return words(pictures, ckpt, *DRAWN, "--format", "jsonl", "--out", out)


def take_sidecars(pictures: Path) -> dict[str, bytes]:
    """The sidecars, which are then gone."""
    contents = {}
    for file in pictures.rglob("*.txt"):
        contents[file.name] = file.read_bytes()
        file.unlink()
    return contents


def skipped(err: str) -> str:
    return err[err.index("skipped 5 of 60 images:") :]


STREAM = Workers.stream


def kill_the_first(workers: Workers, *arguments: Any) -> Generator[Any]:
    """The results; the worker that is there at the start is killed after two of them."""
    pid = workers._ray.get(workers._idle[0].__ray_call__.remote(lambda worker: os.getpid()))
    for number, result in enumerate(STREAM(workers, *arguments)):
        yield result
        if number == 1:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(
    cluster: str, command: Command, ckpt: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which nothing is among the captions on standard output.

    Takes long because three workers start one after the other, and each imports torch anew.
    """
    monkeypatch.chdir(pictures.parent)  # the workers find a relative path, too
    line = words(Path(pictures.name), ckpt, *SIDECARS)
    alone = command(*line)
    expected = take_sidecars(pictures)
    monkeypatch.setattr(Workers, "stream", kill_the_first)
    result = command(*line, "--engine", "ray")
    assert (result.status, result.out) == (1, "") and skipped(result.err) == skipped(alone.err)
    assert "a worker failed, and its work is done again: ActorDiedError" in result.err
    assert take_sidecars(pictures) == expected and len(expected) == 60 - len(DAMAGED)


def caption_elsewhere(address: str, line: list[object]) -> None:
    """Three batches; then nothing, until the process is killed."""
    os.environ["RAY_ADDRESS"] = address
    sys.argv = ["prefixcap", *map(str, line)]
    add, calls = Stream.add, iter(range(1000))

    def add_three(stream: Stream, rows: Any) -> None:
        if next(calls) == 3:
            time.sleep(600)
        add(stream, rows)

    with mock.patch.object(Stream, "add", add_three):
        commands.main()


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on(
    cluster: str, command: Command, ckpt: Path, pictures: Path, tmp_path: Path
) -> None:
    """With captions that are drawn, of which each image has its own random numbers."""
    alone, out = tmp_path / "alone.jsonl", tmp_path / "ray.jsonl"
    assert command(*drawn(pictures, ckpt, alone)).status == 1
    lines = alone.read_text().splitlines()
    assert len(lines) == 60 - len(DAMAGED) and len({str(json.loads(line)["captions"]) for line in lines}) > 30
    line = [*drawn(pictures, ckpt, out), "--engine", "ray"]
    process = start(caption_elsewhere, cluster, line)
    while process.is_alive() and not (out.exists() and out.read_bytes().count(b"\n") == 11):  # one image is damaged
        time.sleep(0.01)
    process.kill()
    process.join()
    assert alone.read_bytes().startswith(out.read_bytes()) and out.read_bytes().count(b"\n") == 11
    result = command(*line)
    assert result.status == 1 and result.err.startswith("11 of 60 images have captions already")
    assert out.read_bytes() == alone.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--prompt", "a dog " * 2000, "exceed the context of language model 'demo' (128): shorten the prompt"),
        ("--tokenizer", "gpt2", "tokenizer is for the files that ClipCap published"),
    ],
)
def test_a_mistake_is_not_tried_again(
    cluster: str, command: Command, ckpt: Path, pictures: Path, option: str, value: str, message: str
) -> None:
    """Neither one that is seen when the captioner is loaded, nor one that is seen when it captions."""
    result = command("caption", pictures, "--ckpt", ckpt, "--engine", "ray", option, value)
    assert result.status == 2 and result.err.splitlines()[-1].startswith("error: ") and message in result.err
    assert "again" not in result.err


def test_what_a_cluster_is_not_asked(mistaken: Callable[..., str], ckpt: Path, photos: Path) -> None:
    line = ("caption", photos, "--ckpt", ckpt, "--engine")
    assert "'spark' is not one of 'ray'" in mistaken(*line, "spark")
    message = "--engine ray takes all of the cluster: give --device cuda or cpu, not cuda:1"
    assert message in mistaken(*line, "ray", "--device", "cuda:1")


def test_batches() -> None:
    """None is empty, none has an image that is done, and with a seed none spans one."""
    images, done = list("abcdefghij"), {"a", "d", "h", "i"}
    texts = {image: image.upper() for image in images}
    plain = plan_batches(images, 4, done, prompts=texts)
    assert [(*batch.images,) for batch in plain] == [("b", "c", "e", "f"), ("g", "j")]
    assert plain[1].prompts == ["G", "J"]
    drawn = plan_batches(images, 2, done, has_seed=True)
    expected = [("bc", 1), ("ef", 4), ("g", 6), ("j", 9)]
    assert [("".join(batch.images), batch.before) for batch in drawn] == expected
    assert plan_batches(images, 4, images) == []


def test_batches_in_any_order(ckpt: Path, pictures: Path) -> None:
    """As a worker gets those of another one that was lost: the random numbers of an image are its own."""
    captioner = BatchCaptioner(
        str(ckpt), "cpu", None, {}, "nucleus", {"seed": 3, "max_tokens": 4}, count=2, rerank=3, similarity=True,
        prompt="", forbid=(), force=(), datastore=None, consensus=None, batch_size=4, workers=1,
    )  # fmt: skip
    batches = plan_batches(find_images([str(pictures)]), 4, has_seed=True)
    captioned = list(captioner.caption(batches))
    assert list(captioner.caption(batches[::-1]))[::-1] == captioned
    assert [len(batch.skipped) for batch in captioned] == [0, 1, 0, 0, 0, 4, *[0] * 9]


def test_images_that_cannot_be_read_draw_like_others(
    command: Command, ckpt: Path, pictures: Path, tmp_path: Path
) -> None:
    """So the captions of an image do not change when another one is damaged, or mended."""
    found = {}
    for name in ("damaged", "mended"):
        out = tmp_path / name
        command(*drawn(pictures, ckpt, out))
        found[name] = {row["image"]: row["captions"] for row in map(json.loads, out.read_text().splitlines())}
        for number in DAMAGED:
            Image.effect_noise((60, 50), 10 + number).save(pictures / f"{number // 30}" / f"{number:03}.jpg")
    assert len(found["damaged"]) == 60 - len(DAMAGED) and len(found["mended"]) == 60
    assert found["damaged"].items() <= found["mended"].items()
