"""Captions of photographs under free licences, as the README shows them: `python docs/photographs.py` writes them anew.

The photographs are those of the table in `docs/photographs/README.md`, which says how they were chosen. They are
captioned by the captioner that comes with the package, or by another, as in `python docs/photographs.py best.ckpt`.
"""

import html
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import prefixcap
from prefixcap.errors import InputError
from prefixcap.utils.files import atomic_write_text, read_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "README.md"
FOLDER = ROOT / "docs" / "photographs"
START, END = "<!-- photographs: python docs/photographs.py -->", "<!-- end of photographs -->"
COLUMNS = 4

ROW = re.compile(r"^\| \[(\S+)\]\((\S+)\) \| ([^|]+) \| ([^|]+) \| \[([^]]+)\]\((\S+)\) \|", re.MULTILINE)


class Photograph(NamedTuple):
    """A row of the table in `docs/photographs/README.md`; `file` is a name in that folder."""

    file: str
    link: str
    title: str
    author: str
    licence: str
    licence_link: str


class Caption(NamedTuple):
    """What a captioner writes of a photograph, and the cosine between the two by its encoder."""

    text: str
    similarity: float


def photographs() -> list[Photograph]:
    """The photographs, in the order of the table."""
    return [Photograph(*row) for row in ROW.findall(read_text(FOLDER / "README.md"))]


def write_captions(captioner: str, files: Sequence[Path]) -> list[Caption]:
    """The captions of a captioner for these images, as `prefixcap caption` gives them.

    Raises:
        InputError: there is no such captioner, or a file cannot be read.
    """
    loaded = prefixcap.load(captioner)
    texts = loaded.caption(files)
    similarities = loaded.similarities(loaded.embed(files, "image"), [[text] for text in texts])
    return [Caption(text, similarity) for text, (similarity,) in zip(texts, similarities, strict=True)]


def gallery(shown: Sequence[Photograph], captions: Sequence[Caption], columns: int = COLUMNS) -> str:
    """Markdown: a table of pictures with captions and similarities, and below it the authors with the licences."""
    cells = [
        f'<img src="docs/photographs/{photo.file}" width="200" alt="{_escaped(photo.title)}"><br>'
        f"{_escaped(caption.text)} ({caption.similarity:.2f})"
        for photo, caption in zip(shown, captions, strict=True)
    ]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    lines = ["| " + " | ".join([*row, *[""] * (columns - len(row))]).rstrip() + " |" for row in rows]
    credits = "; ".join(f"{photo.title} by {photo.author}, {photo.licence}" for photo in shown)
    note = (
        "The number is the cosine between picture and caption. No picture was chosen for its caption: "
        f"[how they were chosen, and their licences](docs/photographs/README.md). Photographs: {credits}."
    )
    return "\n".join(
        [
            "| " * columns + "|",
            "|---" * columns + "|",
            *lines,
            "",
            textwrap.fill(note, 125, break_long_words=False, break_on_hyphens=False),
        ]
    )


def between_markers(text: str, content: str) -> str:
    """The text of a page with this between the two markers. Raises InputError unless it has each marker once."""
    parts = re.split(f"({re.escape(START)}|{re.escape(END)})", text)
    if parts[1::2] != [START, END]:
        raise InputError(f"{PAGE} must have the line {START} once and, after it, {END} once")
    return f"{parts[0]}{START}\n\n{content}\n\n{END}{parts[4]}"


def _escaped(text: str) -> str:
    return html.escape(text).replace("|", "&#124;")


def main(arguments: Sequence[str]) -> None:
    """Caption all photographs and write the README."""
    shown = photographs()
    captions = write_captions(arguments[0] if arguments else "photos", [FOLDER / photo.file for photo in shown])
    for photo, caption in zip(shown, captions, strict=True):
        print(f"{photo.file}\t{caption.text}\t{caption.similarity:.2f}")
    atomic_write_text(PAGE, between_markers(read_text(PAGE), gallery(shown, captions)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
