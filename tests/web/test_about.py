"""What a captioner says of its training: its description and its model card, which may be a stranger's."""

from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.checkpoints.model_card import text_on_card
from prefixcap.web.about import about
from tests.web.browsing import CHROMIUM, DESKTOP, Visit
from tests.web.conftest import served

CARD = """---
license: mit
---
# A card

## Training

Photographs of [a place](https://example.org/a?b=c), with `captions`
by **people**.

<img src=x onerror=alert(1)>

| data | x |
|---|---|

After the table.

## Limitations

- It counts badly,
  and names nobody.
- <script>window.harm = 1</script>

### More

Nothing of this.
"""


@pytest.fixture
def told(captioner: Captioner, tmp_path: Path) -> Captioner:
    captioner.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "README.md").write_text(CARD)
    told = prefixcap.load(tmp_path / "saved")
    told.trained_on = {"data": "<b>set</b>", "images": {"val": 30, "train": 1200}, "before": ["<i>one</i>"]}
    return told


def test_sections_of_a_card_are_plain_text(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(CARD)
    assert text_on_card(card, "Training") == [
        "Photographs of a place, with captions by people.", "<img src=x onerror=alert(1)>"
    ]  # fmt: skip
    assert text_on_card(card, "Limitations") == [
        "It counts badly, and names nobody.", "<script>window.harm = 1</script>"
    ]  # fmt: skip
    assert text_on_card(card, "Scores") == text_on_card(tmp_path / "none.md", "Training") == []
    card.write_bytes(b"# x\n\n## Training\n\n" + b"\xff" * 10_000 + b"\n\n" + b"a\n\n" * 100_000)
    long = text_on_card(card, "Training")
    assert len(long) == 10 and len(long[0]) == 600 and long[1:] == ["a"] * 9


def test_the_captioner_of_the_package_says_what_it_knows() -> None:
    pytest.importorskip("timm")
    said = about(prefixcap.load("photos"))
    assert said.summary == "Trained on flickr8k: 6,000 images for training, 1,000 for validation, 1,000 for test."
    assert "6,000 photographs with five captions each" in said.training[0]
    assert any("people and dogs" in text for text in said.limitations)


def test_no_link_to_a_card_elsewhere_is_followed(told: Captioner, tmp_path: Path) -> None:
    assert about(told).training
    secret = tmp_path / "secret.md"
    (tmp_path / "saved" / "README.md").rename(secret)
    (tmp_path / "saved" / "README.md").symlink_to(secret)
    assert about(told).training == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_the_banner_shows_it_as_text(browser: Browser, told: Captioner) -> None:
    with served(told) as address:
        info = httpx.get(f"{address}/v1/info").json()["captioners"][0]["trained_on"]
        assert info["images"] == {"train": 1200, "val": 30} and len(info["limitations"]) == 2
        visit = Visit(browser, address, DESKTOP)
        banner = visit.page.get_by_role("region", name="What the captions were learned from")
        expect(banner).to_contain_text(
            "Trained on <i>one</i>, then on <b>set</b>: 1,200 images for training, 30 for validation."
        )
        expect(banner.locator("li").first).to_be_hidden()
        banner.get_by_text("About the pictures it knows, and what it cannot do").click()
        expect(banner.locator("li")).to_have_text(
            ["It counts badly, and names nobody.", "<script>window.harm = 1</script>"]
        )
        expect(banner).to_contain_text("<img src=x onerror=alert(1)>")
        assert visit.page.evaluate("window.harm") is None and visit.mistakes == []
        visit.page.close()
