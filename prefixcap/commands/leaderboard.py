"""Make one page of several evaluations of the same images.

Reads folders that `eval` wrote and makes one HTML file, which opens from disk: a table of all systems and scores that \
can be sorted, with confidence intervals and significance groups, and the captions of all systems side by side.
"""

from pathlib import Path
from typing import Annotated

import typer

from prefixcap.errors import InputError

EXAMPLES = """  prefixcap leaderboard runs/eval/a runs/eval/b

  prefixcap leaderboard "M2 Transformer=runs/eval/m2" BLIP-2=runs/eval/blip2 \\
      --out coco.html --title "COCO, Karpathy test split\""""


def main(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER...",
            help="An evaluation, or NAME=FOLDER (default: the name of the folder).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The page. A leaderboard that is there already is replaced.")
    ] = Path("leaderboard.html"),
    title: Annotated[str, typer.Option(metavar="TEXT", help="Of the page.")] = "Leaderboard",
) -> None:
    """Write the page."""
    from prefixcap.evaluation.leaderboard import leaderboard, require_replaceable

    named: dict[str, Path] = {}
    for word in folders:
        name, folder = _named(word)
        if name in named:
            raise InputError(f"two systems are called {name!r}, {named[name]} and {folder}: give NAME=FOLDER")
        named[name] = folder
    require_replaceable(out)
    leaderboard(named).write(out, title)
    print(f"written to {out}")


def _named(word: str) -> tuple[str, Path]:
    """The name of a system and its folder; a folder may have an equals sign in its name."""
    name, equals, folder = word.partition("=")
    if not equals or Path(word).is_dir():
        return Path(word).absolute().name or word, Path(word)
    if not name.strip() or not folder:
        raise InputError(f"cannot understand {word!r}: give FOLDER or NAME=FOLDER")
    return name.strip(), Path(folder)
