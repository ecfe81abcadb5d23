"""The images that a command line names: files, folders, patterns and URLs, read ahead of the model."""

import codecs
import http.client
import io
import os
import posixpath
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from glob import has_magic
from pathlib import Path
from typing import TypeVar

from PIL.Image import Image

from prefixcap.errors import InputError, first_line
from prefixcap.utils.images import IMAGE_SUFFIXES, decode_image, open_image

T = TypeVar("T")

MAX_BYTES = 50_000_000  # of a fetched image
MAX_SECONDS = 30


def find_images(words: Sequence[str], allow_urls: bool = False, recursive: bool = True) -> list[str]:
    """The images that the words of a command line name, each once: paths and URLs.

    Args:
        words: each a file of any name; a folder, which stands for all files below it with the suffix of an image,
            except hidden ones; a quoted pattern, which stands for the files that match; or a URL, of a folder on
            object storage, too.
        allow_urls: accept URLs.
        recursive: a folder stands for the files in its subfolders, too.

    Raises:
        InputError: there is no such file, no image in a folder or for a pattern, URLs are not allowed, or object
            storage cannot be listed.
    """
    images: list[str] = []
    for word in words:
        if is_url(word):
            if not allow_urls:
                raise InputError(f"{word} is a URL: add --allow-urls to fetch images from the network")
            images += [word] if _is_web(word) else _on_storage(word, recursive)
            continue
        try:
            is_there, is_folder = Path(word).exists(), Path(word).is_dir()
        except OSError:  # too long for a name
            is_there = is_folder = False
        if is_folder:
            images += _some(_below(word, recursive), word, recursive)
        elif is_there:
            images.append(word)
        elif has_magic(word):
            files = _matches(word)
            if not files:
                raise InputError(f"no file matches {word}")
            images += files
        else:
            raise InputError(f"there is no file or folder {word}")
    if not images:
        raise InputError("no image is named: give files, folders or quoted patterns")
    return list(dict.fromkeys(images))


def read_list(file: Path) -> list[str]:
    """The names in a list of files, one a line, or with a zero byte between; "-": in the standard input.

    Raises:
        InputError: the file cannot be read, or names nothing.
    """
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    lines = data.split(b"\0") if b"\0" in data else data.removeprefix(codecs.BOM_UTF8).splitlines()
    names = [os.fsdecode(line) for line in lines if line.strip()]
    if not names:
        raise InputError(f"{'the standard input' if str(file) == '-' else file} names no image: give one a line")
    return names


def is_url(word: str) -> bool:
    """Whether a word is a URL, not a path."""
    protocol, is_one, _ = word.partition("://")
    if not is_one:
        return False
    from prefixcap.store.remote import PROTOCOLS

    return protocol.lower() in PROTOCOLS


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _some(images: list[str], folder: str, recursive: bool) -> list[str]:
    """The images of a folder. Raises InputError if there are none."""
    if not images:
        within = " or its folders" if recursive else ""
        raise InputError(f"no image in {folder}{within}: images end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return images


def _on_storage(url: str, recursive: bool) -> list[str]:
    """The images below a folder of object storage, as `_below` a local one; or the one file that the URL names."""
    from prefixcap.store.remote import open_storage

    filesystem, path = open_storage(url)
    try:
        if filesystem.isfile(path):
            return [url]
        found = filesystem.find(path, maxdepth=None if recursive else 1)
    except Exception as error:  # each kind of storage raises what it likes
        raise InputError(
            f"cannot list {url}: {first_line(error)}; check the address, and that you may list it"
        ) from error
    names = sorted(posixpath.relpath(file, path) for file in found)
    images = [name for name in names if _is_image(name) and not any(part.startswith(".") for part in name.split("/"))]
    return _some([f"{url.rstrip('/')}/{name}" for name in images], url, recursive)


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _below(folder: str, recursive: bool) -> list[str]:
    def report(error: OSError) -> None:
        raise InputError(f"cannot look into {error.filename}: {error.strerror}") from error

    images: list[str] = []
    for path, folders, files in os.walk(folder, onerror=report):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        names = (name for name in files if _is_image(name) and not name.startswith("."))
        images += (str(Path(path) / name) for name in sorted(names))
    return images


def _matches(pattern: str) -> list[str]:
    """The files that a pattern matches, `**` any folders; hidden ones only if a part of it begins with a dot."""
    path = Path(pattern)
    start = Path(path.anchor)
    try:
        files = sorted(file for file in start.glob(str(path.relative_to(start))) if file.is_file())
    except ValueError as error:
        raise InputError(f"cannot understand the pattern {pattern}: {error}") from error
    return [str(file) for file in files if _hidden(path) or not _hidden(file)]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") and part != ".." for part in path.parts)


def open_any(name: str) -> Image:
    """The image at a path or a URL, as `open_image` returns it. Raises InputError, "NAME: reason"."""
    if not is_url(name):
        return open_image(name)
    try:
        return decode_image(io.BytesIO(_fetch(name) if _is_web(name) else _read(name)))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(f"{name}: {getattr(error, 'reason', None) or error}") from error


def _read(url: str) -> bytes:
    """The content of a file on object storage. Raises InputError if it cannot be read, or is too large."""
    from prefixcap.store.remote import open_storage

    filesystem, path = open_storage(url)
    try:
        with filesystem.open(path, "rb") as file:
            content: bytes = file.read(MAX_BYTES + 1)
    except Exception as error:  # each kind of storage raises what it likes
        raise InputError(first_line(error)) from error
    if len(content) > MAX_BYTES:
        raise _too_large()
    return content


def _too_large() -> InputError:
    return InputError(f"more than {MAX_BYTES:,} bytes, the maximum for a fetched image")


def _fetch(url: str) -> bytes:
    """The content of a URL. Raises InputError if it is too large or takes too long."""
    opener = urllib.request.OpenerDirector()  # the default one would also follow a redirection to ftp
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor, urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    deadline = time.monotonic() + MAX_SECONDS
    content = bytearray()
    request = urllib.request.Request(url, headers={"User-Agent": "prefixcap"})
    with opener.open(request, timeout=MAX_SECONDS) as response:
        while part := response.read1(1 << 16):
            content += part
            if len(content) > MAX_BYTES:
                raise _too_large()
            if time.monotonic() > deadline:
                raise InputError(f"took longer than {MAX_SECONDS} s")
    return bytes(content)


def read_ahead(
    names: Sequence[str], work: Callable[[Image], T], ahead: int, workers: int | None = None
) -> Generator[tuple[str, T | InputError]]:
    """Open images in threads while the caller works: yields each name, in order, with the result of `work` for its
    image, or the error why there is none.

    Args:
        names: paths and URLs.
        work: a function of an image; small results keep the memory small.
        ahead: how many results may wait for the caller.
        workers: threads; None: one a core, at most eight.
    """

    def read(name: str) -> T | InputError:
        try:
            return work(open_any(name))
        except InputError as error:
            return error

    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    waiting: deque[tuple[str, Future[T | InputError]]] = deque()
    try:
        for name in names:
            waiting.append((name, pool.submit(read, name)))
            if len(waiting) > ahead:
                name, result = waiting.popleft()
                yield name, result.result()
        while waiting:
            name, result = waiting.popleft()
            yield name, result.result()
    finally:
        pool.shutdown(cancel_futures=True)
