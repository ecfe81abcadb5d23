"""Say what is in a datastore, or in the captions of any feature store.

Prints its encoder, and of each split how many captions it has, how many of them differ in their words, and the first \
few. With --match only captions are printed, one a line, all that contain the text.
"""

from typing import Annotated

import numpy as np
import typer

from prefixcap.commands.datastore.captions import BLOCK, INDEXES, MOST_SHOWN, PATIENCE, Store, digests, repetitions
from prefixcap.errors import InputError
from prefixcap.features import Feature

EXAMPLES = """  prefixcap datastore list stores/mine

  prefixcap datastore list stores/mine --match horse --count 20"""


def main(
    store: Store,
    match: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Print the captions that contain this, in any case of letters.", show_default=False
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Only this split.", show_default=False)] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", show_default=False,
            help=f"Print at most N captions of each split (default: {MOST_SHOWN}; all with --match).",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Print them. Raises InputError as `FeatureStore`."""
    from tqdm import tqdm

    from prefixcap.store import FeatureStore

    if match is not None and not match.strip():
        raise InputError("--match is empty: give a text, or leave it out")
    opened = FeatureStore(store)
    names = [opened.split(split).name] if split else list(opened.splits)
    if match is None:
        print(f"datastore: {opened.location}\nencoder: {opened.encoder.name}")
        for file in sorted(opened.path.glob(INDEXES)):
            print(f"index: {file.name}")
    for name in names:
        captions = opened.split(name).captions
        if match is None:
            from_here = ", from which is retrieved" if name == opened.default_split and len(opened.splits) > 1 else ""
            if not opened.split(name).features.count(Feature.CAPTION):
                from_here = ", without embeddings: embed with caption among features=[...]"
            words = [digests([])]
        shown = 0
        with tqdm(total=len(captions), desc="reading", unit=" captions", delay=PATIENCE, leave=False) as bar:
            for start in range(0, len(captions), BLOCK):
                texts = captions[start : start + BLOCK]
                bar.update(len(texts))
                if match is None:
                    words.append(digests(texts))
                    continue
                for text in texts:
                    if match.lower() in text.lower() and (count is None or shown < count):
                        print(text)
                        shown += 1
        if match is None:
            different = len(captions) - int(repetitions(np.concatenate(words)).sum())
            print(f"{name}: {len(captions):,} captions, {different:,} different{from_here}")
            for text in captions[: MOST_SHOWN if count is None else count]:
                print(f"  {text}")
