"""One page of many evaluations of the same images: a table that can be sorted, and all captions of each image.

Significance groups are those of `prefixcap.evaluation.comparison.compare`.
"""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefixcap.errors import InputError
from prefixcap.evaluation.comparison import SIGNIFICANT, Comparison, compare
from prefixcap.evaluation.report import MOST_IMAGES, count_text, figure_text, fill_page, finite_score, page_data
from prefixcap.evaluation.stored import Figures, StoredEvaluation, read_evaluation
from prefixcap.metrics.registry import lower_is_better
from prefixcap.utils.files import atomic_write_text

_FIRST = "CIDEr"  # the score that orders the page as it opens
_MARK = '<meta name="generator" content="prefixcap leaderboard">'
_GENERAL = ("less is better: ", "95% confidence intervals", "captions / humans: ")  # notes that the page has itself
_KEPT = ("not compared, ", "the vocabulary and distinct")  # of a comparison's notes


@dataclass(frozen=True)
class Leaderboard:
    """Evaluations of the same images with the same references.

    Attributes:
        systems: by name.
        comparison: of the systems, in this order; None of a single one.
    """

    systems: Mapping[str, StoredEvaluation]
    comparison: Comparison | None

    def html(self, title: str) -> str:
        """A self-contained page, which asks no network for anything. Of more than 10,000 images it lists a sample."""
        first = next(iter(self.systems.values()))
        images = len(first.captions)
        parts = {
            "mark": _MARK,
            "title": html.escape(title),
            "summary": f"{count_text(len(self.systems), 'system')}, {count_text(images, 'image')}",
            "tables": "\n".join(self._tables()),
            "notes": "".join(f"<li>{html.escape(note)}</li>" for note in self.notes()),
            "data": page_data(self._data()),
        }
        # An escape in somebody's JSON can be half a surrogate pair, which no file can hold.
        return fill_page("leaderboard.html", parts).encode("utf-8", "replace").decode("utf-8")

    def write(self, file: Path, title: str = "Leaderboard") -> None:
        """Write the page, atomically.

        Args:
            file: a leaderboard that is there already is replaced.
            title: of the page.

        Raises:
            InputError: something else is there, or it cannot be written.
        """
        require_replaceable(file)
        atomic_write_text(file, self.html(title))

    def notes(self) -> list[str]:
        """What a reader of the scores should know, one line each; a note on some systems begins with their names."""
        notes = ["ranges: 95% confidence intervals by bootstrap over images"]
        if self.comparison is not None:
            corrected = ", corrected by Holm for the pairs of a column" if len(self.systems) > 2 else ""
            notes.append(
                "letters: systems that share one in a column do not differ significantly "
                f"(paired bootstrap over images, p < {SIGNIFICANT}{corrected})"
            )
            notes += [note for note in self.comparison.notes if note.startswith(_KEPT)]
        if any(system.humans.scores for system in self.systems.values()):
            notes.append("humans: each human caption scored against the others of its image; they have no letters")
        having = dict[str, list[str]]()
        for name, system in self.systems.items():
            for note in system.notes:
                if not note.startswith(_GENERAL):
                    having.setdefault(note, []).append(name)
        for note, names in having.items():
            notes.append(note if len(names) == len(self.systems) else f"{', '.join(names)}: {note}")
        if missing := [name for name, system in self.systems.items() if not system.references]:
            notes.append(f"{', '.join(missing)}: no references, as there is no report.html")
        return notes

    def _tables(self) -> Iterator[str]:
        """That of the scores, with people, and those of further figures."""
        rows = {name: system.figures for name, system in self.systems.items()}
        yield self._table("scores", rows, "", self._humans())
        for title in dict.fromkeys(title for system in self.systems.values() for title in system.tables):
            rows = {name: system.tables[title] for name, system in self.systems.items() if title in system.tables}
            yield self._table(title, rows, f"{title} ")

    def _humans(self) -> Figures | None:
        """All evaluations score the same human captions, but perhaps not by the same metrics."""
        humans = Figures({}, {})
        for system in self.systems.values():
            for name, score in system.humans.scores.items():
                humans.scores.setdefault(name, score)
                if name in system.humans.intervals:
                    humans.intervals.setdefault(name, system.humans.intervals[name])
        return humans if humans.scores else None

    def _table(self, title: str, rows: Mapping[str, Figures], prefix: str, humans: Figures | None = None) -> str:
        """A table; `prefix` stands before the names of its figures where `compare` names them."""
        names = list(dict.fromkeys(name for row in rows.values() for name in row.scores))
        if not names:
            return ""
        keys = {name: prefix + name for name in names}
        lower = [] if prefix else lower_is_better(names)
        by = _FIRST if _FIRST in names else names[0]
        best = {} if prefix else _best(rows, lower)  # which length or vocabulary is best, nobody can say

        def rank(row: Figures) -> float:
            value = row.scores.get(by, math.nan)
            return math.inf if math.isnan(value) else value if by in lower else -value

        lines = [(rank(row), self._row(name, row, names, keys, best)) for name, row in rows.items()]
        if humans is not None:
            lines.append((rank(humans), self._row("humans", humans, names, {}, {})))
        body = "".join(line for _, line in sorted(lines, key=lambda ranked: ranked[0]))
        heads = [_head(name, "ascending" if name in lower else "descending", name == by) for name in names]
        heads.insert(0, _head("System", "ascending", False))
        letters = max(len(self._groups(name, key)) for name in rows for key in keys.values())
        label = html.escape(title)
        return (
            f'<section class="panel table" aria-label="{label}"><h2>{label}</h2>'
            f'<div class="scroll" tabindex="0" role="group" aria-label="{label}, scrolls sideways">'
            f'<table class="ranking" style="--letters:{letters / 2}rem">'
            f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table></div></section>"
        )

    def _row(
        self, name: str, row: Figures, columns: Sequence[str], keys: Mapping[str, str], best: Mapping[str, float]
    ) -> str:
        """The row of a system; of people, `keys` is empty."""
        cells = []
        for column in columns:
            value = row.scores.get(column)
            groups = "" if column not in keys else self._groups(name, keys[column])
            is_best = value is not None and value == best.get(column)
            cells.append(_cell(value, row.intervals.get(column), groups, is_best))
        kind = "" if keys else ' class="humans"'
        return f'<tr{kind}><th scope="row">{html.escape(name)}</th>{"".join(cells)}</tr>'

    def _groups(self, system: str, score: str) -> str:
        compared = {} if self.comparison is None else self.comparison.systems
        return compared[score][list(self.systems).index(system)].groups if score in compared else ""

    def _data(self) -> dict[str, Any]:
        """What the script of the page reads: see the head of that script."""
        systems = list(self.systems.values())
        images = list(systems[0].captions)
        sample = images[:: max(1, math.ceil(len(images) / MOST_IMAGES))]
        rows = [dict(zip(system.captions, range(len(images)), strict=True)) for system in systems]
        names = sorted({name: None for system in systems for name in system.per_image}, key=lambda name: name != _FIRST)
        lower = lower_is_better(names)
        references, pictures = dict[str, list[str]](), dict[str, str]()
        for system in reversed(systems):
            references |= system.references
            pictures |= system.pictures
        return {
            "systems": list(self.systems),
            "metrics": [{"name": name, "lower": name in lower} for name in names],
            "ids": sample,
            "references": [references.get(image, []) for image in sample],
            "captions": [[system.captions[image] for image in sample] for system in systems],
            "scores": [
                [
                    [finite_score(system.per_image[name][row[image]]) for image in sample]
                    if name in system.per_image
                    else None
                    for name in names
                ]
                for system, row in zip(systems, rows, strict=True)
            ],
            "pictures": {index: pictures[image] for index, image in enumerate(sample) if image in pictures},
            "total": len(images),
        }


def leaderboard(folders: Mapping[str, Path]) -> Leaderboard:
    """Read evaluations and compare them by every score that all have.

    Args:
        folders: that evaluations were written to, by the systems' names.

    Raises:
        InputError: there is none; a folder holds no evaluation; and as `prefixcap.evaluation.comparison.compare`: the
            images, the references or all metrics differ.
    """
    if not folders:
        raise InputError("a leaderboard takes one evaluation or more: give their folders")
    systems = {name: read_evaluation(folder) for name, folder in folders.items()}
    comparison = compare(*folders.values()) if len(folders) > 1 else None
    first, *others = systems
    for name in others:
        if systems[name].captions.keys() != systems[first].captions.keys():
            raise InputError(f"{folders[first]} and {folders[name]} have captions of different images: evaluate again")
    return Leaderboard(systems, comparison)


def require_replaceable(file: Path) -> None:
    """Raise InputError if something is there that is not a page of this module."""
    if file.is_dir():
        raise InputError(f"{file} is a folder: name a file in it")
    if file.exists() and not _is_leaderboard(file):
        raise InputError(f"{file} is there already and is no leaderboard: name another file")


def _is_leaderboard(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return file.is_file() and _MARK.encode() in opened.read(2000)
    except OSError as error:
        raise InputError(f"cannot read {file}, which would be replaced: {error.strerror}") from error


def _best(rows: Mapping[str, Figures], lower: Sequence[str]) -> dict[str, float]:
    """The best value of each score that two systems or more have."""
    values = dict[str, list[float]]()
    for row in rows.values():
        for name, value in row.scores.items():
            values.setdefault(name, []).append(value)
    return {name: (min if name in lower else max)(all_) for name, all_ in values.items() if len(all_) > 1}


def _head(name: str, first: str, sorted_by: bool) -> str:
    """A column's head; `first` is the order in which a first click sorts it: the best on top."""
    now = f' aria-sort="{first}"' if sorted_by else ""
    less = "<small>less is better</small>" if first == "ascending" and name != "System" else ""
    return f'<th scope="col" data-first="{first}"{now}><button type="button">{html.escape(name)}</button>{less}</th>'


def _cell(value: float | None, interval: tuple[float, float] | None, groups: str, best: bool) -> str:
    if value is None:
        return "<td>&ndash;</td>"
    bounds = f"<small>{interval[0]:.3f}&ndash;{interval[1]:.3f}</small>" if interval else ""
    shown = f'<b>{figure_text(value, 3)}<span class="unseen"> (best)</span></b>' if best else figure_text(value, 3)
    return f'<td data-value="{value!r}">{shown}<i class="groups">{groups}</i>{bounds}</td>'
