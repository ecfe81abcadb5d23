"""The page of several evaluations, as a browser opens it from disk."""

from pathlib import Path

import pytest

from prefixcap.evaluation import evaluate
from prefixcap.evaluation.leaderboard import leaderboard
from tests.e2e.browser import DESKTOP, LEAST_CONTRAST, PHONE, Browser, needs_chromium, press
from tests.evaluation.test_leaderboard import EXACT, METRICS, REFERENCES, VAGUE, WRONG, write_evaluations

pytestmark = needs_chromium

HARM = "</script><script>window.harmed = 1</script><img src='http://example.test/a.png' onerror='window.harmed = 1'>"
LISTED = 30  # of the images of this page
MANY = {number: [f"a dog number {number}", "unbroken" * 40, HARM] for number in range(LISTED)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three systems and 24 images with pictures."""
    folder = tmp_path_factory.mktemp("page")
    board = leaderboard(write_evaluations(folder, exact=EXACT, vague=VAGUE, wrong=WRONG))
    board.write(folder / "leaderboard.html", "shapes")
    return folder / "leaderboard.html"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts that would be code, words that are wider than a phone, and more images than are shown at first."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, texts in (("a", [HARM, "a dog"]), ("b", ["", "wide" * 60])):
        captions = {number: texts[number % 2] for number in MANY}
        evaluate(captions, MANY, ["CIDEr", "BLEU"]).write(folder / name, name)
    leaderboard({HARM: folder / "a", "wide" * 30: folder / "b"}).write(folder / "leaderboard.html", HARM)
    return folder / "leaderboard.html"


def texts(browser: Browser, selector: str) -> list[str]:
    found: list[str] = browser.value(f"[...document.querySelectorAll({selector!r})].map((of) => of.textContent)")
    return found


def rows(browser: Browser) -> list[str]:
    """Names of the systems in the first table, from the top."""
    return texts(browser, "section:first-of-type tbody th")


def click(browser: Browser, column: str) -> str | None:
    """Click on the head of a column of the first table; give how that column is sorted then."""
    heads = "[...document.querySelectorAll('section:first-of-type thead button')]"
    head = f"{heads}.find((of) => of.innerText === '{column}')"
    browser.value(f"{head}.click()")
    assert browser.value("document.querySelectorAll('section:first-of-type [aria-sort]').length") == 1
    ordered: str | None = browser.value(f"{head}.closest('th').getAttribute('aria-sort')")
    return ordered


def choose(browser: Browser, control: str, text: str) -> None:
    browser.value(
        f"""(() => {{ const select = document.getElementById("{control}");
        select.value = [...select.options].find((option) => option.text === "{text}").value;
        select.dispatchEvent(new Event("change")); }})()"""
    )


def type_filter(browser: Browser, text: str) -> None:
    browser.value("document.getElementById('filter').select()")
    browser.command("Input.insertText", text=text)


@pytest.mark.parametrize("size", [PHONE, (320, 640), (768, 1024), DESKTOP])
def test_no_network_and_no_sideways_scrolling(
    browser: Browser, page: Path, hostile: Path, size: tuple[int, int]
) -> None:
    for file in (page, hostile):
        browser.open(file, size)
        browser.value("[...document.querySelectorAll('details')].forEach((of) => of.open = true)")
        assert browser.value("document.documentElement.scrollWidth") <= size[0]
        assert browser.value("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        requests = [
            event["params"]["request"]["url"]
            for event in browser.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
        wrong = [event for event in browser.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
        assert wrong == []


def test_on_a_phone_the_score_that_sorts_is_in_sight(browser: Browser, page: Path) -> None:
    browser.open(page, PHONE)
    left, right = browser.value(
        "(({left, right}) => [left, right])(document.querySelector('[aria-sort]').getBoundingClientRect())"
    )
    names = browser.value("document.querySelector('tbody th').getBoundingClientRect().right")
    assert names - 1 <= left < right <= PHONE[0]


def test_a_click_sorts_and_another_turns_round(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert rows(browser)[0] == "exact"
    values = {
        name: [float(value) for value in cells]
        for name, cells in zip(
            rows(browser),
            browser.value(
                "[...document.querySelectorAll('section:first-of-type tbody tr')]"
                ".map((row) => [...row.querySelectorAll('td')].map((cell) => cell.dataset.value))"
            ),
            strict=True,
        )
    }
    for column, place, first in (("BLEU-1", 0, "descending"), ("CHAIRi", 6, "ascending")):
        ranked = sorted(values.values(), key=lambda row: row[place], reverse=first == "descending")
        assert click(browser, column) == first
        assert [values[name][place] for name in rows(browser)] == [row[place] for row in ranked]
        assert click(browser, column) != first
        assert [values[name][place] for name in rows(browser)] == [row[place] for row in reversed(ranked)]
    assert click(browser, "System") == "ascending"
    assert rows(browser) == sorted(values)
    assert "exact" in texts(browser, "section:first-of-type tr:has(b) th")


def test_orders_and_filter(browser: Browser, page: Path) -> None:
    browser.open(page)
    scores = {
        name: evaluate(captions, REFERENCES, METRICS).scores.per_image
        for name, captions in (("exact", EXACT), ("vague", VAGUE), ("wrong", WRONG))
    }
    for metric, lower in (("CIDEr", False), ("CHAIRs", True), ("ROUGE-L", False)):
        choose(browser, "metric", metric)
        choose(browser, "order", "Systems differ most")
        of = {image: [round(scores[name][metric][image], 4) for name in scores] for image in REFERENCES}
        apart = sorted(of, key=lambda image: round(min(of[image]) - max(of[image]), 9))
        assert texts(browser, ".image .id") == list(map(str, apart))
        for kind, sign in (("Worst", 1), ("Best", -1)):
            choose(browser, "order", f"{kind} of wrong")
            ordered = sorted(of, key=lambda image: (-sign if lower else sign) * of[image][2])
            assert texts(browser, ".image .id") == list(map(str, ordered))
    choose(browser, "order", "As in the file")
    assert texts(browser, ".image .id") == list(map(str, REFERENCES))
    first = browser.value("document.querySelector('.image').innerText")
    for text in (*REFERENCES[0], EXACT[0], VAGUE[0], f"ROUGE-L {scores['vague']['ROUGE-L'][0]:.3f}"):
        assert text in first
    assert texts(browser, ".answer.top .who")[0] == "exact"

    type_filter(browser, "HORSE  field")
    found = [
        image for image in REFERENCES
        if all(w in f"{EXACT[image]} {WRONG[image]} {REFERENCES[image][1]}" for w in ("horse", "field"))
    ]  # fmt: skip
    assert 0 < len(found) < 24
    assert texts(browser, ".image .id") == list(map(str, found))
    assert texts(browser, "#images h2") == [f"{len(found)} images"]
    assert "horse" in texts(browser, "mark")
    type_filter(browser, "zebra")
    assert texts(browser, "#images h2") == ["0 images"]


def test_all_scores_of_an_image(browser: Browser, page: Path) -> None:
    browser.open(page)
    choose(browser, "order", "As in the file")
    browser.value("document.querySelector('summary').click()")
    browser.value("new Promise((done) => setTimeout(done, 50))")
    cells = texts(browser, "details[open] tbody :is(th, td)")
    names = texts(browser, "details[open] thead th")
    per_image = evaluate(WRONG, REFERENCES, METRICS).scores.per_image
    assert texts(browser, "details[open] tbody th") == ["exact", "vague", "wrong"]
    shown = [float(cell) for cell in cells[-len(names) :]]
    assert shown == pytest.approx([per_image[name][0] for name in names], abs=6e-4)


def test_texts_of_strangers_are_only_text(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    assert browser.value("document.title") == HARM
    assert HARM in rows(browser) and HARM in texts(browser, ".who")
    assert HARM in texts(browser, ".answer p") and HARM in texts(browser, ".image li")
    type_filter(browser, "<script>window")
    assert browser.value("window.harmed") is None and browser.value("document.images.length") == 0


def test_more_images_are_shown_on_request(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    choose(browser, "order", "As in the file")
    assert texts(browser, ".image .id") == [str(number) for number in range(24)]
    browser.value("document.getElementById('more').click()")
    assert texts(browser, ".image .id") == [str(number) for number in range(LISTED)]
    assert browser.value("document.activeElement.closest('.image').querySelector('.id').textContent") == "24"
    assert not browser.value("document.getElementById('more').checkVisibility()")


def test_light_and_dark_are_easy_to_read(browser: Browser, page: Path) -> None:
    backgrounds = []
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        backgrounds.append(browser.value("getComputedStyle(document.body).backgroundColor"))
        type_filter(browser, "horse")
        browser.value("document.querySelector('details').open = true")
        assert browser.value(LEAST_CONTRAST) >= 4.5
    brightness = [sum(int(part) for part in colour[4:-1].split(",")) for colour in backgrounds]
    assert brightness[0] > 700 > 100 > brightness[1]


def test_all_controls_are_reached_by_the_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    reached = []
    for _ in range(20):
        press(browser, "Tab", 9)
        reached.append(browser.value("document.activeElement.id || document.activeElement.innerText.split('\\n')[0]"))
        assert browser.value("getComputedStyle(document.activeElement).outlineStyle") != "none"
    for control in ("System", "CIDEr", "CHAIRs", "Vocabulary", "metric", "order", "filter", "All scores"):
        assert control in reached
    labels = browser.value("[...document.querySelectorAll('select, input')].map((of) => of.labels[0].textContent)")
    assert labels == ["Score", "Order of images", "Words of captions, references and ids"]
    assert browser.value("[...document.images].every((image) => image.alt)")
    browser.value("document.querySelectorAll('thead button')[1].focus()")
    press(browser, "Enter", 13)
    browser.value("document.activeElement.click()")
    assert browser.value("document.activeElement.closest('th').hasAttribute('aria-sort')")
