"""Shows an evaluation: as a table on the console, and as one HTML page that opens from disk."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefixcap.errors import InputError
from prefixcap.metrics.registry import lower_is_better
from prefixcap.utils.files import parse_json
from prefixcap.utils.images import data_url, thumbnail

Rows = Mapping[str, Mapping[str, float]]
Intervals = Mapping[str, Mapping[str, tuple[float, float]]]

_SHOWN = 8  # images that are shown as the best of a metric, as the median ones and as the worst: each has a picture
MOST_IMAGES = 10_000  # in the page, that the filter finds: some 4 MB of text
_DATA = '<script type="application/json" id="data">'


@dataclass(frozen=True)
class Table:
    """Figures of an evaluation.

    Attributes:
        title: of the table.
        rows: named rows of figures, by the name of each.
        intervals: of confidence, low and high, of some of them or all.
        notes: one line each.
    """

    title: str
    rows: Rows
    intervals: Intervals = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class CaptionedImage:
    """An image of an evaluation, with its scores by name; `file` is None, or gone, where only captions are at hand."""

    image_id: int | str
    caption: str
    references: Sequence[str]
    scores: Mapping[str, float]
    file: Path | None = None


def table(rows: Rows, intervals: Intervals | None = None) -> str:
    """Named rows of figures as a text table; a figure that a row lacks is a dash.

    Below a row with intervals, a second row has half of their widths.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines: dict[str, list[str]] = {"": columns}
    for name, row in rows.items():
        lines[name] = [figure_text(row[column], 4) if column in row else "-" for column in columns]
        bounds = (intervals or {}).get(name, {})
        if bounds:
            halves = {column: (high - low) / 2 for column, (low, high) in bounds.items()}
            lines[f"{name} ±"] = [f"{halves[column]:.4f}" if column in halves else "-" for column in columns]
    name_width = max(map(len, lines))
    widths = [max(9, len(column)) for column in columns]
    return "\n".join(
        f"{name:<{name_width}}" + "".join(f"  {text:>{width}}" for text, width in zip(texts, widths, strict=True))
        for name, texts in lines.items()
    )


def html_report(title: str, tables: Sequence[Table], images: Sequence[CaptionedImage]) -> str:
    """A self-contained page: the tables, a histogram of each score, the best, median and worst images, and a filter.

    The page asks no network for anything. An image whose picture cannot be read is shown as text. Of more than 10,000
    images the filter finds an evenly spaced sample; histograms and ranks are those of all.

    Args:
        title: of the page.
        tables: to be shown, one or more, in this order; a table's only row that has its name gets no heading.
        images: all that were scored.
    """
    references = sum(len(image.references) for image in images)
    parts = {
        "title": html.escape(title),
        "summary": f"{count_text(len(images), 'image')}, {count_text(references, 'reference')}",
        "first table": _html_table(tables[0]),
        "other tables": "\n".join(map(_html_table, tables[1:])),
        "data": page_data(_page_data(images)),
    }
    return fill_page("report.html", parts)


def fill_page(template: str, parts: Mapping[str, str]) -> str:
    """A page of this folder, with the style and the functions that all have, and the parts for its marks `<!--name-->`.

    Args:
        template: its file.
        parts: HTML by the name of the mark. Each "<" of a user is escaped in them, so that none looks like a mark.
    """
    folder = Path(__file__).parent
    page = (folder / template).read_text(encoding="utf-8")
    for mark, file in (("/*style*/", "page.css"), ("/*script*/", "page.js")):
        page = page.replace(mark, (folder / file).read_text(encoding="utf-8").rstrip())
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text)
    return page


def page_data(value: Any) -> str:
    """JSON for a script element of a page, which nothing in it can end."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def read_report(page: str) -> dict[str, Any]:
    """What the script of a page of `html_report` reads, see the head of that script; empty of other pages."""
    _, _, rest = page.partition(_DATA)
    try:
        data = parse_json(rest.partition("</script>")[0], "the report")
    except InputError:
        return {}
    return data if isinstance(data, dict) else {}


def figure_text(value: float, digits: int) -> str:
    """A score with its digits, a number of things without."""
    return f"{value:,.0f}" if value >= 10 and float(value).is_integer() else f"{value:.{digits}f}"


def count_text(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _html_table(given: Table) -> str:
    """One column a row of the table and one row a figure, so that it fits a phone."""
    figures = list(dict.fromkeys(figure for row in given.rows.values() for figure in row))
    names = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in given.rows)
    head = "" if list(given.rows) == [given.title] else f"<thead><tr><td></td>{names}</tr></thead>"
    body = []
    for figure in figures:
        cells = "".join(
            _html_cell(row.get(figure), given.intervals.get(name, {}).get(figure)) for name, row in given.rows.items()
        )
        body.append(f'<tr><th scope="row">{html.escape(figure)}</th>{cells}</tr>')
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in given.notes)
    return (
        f'<div class="panel table"><h2>{html.escape(given.title)}</h2>'
        f'<div class="scroll"><table>{head}<tbody>{"".join(body)}</tbody></table></div>{notes}</div>'
    )


def _html_cell(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "<td>&ndash;</td>"
    bounds = f"<small>{interval[0]:.3f}&ndash;{interval[1]:.3f}</small>" if interval else ""
    return f"<td>{figure_text(value, 3)}{bounds}</td>"


def _page_data(images: Sequence[CaptionedImage]) -> dict[str, Any]:
    """What the script of the page reads: see the head of that script."""
    named = {name: None for image in images for name, value in image.scores.items() if math.isfinite(value)}
    names = sorted(named, key=lambda name: name != "CIDEr")
    lower = lower_is_better(names)
    values = {name: np.array([image.scores.get(name, math.nan) for image in images]) for name in names}
    metrics = [_metric(name, values[name], name in lower) for name in names]
    shown = {index for metric in metrics for part in ("best", "median", "worst") for index in metric[part]}
    sample = range(0, len(images), max(1, math.ceil(len(images) / MOST_IMAGES)))
    texts = {}
    for index in sorted(shown.union(sample)):
        image = images[index]
        scores = [finite_score(image.scores.get(name)) for name in names]
        texts[index] = (str(image.image_id), image.caption, list(image.references), scores)
    pictures = {index: _picture(images[index].file) for index in sorted(shown)}
    return {
        "metrics": metrics,
        "images": texts,
        "pictures": {index: picture for index, picture in pictures.items() if picture},
        "total": len(images),
    }


def _metric(name: str, values: NDArray[np.float64], lower: bool) -> dict[str, Any]:
    """Histogram of the (images,) scores of a metric, and the images to show; NaN where an image has no score.

    `lower` says that less is better.
    """
    ranked = np.argsort(values if lower else -values, kind="stable")[: np.isfinite(values).sum()]  # NaN comes last
    shown = min(_SHOWN, math.ceil(len(ranked) / 3))
    middle = (len(ranked) - shown) // 2
    values = values[ranked]
    span = (values.max() - min(0, values.min())) or 1.0
    power = 10 ** math.floor(math.log10(span / 40))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 40)
    bins = np.floor(values / step + 1e-9).astype(int)
    bins = np.minimum(bins, max(0, math.ceil(values.max() / step - 1e-9) - 1))  # a score of 1 ends the bin up to 1
    first = min(0, int(bins.min()))
    return {
        "name": name,
        "lower": lower,
        "best": ranked[:shown].tolist(),
        "median": ranked[middle : middle + shown].tolist(),
        "worst": ranked[::-1][:shown].tolist(),
        "middle": round(float(np.median(values)), 4),
        "bins": {"low": first * step, "step": step, "counts": np.bincount(bins - first).tolist()},
    }


def finite_score(value: float | None) -> float | None:
    """A score as the data of a page have it: four digits after the point; None for NaN and where there is none."""
    return round(float(value), 4) if value is not None and math.isfinite(value) else None


def _picture(file: Path | None) -> str | None:
    """The image, small, as a data URL; None if there is none or it cannot be read."""
    image = thumbnail(file, 300)
    return None if image is None else data_url(image)
