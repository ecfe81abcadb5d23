"""Remove captions from a datastore.

Those that have the same words as one of --captions, or that contain the text of --match, in any case of letters. \
With --dry-run they are printed, one a line.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer

from prefixcap.commands.datastore.captions import Store, blocks, by_part, print_left, text_files
from prefixcap.errors import InputError
from prefixcap.vocabulary import same

EXAMPLES = """  prefixcap datastore remove stores/mine --match horse --dry-run

  prefixcap datastore remove stores/mine --captions wrong.txt

  prefixcap datastore list stores/mine --match horse | head -20 | \\
      prefixcap datastore remove stores/mine --captions -"""


def main(
    store: Store,
    captions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", show_default=False,
            help="Those in a file, of the kinds that `add` reads; -: on the standard input, one a line.",
        ),
    ] = None,
    match: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Captions that contain this.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the captions that would be removed, and remove none.")
    ] = False,
) -> None:  # fmt: skip
    """Remove them. Raises InputError as `editing` and `edit`."""
    if captions is None and not (match or "").strip():
        raise InputError("nothing to remove is named: give --captions FILE or --match TEXT")
    with TemporaryDirectory() as folder:
        named = _words_of(captions, Path(folder)) if captions is not None else set()
    from prefixcap.store.edit import edit, editing

    with editing(store) as opened:
        parts = opened.parts()
        stays = [np.empty(0, np.bool_)]
        for _, _, texts in blocks(parts, "reading"):
            gone = [same(text) in named or bool(match and match.lower() in text.lower()) for text in texts]
            stays.append(~np.array(gone, np.bool_))
            if dry_run:
                print(
                    *(text for text, is_gone in zip(texts, gone, strict=True) if is_gone),
                    sep="\n",
                    end="\n" * any(gone),
                )
        keep = np.concatenate(stays)
        removed = int((~keep).sum())
        if dry_run:
            print(f"would be removed: {removed:,} of {len(keep):,} captions", file=sys.stderr)
            return
        if removed:
            edit(opened, by_part(keep, parts))
    print_left(opened.path, f"removed: {removed:,} of {len(keep):,} captions")


def _words_of(source: str, folder: Path) -> set[str]:
    """What captions of the same words as those of a file have in common."""
    from data_prep.readers.text import read_text

    samples = (sample for shard in read_text(text_files([source], folder)).shards for sample in shard.read()[0])
    named = {same(caption) for sample in samples for caption in sample.record.captions} - {""}
    if not named:
        raise InputError(f"there is no caption in {'the standard input' if source == '-' else source}")
    return named
