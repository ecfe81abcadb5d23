"""Where captions go: a file, the standard output, or text files next to the images."""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from filelock import lock_descriptor

from prefixcap.commands.common.formats import Format, Row, Stream, Written, read_written
from prefixcap.commands.common.inputs import is_url
from prefixcap.errors import InputError, listed
from prefixcap.utils.files import atomic_write, atomic_write_text, one_line_errors, read_text
from prefixcap.utils.image_ids import image_id
from prefixcap.utils.images import IMAGE_SUFFIXES

Existing = Literal["skip", "overwrite", "append", "prepend", "error"]


class Output(Protocol):
    """An open destination of captions.

    Attributes:
        images: how many images have been written.
    """

    images: int

    def add(self, rows: Sequence[Row]) -> None:
        """Write captions. Raises OSError or InputError if they cannot be written; earlier output stays valid then."""
        ...


@dataclass(frozen=True)
class Destination:
    """Where the captions of images go. Nothing is written yet.

    Attributes:
        images: all that are named.
        form: the format.
        out: a file; None: the standard output, or with sidecars no further file.
        existing: what happens to a file that is there: "skip" keeps its captions, and only other images get any;
            "overwrite" replaces it; "append" and "prepend" add lines to a sidecar; "error" refuses it.
        count: captions per image.
        extension: of sidecars.
        separate: each caption of an image has a sidecar of its own.

    Raises:
        InputError: a file is there and must not be, two images would share a file, or options exclude each other; and
            by `written` and `done`, the file holds something else.
    """

    images: Sequence[str]
    form: Format
    out: Path | None = None
    existing: Existing = "skip"
    count: int = 1
    extension: str = ".txt"
    separate: bool = False

    def __post_init__(self) -> None:
        if self.form == "sidecar":
            self._check_sidecars()
            return
        if self.existing in ("append", "prepend"):
            raise InputError(f"--existing {self.existing} is for --format sidecar: choose another")
        if self.extension != ".txt" or self.separate:
            option = "--separate" if self.separate else "--caption-extension"
            raise InputError(f"{option} is for --format sidecar: leave it out")
        if self.form == "coco":
            self._check_ids()
        if self.out is None:
            return
        if self.out.is_dir():
            raise InputError(f"{self.out} is a folder: name a file in it")
        if self.out.is_file() and self.existing == "error":
            raise InputError(f"{self.out} is there already: name another file, or give --existing skip or overwrite")

    @cached_property
    def written(self) -> Written:
        """What the file holds that stays."""
        return self._read()

    def _read(self) -> Written:
        if self.form == "sidecar" or self.out is None or not self.out.is_file() or self.existing == "overwrite":
            return Written()
        with one_line_errors(self.out):
            return read_written(self.out, self.form, self.images, self.count)

    @cached_property
    def done(self) -> frozenset[str]:
        """The images that have captions, and are to get no others."""
        if self.form == "sidecar" and self.existing == "skip":
            return frozenset(image for image in self.images if self.sidecars(image)[0].exists())
        return self.written.images

    def sidecars(self, image: str) -> list[Path]:
        """The text files of an image. Where there are several, the first is the last to be written."""
        first = Path(image).with_suffix(self.extension)
        numbers = range(2, self.count + 1) if self.separate else ()
        return [first, *(first.with_stem(f"{first.stem}_{number}") for number in numbers)]

    @contextmanager
    def open(self) -> Iterator[Output]:
        """A context with the output. What was written before an error leaves it stays, and is valid.

        Raises:
            InputError: it cannot be written, or another process writes it.
        """
        if self.form == "sidecar":
            yield Sidecars(self)
        elif self.out is None or (self.out.exists() and not self.out.is_file()):  # a terminal, a pipe, a device
            with nullcontext(sys.stdout.buffer) if self.out is None else self.out.open("wb", buffering=0) as file:
                output = Stream(file, self.form, can_rewrite=False)
                try:
                    yield output
                finally:
                    output.close()
        elif self.out.is_file() and self.existing == "overwrite":
            yield from self._replaced(self.out)
        else:
            yield from self._continued(self.out)

    def _replaced(self, out: Path) -> Iterator[Output]:
        """The file that is there stays until a caption has been written, and the context ends."""
        failure = None
        with one_line_errors(out), out.open("rb") as before:
            _require_alone(before, out)
        with atomic_write(out.resolve()) as temporary, temporary.open("wb", buffering=0) as file:
            output = Stream(file, self.form, can_rewrite=True)
            try:
                yield output
            except BaseException as error:
                if not output.images:
                    raise
                failure = error
        if failure is not None:
            raise failure

    def _continued(self, out: Path) -> Iterator[Output]:
        """The file grows from batch to batch, so that a run that is killed goes on where it was."""
        is_new = not out.exists()
        with one_line_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            file = os.fdopen(os.open(out, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        with file:
            _require_alone(file, out)
            if not out.exists() or self._read() != self.written:
                raise InputError(f"{out} was written by another process meanwhile: run the same command again")
            output = Stream(file, self.form, can_rewrite=True, written=self.written)
            try:
                yield output
            finally:
                if is_new and not output.images:
                    out.unlink()

    def _check_ids(self) -> None:
        users = Counter(map(image_id, self.images))
        if shared := [repr(name) for name, count in users.items() if count > 1]:
            raise InputError(
                f"several images would share an id, {listed('id', shared)}: caption them separately, or choose "
                "another --format"
            )

    def _check_sidecars(self) -> None:
        if self.out is not None:
            raise InputError("--format sidecar writes a text file next to each image: leave --out out")
        if not self.extension.startswith(".") or self.extension != Path(f"a{self.extension}").suffix:
            raise InputError(f"--caption-extension {self.extension} is none: give one such as .txt or .caption")
        if self.extension.lower() in IMAGE_SUFFIXES:
            raise InputError(f"--caption-extension {self.extension} is that of pictures: give one such as .caption")
        if urls := [image for image in self.images if is_url(image)]:
            raise InputError(f"{urls[0]} has no folder for a sidecar: choose another --format")
        files = [file for image in self.images for file in self.sidecars(image)]
        users = Counter([*files, *map(Path, self.images)])
        if shared := [str(file) for file, count in users.items() if count > 1]:
            raise InputError(
                f"several images would share a sidecar, {listed('file', shared)}: caption them separately, or choose "
                "another --format"
            )
        if self.existing == "error" and (there := [str(file) for file in files if file.exists()]):
            raise InputError(f"there already: {listed('file', there)}; give --existing skip or overwrite")


class Sidecars:
    """A text file next to each image, photo.txt for photo.jpg, with a caption per line, or one for each caption.

    Args:
        destination: which files, and what happens to those that are there.
    """

    def __init__(self, destination: Destination) -> None:
        self.images = 0
        self._destination = destination

    def add(self, rows: Sequence[Row]) -> None:
        """Write the captions of images, each file atomically."""
        for row in rows:
            files = self._destination.sidecars(row.image)
            parts = [[caption] for caption in row.captions] if self._destination.separate else [row.captions]
            for file, captions in reversed(list(zip(files, parts, strict=False))):  # those there are, the first last
                atomic_write_text(file, "".join(f"{line}\n" for line in self._lines(file, captions)))
            self.images += 1

    def _lines(self, file: Path, captions: list[str]) -> list[str]:
        """The lines of a file with further captions; one that it has already, as after a stop, is not added again."""
        existing = self._destination.existing
        if existing not in ("append", "prepend") or not file.exists():
            return captions
        before = read_text(file).removesuffix("\n").split("\n")
        new = [caption for caption in captions if caption not in before]
        return before + new if existing == "append" else new + before


def _require_alone(file: BinaryIO, out: Path) -> None:
    """Keep other processes from writing a file until it is closed; refuse it if one of them does the same."""
    with suppress(OSError):  # not every network's file system has locks
        if not lock_descriptor(file.fileno(), blocking=False):
            raise InputError(f"{out} is being written by another process: wait for it to end, or name another file")


def require_new_folder(folder: Path) -> None:
    """Raise InputError if a folder to be written is a file, or has files already."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} is there already: name a new or empty folder")
