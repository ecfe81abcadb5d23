"""Batches of pictures on the page: what was added at once, its progress, and stopping it."""

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, expect

from prefixcap.captioner import Captioner
from prefixcap.web import jobs
from tests.web.browsing import CHROMIUM, PATIENCE, Visit, captions
from tests.web.conftest import photograph

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")

GAUGE = 'prefixcap_queue_length{captioner="captioner"}'


def named(*names: str) -> list[Any]:
    return [{"name": name, "mimeType": "image/jpeg", "buffer": photograph()} for name in names]


def names_in(batch: Locator) -> list[str]:
    return batch.locator(".card .name").all_inner_texts()


def test_the_newest_is_on_top_and_batches_are_apart(visit: Visit, pictures: list[Path]) -> None:
    page = visit.page
    page.set_input_files("#files", pictures[:3])
    captions(page, 3)
    page.set_input_files("#files", pictures[3:5])
    captions(page, 5)
    batches = page.locator(".batch").all()
    assert [batch.locator("h2").inner_text() for batch in batches] == ["Batch 2: 2 pictures", "Batch 1: 3 pictures"]
    assert [names_in(batch) for batch in batches] == [
        [picture.name for picture in group] for group in (pictures[3:5], pictures[:3])
    ]
    assert page.locator("#count").inner_text() == "5 results"
    assert visit.mistakes == []


def test_a_batch_of_a_hundred_is_stopped_on_the_server_and_goes_on(
    visit: Visit, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has begun with a few pictures; none of the others reaches it before the visitor says so."""
    begun, go_on, seen = threading.Event(), threading.Event(), list[int]()

    def run(job: jobs.Captions, captioner: Captioner, images: list[jobs.Picture]) -> list[jobs.Captioned]:
        seen.append(len(images))
        begun.set()
        assert go_on.wait(60)
        return [jobs.Captioned([jobs.Scored("a caption", 0.5)]) for _ in images]

    monkeypatch.setattr(jobs.Captions, "run", run)
    page, batch = visit.page, visit.page.locator(".batch")
    page.set_input_files("#files", named(*(f"{number}.jpg" for number in range(100))))
    assert begun.wait(60)
    progress = batch.get_by_role("progressbar", name="Progress of batch 1")
    expect(progress).to_have_attribute("max", "100")
    expect(batch.locator(".status")).to_have_text("0 of 100")
    batch.get_by_role("button", name="Cancel").click()
    expect(batch.locator(".status")).to_have_text("0 of 100, cancelled")
    expect(page.locator(".card .working")).to_have_count(0)
    expect(progress).to_be_hidden()
    expect(page.locator("#announce")).to_have_text("Batch 1 was cancelled.")
    page.wait_for_timeout(500)
    go_on.set()
    page.wait_for_timeout(500)
    assert len(seen) == 1 and seen[0] <= 4
    assert f"{GAUGE} 0.0" in httpx.get(f"{address}/metrics").text
    button = batch.get_by_role("button", name="Go on")
    button.press("Enter")
    expect(batch.locator("h3").filter(has_text="a caption")).to_have_count(100, timeout=PATIENCE)
    expect(batch.locator(".status")).to_be_empty()
    expect(batch.locator("h2")).to_be_focused()  # where the button was
    expect(page.locator("#announce")).to_have_text("Batch 1: 100 of 100 pictures")
    assert sum(seen) == 100 + seen[0]
    assert [name for name in visit.mistakes if "ERR_ABORTED" not in name] == []


def test_a_batch_says_how_many_are_without_a_caption(visit: Visit) -> None:
    bad = {"name": "bad.jpg", "mimeType": "image/jpeg", "buffer": b"<html>"}
    visit.page.set_input_files("#files", [*named("a.jpg"), bad, *named("b.jpg")])
    captions(visit.page, 3)
    expect(visit.page.locator(".batch .status")).to_have_text("1 without a caption")
    expect(visit.page.locator("#announce")).to_have_text("Batch 1: 3 of 3 pictures, 1 without a caption")


def test_what_is_cleared_is_stopped(visit: Visit, held: tuple[threading.Event, threading.Event]) -> None:
    begun, go_on = held
    visit.page.set_input_files("#files", named("a.jpg", "b.jpg"))
    assert begun.wait(60)
    visit.page.get_by_role("button", name="Clear").click()
    expect(visit.page.locator(".batch")).to_have_count(0)
    go_on.set()
    visit.page.set_input_files("#files", named("c.jpg"))
    expect(visit.page.locator(".card h3")).to_have_text("a caption", timeout=PATIENCE)
    assert names_in(visit.page.locator(".batch")) == ["c.jpg"]


def test_a_caption_is_copied(visit: Visit, pictures: list[Path]) -> None:
    page = visit.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.set_input_files("#files", pictures[:1])
    ((best, *others),) = captions(page, 1)
    for text in (best, others[0]):
        page.get_by_role("button", name=f"Copy: {text}", exact=True).click()
        expect(page.locator("#announce")).to_have_text(f"Copied: {text}")
        assert page.evaluate("navigator.clipboard.readText()") == text
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as without https
    page.evaluate("document.addEventListener('copy', () => { window.copied = String(document.getSelection()) })")
    page.get_by_role("button", name=f"Copy: {best}", exact=True).press("Enter")
    expect(page.locator("#announce")).to_have_text(f"Copied: {best}")
    assert page.evaluate("window.copied") is not None
    expect(page.get_by_role("button", name=f"Copy: {best}", exact=True)).to_be_focused()
