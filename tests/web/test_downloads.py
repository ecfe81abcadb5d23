"""All results as files, read back with Python's own modules."""

import csv
import io
import json
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from playwright.sync_api import Page

from prefixcap.captioner import Captioner
from prefixcap.utils.files import as_cell, from_cell
from tests.web.browsing import CHROMIUM, Visit, captions

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")

# A browser gives the name alone; what else a name may have is for us to make harmless.
NAMES = ["=1+1.jpg", 'a "b", c.jpg', "a.jpg", "a.png", "A.JPG", "con.jpg", "..jpg", "ü 猫.jpg", f"{'x' * 200}.jpg"]


def download(page: Page, kind: str) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=kind, exact=True).click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def test_results_come_as_table_json_and_text_files(visit: Visit, captioner: Captioner, pictures: list[Path]) -> None:
    page = visit.page
    sent = [
        {"name": name, "mimeType": "image/jpeg", "buffer": picture.read_bytes()}
        for name, picture in zip(NAMES, pictures, strict=False)
    ]
    bad = {"name": "bad.jpg", "mimeType": "image/jpeg", "buffer": b"<html>"}
    page.set_input_files("#files", [*sent[:5], bad])  # type: ignore[list-item]
    captions(page, 6)
    page.set_input_files("#files", sent[5:])  # type: ignore[arg-type]
    captions(page, len(NAMES) + 1)
    expected = captioner.candidates(pictures[: len(NAMES)], 3, by_similarity=True)

    name, content = download(page, "CSV")
    head, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
    assert name == "captions.csv" and head == ["image", "caption", "similarity"]
    assert [row[0] for row in rows] == [as_cell(picture) for picture in NAMES for _ in range(3)]
    assert [from_cell(row[1]) for row in rows] == [text for texts in expected for text in texts]

    name, content = download(page, "JSON")
    entries = json.loads(content)
    assert name == "captions.json" and [entry["image"] for entry in entries] == NAMES
    assert [entry["captions"] for entry in entries] == expected
    similarities = captioner.similarities(captioner.embed(pictures[:1]), expected[:1])[0]
    assert entries[0]["similarities"] == pytest.approx(similarities, abs=1e-5)
    assert [float(row[2]) for row in rows] == [one for entry in entries for one in entry["similarities"]]

    name, content = download(page, "Text files (zip)")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert name == "captions.zip" and archive.testzip() is None
        texts = {each: archive.read(each).decode() for each in archive.namelist()}
    assert list(texts.values()) == ["".join(f"{line}\n" for line in lines) for lines in expected]
    assert list(texts) == [
        "=1+1.txt", "a _b_, c.txt", "a.txt", "a (2).txt", "A (3).txt", "_con.txt", "image.txt", "ü 猫.txt",
        f"{'x' * 80}.txt",
    ]  # fmt: skip
    assert all(PurePosixPath(each).name == each for each in texts)
    assert all("400 (Bad Request)" in mistake for mistake in visit.mistakes)
