"""Of captions that have the same words, keep the first.

Case, punctuation and spaces make no difference. Captions of different splits are not compared.
"""

from typing import Annotated

import numpy as np
import typer

from prefixcap.commands.datastore.captions import (
    DRY_RUN,
    Store,
    blocks,
    by_part,
    digests,
    print_left,
    repetitions,
    splits_of,
)

EXAMPLES = """  prefixcap datastore dedupe stores/mine"""


def main(store: Store, dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_RUN)] = False) -> None:
    """Remove the others. Raises InputError as `editing` and `edit`."""
    from prefixcap.store.edit import edit, editing

    with editing(store) as opened:
        parts = opened.parts()
        words = np.concatenate([digests([]), *(digests(texts) for _, _, texts in blocks(parts, "reading"))])
        repeated = repetitions(words, splits_of(parts, opened))
        removed = int(repeated.sum())
        if dry_run:
            print(f"would be removed: {removed:,} of {len(repeated):,} captions")
            return
        if removed:
            edit(opened, by_part(~repeated, parts))
    print_left(opened.path, f"removed: {removed:,} of {len(repeated):,} captions")
