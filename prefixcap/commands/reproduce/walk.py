"""The steps of a reproduction: files, stores, training and evaluation, table."""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from prefixcap import __version__
from prefixcap.commands.common.steps import Timing, call, markdown, run_once, train_once
from prefixcap.commands.reproduce.papers import MEMORY, VOCABULARY, Paper, Row, dataset
from prefixcap.errors import InputError
from prefixcap.utils.files import atomic_write_text, read_json


@dataclass(frozen=True)
class Walk:
    """A paper, the files that each data set is read from, and where runs and table are written.

    Attributes:
        paper: its stores and rows.
        sources: the files of each data set.
        folder: of the runs and the table.
        rehearse: whether the paper is a rehearsal.
        by: who runs it.
    """

    paper: Paper
    sources: dict[str, list[str]]
    folder: Path
    rehearse: bool = False
    by: str = ""

    def files(self) -> list[str]:
        """The files that must be there."""
        names = [name for options in self.paper.embed for name in self.sources.get(dataset(options), ())]
        return list(dict.fromkeys([*names, *self.paper.files]))

    def run_of(self, row: Row) -> Path:
        """The folder of a row's run, which rows with the same training share."""
        return self.folder / "runs" / next(name for name, other in self.paper.rows.items() if other.train == row.train)

    def options_of(self, row: Row) -> list[str]:
        """The options of a row's evaluation, but for out=."""
        run = self.run_of(row)
        trained = row.train and row.train[0] != "train-lm"
        checkpoint = [f"ckpt={run / 'checkpoints' / 'best.ckpt'}"] if trained else []
        return [*checkpoint, *(option.replace("RUN", str(run)) for option in row.evaluate)]

    def described(self) -> str:
        """All steps, with what is missing."""
        lines = [self.paper.title, "", "1. Files"]
        lines += [f"   {'ok     ' if Path(file).exists() else 'missing'} {file}" for file in self.files()] or [
            "   none"
        ]
        lines += [f"   Downloaded at first use: {self.paper.models}", "", "2. Embed"]
        lines += [f"   {_shown('embed', options)}" for options in self.paper.embed]
        lines += ["", "3. Train and evaluate"]
        for row in self.paper.rows.values():
            lines += [f"   {line}" for line in self._commands(row) if f"   {line}" not in lines]
        lines += [f"   {_shown('compare-systems', self._compared(options))}" for options in self.paper.compare]
        return "\n".join([*lines, "", "4. Table", f"   {self.folder / 'table.md'}"])

    def run(self) -> None:
        """Do all steps. Raises InputError if a file is missing or a step fails."""
        print(f"{self.paper.title}\n\n1. Files")
        if missing := [file for file in self.files() if not Path(file).exists()]:
            raise InputError(
                f"missing: {', '.join(missing)}: docs/reproduce/{self.paper.page}.md says where to get them; "
                "--rehearse needs none"
            )
        print("\n2. Embed")
        for options in self.paper.embed:
            call("embed", *options)
        if self.rehearse:
            _write_vocabulary()
        print("\n3. Train and evaluate")
        tables = [self._compare(options) for options in self.paper.compare]
        text = "\n".join([self._table()] if self.paper.rows else tables)
        atomic_write_text(self.folder / "table.md", text)
        print(f"\n4. Table: {self.folder / 'table.md'}\n\n{text}")

    def _compared(self, options: tuple[str, ...]) -> tuple[str, ...]:
        names = dict(zip(options[::2], options[1::2], strict=False))
        return ("--folder", str(self.folder / f"{names['--source']}-to-{names['--target']}"), *options)

    def _compare(self, options: tuple[str, ...]) -> str:
        options = self._compared(options)
        call("compare-systems", *options)
        table = (Path(options[1]) / "table.md").read_text(encoding="utf-8")
        return f"{Path(options[1]).name}; {self._who(sorted(Path(options[1]).glob('*/timing.json')))}\n\n{table}"

    def _commands(self, row: Row) -> list[str]:
        run = self.run_of(row)
        command, options = ("train-lm", row.train[1:]) if row.train[:1] == ("train-lm",) else ("train", row.train)
        trained = [_shown(command, (*options, f"run_dir={run}"))] if row.train else []
        return [*trained, _shown("eval", self.options_of(row))]

    def _evaluated(self, name: str, row: Row) -> Path:
        run, folder = self.run_of(row), self.folder / "eval" / name
        if row.train[:1] == ("train-lm",):
            train_once(run, *row.train[1:], command="train-lm")
        elif row.train:
            train_once(run, *row.train)
        run_once(folder, "eval", [*self.options_of(row), f"out={folder}"], folder / "written.jsonl")
        return folder

    def _table(self) -> str:
        """Each row as published and as computed here, with who ran it."""
        done = {name: self._evaluated(name, row) for name, row in self.paper.rows.items()}
        scores = {name: read_json(folder / "metrics.json") for name, folder in done.items()}
        columns = list(dict.fromkeys(column for row in self.paper.rows.values() for column in row.published))
        columns = columns or ["BLEU-4", "CIDEr"]
        cells = [["row", "", *columns, "run"]]
        for name, row in self.paper.rows.items():
            if row.published:
                cells.append([name, "published", *_cells(row.published, columns), "-"])
            times = [done[name] / "timing.json", self.run_of(row) / "timing.json"]
            cells.append([name, "ours", *_cells(scores[name], columns), self._who([t for t in times if t.exists()])])
        return markdown(cells)

    def _who(self, timings: list[Path]) -> str:
        """Who ran steps, when, by which version, on what, and for how long."""
        times = [Timing.read(file.parent) for file in timings]
        last = max((timing.sessions[-1][1] for timing in times), default=time.time())
        hours = sum(timing.seconds for timing in times) / 3600
        machines = dict.fromkeys(timing.machine for timing in times)
        parts = [self.by, time.strftime("%Y-%m-%d", time.gmtime(last)), f"prefixcap {__version__}", *machines]
        return ", ".join(part for part in (*parts, f"{hours:.2f} hours") if part)


def _cells(scores: dict[str, float], columns: list[str]) -> list[str]:
    return [f"{scores[column]:.3f}" if column in scores else "-" for column in columns]


def _shown(command: str, options: "tuple[str, ...] | list[str]") -> str:
    return f"prefixcap {command} {shlex.join(options)}"


def _write_vocabulary() -> None:
    """Write the things that the small world's sentences name, for rows that read entities."""
    from prefixcap.store import FeatureStore
    from prefixcap.vocabulary import vocabulary_of

    names = vocabulary_of(FeatureStore(MEMORY).split("train").captions[:]).names
    atomic_write_text(VOCABULARY, "".join(f"{name}\n" for name in names))
