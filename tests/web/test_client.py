"""The clients that docs/use/web.md shows, against a server."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefixcap.captioner import Captioner
from tests.conftest import ROOT
from tests.docs.pages import BLOCK
from tests.web.conftest import served

PAGE = (ROOT / "docs/use/web.md").read_text(encoding="utf-8")
DEFAULT = "http://127.0.0.1:7860"
CURL = re.findall(r"^ {4}(curl .*)$", PAGE, re.MULTILINE)


@pytest.fixture
def address(
    captioner: Captioner, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    for name, picture in zip(("photo.jpg", "another.png", "a.jpg", "b.jpg"), pictures, strict=False):
        shutil.copy(picture, name)
    with served({"photos": captioner, "mine": captioner}) as at:
        yield at


def test_python(address: str, captioner: Captioner, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.jpg").write_bytes(b"text")
    for number in range(15):  # more than one request
        shutil.copy("photo.jpg", f"more {number:02}.jpg")
    (code,) = [block[2] for block in BLOCK.finditer(PAGE) if "httpx" in block[2]]
    exec(compile(code.replace(DEFAULT, address), "web.md", "exec"), {})
    printed = sorted(capsys.readouterr().out.splitlines())
    files = sorted(Path().glob("*.jpg"))
    expected = [
        f"{file} {file}: not an image" if file.name == "c.jpg"
        else f"{file} {captioner.candidates([file], 3, by_similarity=True)[0]}"
        for file in files
    ]  # fmt: skip
    assert printed == sorted(expected) and len(files) == 19


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on PATH")
def test_curl(address: str, captioner: Captioner) -> None:
    assert len(CURL) == 5
    said = {}
    for command in CURL:
        arguments = shlex.split(command.replace(DEFAULT, address))
        ran = subprocess.run([*arguments, "--silent", "--fail-with-body"], capture_output=True, check=True, text=True)
        said[command] = [json.loads(line) for line in ran.stdout.splitlines()]
    several, both, stream, info, prompted = said.values()
    assert len(several[0]["images"][0]["captions"]) == 3
    expected = captioner.caption(["photo.jpg", "another.png"])
    assert [image["captions"][0]["text"] for image in both[0]["images"]] == expected
    assert {line["index"]: line["captions"][0]["text"] for line in stream} == dict(enumerate(expected))
    assert [each["name"] for each in info[0]["captioners"]] == ["photos", "mine"]
    prompts = ["Taken at a horse race.", ""]
    assert [image["captions"][0]["text"] for image in prompted[0]["images"]] == captioner.caption(
        ["a.jpg", "b.jpg"], prompts=prompts
    )
