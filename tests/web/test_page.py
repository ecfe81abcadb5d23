"""The page in a real browser: Chromium without a window, by Playwright."""

import contextlib
import http.client
import io
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from prefixcap.captioner import Captioner
from prefixcap.decoding import DECODERS
from prefixcap.web.access import Access
from prefixcap.zeroshot.arithmetic import embed_expressions
from tests.conftest import slow_after
from tests.web.browsing import CHROMIUM, DESKTOP, PATIENCE, PHONE, Visit, captions
from tests.web.conftest import jpeg, served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")


@pytest.mark.slow
def test_ten_photographs_are_captioned_as_by_the_captioner(
    visit: Visit, captioner: Captioner, pictures: list[Path]
) -> None:
    expect(visit.page.get_by_text("Captions will appear here.")).to_be_visible()
    visit.page.set_input_files("#files", pictures)
    expected = captioner.candidates(pictures, 3, by_similarity=True)
    assert captions(visit.page, 10) == expected
    expect(visit.page.get_by_text("Captions will appear here.")).to_be_hidden()
    assert visit.page.locator(".card .name").all_inner_texts() == [picture.name for picture in pictures]
    assert all(re.fullmatch(r"-?[01]\.\d\d", score) for score in visit.page.locator(".card .cosine").all_inner_texts())
    assert visit.mistakes == []


def test_a_low_similarity_is_marked(
    browser: Browser, captioner: Captioner, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pictures, below the captioner's own mark; not of sums."""
    (candidates,) = captioner.candidates(pictures[:1], 3, by_similarity=True)
    best = captioner.similarities(captioner.embed(pictures[:1]), [candidates])[0][0]
    for mark, marked in ((best + 0.01, 1), (best - 0.01, 0)):
        monkeypatch.setattr(captioner, "low_similarity", mark)
        with served(captioner) as address:
            page = Visit(browser, address, DESKTOP).page
            page.set_input_files("#files", pictures[:1])
            captions(page, 1)
            expect(page.get_by_text("Low: unlike the photographs it learned from")).to_have_count(marked)
            page.get_by_role("tab", name="Arithmetic").click()
            page.locator(".term input[type=text]").first.fill("a star")
            page.get_by_role("button", name="Work it out").click()
            captions(page, 2)
            expect(page.locator(".low")).to_have_count(marked)
            page.close()


def test_a_bad_file_among_good_ones_is_named_kindly(visit: Visit, pictures: list[Path]) -> None:
    bad = {"name": "<b>page</b>.jpg", "mimeType": "image/jpeg", "buffer": b"<html><script>alert(1)</script></html>"}
    good = {"name": pictures[0].name, "mimeType": "image/jpeg", "buffer": pictures[0].read_bytes()}
    visit.page.set_input_files("#files", [good, bad, good])  # type: ignore[list-item]
    captions(visit.page, 3)
    failed = visit.page.locator(".card.failed")
    expect(failed).to_have_count(1)
    expect(failed).to_contain_text("No caption for this one")
    expect(failed).to_contain_text("b>.jpg: not an image")
    expect(failed.get_by_role("button", name="Try again")).to_be_visible()
    visit.page.get_by_role("button", name="Clear").click()
    expect(visit.page.locator(".card")).to_have_count(0)
    expect(visit.page.get_by_text("Captions will appear here.")).to_be_visible()


def test_settings_are_those_of_the_decoder_and_are_obeyed(
    visit: Visit, captioner: Captioner, pictures: list[Path]
) -> None:
    page = visit.page
    page.set_input_files("#files", pictures[:1])
    page.get_by_text("How captions are generated").click()
    limits = {"Max tokens", "Min tokens", "Repetition penalty", "No repeat ngram"}
    shown = {
        "beam": {"Captions", "Beams", "Length penalty", "Groups", "Diversity"},
        "greedy": set(),
        "nucleus": {"Captions", "Top p", "Top k", "Temperature"},
        "contrastive": {"Top k", "Penalty"},
        "clipcap": {"Captions", "Beams", "Stop"},
        "clipcap_greedy": {"Stop"},
    }
    assert set(shown) == set(DECODERS)
    labels = {"contrastive": "Contrastive", "greedy": "Greedy", "nucleus": "Nucleus", "clipcap": "ClipCap's beam"}
    for decoder, label in labels.items():
        page.get_by_label("Decoder").click()
        page.get_by_role("option", name=re.compile(f"^{label}")).click()
        expect(page.locator("body")).to_have_attribute("data-decoder", decoder)
        sliders = {text.split("\n")[0].strip() for text in page.locator(".setting:visible").all_inner_texts()}
        assert sliders == shown[decoder] | limits
    page.get_by_label("number input for Captions").fill("2")
    page.get_by_label("number input for Max tokens").fill("7")
    page.get_by_label("Beginning").fill("In the snow")
    page.get_by_label("The caption closest to the picture comes first").uncheck()
    page.get_by_role("button", name="Write again").click()
    expected = captioner.candidates(pictures[:1], 2, "clipcap", beams=5, max_tokens=7, prompt="In the snow")
    assert captions(page, 1) == expected
    page.get_by_label("Decoder").click()
    page.get_by_role("option", name=re.compile("^Contrastive")).click()  # nucleus has a "Top k" of its own
    page.get_by_label("number input for Top k").locator("visible=true").fill("2")
    page.get_by_label("number input for Penalty").locator("visible=true").fill("0.9")
    page.get_by_role("button", name="Write again").click()
    options = {"top_k": 2, "penalty": 0.9, "max_tokens": 7, "prompt": "In the snow"}
    expected = captioner.candidates(pictures[:1], 1, "contrastive", **options)
    assert captions(page, 1) == expected


def test_what_the_prefix_says_is_shown_when_asked_for(visit: Visit, pictures: list[Path]) -> None:
    visit.page.set_input_files("#files", pictures[:1])
    visit.page.get_by_text("What the prefix says", exact=True).click()
    expect(visit.page.locator(".prefix tr")).to_have_count(4, timeout=PATIENCE)
    expect(visit.page.locator(".prefix td")).to_have_count(12)


def test_examples_of_the_small_world_and_arithmetic_with_them(
    visit: Visit, captioner: Captioner, address: str, tmp_path: Path
) -> None:
    page = visit.page
    page.locator(".example").first.click()
    captions(page, 1)
    page.get_by_role("tab", name="Arithmetic").click()
    page.get_by_role("button", name="An example").click()
    captions(page, 2)
    page.get_by_label("remove the picture").first.click()
    page.get_by_label("words").first.fill("a green star")
    page.get_by_label("weight").first.fill("2.5")
    page.get_by_role("button", name="Work it out").click()
    for number in (3, 4):
        (tmp_path / f"{number}.jpg").write_bytes(httpx.get(f"{address}/examples/{number}.jpg").content)
    total = embed_expressions(["2.5*txt:'a green star' - img:4.jpg + img:3.jpg"], captioner.encoder(), tmp_path)
    assert captions(page, 3)[0] == captioner.candidates(total, 3, by_similarity=True)[0]
    for _ in range(2):
        page.get_by_label("remove the picture").locator("visible=true").first.click()
    page.get_by_label("words").first.fill("")
    page.get_by_role("button", name="Work it out").click()
    assert captions(page, 4)[0] == ["No caption for this one"]
    expect(page.locator(".card.failed")).to_contain_text("the sum is empty")


def test_the_camera_takes_a_picture(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Use the camera").click()
    visit.page.wait_for_function("document.querySelector('video')?.videoWidth > 0")
    visit.page.get_by_role("button", name="Take the picture").click()
    captions(visit.page, 1)
    expect(visit.page.locator(".card .name")).to_have_text("camera")
    expect(visit.page.locator("dialog")).to_have_count(0)


def test_dropped_and_pasted_pictures_are_taken(visit: Visit) -> None:
    data = list(jpeg(Image.new("RGB", (50, 50), "red")))
    for place, event, property_ in (("#drop", "drop", "dataTransfer"), ("body", "paste", "clipboardData")):
        visit.page.evaluate(
            """([place, event, property, data]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(data)], event, {type: "image/jpeg"}));
                const kind = event === "drop" ? DragEvent : ClipboardEvent;
                const init = {bubbles: true, cancelable: true, [property]: transfer};
                document.querySelector(place).dispatchEvent(new kind(event, init));
            }""",
            [place, event, property_, data],
        )
    captions(visit.page, 2)
    assert visit.page.locator(".card .name").all_inner_texts() == ["paste", "drop"]  # the newest first


@pytest.mark.parametrize("viewport", slow_after(1, [PHONE, DESKTOP]), ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", slow_after(1, ["dark", "light"]))
def test_the_page_needs_no_network_and_no_sideways_scrolling(
    browser: Browser, address: str, pictures: list[Path], viewport: dict[str, int], scheme: str
) -> None:
    visit = Visit(browser, address, viewport, scheme)
    visit.page.set_input_files("#files", pictures[:1])
    captions(visit.page, 1)
    visit.page.get_by_text("What the prefix says", exact=True).click()
    visit.page.locator(".prefix td").first.wait_for()
    visit.page.get_by_text("How captions are generated").click()
    for tab in ("Arithmetic", "Captions"):
        visit.page.get_by_role("tab", name=tab).click()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    expect(visit.page.get_by_text(re.compile("gradio", re.I))).to_have_count(0)
    dark = brightness(visit.page.screenshot()) < 100
    assert dark == (scheme == "dark")
    visit.page.goto(f"{address}/docs")
    visit.page.locator("h2").first.wait_for()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert all(url.startswith((f"{address}/", f"blob:{address}/", "data:")) for url in visit.requests)
    assert not any("gradio_api" in url for url in visit.requests)
    assert visit.mistakes == []
    visit.page.close()


def brightness(screenshot: bytes) -> float:
    """The mean, 0 to 255."""
    with Image.open(io.BytesIO(screenshot)) as image:
        return float(image.convert("L").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_busy_server_is_asked_again(browser: Browser, captioner: Captioner, pictures: list[Path]) -> None:
    with served(captioner, max_queue=1) as address:
        visit = Visit(browser, address, DESKTOP)
        statuses: list[int] = []
        visit.page.on("response", lambda answer: "/v1/" in answer.url and statuses.append(answer.status))
        visit.page.set_input_files("#files", pictures[:6])
        captions(visit.page, 6)
        expect(visit.page.locator(".card.failed")).to_have_count(0)
        assert 503 in statuses and statuses.count(200) == 6
        visit.page.close()


def test_a_server_that_has_gone_is_told(browser: Browser, captioner: Captioner, pictures: list[Path]) -> None:
    with served(captioner) as address:
        visit = Visit(browser, address, DESKTOP)
    visit.page.set_input_files("#files", pictures[:1])
    captions(visit.page, 1)
    expect(visit.page.locator(".card.failed")).to_contain_text("cannot be reached")
    visit.page.close()


def test_the_password_opens_page_and_api(browser: Browser, captioner: Captioner, pictures: list[Path]) -> None:
    with served(captioner, password="secret") as address:
        context = browser.new_context(http_credentials={"username": "me", "password": "secret"})
        page = context.new_page()
        page.goto(address)
        page.locator("#drop").wait_for()
        page.set_input_files("#files", pictures[:1])
        captions(page, 1)
        expect(page.locator(".card.failed")).to_have_count(0)
        context.close()


# ---- below a proxy's path ----------------------------------------------------------------------------


@contextlib.contextmanager
def proxy_of(address: str, path: str, *headers: str) -> Iterator[tuple[str, list[str]]]:
    """A reverse proxy that serves an address below a path, which it takes off: its own address, and its misses."""
    missed: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not f"{self.path}/".startswith(f"{path}/"):
                missed.append(self.path)
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            given = dict(self.headers.items()) | dict(header.split(": ") for header in headers)
            back = http.client.HTTPConnection(address.removeprefix("http://"))
            back.request(self.command, self.path[len(path) :] or "/", body, given)
            answer = back.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            back.close()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://localhost:{server.server_port}{path}", missed
        server.shutdown()


@pytest.mark.parametrize(
    ("root_path", "headers", "end"),
    slow_after(
        1,
        [
            ("", [], "/"),  # it need not know
            ("", ["X-Forwarded-Prefix: /a/captions", "X-Forwarded-Host: localhost"], ""),
            ("/a/captions", [], ""),
        ],
    ),
    ids=["unknown", "header", "option"],
)
def test_the_page_works_below_a_path_of_a_proxy(
    browser: Browser, captioner: Captioner, pictures: list[Path], root_path: str, headers: list[str], end: str
) -> None:
    with (
        served(captioner, access=Access(root_path=root_path)) as address,
        proxy_of(address, "/a/captions", *headers) as (below, missed),
    ):
        visit = Visit(browser, below + end, DESKTOP)
        page = visit.page
        page.set_input_files("#files", pictures[:1])
        page.locator(".example").first.click()
        assert captions(page, 2)[1] == captioner.candidates(pictures[:1], 3, by_similarity=True)[0]
        page.get_by_text("What the prefix says", exact=True).first.click()
        expect(page.locator(".prefix td")).to_have_count(12, timeout=PATIENCE)
        page.get_by_role("tab", name="Arithmetic").click()
        page.get_by_role("button", name="An example").click()
        captions(page, 3)
        expect(page.locator(".card.failed")).to_have_count(0)
        assert page.evaluate("[...document.images].filter((image) => image.naturalWidth === 0).length") == 0
        page.get_by_role("link", name="HTTP API").click()
        expect(page.locator("pre").first).to_contain_text(f"{below}/v1/caption")
        page.get_by_role("link", name="Back to the page").click()
        page.locator("#drop").wait_for()
        assert page.url.rstrip("/") == below
        assert all(url.startswith((below, f"blob:{below[:20]}", "data:")) for url in visit.requests)
        assert (visit.mistakes, missed) == ([], [])
        page.close()


@pytest.mark.slow
def test_sampled_captions_come_by_similarity_unless_the_visitor_wants_otherwise(
    visit: Visit, pictures: list[Path]
) -> None:
    page = visit.page
    page.evaluate(
        """() => {
            const plain = window.fetch;
            window.sent = [];
            window.fetch = (path, options) => {
                window.sent.push(options.body.get("by_similarity"));
                return plain(path, options);
            };
        }"""
    )
    page.get_by_text("How captions are generated").click()
    page.get_by_label("Decoder").click()
    page.get_by_role("option", name=re.compile("^Nucleus")).click()
    expect(page.locator("body")).to_have_attribute("data-decoder", "nucleus")
    page.set_input_files("#files", pictures[:1])
    captions(page, 1)
    scores = [float(score) for score in page.locator(".card .cosine").all_inner_texts()]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    page.get_by_label("The caption closest to the picture comes first").uncheck()
    page.get_by_role("button", name="Write again").click()
    captions(page, 1)
    assert page.evaluate("window.sent") == ["true", "false"]
