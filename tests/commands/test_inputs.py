"""Which images the words of a command line name, and how they are read."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from prefixcap.commands.common import inputs
from prefixcap.commands.common.inputs import find_images, open_any, read_ahead
from prefixcap.errors import InputError

NAMES = ("a b.png", "line\nbreak.png", "naïve 写真.jpg", "more/UPPER.JPG", "more/[x] tab\t.png")


def test_a_folder_gives_all_images_below_it(photos: Path) -> None:
    found = find_images([str(photos)])
    assert set(found) == {str(photos / name) for name in NAMES} and len(found) == len(NAMES)
    assert found == find_images([f"{photos}/"])
    assert found == find_images([str(photos), str(photos / "more"), found[0]])  # each once


def test_patterns_are_those_of_a_shell(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_images([f"{photos}/*.png"]) == [str(photos / "a b.png"), str(photos / "line\nbreak.png")]
    assert set(find_images([f"{photos}/**/*.png"])) == {str(photos / name) for name in NAMES if name.endswith("png")}
    assert find_images([f"{photos}/.h*"]) == [str(photos / ".hidden.png")]
    monkeypatch.chdir(photos)
    assert find_images(["more/*.JPG", "*.txt"]) == ["more/UPPER.JPG", "notes.txt"]  # what is named is taken
    assert find_images(["more/[x] tab\t.png"]) == ["more/[x] tab\t.png"]  # there is such a file


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nowhere.jpg", "there is no file or folder nowhere.jpg"),
        ("nowhere/*.jpg", "no file matches nowhere"),
        ("x" * 5000, "there is no file or folder xxx"),
        ("more**/x", "cannot understand the pattern|no file matches"),
        (".", r"no image in \. or its folders: images end in \.bmp, \.gif, \.jpeg"),
        ("https://example.org/a.jpg", "is a URL: add --allow-urls"),
        ("HTTP://example.org/a.jpg", "is a URL: add --allow-urls"),
    ],
)
def test_mistakes(word: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        find_images([word])
    with pytest.raises(InputError, match="no image is named"):
        find_images([])


def test_what_cannot_be_read_stands_in_its_place(photos: Path) -> None:
    web, gone, vector = photos / "web.jpg", photos / "gone.png", photos / "vector.png"
    web.write_text("<!doctype html><title>Not found</title>")
    vector.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    Image.new("1", (20_000, 20_000)).save(photos / "bomb.png")
    Image.new("L", (1, 100_000)).save(photos / "thread.png")
    names = [str(photos / name) for name in ("a b.png", "web.jpg", "gone.png", "vector.png", "bomb.png", "thread.png")]
    found = dict(read_ahead([*names, str(photos / "more/UPPER.JPG")], lambda image: image.size, ahead=2))
    assert [found[name] for name in (names[0], str(photos / "more/UPPER.JPG"))] == [(256, 256), (256, 256)]
    assert [str(found[name]) for name in names[1:4]] == [
        f"{web}: not an image", f"{gone}: missing file", f"{vector}: not an image"
    ]  # fmt: skip
    assert "too many pixels" in str(found[names[4]])
    assert "1 x 100000 pixels are too oblong" in str(found[names[5]])


def test_no_more_is_read_than_may_be_ready(photos: Path) -> None:
    opened: list[int] = []
    names = [str(photos / "a b.png")] * 30
    reading = read_ahead(names, lambda image: opened.append(1), ahead=3)
    next(reading)
    reading.close()
    assert len(opened) <= 4


class Server(BaseHTTPRequestHandler):
    """What the web may answer."""

    picture = b""

    def do_GET(self) -> None:
        self.send_response(302 if self.path == "/away" else 404 if self.path == "/gone" else 200)
        if self.path == "/away":
            self.send_header("Location", "ftp://127.0.0.1/a.png")
        self.end_headers()
        try:
            for part in {"/a.png": [self.picture], "/page.png": [b"<html>"]}.get(self.path, []):
                self.wfile.write(part)
            for _ in range(40 if self.path == "/endless" else 0):
                self.wfile.write(b"\0" * 100_000)
        except OSError:
            pass  # the other side has had enough

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(photos: Path) -> Iterator[str]:
    Server.picture = (photos / "a b.png").read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_urls(web: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert find_images([f"{web}/a.png"], allow_urls=True) == [f"{web}/a.png"]
    assert open_any(f"{web}/a.png").tobytes() == Image.open(photos / "a b.png").tobytes()
    monkeypatch.setattr(inputs, "MAX_BYTES", 1_000_000)
    for path, reason in (
        ("gone", "HTTP Error 404|Not Found"), ("page.png", "not an image"), ("away", "ftp"),
        ("endless", "more than 1,000,000 bytes"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rf"^{web}/{path}: .*({reason})"):
            open_any(f"{web}/{path}")
    monkeypatch.setattr(inputs, "MAX_SECONDS", 0.0)
    with pytest.raises(InputError, match=r"took longer|timed out|in progress"):
        open_any(f"{web}/endless")
    for url in ("http://127.0.0.1:1/a.png", "http://[", "http://exa mple/ä.png"):
        with pytest.raises(InputError):
            open_any(url)


@pytest.fixture
def bucket(photos: Path) -> Iterator[str]:
    """The same files on object storage, with one that is no image and one that is hidden; its URL."""
    storage = fsspec.filesystem("memory")
    storage.put(f"{photos}/", "/bucket/photos/", recursive=True)
    storage.pipe({"/bucket/photos/broken.jpg": b"no image", "/bucket/photos/.cache/thumb.jpg": b"hidden"})
    yield "memory://bucket/photos"
    storage.rm("/bucket", recursive=True)


def test_object_storage(bucket: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is a URL: add --allow-urls"):
        find_images([bucket])
    below = [str(Path(name).relative_to(photos)) for name in find_images([str(photos)])]
    assert find_images([f"{bucket}/"], True) == sorted(f"{bucket}/{name}" for name in [*below, "broken.jpg"])
    assert not [name for name in find_images([bucket], True, recursive=False) if "/more/" in name]
    one = f"{bucket}/naïve 写真.jpg"
    assert find_images([one, bucket], True)[0] == one
    assert open_any(one).tobytes() == open_any(str(photos / "naïve 写真.jpg")).tobytes()
    with pytest.raises(InputError, match=rf"^{bucket}/broken.jpg: not an image"):
        open_any(f"{bucket}/broken.jpg")
    with pytest.raises(InputError, match=rf"^{bucket}/gone.jpg: "):
        open_any(f"{bucket}/gone.jpg")
    with pytest.raises(InputError, match="no image in memory://bucket/nothing or its folders"):
        find_images(["memory://bucket/nothing"], True)
    monkeypatch.setattr(inputs, "MAX_BYTES", 100)
    with pytest.raises(InputError, match=rf"^{one}: more than 100 bytes"):
        open_any(one)
