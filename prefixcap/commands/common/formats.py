"""Captions of images as one text, which is valid after each batch, and what an earlier run wrote."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from prefixcap.errors import InputError
from prefixcap.utils.files import as_cell, table_writer
from prefixcap.utils.image_ids import image_id

Format = Literal["text", "json", "jsonl", "csv", "coco", "sidecar"]
WITHOUT_SIMILARITY: tuple[Format, ...] = ("coco", "sidecar")  # what these hold is not ours to say
LOW = "low: unlike the photographs it learned from"

_HEAD = ["image", "caption", "similarity"]  # of a table
_BEGINNINGS = {"json": '[\n{"image": ', "coco": '[\n{"image_id": ', "jsonl": '{"image": ', "csv": '"image","caption"'}
_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


class Row(NamedTuple):
    """An image and its captions.

    Attributes:
        image: its name.
        captions: the best first.
        similarities: the cosine of each caption and the image; None: they are not written.
        low_similarity: below which `LOW` is said of a caption; None: of none.
    """

    image: str
    captions: list[str]
    similarities: list[float] | None = None
    low_similarity: float | None = None


class Written(NamedTuple):
    """What an earlier run wrote to a file.

    Attributes:
        images: those of the images to caption that have captions in it.
        entries: how many images have captions in it, whether they are to be captioned or not.
        length: of these captions, in bytes; what follows is the end of the text, or was cut short.
        columns: of a table.
    """

    images: frozenset[str] = frozenset()
    entries: int = 0
    length: int = 0
    columns: int = 0


class Stream:
    """One text for all images.

    Args:
        file: the file to write to.
        form: the format of the text.
        can_rewrite: the end of the text is written after each batch, and overwritten by the next, so that the file is
            always valid. Otherwise `close` writes it.
        written: what the file holds already.

    Attributes:
        images: how many images have been added.
        done: the images whose captions the file held before.
    """

    def __init__(self, file: BinaryIO, form: Format, can_rewrite: bool, written: Written | None = None) -> None:
        self._before = written or Written()
        self.images, self.done = 0, self._before.images
        self._file, self._form, self._can_rewrite = file, form, can_rewrite
        self._end = "\n]\n" if form in ("json", "coco") else ""
        self._length = self._before.length  # bytes of the text without its end

    def add(self, rows: Sequence[Row]) -> None:
        """Write captions. Raises OSError or InputError if they cannot be written; what was written stays valid then."""
        first = self._before.entries + self.images
        text = "".join(self._format(number, row) for number, row in enumerate(rows, first))
        data = text.encode(errors="backslashreplace")  # half a surrogate pair: bytes in a name that are not UTF-8
        if self._can_rewrite:
            try:
                self._rewrite(data + self._end.encode())
            except OSError:
                self._rewrite(self._end.encode())  # there was room for it before
                raise
            self._length += len(data)
        else:
            self._write(data)
        self.images += len(rows)

    def close(self) -> None:
        """Write the end of the text, unless it is there already."""
        if self.images and not self._can_rewrite:
            self._write(self._end.encode())

    def _format(self, number: int, row: Row) -> str:
        image, captions, similarities, low = row
        if self._form == "text":
            notes = [""] * len(captions) if similarities is None else [_note(cosine, low) for cosine in similarities]
            name = image.translate(_ESCAPES)
            return "".join(f"{name}\t{caption}{note}\n" for caption, note in zip(captions, notes, strict=True))
        if self._form == "csv":
            columns = [[image] * len(captions), captions, *([similarities] if similarities is not None else [])]
            if self._before.columns not in (0, len(columns)):
                has, option = ("no", "--no-") if similarities is not None else ("a", "--")
                raise InputError(f"the table has {has} column of similarities: give {option}similarity")
            text = io.StringIO()
            rows = table_writer(text)
            rows.writerows([] if number else [_HEAD[: len(columns)]])
            rows.writerows(map(as_cell, cells) for cells in zip(*columns, strict=True))
            return text.getvalue()
        if self._form == "coco":
            entry: dict[str, Any] = {"image_id": image_id(image), "caption": captions[0]}
        else:
            entry = {"image": image, "captions": captions}
            entry |= {} if similarities is None else {"similarities": similarities}
        line = json.dumps(entry, ensure_ascii=False)
        if self._form == "jsonl":
            return f"{line}\n"
        return f",\n{line}" if number else f"[\n{line}"

    def _rewrite(self, data: bytes) -> None:
        self._file.seek(self._length)
        self._write(data)
        self._file.truncate()

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        self._file.flush()


def read_written(file: Path, form: Format, images: Sequence[str], count: int) -> Written:
    """What `Stream` wrote to a file, up to where it was cut short if it was killed.

    Args:
        file: the file.
        form: the format of its text.
        images: to caption.
        count: captions per image.

    Raises:
        InputError: the file holds something else, which is not to be lost.
    """
    data = file.read_bytes()
    columns = 0
    if form in ("json", "coco", "jsonl"):
        entries = _json_entries(data, form, file)
    elif form == "text":
        entries = _images_of_rows(_lines(data, file), count)
    else:
        rows = _table_rows(data, file)
        columns = len(rows[0][0]) if rows else 0
        entries = _images_of_rows(rows[1:], count)
    key = {"text": lambda image: image.translate(_ESCAPES), "csv": as_cell, "coco": image_id}.get(form, str)
    keys = {image: key(image) for image in images}
    if form in ("text", "csv"):
        keys = {image: text.encode(errors="backslashreplace").decode() for image, text in keys.items()}
    begin = (str(keys[images[0]]) if form == "text" else _BEGINNINGS[form]).encode()
    if not entries and not data.startswith(begin) and not begin.startswith(data):
        raise _other_content(file, 1)
    names = {name for name, _ in entries}
    done = frozenset(image for image, name in keys.items() if name in names)
    return Written(done, len(entries), entries[-1][1], columns) if entries else Written()


def _json_entries(data: bytes, form: Format, file: Path) -> list[tuple[Any, int]]:
    """The name in each entry, one a line, and where the entry ends."""
    name, caption = ("image_id", "caption") if form == "coco" else ("image", "captions")
    begin, comma = (b"", b"") if form == "jsonl" else (b"[\n", b",")
    lines = data.removeprefix(begin).split(b"\n")
    if form == "jsonl":
        lines.pop()  # without an end of line: empty, or cut short
    entries, start = [], len(begin)
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line.removesuffix(comma))
            entry[caption]
            entries.append((entry[name], start + len(line.removesuffix(comma)) + (form == "jsonl")))
        except (ValueError, TypeError, KeyError):
            if any(lines[number:]):  # the end of the text, and what was cut short, are on the last line
                raise _other_content(file, number) from None
            break
        start += len(line) + 1
    return entries


def _lines(data: bytes, file: Path) -> list[tuple[list[str], int]]:
    """The cells of each complete line, and where it ends."""
    rows, end = [], 0
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        end += len(line) + 1
        rows.append((line.decode(errors="replace").split("\t"), end))
        if len(rows[-1][0]) < 2:
            raise _other_content(file, number)
    return rows


def _table_rows(data: bytes, file: Path) -> list[tuple[list[str], int]]:
    """The cells of each complete row, and where it ends; the first is the head."""
    rows, end = [], 0

    def lines() -> Iterator[str]:
        nonlocal end
        for line in data.split(b"\n")[:-1]:
            end += len(line) + 1
            yield line.decode(errors="replace") + "\n"

    reader = csv.reader(lines(), strict=True)
    try:
        for row in reader:
            rows.append((row, end))
            if rows[0][0] not in (_HEAD, _HEAD[:-1]) or len(row) != len(rows[0][0]):
                raise _other_content(file, reader.line_num)
    except csv.Error:  # a text in quotation marks was cut short
        pass
    return rows


def _images_of_rows(rows: Sequence[tuple[list[str], int]], count: int) -> list[tuple[str, int]]:
    """Of rows with a caption each, the images and where the last row of each ends. The last image is left out if
    captions of it are missing."""
    ends = {cells[0]: end for cells, end in rows}
    if rows and sum(cells[0] == rows[-1][0][0] for cells, _ in rows) < count:
        del ends[rows[-1][0][0]]
    return list(ends.items())


def _other_content(file: Path, line: int) -> InputError:
    return InputError(
        f"{file} holds something else than captions in this format (line {line}): name another file, or replace "
        "it with --existing overwrite"
    )


def _note(similarity: float, low: float | None) -> str:
    """What follows a caption in a line of text."""
    return f"\t{similarity:.2f}" + (f" ({LOW})" if low is not None and similarity < low else "")
