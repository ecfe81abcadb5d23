"""Output of captions, batch by batch: the output is valid and complete up to the last batch, even after an error."""

import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol

from prefixcap.commands.common.inputs import is_url
from prefixcap.errors import InputError, listed
from prefixcap.utils.files import as_cell, atomic_write, atomic_write_text, table_writer
from prefixcap.utils.image_ids import image_id

Format = Literal["text", "json", "jsonl", "csv", "coco", "sidecar"]
WITHOUT_SIMILARITY: tuple[Format, ...] = ("coco", "sidecar")  # what these hold is not ours to say
LOW = "low: unlike the photographs it learned from"


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


_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


class Output(Protocol):
    """A destination of captions.

    Attributes:
        images: how many images have been written.
    """

    images: int

    def add(self, rows: Sequence[Row]) -> None:
        """Write captions. Raises OSError or InputError if they cannot be written; earlier output stays valid then."""
        ...


class Stream:
    """One text for all images.

    Args:
        file: the file to write to.
        form: the format of the text.
        can_rewrite: the end of the text is written after each batch, and overwritten by the next, so that the file is
            always valid. Otherwise `close` writes it.
    """

    def __init__(self, file: BinaryIO, form: Format, can_rewrite: bool) -> None:
        self.images = 0
        self._file, self._form, self._can_rewrite = file, form, can_rewrite
        self._end = "\n]\n" if form in ("json", "coco") else ""
        self._length = 0  # bytes of the text without its end

    def add(self, rows: Sequence[Row]) -> None:
        text = "".join(self._format(number, row) for number, row in enumerate(rows, self.images))
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
            text = io.StringIO()
            rows = table_writer(text)
            rows.writerows([] if number else [["image", "caption", "similarity"][: len(columns)]])
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


class Sidecars:
    """A text file next to each image: photo.txt for photo.jpg, with a caption per line."""

    def __init__(self) -> None:
        self.images = 0

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            atomic_write_text(sidecar(row.image), "".join(f"{caption}\n" for caption in row.captions))
            self.images += 1


def _note(similarity: float, low: float | None) -> str:
    """What follows a caption in a line of text."""
    return f"\t{similarity:.2f}" + (f" ({LOW})" if low is not None and similarity < low else "")


def sidecar(image: str) -> Path:
    """The text file for the captions of an image."""
    return Path(image).with_suffix(".txt")


@contextmanager
def open_output(form: Format, out: Path | None, images: Sequence[str], overwrite: bool) -> Iterator[Output]:
    """A context with the destination of captions. What was written before an error leaves it stays, and is valid.

    Args:
        form: the format.
        out: a file, which appears when the context ends; None: the standard output, or with sidecars no further file.
        images: all images that are to be captioned.
        overwrite: existing files may be replaced.

    Raises:
        InputError: a file is there already, two images would share a file, it cannot be written, or `out` and `form`
            exclude each other.
    """
    if form == "sidecar":
        if out is not None:
            raise InputError("--format sidecar writes a text file next to each image: leave --out out")
        _check_sidecars(images, overwrite)
        yield Sidecars()
        return
    if form == "coco":
        _check_ids(images)
    if out is not None and (out.is_file() or not out.exists()):
        if out.is_file() and not overwrite:
            raise InputError(f"{out} is there already: name another file, or give --overwrite")
        failure = None
        with atomic_write(out.resolve()) as temporary, temporary.open("wb", buffering=0) as file:
            output = Stream(file, form, can_rewrite=True)
            try:
                yield output
            except BaseException as error:
                if not output.images:
                    raise
                failure = error
        if failure is not None:
            raise failure
    elif out is not None and out.is_dir():
        raise InputError(f"{out} is a folder: name a file in it")
    else:  # a terminal, a pipe, a device
        with nullcontext(sys.stdout.buffer) if out is None else out.open("wb", buffering=0) as file:
            output = Stream(file, form, can_rewrite=False)
            try:
                yield output
            finally:
                output.close()


def _check_ids(images: Sequence[str]) -> None:
    users = Counter(map(image_id, images))
    if shared := [repr(name) for name, count in users.items() if count > 1]:
        raise InputError(
            f"several images would share an id, {listed('id', shared)}: caption them separately, or choose "
            "another --format"
        )


def _check_sidecars(images: Sequence[str], overwrite: bool) -> None:
    if urls := [image for image in images if is_url(image)]:
        raise InputError(f"{urls[0]} has no folder for a sidecar: choose another --format")
    users = Counter([*map(sidecar, images), *map(Path, images)])
    if shared := [str(file) for file, count in users.items() if count > 1]:
        raise InputError(
            f"several images would share a sidecar, {listed('file', shared)}: caption them separately, or choose "
            "another --format"
        )
    if not overwrite and (existing := [str(file) for file in map(sidecar, images) if file.exists()]):
        raise InputError(f"there already: {listed('file', existing)}; give --overwrite to replace")


def require_new_folder(folder: Path) -> None:
    """Raise InputError if a folder to be written is a file, or has files already."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} is there already: name a new or empty folder")
