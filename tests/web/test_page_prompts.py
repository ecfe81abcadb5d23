"""Prompts of images on the page, in a real browser."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from prefixcap.captioner import Captioner
from tests.web.browsing import CHROMIUM, DESKTOP, PATIENCE, Visit, captions
from tests.web.conftest import served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")


def test_what_is_known_of_pictures_is_sent_with_those_that_follow(
    visit: Visit, captioner: Captioner, pictures: list[Path]
) -> None:
    visit.page.get_by_label("About the pictures").fill("A large green ring")
    visit.page.set_input_files("#files", pictures[:1])
    captions(visit.page, 1)
    visit.page.get_by_label("About the pictures").fill("")
    visit.page.set_input_files("#files", pictures[:1])
    known = captioner.candidates(pictures[:1], 3, prompts=["A large green ring"], by_similarity=True)
    assert captions(visit.page, 2) == captioner.candidates(pictures[:1], 3, by_similarity=True) + known
    expect(visit.page.locator(".items")).to_have_count(0)  # this captioner makes no prompts
    assert visit.mistakes == []


def test_items_of_the_captioners_own_prompt_are_taken_out_by_a_click_or_a_key(
    browser: Browser, retrieving: Captioner, pictures: list[Path]
) -> None:
    (prompt,) = retrieving.image_prompts(retrieving.embed(pictures[:1]))
    first, second, third = (item.text for item in prompt.items)

    def expected(*items: str) -> list[list[str]]:
        texts = "Similar images show\n\n" + "\n\n".join(items) + ".\n\nThis image shows"
        return retrieving.candidates(pictures[:1], 3, by_similarity=True, prompts=[texts])

    with served(retrieving) as address:
        visit = Visit(browser, address, DESKTOP)
        page, items = visit.page, visit.page.locator(".items .item")
        page.set_input_files("#files", pictures[:1])
        assert captions(page, 1) == expected(first, second, third)
        assert items.all_inner_texts() == [first, second, third]
        scores = [f"{item.score:.2f}" for item in prompt.items]
        assert page.locator(".items .item + span").all_inner_texts() == scores
        page.get_by_role("button", name=f"{second}: write without it").click()
        expect(items).to_have_text([first, third], timeout=PATIENCE)
        assert captions(page, 1) == expected(first, third)
        expect(page.get_by_role("button", name=f"{third}: write without it")).to_be_focused()  # it is in the place now
        page.keyboard.press("Enter")
        expect(items).to_have_text([first], timeout=PATIENCE)
        assert captions(page, 1) == expected(first)
        page.get_by_role("button", name="Put all back").click()
        expect(items).to_have_text([first, second, third], timeout=PATIENCE)
        assert captions(page, 1) == expected(first, second, third)
        assert visit.mistakes == []
        page.close()


def test_captions_that_a_mapper_reads_are_shown_and_taken_out(
    browser: Browser, fusing: Captioner, pictures: list[Path]
) -> None:
    embeddings = fusing.embed(pictures[:1])

    def expected(*without: str) -> tuple[list[str], list[list[str]]]:
        ((prompt,), (read, (items,))) = (
            fusing.image_prompts(embeddings, [without]),
            fusing.retrieve(embeddings, [without]),
        )
        texts = [item.text for item in (*prompt.items, *items)]
        written = fusing.candidates(read, 3, by_similarity=True, embeddings=embeddings, prompts=[prompt.text])
        return texts, written

    with served(fusing) as address:
        visit = Visit(browser, address, DESKTOP)
        page, items = visit.page, visit.page.locator(".items .item")
        page.set_input_files("#files", pictures[:1])
        texts, written = expected()
        assert captions(page, 1) == written and items.all_inner_texts() == texts and len(texts) == 5
        expect(page.get_by_text("Captions that were read with the picture")).to_be_visible()
        page.get_by_role("button", name=f"{texts[3]}: write without it").click()
        left, written = expected(texts[3])
        expect(items).to_have_text(left, timeout=PATIENCE)
        assert captions(page, 1) == written and texts[3] not in left and len(left) == 5
        expect(page.get_by_role("button", name=f"{left[3]}: write without it")).to_be_focused()
        page.get_by_role("button", name="Put all back").click()
        expect(items).to_have_text(texts, timeout=PATIENCE)
        assert visit.mistakes == []
        page.close()
