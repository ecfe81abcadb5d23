"""The page for those who hear it or use no mouse: axe's rules, the order of the keys, and what is announced."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from prefixcap.captioner import Captioner
from tests.conftest import slow_after
from tests.web.browsing import CHROMIUM, DESKTOP, PATIENCE, PHONE, Visit, captions
from tests.web.conftest import served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")

BAD = {"name": "bad.jpg", "mimeType": "image/jpeg", "buffer": b"<html>"}


def violations(page: Page) -> list[str]:
    """What axe finds in a page, a line for each rule."""
    return [
        f"{found['id']}: {found['help']}: {[node['html'][:200] for node in found['nodes'][:3]]}"
        for found in Axe().run(page).response["violations"]
    ]


@pytest.fixture(scope="module")
def two(captioner: Captioner) -> Iterator[str]:
    with served({"one": captioner, "two": captioner}) as address:
        yield address


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", slow_after(1, [DESKTOP, PHONE]), ids=["desktop", "phone"])
def test_axe_finds_nothing(
    browser: Browser, address: str, pictures: list[Path], viewport: dict[str, int], scheme: str
) -> None:
    visit = Visit(browser, address, viewport, scheme)
    page = visit.page
    assert violations(page) == []
    page.set_input_files("#files", pictures[:2])
    page.set_input_files("#files", [BAD])  # type: ignore[list-item]
    captions(page, 3)
    page.get_by_text("What the prefix says", exact=True).first.click()
    page.locator(".prefix td").first.wait_for()
    page.get_by_text("How captions are generated").click()
    page.get_by_label("number input for Max tokens").wait_for()
    assert violations(page) == []
    page.get_by_role("tab", name="Arithmetic").click()
    page.get_by_role("button", name="An example").click()
    captions(page, 4)
    assert violations(page) == []
    page.goto(f"{address}/docs")
    page.locator("h2").first.wait_for()
    assert violations(page) == []
    page.close()


@pytest.mark.slow
def test_axe_finds_nothing_with_several_captioners(browser: Browser, two: str, pictures: list[Path]) -> None:
    page = Visit(browser, two, DESKTOP).page
    page.set_input_files("#files", pictures[:2])
    expect(page.locator(".card h3")).to_have_count(4, timeout=PATIENCE)
    assert violations(page) == []
    page.close()


def test_all_can_be_done_with_keys(visit: Visit, captioner: Captioner, pictures: list[Path]) -> None:
    page = visit.page
    expected = captioner.candidates(pictures[:1], 3, by_similarity=True)[0]
    reached = list[str]()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.innerText.split('\\n')[0]"))
        if reached[-1] == "files":
            break
    assert reached[:2] == ["skip", "HTTP API"] and "Captions" in reached
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(pictures[:1])
    assert captions(page, 1) == [expected]
    expect(page.locator("#announce")).to_have_text(f"{pictures[0].name}: {expected[0]}")
    expect(page.get_by_role("article", name=pictures[0].name)).to_have_count(1)
    expect(page.get_by_role("region", name="Batch 1: 1 picture").get_by_role("heading", level=3)).to_have_text(
        expected[0]
    )
    page.locator("#skip").focus()
    page.keyboard.press("Enter")  # to the results
    for name in ("Write again", "Clear", "CSV"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name=name)).to_be_focused()
    page.get_by_role("button", name="Clear").press("Enter")
    expect(page.locator("#files")).to_be_focused()
    expect(page.locator("#announce")).to_have_text("All results were removed.")
    assert visit.mistakes == []
