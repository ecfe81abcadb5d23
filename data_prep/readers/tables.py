"""Tables of captions in common forms: with commas, semicolons, tabs or bars, and columns of many names."""

import ast
import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefixcap.errors import InputError
from prefixcap.evaluation.caption_files import SIMILARITY
from prefixcap.utils.files import parse_json, read_json, read_text
from prefixcap.utils.images import IMAGE_SUFFIXES

# Names of columns and of keys in JSON; case, spaces and underscores do not matter, and the first one present counts.
IMAGE_NAMES = ("image", "file_name", "filename", "image_name", "image_path", "image_file", "img", "filepath", "path")
CAPTION_NAMES = ("captions", "caption", "text", "comment", "sentence", "description", "raw")
SPLIT_NAMES = ("split",)

TABLES = (".csv", ".tsv", ".txt", ".token")
DELIMITERS = (",", ";", "\t", "|")
QUOTED = (",", ";")  # elsewhere quotation marks are ordinary characters


@dataclass(frozen=True)
class Row:
    """The content of one row, not checked yet.

    Attributes:
        where: the place of the row, for messages.
        image: the name of the image file.
        captions: of the image.
        split: of the image; None: the row gives none.
        problem: why the row cannot be read; None: it can.
    """

    where: str
    image: object = None
    captions: tuple[object, ...] = ()
    split: object = None
    problem: str | None = None


@dataclass(frozen=True)
class Columns:
    """The names of the columns to read."""

    image: str | None
    captions: list[str]
    split: str | None

    def row(self, where: str, values: dict[str, Any], listed: Callable[[Any], Iterable[object]]) -> Row:
        captions = tuple(caption for name in self.captions for caption in listed(values[name]))
        image = values[self.image] if self.image is not None else None
        image = _without_number(image) if isinstance(image, str) else image
        return Row(where, image, captions, values[self.split] if self.split is not None else None)


def read_rows(path: Path, with_image: bool = True, commas_in_captions: bool = False) -> Iterator[Row]:
    """The rows of a table, or of a `.jsonl` or `.json` file.

    Args:
        path: `.csv`, `.tsv`, `.txt` or `.token`: a table with a header in which one of `IMAGE_NAMES` and one of
            `CAPTION_NAMES` stand, several caption columns being numbered; or without a header, an image's name and a
            caption, as in Flickr8k's `x.jpg#0<TAB>caption`. Commas, semicolons, tabs or bars divide the columns,
            whatever the file is called; between tabs and bars quotation marks are ordinary characters unless the
            header has them. `.jsonl`: an object a line with such keys. `.json`: a list of such objects, or an object
            with captions by the names of images.
        with_image: whether an image column is required; False: only captions are read, from a column of that name.
        commas_in_captions: whether all that follows the first delimiter is the caption where a table has two columns,
            even without quotation marks.

    Raises:
        InputError: the file cannot be read, lacks a column, or has a row that tells that a quote is missing.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from _jsonl_rows(path, with_image)
    elif suffix == ".json":
        yield from _json_rows(path, with_image)
    elif suffix in TABLES:
        yield from _table_rows(path, with_image, commas_in_captions)
    else:
        raise InputError(f"{path} must be a .csv, .tsv or .jsonl file, or one of .txt, .token and .json")


def find_columns(where: object, names: list[str], with_image: bool) -> Columns:
    """The columns of images, captions and splits among these. Raises InputError, naming `where`, if one is missing."""
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault(_plain(name), name)
    image = next((by_name[name] for name in map(_plain, IMAGE_NAMES) if name in by_name), None)
    split = next((by_name[name] for name in SPLIT_NAMES if name in by_name), None)
    captions: list[str] = []
    for known in CAPTION_NAMES if with_image else CAPTION_NAMES[:2]:
        if captions := [name for plain, name in by_name.items() if re.fullmatch(rf"{known}\d*", plain)]:
            break
    for column, there in (("image", image is not None or not with_image), ("caption", bool(captions))):
        if not there:
            raise InputError(f"{where} has no column {column!r}; it has {', '.join(names) or 'none'}")
    return Columns(image, captions, split)


def _plain(name: str) -> str:
    """The name of a column without case, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


@dataclass(frozen=True)
class Form:
    """The format of a table.

    Attributes:
        delimiter: between cells.
        quoted: whether cells may be in quotation marks.
        names: of all columns.
        columns: the columns to read.
        has_header: whether the first line holds the names.
    """

    delimiter: str
    quoted: bool
    names: list[str]
    columns: Columns
    has_header: bool = True


def _table_rows(path: Path, with_image: bool, commas_in_captions: bool) -> Iterator[Row]:
    text = read_text(path)
    form = _form_of(path, text.lstrip("\r\n").partition("\n")[0], with_image)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=form.delimiter,
        quoting=_quoting(form.quoted),
        strict=form.quoted,
        skipinitialspace=any(name.startswith(" ") for name in form.names),
    )
    line = 0
    try:
        rows = (cells for cells in reader if any(cell.strip() for cell in cells))  # spreadsheets leave blank ones
        if form.has_header:
            next(rows, None)
        line = reader.line_num
        for cells in rows:
            line = reader.line_num
            where = f"{path}, line {line}"
            if commas_in_captions and len(cells) > len(form.names) == 2 and form.columns.captions == form.names[1:]:
                cells = [cells[0], form.delimiter.join(cells[1:])]
            if len(cells) == len(form.names):
                yield form.columns.row(where, dict(zip(form.names, cells, strict=True)), _in_cell)
                continue
            problem = f"the row has not {len(form.names)} fields as the header has"
            if form.quoted:  # where nothing is quoted, a row is a line, and the others are right
                raise InputError(f"{where}: {problem}; is a quote missing?")
            yield Row(where, problem=f"line {line}: {problem}")
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: {error}; is a quote missing?") from error


def _form_of(path: Path, head: str, with_image: bool) -> Form:
    """The format of a table, from its first line. Raises InputError if a column is missing."""
    if "\0" in head:
        raise InputError(f"{path} is not UTF-8 text (it has null characters); convert it to UTF-8")
    problems: list[tuple[int, InputError]] = []
    is_tsv = path.suffix.lower() == ".tsv"
    for delimiter in sorted(DELIMITERS, key=lambda sign: is_tsv and sign != "\t"):
        quoted = delimiter in QUOTED or head.startswith('"')
        names = _cells(head, delimiter, quoted)
        scored = len(names) == 3 and SIMILARITY.fullmatch(names[2])  # by `prefixcap caption`
        if with_image and (len(names) == 2 or scored) and _is_image(names[0]):
            own = ["image", "caption", "similarity"][: len(names)]
            return Form(delimiter, quoted, own, Columns("image", ["caption"], None), False)
        try:
            return Form(delimiter, quoted, names, find_columns(path, names, with_image))
        except InputError as error:
            problems.append((-len(names), error))
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise InputError(f"{path} must be a .csv, .tsv or .jsonl file, or begin with the names of its columns")
    raise min(problems, key=lambda problem: problem[0])[1]


def _quoting(quoted: bool) -> Literal[0, 3]:
    return csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE


def _cells(line: str, delimiter: str, quoted: bool) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, quoting=_quoting(quoted)), [])
    except csv.Error:
        return []


def _is_image(name: str) -> bool:
    return Path(_without_number(name)).suffix.lower() in IMAGE_SUFFIXES


def _without_number(name: str) -> str:
    """`x.jpg` of `x.jpg#0`, as Flickr8k numbers the captions of an image."""
    return re.sub(r"(\.\w+)#\d+$", r"\1", name.strip())


def _in_cell(cell: str) -> list[object]:
    """The captions in a cell: one, or a list in Python or JSON syntax."""
    if re.match(r"\s*\[\s*['\"].*\]\s*$", cell, re.DOTALL):
        try:
            listed = ast.literal_eval(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return [cell]
        if isinstance(listed, list) and all(isinstance(caption, str) for caption in listed):
            return listed
    return [cell]


def _in_value(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _jsonl_rows(path: Path, with_image: bool) -> Iterator[Row]:
    # Not splitlines: that also breaks at characters that JSON allows inside a string.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _row_of_object(where, parse_json(line, where), with_image)


def _json_rows(path: Path, with_image: bool) -> Iterator[Row]:
    content = read_json(path)
    if isinstance(content, list):
        for number, entry in enumerate(content):
            yield _row_of_object(f"{path}, entry {number}", entry, with_image)
    elif isinstance(content, dict) and with_image and all(map(_is_image, content)):
        for name, captions in content.items():
            yield Row(f"{path}, {name!r}", name, tuple(_in_value(captions)))
    else:
        raise InputError(f"{path} is no JSON list of objects with an image and its captions; is it the right file?")


def _row_of_object(where: str, entry: object, with_image: bool) -> Row:
    if not isinstance(entry, dict):
        raise InputError(f"{where} is no JSON object")
    return find_columns(where, list(entry), with_image).row(where, entry, _in_value)
