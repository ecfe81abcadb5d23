"""Captions on their way out, as they come: what was written is whole, whatever happens then."""

import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from prefixcap.commands.common.inputs import is_url
from prefixcap.errors import InputError, listed
from prefixcap.utils.files import as_cell, atomic_write, atomic_write_text, table_writer
from prefixcap.utils.image_ids import image_id

Format = Literal["text", "json", "jsonl", "csv", "coco", "sidecar"]
Row = tuple[str, list[str]]  # an image's name, and its captions, the best first

_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


class Output(Protocol):
    """Takes captions.

    Attributes:
        images: how many have been written.
    """

    images: int

    def add(self, rows: Sequence[Row]) -> None:
        """Write captions. Raises OSError or InputError if they cannot be written; what was before is whole then."""
        ...


class Stream:
    """One text for all images.

    Args:
        file: to write to.
        form: of the text.
        can_rewrite: the end of the text may be written again and again, so that what is in the file is always whole.
            Otherwise `close` writes it.
    """

    def __init__(self, file: BinaryIO, form: Format, can_rewrite: bool) -> None:
        self.images = 0
        self._file, self._form, self._can_rewrite = file, form, can_rewrite
        self._end = "\n]\n" if form in ("json", "coco") else ""
        self._length = 0  # of the text without its end, in bytes

    def add(self, rows: Sequence[Row]) -> None:
        text = "".join(self._written(number, *row) for number, row in enumerate(rows, self.images))
        data = text.encode(errors="backslashreplace")  # half a surrogate pair: bytes in a name that are not UTF-8
        if self._can_rewrite:
            try:
                self._rewrite(data + self._end.encode())
            except OSError:
                self._rewrite(self._end.encode())  # for which there was room before
                raise
            self._length += len(data)
        else:
            self._write(data)
        self.images += len(rows)

    def close(self) -> None:
        """Write the end of the text, unless it is there."""
        if self.images and not self._can_rewrite:
            self._write(self._end.encode())

    def _written(self, number: int, image: str, captions: list[str]) -> str:
        if self._form == "text":
            return "".join(f"{image.translate(_ESCAPES)}\t{caption}\n" for caption in captions)
        if self._form == "csv":
            text = io.StringIO()
            rows = table_writer(text)
            rows.writerows([["image", "caption"]] if not number else [])
            rows.writerows([as_cell(image), as_cell(caption)] for caption in captions)
            return text.getvalue()
        if self._form == "coco":
            entry: dict[str, Any] = {"image_id": image_id(image), "caption": captions[0]}
        else:
            entry = {"image": image, "captions": captions}
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
    """A text file beside each image: photo.txt for photo.jpg, a caption a line."""

    def __init__(self) -> None:
        self.images = 0

    def add(self, rows: Sequence[Row]) -> None:
        for image, captions in rows:
            atomic_write_text(sidecar(image), "".join(f"{caption}\n" for caption in captions))
            self.images += 1


def sidecar(image: str) -> Path:
    """Where the captions of an image go."""
    return Path(image).with_suffix(".txt")


@contextmanager
def open_output(form: Format, out: Path | None, images: Sequence[str], overwrite: bool) -> Iterator[Output]:
    """Where the captions of images go. What was written before an error leaves this context stays, and is whole.

    Args:
        form: of the captions.
        out: a file, which is there when the context ends; None: the standard output. Sidecars have none.
        images: all that are to be captioned.
        overwrite: files may be replaced.

    Raises:
        InputError: a file is there already, two images would share one, it cannot be written, or `out` and `form` do
            not go together.
    """
    if form == "sidecar":
        if out is not None:
            raise InputError("--format sidecar writes a text file beside each image: leave --out away")
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
            f"several images would share an id, {listed('id', shared)}: caption them apart, or choose another --format"
        )


def _check_sidecars(images: Sequence[str], overwrite: bool) -> None:
    if urls := [image for image in images if is_url(image)]:
        raise InputError(f"{urls[0]} has no folder for a sidecar: choose another --format")
    users = Counter([*map(sidecar, images), *map(Path, images)])
    if shared := [str(file) for file, count in users.items() if count > 1]:
        raise InputError(
            f"several images would share a sidecar, {listed('file', shared)}: caption them apart, or choose another "
            "--format"
        )
    if not overwrite and (there := [str(file) for file in map(sidecar, images) if file.exists()]):
        raise InputError(f"there already: {listed('file', there)}; give --overwrite to replace")
