"""Images on their way in: files, folders, patterns and URLs, opened ahead of the model."""

import http.client
import io
import os
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from glob import has_magic
from pathlib import Path
from typing import TypeVar

from PIL.Image import Image

from prefixcap.errors import InputError
from prefixcap.utils.images import IMAGE_SUFFIXES, decode_image, open_image

T = TypeVar("T")

MOST_BYTES = 50_000_000  # of an image that is fetched
MOST_SECONDS = 30


def find_images(words: Sequence[str], allow_urls: bool = False) -> list[str]:
    """The images that the words of a command line name, each once: paths and URLs.

    Args:
        words: a file, whatever it is called; a folder, of which all files below are taken that are called like images,
            but for hidden ones; a pattern that the shell left alone, of which the files are taken; or a URL.
        allow_urls: take http and https URLs.

    Raises:
        InputError: there is no such file, no image in a folder or for a pattern, or URLs are not allowed.
    """
    found: list[str] = []
    for word in words:
        if is_url(word):
            if not allow_urls:
                raise InputError(f"{word} is a URL: give --allow-urls, too, to fetch images from the network")
            found.append(word)
            continue
        try:
            is_there, is_folder = Path(word).exists(), Path(word).is_dir()
        except OSError:  # it is too long for a name
            is_there = is_folder = False
        if is_folder:
            files = _below(word)
            if not files:
                raise InputError(
                    f"no image in {word} or its folders: images end in {', '.join(sorted(IMAGE_SUFFIXES))}"
                )
            found += files
        elif is_there:
            found.append(word)
        elif has_magic(word):
            files = _matches(word)
            if not files:
                raise InputError(f"no file matches {word}")
            found += files
        else:
            raise InputError(f"there is no file or folder {word}")
    if not found:
        raise InputError("no image is named: give files, folders or quoted patterns")
    return list(dict.fromkeys(found))


def is_url(word: str) -> bool:
    """Whether a word is the URL of an image, not a path."""
    return word.lower().startswith(("http://", "https://"))


def _below(folder: str) -> list[str]:
    def tell(error: OSError) -> None:
        raise InputError(f"cannot look into {error.filename}: {error.strerror}") from error

    found: list[str] = []
    for path, folders, files in os.walk(folder, onerror=tell):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = (name for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."))
        found += (str(Path(path) / name) for name in sorted(images))
    return found


def _matches(pattern: str) -> list[str]:
    """The files that a pattern matches, `**` any folders; hidden ones only where it has a name with a dot first."""
    path = Path(pattern)
    start = Path(path.anchor)
    try:
        found = sorted(file for file in start.glob(str(path.relative_to(start))) if file.is_file())
    except ValueError as error:
        raise InputError(f"cannot understand the pattern {pattern}: {error}") from error
    return [str(file) for file in found if _hidden(path) or not _hidden(file)]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") and part != ".." for part in path.parts)


def open_any(name: str) -> Image:
    """The image of a path or a URL, as `open_image` gives it. Raises InputError, "NAME: reason"."""
    if not is_url(name):
        return open_image(name)
    try:
        return decode_image(io.BytesIO(_fetch(name)))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(f"{name}: {getattr(error, 'reason', None) or error}") from error


def _fetch(url: str) -> bytes:
    """What a URL has, if that is not too much and comes soon enough."""
    opener = urllib.request.OpenerDirector()  # the usual one would follow a redirection to ftp, too
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor, urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    deadline = time.monotonic() + MOST_SECONDS
    content = bytearray()
    request = urllib.request.Request(url, headers={"User-Agent": "prefixcap"})
    with opener.open(request, timeout=MOST_SECONDS) as response:
        while part := response.read1(1 << 16):
            content += part
            if len(content) > MOST_BYTES:
                raise InputError(f"more than {MOST_BYTES:,} bytes, the most that is fetched")
            if time.monotonic() > deadline:
                raise InputError(f"took longer than {MOST_SECONDS} s")
    return bytes(content)


def read_ahead(names: Sequence[str], work: Callable[[Image], T], ahead: int) -> Generator[tuple[str, T | InputError]]:
    """Open images in threads, while the caller does other things: of each name, in order, what `work` makes of its
    image, or why there is none.

    Args:
        names: paths and URLs.
        work: what is done to an image; small results keep the memory small.
        ahead: how many may be ready before they are asked for.
    """

    def read(name: str) -> T | InputError:
        try:
            return work(open_any(name))
        except InputError as error:
            return error

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
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
