"""Bad inputs: a clear answer each, and a server that is well afterwards (see the fixture `client`)."""

import http.client
import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from gradio.routes import App
from PIL import Image

from prefixcap.captioner import Captioner
from prefixcap.web.gate import PAGE, PAGE_FOLDERS
from prefixcap.web.server import build_app
from tests.web.conftest import jpeg


def png(width: int, height: int, rows: int = 0) -> bytes:
    """A black PNG of two colours, of whose rows the first ones alone are there."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(((width + 7) // 8 + 1) * rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def image_file(kind: str) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((400, 300), 50).convert("RGB").save(file, kind)
    return file.getvalue()


PHOTO = jpeg(Image.effect_noise((400, 300), 50).convert("RGB"))
BOMB = png(15_000, 15_000, 15_000)  # whole: some 30 kB that are 225 million pixels

IMAGES = {
    "HTML": (b"<!doctype html><html><img src='http://example.test/a.png'></html>", 400, "not an image"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', 400, "not an image"),
    "empty file": (b"", 400, "empty file"),
    "truncated JPEG": (PHOTO[: len(PHOTO) // 2], 400, "cannot be read"),
    "truncated PNG": (image_file("PNG")[:20_000], 400, "cannot be read"),
    "JPEG's beginning": (PHOTO[:3], 400, "not an image"),
    "bomb": (BOMB, 413, "pixels"),
    "200 megapixels": (png(20_000, 10_000), 413, "pixels"),  # their absence would be found only by decoding them
    "120 megapixels": (png(12_000, 10_000), 413, "12000 x 10000 pixels"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", 400, "not an image"),
    "PDF": (b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n", 400, "not an image"),
    "ZIP": (b"PK\x03\x04" + bytes(60), 400, "not an image"),
    "sheet of pixels": (image_file("PPM"), 400, "not an image"),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("path", ["/api/caption", "/api/interpret", "/api/arithmetic"])
def test_what_is_no_image_is_refused_by_its_name(client: httpx.Client, kind: str, path: str) -> None:
    content, status, reason = IMAGES[kind]
    bad = [("images", ("holiday.jpg", content))]
    answers = [client.post(path, files=bad)]
    if path == "/api/arithmetic":  # where the sum needs all of them
        answers.append(client.post(path, files=[("images", ("good.jpg", PHOTO)), *bad]))
    for answer in answers:
        error = answer.json()["error"]
        assert answer.status_code == status and error.startswith("holiday.jpg: ") and reason in error
        assert "\n" not in error


@pytest.mark.parametrize(("path", "result"), [("/api/caption", "captions"), ("/api/interpret", "vectors")])
def test_bad_files_leave_the_results_of_the_good_ones(client: httpx.Client, path: str, result: str) -> None:
    files = [("images", (f"{kind}.jpg", content)) for kind, (content, _, _) in IMAGES.items()]
    for number in (0, 4, 15):
        files.insert(number, ("images", (f"good {number}.jpg", PHOTO)))
    answer = client.post(path, files=files)
    images = answer.json()["images"]
    assert answer.status_code == 200 and [image["name"] for image in images] == [name for _, (name, _) in files]
    alone = client.post(path, files={"images": PHOTO}).json()["images"][0]
    for image in images:
        if image["name"].startswith("good"):
            assert str(image[result][0])[:30] == str(alone[result][0])[:30] and "error" not in image
        else:
            assert set(image) == {"name", result, "error"} and image[result] == []
            assert image["error"].startswith(f"{image['name']}: ")
            assert IMAGES[image["name"].removesuffix(".jpg")][2] in image["error"]


def test_where_no_file_is_good_all_are_named(client: httpx.Client) -> None:
    answer = client.post("/api/caption", files=[("images", ("a.jpg", b"")), ("images", ("b.jpg", b"text"))])
    assert answer.status_code == 400
    assert answer.json() == {"error": "a.jpg: empty file; b.jpg: not an image"}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_read(client: httpx.Client, kind: str) -> None:
    assert client.post("/api/caption", files={"images": image_file(kind)}).status_code == 200


NAMES = {
    "../../../etc/passwd": "passwd",
    "/etc/passwd": "passwd",
    "C:\\Windows\\win.ini": "win.ini",
    "..": "..",
    "a/": "image",
    "two\nlines\x00.jpg": None,
    "<script>alert(1)</script>": "script>",
    "x" * 1000: "x" * 100,
    "猫.jpg": "猫.jpg",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_only_a_label(client: httpx.Client, name: str) -> None:
    answer = client.post("/api/caption", files={"images": (name, PHOTO)})
    assert answer.status_code == 200
    found = answer.json()["images"][0]["name"]
    assert "/" not in found and "\\" not in found and "\n" not in found and len(found) <= 100
    assert NAMES[name] is None or found == NAMES[name]
    error = client.post("/api/caption", files={"images": (name, b"text")}).json()["error"]
    assert error == f"{found}: not an image"


EXTREMES = ("nan", "NaN", "inf", "-inf", "1e400", "-1e-300", "1e-300", "1e300", "0x1", "None", "1,5")

SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"decode": "foo"}, "unknown decoder 'foo': choose one of greedy, beam,"),
    ({"decode": "greedy", "beams": 3}, "decoder 'greedy' takes no beams: leave it out, or take beam, clipcap"),
    ({"decode": "greedy", "count": 2}, "takes no count"),
    ({"count": 0}, "count: "),
    ({"count": 11}, "count: "),
    ({"count": "many"}, "count: "),
    ({"count": 7}, "captions must lie between 1 and beams=5, not 7"),
    ({"beams": 11}, "beams: "),
    ({"decode": "contrastive", "top_k": 51}, "top_k: "),  # the small world has some hundred tokens
    ({"bims": 5}, "bims: there is no such field"),
    ({"prompt": "a " * 101}, "prompt: "),
    ({"prompt": "a " * 99}, "exceed the context"),
    ({"max_tokens": 200}, "exceed the context"),
    *(({"decode": "nucleus", "temperature": value}, "temperature: ") for value in EXTREMES),
    *(({"decode": "nucleus", "top_p": value}, "top_p: ") for value in EXTREMES if value != "1e-300"),
    *(({"length_penalty": value}, "length_penalty: ") for value in EXTREMES if value != "1e-300"),
    *(({"decode": "contrastive", "penalty": value}, "penalty: ") for value in EXTREMES if value != "1e-300"),
    *(
        ({name: value}, f"{name}: ")
        for name in ("count", "beams", "max_tokens")
        for value in (*EXTREMES, "2.5", "9" * 5000)
    ),
    ({"decode": "nucleus", "top_p": 0}, "top_p: "),
    ({"decode": "nucleus", "seed": -1}, "seed: "),
    ({"seed": 1}, "'beam' does not draw"),
    ({"images": "/etc/passwd"}, "images 0: send a file"),
    ({"images": "http://127.0.0.1/a.jpg"}, "images 0: send a file"),
]


@pytest.mark.parametrize(("fields", "reason"), SETTINGS)
def test_a_setting_that_makes_no_sense_is_named(client: httpx.Client, fields: dict[str, Any], reason: str) -> None:
    answer = client.post("/api/caption", data=fields, files={"images": PHOTO})
    assert answer.status_code == 422 and reason in answer.json()["error"]


@pytest.mark.parametrize(
    "fields",
    [
        {"decode": "nucleus", "temperature": 0.001}, {"decode": "nucleus", "top_p": "1e-300"},
        {"decode": "nucleus", "temperature": 5, "top_p": 1}, {"decode": "contrastive", "penalty": "1e-300"},
        {"decode": "nucleus", "seed": 2**63 - 1}, {"length_penalty": 5}, {"length_penalty": "1e-300"},
    ],
)  # fmt: skip
def test_a_setting_at_its_limit_is_obeyed(client: httpx.Client, fields: dict[str, Any]) -> None:
    answer = client.post("/api/caption", data={"max_tokens": 6, **fields}, files={"images": PHOTO})
    assert answer.status_code == 200 and answer.json()["images"][0]["captions"][0]["text"]


def test_mistakes_of_arithmetic_are_named(client: httpx.Client) -> None:
    twice = [("images", PHOTO), ("images", PHOTO)]
    for fields, files, reason in (
        ({"image_weights": [1, -1]}, twice, "the sum comes to nothing"),
        ({"image_weights": [1]}, twice, "image_weights: 1 are given for 2"),
        ({"texts": ["a"], "text_weights": [1, 2]}, twice, "text_weights: 2 are given for 1"),
        ({"image_weights": ["nan", 1]}, twice, "image_weights 0: "),
        ({"image_weights": ["1e9", 1]}, twice, "image_weights 0: "),
        ({"image_weights": ["1e-300", "-1e-300"]}, twice, "the sum comes to nothing"),
        ({"image_weights": ["inf", 1]}, twice, "image_weights 0: "),
        ({"texts": ["a " * 101]}, twice, "texts 0: "),
        ({"texts": ["a"] * 9}, twice, "texts: too many"),
        ({"count": 1}, [("texts", (None, b""))], "texts 0: "),
    ):
        answer = client.post("/api/arithmetic", data=fields, files=files)
        assert answer.status_code == 422 and reason in answer.json()["error"], answer.text
    answer = client.post("/api/arithmetic", files=[("count", (None, b"1"))])
    assert answer.status_code == 422 and "the sum is empty" in answer.json()["error"]


def test_too_many_and_too_large(client: httpx.Client) -> None:
    answer = client.post("/api/caption", files=[("images", PHOTO)] * 17)
    assert answer.status_code == 422 and "images: too many, the most are 16" in answer.json()["error"]
    answer = client.post("/api/caption", files=[("images", b"")] * 1500)
    assert answer.status_code == 400 and "Too many files" in answer.json()["error"]
    answer = client.post("/api/caption", files={"images": bytes(33 << 20)})
    assert answer.status_code == 413 and "at most 32 MB" in answer.json()["error"]
    answer = client.post("/api/caption", data={"prompt": "a" * (2 << 20)}, files={"images": PHOTO})
    assert answer.status_code == 400 and list(answer.json()) == ["error"]


def test_bodies_of_other_kinds_are_refused(client: httpx.Client) -> None:
    for content in ({"json": {"path": "/etc/passwd"}}, {"content": PHOTO}, {}):
        answer = client.post("/api/caption", **content)  # type: ignore[arg-type]
        assert answer.status_code == 415 and "multipart/form-data" in answer.json()["error"]
    answer = client.post("/api/caption", data={"images": "/etc/passwd"})
    assert answer.status_code == 422 and "send a file" in answer.json()["error"]
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = client.post("/api/caption", content=b"nothing of the kind", headers={"content-type": kind})
        assert answer.status_code in (400, 422) and list(answer.json()) == ["error"]
    for method, path in (("GET", "/api/caption"), ("PUT", "/api/caption"), ("POST", "/health"), ("DELETE", "/")):
        answer = client.request(method, path)
        assert answer.status_code == 405 and list(answer.json()) == ["error"]


def test_bad_ones_among_many_at_once_spoil_nothing(client: httpx.Client) -> None:
    contents = [PHOTO, *(content for content, _, _ in IMAGES.values())] * 3
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda content: client.post("/api/caption", files={"images": content}), contents))
    expected = [200, *(status for _, status, _ in IMAGES.values())] * 3
    assert [answer.status_code for answer in answers] == expected


# ---- Gradio ------------------------------------------------------------------------------------------


def test_nothing_of_gradio_can_be_reached_but_what_draws_the_page(client: httpx.Client, captioner: Captioner) -> None:
    app = build_app(captioner)
    gradio = next(route.app for route in app.routes if isinstance(getattr(route, "app", None), App))
    routers = [gradio, *(route.original_router for route in gradio.routes if hasattr(route, "original_router"))]
    paths = {route.path for router in routers for route in router.routes if hasattr(route, "path")}
    assert {"/gradio_api/upload", "/gradio_api/file={path_or_url:path}", "/gradio_api/proxy={url_path:path}"} <= paths
    tried = 0
    for pattern in sorted(paths):
        for target in ("/etc/passwd", "https://example.test/a.png", "x"):
            path = pattern.replace("{path_or_url:path}", target).replace("{path:path}", target)
            path = path.replace("{url_path:path}", target).replace("{", "").replace("}", "")
            if path in PAGE or path.startswith(PAGE_FOLDERS) or path in ("/favicon.ico", "/openapi.json", "/docs"):
                continue
            tried += 1
            body = {"data": [{"path": target, "url": target, "meta": {"_type": "gradio.FileData"}}], "fn_index": 0}
            assert client.get(path).status_code == 404, path
            assert client.post(path, json=body).status_code == 404, path
    assert tried > 100


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../../../../../../etc/passwd", "/assets/..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/static/%2e%2e/%2e%2e/routes.py", "/assets//etc/passwd", "/assets/%2fetc%2fpasswd",
        "/static/..%5c..%5croutes.py",
        "//gradio_api/info", "/./gradio_api/info", "/assets/../gradio_api/info", "/examples/../gradio_api/info",
        "/examples/../../server.py", "/page.css/../server.py", "/gradio_api/file=/etc/passwd", "/file=/etc/passwd",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_page(client: httpx.Client, path: str) -> None:
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 80)  # it leaves paths alone
    connection.request("GET", path)
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status >= 400 and b"root:" not in content and b"import " not in content and b"paths" not in content


def test_a_websocket_is_closed(client: httpx.Client) -> None:
    key = {
        "upgrade": "websocket",
        "connection": "upgrade",
        "sec-websocket-key": "x" * 22 + "==",
        "sec-websocket-version": "13",
    }
    assert client.get("/", headers=key).status_code in (200, 400, 403, 426)


def test_a_failure_of_the_server_is_told_without_its_reasons(
    client: httpx.Client, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    with monkeypatch.context() as patched:
        patched.setattr("prefixcap.web.jobs.Captions.run", fail)
        answer = httpx.post(f"{address}/api/caption", files={"images": PHOTO})
    assert answer.status_code == 500 and answer.json() == {"error": "the server could not do this; its log says why"}
