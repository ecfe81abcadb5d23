"""The photographs of the README: their files, authors and licences, and the gallery that a command writes."""

import html
import re
from pathlib import Path

import pytest
from PIL import Image

from docs import photographs
from docs.photographs import END, FOLDER, PAGE, START, Caption, between_markers, gallery
from prefixcap.errors import InputError
from tests.docs.conftest import run_file

SHOWN = photographs.photographs()
LICENCES = re.compile(r"https://creativecommons\.org/(licenses/by(-sa)?/\d\.0|publicdomain/zero/1\.0)/")


def test_each_file_has_an_author_and_a_free_licence() -> None:
    assert [photo.file for photo in SHOWN] == sorted(file.name for file in FOLDER.glob("*.jpg"))
    assert 8 <= len(SHOWN) <= 12
    for photo in SHOWN:
        assert photo.link == photo.file and photo.title.strip() and photo.author.strip()
        assert LICENCES.fullmatch(photo.licence_link) or photo.licence == "public domain", photo.file


def test_the_files_are_small_photographs() -> None:
    files = [FOLDER / photo.file for photo in SHOWN]
    assert sum(file.stat().st_size for file in files) < 700_000
    for file in files:
        with Image.open(file) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB") and 300 <= max(image.size) <= 640
            assert not image.getexif()


def test_the_readme_shows_all_with_their_authors() -> None:
    shown = PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    assert re.findall(r'src="docs/photographs/([^"]+)"', shown) == [photo.file for photo in SHOWN]
    captions = [Caption(html.unescape(text), 0.5) for text in re.findall(r"<br>(.*?) \(-?\d\.\d\d\)(?= \|)", shown)]
    assert len(captions) == len(SHOWN)
    written = re.sub(r"\(-?\d\.\d\d\) \|", "(0.50) |", shown).strip()
    assert written == gallery(SHOWN, captions), "python docs/photographs.py writes it anew"


def test_captions_cannot_break_the_table() -> None:
    written = gallery(SHOWN[:3], [Caption("a | b", 0.5), Caption('<unk> & "x"', -0.123), Caption("", 1.0)], columns=2)
    rows = [line for line in written.splitlines() if line.startswith("|")]
    assert [row.count("|") for row in rows] == [3, 3, 3, 3]
    assert "a &#124; b (0.50)" in rows[2] and "&lt;unk&gt; &amp; &quot;x&quot; (-0.12)" in rows[2]


def test_only_what_is_between_the_markers_changes() -> None:
    page = f"before\n{START}\nold\n{END}\nafter\n"
    assert between_markers(page, "new") == f"before\n{START}\n\nnew\n\n{END}\nafter\n"
    for wrong in ("", START, f"{END}\n{START}", page + END, page + page):
        with pytest.raises(InputError, match="must have the line"):
            between_markers(wrong, "new")


def test_the_command_writes_the_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the small world's captioner, whose captions mean nothing here."""
    page = folder / "README.md"
    page.write_text(f"# Title\n\n{START}\n{END}\n")
    monkeypatch.setattr(photographs, "PAGE", page)
    photographs.main([str(folder / "best.ckpt")])
    printed = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in printed] == [photo.file for photo in SHOWN]
    captions = [Caption(text, float(similarity)) for _, text, similarity in printed]
    assert page.read_text() == between_markers(f"# Title\n\n{START}\n{END}\n", gallery(SHOWN, captions))
    assert all(-1 <= caption.similarity <= 1 for caption in captions)


def test_a_captioner_that_is_not_there_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_file(photographs.ROOT / "docs" / "photographs.py", "nowhere.ckpt")
    assert str(stopped.value.code).startswith("error: ") and "\n" not in str(stopped.value.code)
