"""The page in a real browser: Chromium without a window, by Playwright."""

import shutil

from playwright.sync_api import Browser, Page, expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]  # fmt: skip
PATIENCE = 30_000  # milliseconds


class Visit:
    """A page that was opened, with the addresses that it asked for and what went wrong in it."""

    def __init__(self, browser: Browser, address: str, viewport: dict[str, int], scheme: str = "light") -> None:
        self.page = browser.new_page(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
        self.page.set_default_timeout(PATIENCE)
        self.requests: list[str] = []
        self.mistakes: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.mistakes.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.mistakes.append(said.text))
        # Intercepted from the start: when only a test's own wait asks for that, a key may be pressed before it is done.
        self.page.on("filechooser", lambda _: None)
        self.page.goto(address)
        self.page.locator("#drop").wait_for()


def captions(page: Page, cards: int) -> list[list[str]]:
    """All that stand in the cards, when there are so many and all have some; a card may take a moment to come."""
    expect(page.locator(".card")).to_have_count(cards, timeout=PATIENCE)
    expect(page.locator(".card .working")).to_have_count(0, timeout=PATIENCE)
    texts = "h3, li > span:first-child"
    return [card.locator(texts).all_text_contents() for card in page.locator(".card").all()]
