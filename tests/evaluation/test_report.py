"""The table on the console, and what is in the page: how a browser shows it is in tests/e2e."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prefixcap.evaluation import report
from prefixcap.evaluation.report import CaptionedImage, Table, html_report, table

TABLES = [Table("scores", {"captions": {"CIDEr": 0.5}})]


class Page(HTMLParser):
    """The text, attributes and data of a page, as a browser would read them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.data: dict[str, Any] = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "action", "srcset")]

    def handle_data(self, data: str) -> None:
        (self.scripts if self.tags[-1:] == ["script"] and data.strip() else self.text).append(data.strip())


def simulated(count: int, seed: int = 0) -> list[CaptionedImage]:
    generator = np.random.default_rng(seed)
    scores = {"BLEU-4": generator.beta(1, 4, count), "CIDEr": generator.gamma(1, 0.5, count)}
    return [
        CaptionedImage(
            number, f"caption {number}", [f"first {number}", "other"], {n: float(s[number]) for n, s in scores.items()}
        )
        for number in range(count)
    ]


def test_table_of_the_console() -> None:
    rows = {"captions": {"BLEU-4": 0.70312, "CIDEr": 3.2331}, "humans": {"CIDEr": 2.9}}
    assert table(rows).splitlines() == [
        "             BLEU-4      CIDEr",
        "captions     0.7031     3.2331",
        "humans            -     2.9000",
    ]
    assert table(rows, {"captions": {"CIDEr": (3.1, 3.4)}}).splitlines() == [
        "               BLEU-4      CIDEr",
        "captions       0.7031     3.2331",
        "captions ±          -     0.1500",
        "humans              -     2.9000",
    ]
    assert table({"all": {"RefCLIPScore": 1.0}}) == "     RefCLIPScore\nall        1.0000"


def test_tables_of_the_page() -> None:
    rows = {"captions": {"BLEU-4": 0.7031, "CIDEr": 3.2331}, "humans": {"CIDEr": 2.9}}
    scores = Table("scores", rows, {"captions": {"CIDEr": (3.1, 3.4)}}, ["METEOR is missing: no <Java>"])
    domains = Table("right attributes", {"right attributes": {"in-domain": 0.99, "overall": 0.6}})
    page = Page(html_report("a & b", [scores, domains], simulated(3)))
    text = [line for line in page.text if line]
    start = text.index("scores")
    assert text[start : start + 11] == [
        "scores", "captions", "humans", "BLEU-4", "0.703", "–", "CIDEr", "3.233", "3.100–3.400", "2.900",  # noqa: RUF001
        "METEOR is missing: no <Java>",
    ]  # fmt: skip
    start = text.index("right attributes")
    assert text[start : start + 5] == ["right attributes", "in-domain", "0.990", "overall", "0.600"]
    assert text.count("a & b") == 2 and "3 images, 6 references" in text


def test_nothing_that_a_caption_holds_is_markup() -> None:
    hostile = "</script><script>alert(1)</script><!--data--><img src=http://x.test/>\"' &amp; \u2028"
    images = [CaptionedImage(hostile, hostile, [hostile], {"CIDEr": 1.0, hostile: 0.5})]
    tables = [Table(hostile, {hostile: {hostile: 1.0}}, notes=[hostile]), Table("b", {"b": {}})]
    page = Page(html_report(hostile, tables, images))
    plain = Page(html_report("title", TABLES, simulated(1)))
    assert set(page.tags) <= set(plain.tags)
    assert page.tags.count("script") == 2 and "img" not in page.tags
    assert page.data["images"] == {"0": [hostile, hostile, [hostile], [1.0, 0.5]]}
    assert page.scripts[1] == plain.scripts[1]


def test_the_page_names_no_other_file() -> None:
    page = html_report("title", TABLES, simulated(20))
    assert all(address.startswith(("data:", "#")) for address in Page(page).addresses)
    assert set(re.findall(r"https?://[^\"'\s]*", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", page)


@pytest.mark.parametrize("count", [1, 2, 3, 12, 24, 25, 100])
def test_best_median_and_worst_images(count: int) -> None:
    images = simulated(count)
    data = Page(html_report("title", TABLES, images)).data
    assert [metric["name"] for metric in data["metrics"]] == ["CIDEr", "BLEU-4"]
    for metric in data["metrics"]:
        ranked = sorted(range(count), key=lambda index: -images[index].scores[metric["name"]])
        shown = min(8, math.ceil(count / 3))
        assert metric["best"] == ranked[:shown]
        assert metric["worst"] == ranked[::-1][:shown]
        assert len(metric["median"]) == shown
        places = [ranked.index(index) for index in metric["median"]]
        assert places == list(range(places[0], places[0] + shown))
        assert abs(np.mean(places) - (count - 1) / 2) <= 0.5
        assert metric["middle"] == pytest.approx(
            np.median([image.scores[metric["name"]] for image in images]), abs=1e-4
        )
    if count % 3 == 0 and count <= 24:  # then each image is shown once
        first = data["metrics"][0]
        assert sorted(first["best"] + first["median"] + first["worst"]) == list(range(count))


@pytest.mark.parametrize(
    "scores", [[0.0, 0.1, 0.25, 1.0, 1.0], [0.0, 0.0], [0.3], [-0.2, 0.7, 0.71], [12.0, 1e-9, 7.5], [0.3, 0.6, 0.9]]
)
def test_histogram(scores: list[float]) -> None:
    images = [CaptionedImage(i, "a", ["b"], {"CIDEr": score}) for i, score in enumerate(scores)]
    bins = Page(html_report("title", TABLES, images)).data["metrics"][0]["bins"]
    low, step, counts = bins["low"], bins["step"], bins["counts"]
    assert sum(counts) == len(scores) and 1 <= len(counts) <= 41
    for index, count in enumerate(counts):
        start, end = low + index * step - 1e-6, low + (index + 1) * step + 1e-6
        assert count <= sum(start <= score <= end for score in scores)
    assert float(f"{step:.0e}") == pytest.approx(step) and f"{step:.0e}"[0] in "125"


def test_pictures_are_small_and_only_of_images_that_are_shown(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = []
    for image in simulated(60):
        file = tmp_path / f"{image.image_id}.jpg"
        Image.fromarray(generator.integers(0, 255, (400, 640, 3), np.uint8)).save(file)
        images.append(CaptionedImage(image.image_id, image.caption, image.references, image.scores, file))
    best = sorted(images, key=lambda image: -image.scores["CIDEr"])
    no_image, gone = int(best[0].image_id), int(best[1].image_id)
    (tmp_path / f"{no_image}.jpg").write_bytes(b"no image")
    (tmp_path / f"{gone}.jpg").unlink()
    data = Page(html_report("title", TABLES, images)).data
    shown = {index for metric in data["metrics"] for part in ("best", "median", "worst") for index in metric[part]}
    assert {int(index) for index in data["pictures"]} == shown - {no_image, gone} != shown
    for address in data["pictures"].values():
        with Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/jpeg;base64,")))) as picture:
            assert picture.size == (300, 188)


def test_of_very_many_images_the_page_holds_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_IMAGES", 50)
    images = simulated(1000)
    data = Page(html_report("title", TABLES, images)).data
    kept = {int(index) for index in data["images"]}
    shown = {index for metric in data["metrics"] for part in ("best", "median", "worst") for index in metric[part]}
    assert kept == set(range(0, 1000, 20)) | shown
    assert all(row[0] == index for index, row in data["images"].items())
    assert data["total"] == 1000 == sum(data["metrics"][0]["bins"]["counts"])


def test_scores_that_some_images_lack() -> None:
    images = [
        CaptionedImage(0, "a", ["b"], {"SPICE": math.nan, "CIDEr": 0.5, "none": math.nan}),
        CaptionedImage(1, "a", ["b"], {"CIDEr": 0.7}),
        CaptionedImage(2, "a", ["b"], {"SPICE": 0.2, "CIDEr": 0.6}),
    ]
    data = Page(html_report("title", TABLES, images)).data
    assert [metric["name"] for metric in data["metrics"]] == ["CIDEr", "SPICE"]
    assert data["metrics"][1]["best"] == data["metrics"][1]["worst"] == [2]
    assert [row[3] for row in data["images"].values()] == [[0.5, None], [0.7, None], [0.6, 0.2]]
    data = Page(html_report("title", TABLES, [CaptionedImage(0, "a", ["b"], {})])).data
    assert data["metrics"] == [] and data["total"] == 1


def test_page_of_a_whole_test_set_is_small(shared: Path) -> None:
    """4,982 images with ten metrics that have nothing in common, so that there are as many pictures as there can be."""
    entries = json.loads((shared / "results" / "magic_coco_test.json").read_text(encoding="utf-8"))
    files = sorted((shared / "coco_mini" / "val2014").iterdir())
    scores = np.random.default_rng(0).random((len(entries), 10))
    images = [
        CaptionedImage(
            entry["image_name"], entry["prediction"], entry["captions"],
            {f"metric {column}": score for column, score in enumerate(row)}, files[number % len(files)],
        )
        for number, (entry, row) in enumerate(zip(entries, scores, strict=True))
    ]  # fmt: skip
    page = html_report("title", TABLES, images)
    assert 200 <= len(Page(page).data["pictures"]) <= 240
    assert len(page.encode()) < 6.5e6
