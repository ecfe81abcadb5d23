"""Walk through a paper's tables: its files, embedding, training, evaluation, and the table beside the published one.

Without PAPER: lists the papers, and how many of their files are there. Each step is a command of prefixcap, \
which is printed before it runs; finished ones are not run again. `--rehearse` walks the same way on the small world, \
which comes with the package, in minutes: no files, downloads or GPU are needed, and the scores say nothing about the \
paper.
"""

from pathlib import Path
from typing import Annotated

import typer

from prefixcap.commands.reproduce.papers import Paper, read_papers, rehearsal
from prefixcap.commands.reproduce.walk import Walk
from prefixcap.errors import InputError

EXAMPLES = """  prefixcap reproduce

  prefixcap reproduce maccap --rehearse

  prefixcap reproduce clipcap --dry-run

  prefixcap reproduce clipcap --only transformer --by "A. Researcher\""""


def main(
    name: Annotated[str | None, typer.Argument(metavar="PAPER", help="A paper.", show_default=False)] = None,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="The same on the small world, in minutes.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the files and commands, and run nothing.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ROW...", help="These rows of the table alone.", show_default=False)
    ] = None,
    by: Annotated[str, typer.Option(metavar="NAME", help="Who runs it, for the table.", show_default=False)] = "",
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The folder of runs and table (default: runs/reproduce/PAPER, with -rehearsal in a rehearsal).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the papers, or walk through one. Raises InputError if files are missing or a step fails."""
    papers, files = read_papers()
    if name is None:
        print(listed(papers, files))
        return
    if name not in papers:
        raise InputError(f"there is no paper '{name}': choose from {', '.join(papers)}")
    paper = papers[name]
    if only and paper.compare:
        raise InputError(f"the rows of {name} are systems: use `prefixcap compare-systems`, as --dry-run prints it")
    if unknown := [row for row in only or () if row not in paper.rows]:
        raise InputError(f"{name} has no row '{unknown[0]}': choose from {', '.join(paper.rows)}")
    if only:
        paper = paper.only(only)
    paper = rehearsal(paper) if rehearse else paper
    folder = folder or Path("runs/reproduce") / (f"{name}-rehearsal" if rehearse else name)
    walk = Walk(paper, files, folder, rehearse, by)
    print(walk.described()) if dry_run else walk.run()


def listed(papers: dict[str, Paper], files: dict[str, list[str]]) -> str:
    """A line for each paper, with how many of its files are there."""
    lines = []
    for name, paper in papers.items():
        there = [Path(file).exists() for file in Walk(paper, files, Path()).files()]
        lines.append(f"  {name:14} {paper.title:58} {sum(there)} of {len(there)} files are there")
    return "\n".join([*lines, "", "prefixcap reproduce PAPER --dry-run prints the files and commands of one."])
