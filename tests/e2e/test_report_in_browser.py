"""The page of an evaluation, as a browser opens it from disk."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prefixcap.evaluation.report import CaptionedImage, Table, html_report
from tests.e2e.browser import DESKTOP, LEAST_CONTRAST, PHONE, Browser, needs_chromium, press

pytestmark = needs_chromium

HOSTILE = "</script><script>window.harmed = 1</script><img src='http://example.test/a.png' onerror='window.harmed = 1'>"
SUBJECTS = ["red circle", "blue square", "green star", "yellow ring"]


def images(count: int, folder: Path | None = None) -> list[CaptionedImage]:
    """Captions of coloured shapes with two scores that rank them differently, and pictures where a folder is given."""
    generator = np.random.default_rng(0)
    made = []
    for number in range(count):
        file = folder / f"{number}.png" if folder else None
        if file:
            Image.new("RGB", (64, 48), (number, 255 - number, 120)).save(file)
        references = [f"there is a {SUBJECTS[number % 4]} here", f"Picture number {number}", "a long " + "word " * 20]
        scores = {"BLEU-4": float(generator.random()), "CIDEr": float(generator.gamma(1, 0.5))}
        made.append(CaptionedImage(f"image-{number}", f"A {SUBJECTS[number % 4]}.", references, scores, file))
    made[3] = CaptionedImage("image-3", HOSTILE, [HOSTILE, "unbroken" * 40], {"BLEU-4": 0.0, "CIDEr": 99.0})
    return made


TABLES = [
    Table(
        "scores",
        {"captions": {"BLEU-4": 0.5, "RefCLIPScore": 0.6}, "humans": {"BLEU-4": 0.4}},
        {"captions": {"BLEU-4": (0.45, 0.55), "RefCLIPScore": (0.55, 0.65)}, "humans": {"BLEU-4": (0.35, 0.45)}},
        ["Ranges are 95% confidence intervals."],
    ),
    Table("domains", {name: {"CIDEr": 0.5} for name in ("in-domain", "near-domain", "out-of-domain", "overall")}),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    file = folder / "report.html"
    file.write_text(html_report(f"report & {HOSTILE}", TABLES, images(200, folder)), encoding="utf-8")
    return file


def names(browser: Browser, part: str) -> list[str]:
    """Of the images that a part of the page shows, in order."""
    found: list[str] = browser.value(f"[...document.querySelectorAll('#{part} .name')].map((of) => of.textContent)")
    return found


def choose(browser: Browser, metric: str) -> None:
    browser.value(
        f"""(() => {{ const select = document.getElementById("metric");
        select.value = [...select.options].find((option) => option.text === "{metric}").value;
        select.dispatchEvent(new Event("change")); }})()"""
    )


def type_filter(browser: Browser, text: str) -> None:
    browser.value("document.getElementById('filter').select()")
    if text:
        browser.command("Input.insertText", text=text)
    else:
        press(browser, "Delete", 46)


@pytest.mark.parametrize("size", [PHONE, (320, 640), (768, 1024), DESKTOP])
def test_the_page_needs_no_network_and_no_sideways_scrolling(
    browser: Browser, page: Path, size: tuple[int, int]
) -> None:
    browser.open(page, size)
    assert browser.value("document.querySelectorAll('.card img').length") > 15
    assert browser.value("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert browser.value("document.documentElement.scrollWidth") <= size[0]
    type_filter(browser, "a")
    assert browser.value("document.documentElement.scrollWidth") <= size[0]
    requests = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent" and not event["params"]["request"]["url"].startswith("data:")
    ]
    assert requests == [page.as_uri()]
    wrong = [event for event in browser.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert wrong == []


def test_a_caption_is_only_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.value("document.title") == f"report & {HOSTILE}"
    assert names(browser, "best")[0] == "image-3"
    assert browser.value("document.querySelector('#best h3').textContent") == HOSTILE
    assert browser.value("window.harmed") is None
    type_filter(browser, "<script>window")
    assert names(browser, "found") == ["image-3"]
    assert browser.value("document.querySelector('#found h3').textContent") == HOSTILE
    assert browser.value("window.harmed") is None


def test_the_metric_orders_the_images_and_fills_the_histogram(browser: Browser, page: Path) -> None:
    browser.open(page)
    shown = images(200)
    for metric in ("CIDEr", "BLEU-4", "CIDEr"):  # as it opens, and after each choice
        if browser.value("document.querySelector('#metric').selectedOptions[0].text") != metric:
            choose(browser, metric)
        ranked = [image.image_id for image in sorted(shown, key=lambda image: -image.scores[metric])]
        assert names(browser, "best") == ranked[:8]
        assert names(browser, "median") == ranked[96:104]
        assert names(browser, "worst") == ranked[::-1][:8]
        value = max(image.scores[metric] for image in shown)
        assert browser.value("document.querySelector('#best .rank').textContent") == f"{metric} {value:.3f}"
        bars = browser.value("[...document.querySelectorAll('svg rect title')].map((bar) => bar.textContent)")
        assert sum(int(bar.split(": ")[1].split()[0]) for bar in bars) == 200
        middle = np.median([image.scores[metric] for image in shown])
        assert f"median {middle:.3f}" in browser.value("document.querySelector('svg').getAttribute('aria-label')")
    card = browser.value("document.querySelector('#worst .card').innerText")
    last = min(shown, key=lambda image: image.scores["CIDEr"])
    for text in (last.caption, *last.references, *(f"{score:.3f}" for score in last.scores.values())):
        assert text.strip() in card


def test_the_filter_finds_images_by_words(browser: Browser, page: Path) -> None:
    browser.open(page)
    best = names(browser, "best")
    right = [image for image in images(200) if "blue square" in image.caption]
    right.sort(key=lambda image: -image.scores["CIDEr"])

    type_filter(browser, "SQUARE  blue")
    assert browser.value("document.querySelector('#found h2').textContent") == "50 images found"
    assert names(browser, "found") == [image.image_id for image in right[:24]]
    assert not browser.value("[...document.querySelectorAll('.part')].some((part) => part.checkVisibility())")
    marks = browser.value("[...document.querySelectorAll('#found h3')][0].querySelectorAll('mark').length")
    assert marks == 2
    for count in (48, 50):
        browser.value("document.getElementById('more').click()")
        assert names(browser, "found") == [image.image_id for image in right[:count]]
    assert not browser.value("document.getElementById('more').checkVisibility()")

    type_filter(browser, "picture number 17")  # in references
    assert set(names(browser, "found")) == {f"image-{number}" for number in range(200) if "17" in str(number)}
    type_filter(browser, "circle star")
    assert browser.value("document.querySelector('#found h2').textContent") == "0 images found"
    type_filter(browser, ".*")
    assert names(browser, "found") == []

    type_filter(browser, "")
    assert names(browser, "best") == best
    assert browser.value("document.getElementById('best').checkVisibility()")


def test_the_lowest_scores_come_first_where_less_is_better(browser: Browser, tmp_path: Path) -> None:
    scores: dict[str, dict[str, float]] = {"a": {"CHAIRi": 0.5}, "b": {"CHAIRi": 0.1}, "c": {"CHAIRi": 0.9}, "d": {}}
    made = [CaptionedImage(name, "a dog", ["a dog"], of_image) for name, of_image in scores.items()]
    file = tmp_path / "report.html"
    file.write_text(html_report("less is better", TABLES, made), encoding="utf-8")
    browser.open(file)
    assert (names(browser, "best"), names(browser, "worst")) == (["b"], ["c"])
    assert browser.value("document.querySelector('#histogram .note').textContent").endswith("wide; less is better.")
    type_filter(browser, "dog")
    assert names(browser, "found") == ["b", "a", "c", "d"]


def test_all_controls_are_reached_by_the_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    reached = []
    for _ in range(5):
        press(browser, "Tab", 9)
        reached.append(browser.value("document.activeElement.id || document.activeElement.textContent"))
        assert browser.value("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert reached == ["metric", "filter", "Best", "Median", "Worst"]
    labels = browser.value("[...document.querySelectorAll('select, input')].map((of) => of.labels[0].textContent)")
    assert labels == ["Metric", "Filter by the words of captions and references"]
    assert browser.value("[...document.images].every((image) => image.alt)")


def test_light_and_dark_are_different_and_easy_to_read(browser: Browser, page: Path) -> None:
    backgrounds = []
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        backgrounds.append(browser.value("getComputedStyle(document.body).backgroundColor"))
        assert browser.value(LEAST_CONTRAST) >= 4.5
        type_filter(browser, "red picture")
        assert browser.value("document.querySelectorAll('mark').length") > 20
        assert browser.value(LEAST_CONTRAST) >= 4.5
    brightness = [sum(int(part) for part in colour[4:-1].split(",")) for colour in backgrounds]
    assert brightness[0] > 700 > 100 > brightness[1]


def test_captions_without_pictures_or_scores(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html_report("text only", TABLES, images(4)), encoding="utf-8")
    browser.open(file, PHONE)
    assert len(names(browser, "best")) == 2 and browser.value("document.images.length") == 0
    file.write_text(html_report("nothing scored", TABLES, [CaptionedImage(1, "", ["a dog"], {})]), encoding="utf-8")
    browser.open(file, PHONE)
    assert not browser.value("document.getElementById('histogram').checkVisibility()")
    type_filter(browser, "dog")
    assert browser.value("document.querySelector('#found h3').textContent") == "(empty caption)"
    assert [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"] == []
