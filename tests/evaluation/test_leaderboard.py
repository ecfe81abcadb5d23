"""What is in the page of several evaluations: how a browser shows it is in tests/e2e."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prefixcap.errors import InputError
from prefixcap.evaluation import evaluate
from prefixcap.evaluation import leaderboard as module
from prefixcap.evaluation.comparison import compare
from prefixcap.evaluation.leaderboard import Leaderboard, leaderboard
from prefixcap.evaluation.stored import Figures, StoredEvaluation, read_evaluation
from tests.evaluation.test_report import Page

METRICS = ("BLEU", "ROUGE-L", "CIDEr", "CHAIR", "diversity")
HOSTILE = "</script><script>alert(1)</script><!--data--><img src=http://x.test/>\"' &amp; \u2028"
ANIMALS, PLACES = ("dog", "cat", "horse", "bird"), ("park", "kitchen", "field")
REFERENCES = {
    number: [f"a {animal} in a {place}", f"the {animal} is in the {place} number {number}"]
    for number, animal, place in zip(range(24), cycle(ANIMALS), cycle(PLACES), strict=False)
}
EXACT = {number: texts[0] for number, texts in REFERENCES.items()}
VAGUE = {number: " ".join(texts[0].split()[:2]) for number, texts in REFERENCES.items()}
WRONG = {number: EXACT[(number + number % 2) % 24] for number in EXACT}
SYSTEMS = {"exact": EXACT, "vague": VAGUE, "wrong": WRONG}


def write_evaluations(folder: Path, **captions: dict[Any, str]) -> dict[str, Path]:
    """The folders of evaluations of these captions, by name; the images are in the folder."""
    files: dict[int | str, Path] = {}
    for number in REFERENCES:
        files[number] = folder / f"{number}.png"
        Image.new("RGB", (64, 48), (10 * number, 90, 120)).save(folder / f"{number}.png")
    for name, texts in captions.items():
        evaluate(texts, REFERENCES, METRICS, files).write(folder / name, name)
    return {name: folder / name for name in captions}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_evaluations(tmp_path_factory.mktemp("evaluations"), **SYSTEMS)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """Two evaluations, the first of them changed by a function of the content of one of its files."""

    def write(name: str, change: Callable[[str], str]) -> dict[str, Path]:
        made = write_evaluations(tmp_path, exact=EXACT, vague=VAGUE)
        file = made["exact"] / name
        file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
        return made

    return write


class Tables(HTMLParser):
    """The tables of a page, by title: rows of cells [value, text, groups, whether it is the best] by system."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, dict[str, list[list[Any]]]] = {}
        self.heads: dict[str, list[str]] = {}
        self._tags: list[str] = []
        self._title = self._row = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self._tags.append(tag)
        if tag == "section" and "table" in (values.get("class") or ""):
            self._title = str(values["aria-label"])
            self.tables[self._title], self.heads[self._title] = {}, []
        if tag == "td" and self._title and self._row:
            value = values.get("data-value")
            self.tables[self._title][self._row].append([None if value is None else float(value), "", "", False])

    def handle_endtag(self, tag: str) -> None:
        while self._tags and self._tags.pop() != tag:
            pass
        self._title = "" if tag == "section" else self._title
        self._row = "" if tag == "tr" else self._row

    def handle_data(self, text: str) -> None:
        if not self._title or not self._tags:
            return
        if self._tags[-1] == "button":
            self.heads[self._title].append(text)
        elif self._tags[-1] == "th":
            self._row = text
            self.tables[self._title][text] = []
        elif "td" in self._tags:
            cell = self.tables[self._title][self._row][-1]
            cell[2] += text if self._tags[-1] == "i" else ""
            cell[1] += text if self._tags[-1] in ("td", "b", "small") else ""
            cell[3] |= self._tags[-1] == "span"


def test_the_tables_are_those_of_the_evaluations_and_of_their_comparison(folders: dict[str, Path]) -> None:
    page = Tables(leaderboard(folders).html("title"))
    compared = compare(*folders.values())
    metrics = {name: json.loads((folder / "metrics.json").read_text()) for name, folder in folders.items()}
    heads, rows = page.heads["scores"], page.tables["scores"]
    assert heads == ["System", *(f"BLEU-{n}" for n in range(1, 5)), "ROUGE-L", "CIDEr", "CHAIRi", "CHAIRs"]
    assert set(rows) == {*folders, "humans"}
    by_cider = sorted(metrics, key=lambda name: -metrics[name]["CIDEr"])
    assert [name for name in rows if name != "humans"] == by_cider
    for place, (name, scores) in enumerate(metrics.items()):
        for column, score in enumerate(heads[1:]):
            value, text, groups, best = rows[name][column]
            low, high = scores["intervals"][score]
            assert value == scores[score]
            assert text == f"{value:.3f}{low:.3f}–{high:.3f}"  # noqa: RUF001
            assert groups == compared.systems[score][place].groups
            extreme = min if score.startswith("CHAIR") else max
            assert best == (value == extreme(other[score] for other in metrics.values()))
    assert {rows[name][5][2] for name in rows} == {"a", "b", ""}  # they say something
    humans = metrics["exact"]["humans"]
    assert [cell[0] for cell in rows["humans"]] == [humans[score] for score in heads[1:]]
    assert not any(cell[2] or cell[3] for cell in rows["humans"])
    assert page.heads["diversity"] == ["System", "Vocabulary", "Distinct-1", "Distinct-2", "Length"]
    for place, (name, scores) in enumerate(metrics.items()):
        cells = page.tables["diversity"][name]
        assert [cell[0] for cell in cells] == list(scores["diversity"].values())
        assert [cell[2] for cell in cells] == ["", "", "", compared.systems["diversity Length"][place].groups]


def test_the_images_are_those_of_the_evaluations(folders: dict[str, Path]) -> None:
    data = Page(leaderboard(folders).html("title")).data
    assert data["systems"] == list(SYSTEMS) and data["total"] == 24
    assert data["ids"] == list(map(str, REFERENCES))
    assert data["references"] == list(REFERENCES.values())
    assert data["captions"] == [list(captions.values()) for captions in SYSTEMS.values()]
    names = [metric["name"] for metric in data["metrics"]]
    assert names[0] == "CIDEr"
    assert [metric["name"] for metric in data["metrics"] if metric["lower"]] == ["CHAIRi", "CHAIRs"]
    for system, captions in enumerate(SYSTEMS.values()):
        scores = evaluate(captions, REFERENCES, METRICS).scores.per_image
        for column, name in enumerate(names):
            expected = [scores[name][image] for image in REFERENCES]
            given = [np.nan if value is None else value for value in data["scores"][system][column]]
            np.testing.assert_allclose(given, expected, atol=6e-5)
    shown = read_evaluation(folders["exact"]).pictures
    assert set(shown) <= {data["ids"][int(index)] for index in data["pictures"]}
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in data["pictures"].values())


def test_systems_with_other_orders_of_images_and_other_metrics(tmp_path: Path) -> None:
    backwards = dict(reversed(REFERENCES.items()))
    evaluate(EXACT, REFERENCES, ["CIDEr", "BLEU"]).write(tmp_path / "a", "a")
    evaluate({image: VAGUE[image] for image in backwards}, backwards, ["CIDEr", "CHAIR"]).write(tmp_path / "b", "b")
    page = leaderboard({"a": tmp_path / "a", "b": tmp_path / "b"}).html("title")
    rows = Tables(page).tables["scores"]
    assert [cell[0] is None for cell in rows["a"]] == [False] * 5 + [True] * 2
    assert [cell[0] is None for cell in rows["b"]] == [False] + [True] * 4 + [False] * 2
    assert not any(cell[0] is None for cell in rows["humans"])
    assert [cell[3] for cell in rows["a"]] == [True] + [False] * 6  # nothing is the best of one
    data = Page(page).data
    assert data["captions"] == [list(EXACT.values()), list(VAGUE.values())]
    assert data["scores"][1][1] is None
    assert any("not compared, as not all have them: BLEU" in note for note in Page(page).text)


def test_nothing_of_a_stranger_is_markup(tmp_path: Path, folders: dict[str, Path]) -> None:
    references = {HOSTILE: [HOSTILE, "a dog"], "b": ["a cat", "the cat"]}
    evaluation = evaluate({HOSTILE: HOSTILE, "b": "a cat"}, references, ["CIDEr"], {HOSTILE: tmp_path / "gone.png"})
    evaluation.extra[HOSTILE] = {HOSTILE: 0.5}
    evaluation.notes.append(HOSTILE)
    evaluation.write(tmp_path / "a", HOSTILE)
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    metrics |= {HOSTILE: 0.25, "true": True, "text": HOSTILE, "half a pair \ud800": 0.5}
    metrics["intervals"][HOSTILE] = [0.2, 0.3]
    (tmp_path / "a" / "metrics.json").write_text(json.dumps(metrics))
    hostile = leaderboard({HOSTILE: tmp_path / "a", "other": tmp_path / "a"}).html(HOSTILE)
    page, plain = Page(hostile), Page(leaderboard(folders).html("title"))
    assert set(page.tags) <= set(plain.tags)
    assert page.tags.count("script") == 2 and "img" not in page.tags
    assert page.scripts[1] == plain.scripts[1]
    assert page.data["systems"][0] == page.data["ids"][0] == page.data["captions"][0][0] == HOSTILE
    assert page.data["references"][0] == [HOSTILE, "a dog"]
    assert "half a pair ?" in page.text and page.text.count(HOSTILE.strip()) >= 5


def test_the_page_names_no_other_file(folders: dict[str, Path]) -> None:
    page = leaderboard(folders).html("title")
    assert all(address.startswith("data:") for address in Page(page).addresses)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", page)


def test_one_system_has_no_groups(folders: dict[str, Path]) -> None:
    page = Tables(leaderboard({"only": folders["exact"]}).html("title"))
    assert list(page.tables["scores"]) == ["only", "humans"]
    assert not any(cell[2] or cell[3] for cell in page.tables["scores"]["only"])


def test_without_reports_there_are_no_references(written: Callable[..., dict[str, Path]]) -> None:
    made = written("report.html", lambda _: "no report")
    data = Page(leaderboard(made).html("title")).data
    assert data["references"] == list(REFERENCES.values()) and data["pictures"]  # from the other
    (made["vague"] / "report.html").unlink()
    board = leaderboard(made)
    assert Page(board.html("title")).data["references"] == [[]] * 24
    assert board.notes()[-1] == "exact, vague: no references, as there is no report.html"


def test_of_very_many_images_the_page_lists_a_sample(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_IMAGES", 10)
    data = Page(leaderboard(folders).html("title")).data
    assert data["ids"] == list(map(str, range(0, 24, 3))) and data["total"] == 24
    assert data["captions"][1] == [VAGUE[number] for number in range(0, 24, 3)]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("metrics.json", lambda _: "[]", "metrics.json holds no scores by name"),
        ("metrics.json", lambda text: text[:-9], "metrics.json is not JSON"),
        ("captions.json", lambda _: "[1]", "is no list of objects with image_id and caption"),
        ("captions.json", lambda _: "[]", "does not hold one caption for each image"),
        ("captions.json", lambda text: text.replace('"a dog in a park"', "7", 1), "does not hold one caption for"),
        ("captions.json", lambda text: text.replace('"image_id": 0', '"image_id": 99'), "have different images"),
        ("per_image.csv", lambda _: "", "is not a table that an evaluation wrote"),
        ("per_image.csv", lambda text: text.replace("1.0", "one", 1), "is not a table that an evaluation wrote"),
        ("per_image.csv", lambda text: text + "1", "have different images"),
    ],
)
def test_damaged_evaluations(
    name: str, change: Callable[[str], str], message: str, written: Callable[..., dict[str, Path]]
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        leaderboard(written(name, change))
    assert "\n" not in str(raised.value)


def test_what_is_no_leaderboard(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="takes one evaluation or more"):
        leaderboard({})
    with pytest.raises(InputError, match=r"none holds no evaluation \(no metrics.json\)"):
        leaderboard({"a": tmp_path / "none"})
    few = {image: REFERENCES[image] for image in range(5)}
    evaluate({image: EXACT[image] for image in few}, few, METRICS).write(tmp_path / "few", "few")
    with pytest.raises(InputError, match="evaluate different images"):
        leaderboard({"exact": folders["exact"], "few": tmp_path / "few"})
    others = REFERENCES | {0: ["another reference", "and one more"]}
    evaluate(EXACT, others, METRICS).write(tmp_path / "others", "others")
    with pytest.raises(InputError, match="have different references"):
        leaderboard({"exact": folders["exact"], "others": tmp_path / "others"})


def test_only_a_leaderboard_is_replaced(tmp_path: Path, folders: dict[str, Path]) -> None:
    board, file = leaderboard(folders), tmp_path / "new" / "page.html"
    board.write(file, "first")
    board.write(file, "second")
    assert "<title>second</title>" in file.read_text(encoding="utf-8") and len(list(file.parent.iterdir())) == 1
    for other in (folders["exact"] / "report.html", folders["exact"] / "statistics.npz"):
        before = other.read_bytes()
        with pytest.raises(InputError, match="is there already and is no leaderboard: name another file"):
            board.write(other)
        assert other.read_bytes() == before
    with pytest.raises(InputError, match="is a folder"):
        board.write(tmp_path)


def test_page_of_five_systems_and_a_whole_test_set_is_small() -> None:
    """5,000 images of five captions each, whose ten scores have nothing in common."""
    generator = np.random.default_rng(0)
    images = [f"COCO_val2014_{number:012d}" for number in range(5000)]
    caption = "a man riding a wave on top of a surfboard"
    systems = {
        f"system {number}": StoredEvaluation(
            figures=Figures({"CIDEr": 1.0 + number}, {}),
            humans=Figures({}, {}),
            tables={},
            notes=(),
            captions=dict.fromkeys(images, caption),
            per_image={f"score {column}": generator.random(5000).tolist() for column in range(10)},
            references={image: [caption] * 5 for image in images},
            pictures={},
        )
        for number in range(5)
    }
    page = Leaderboard(systems, None).html("title")
    assert len(Page(page).data["scores"][4][9]) == 5000
    assert len(page.encode()) < 6e6
