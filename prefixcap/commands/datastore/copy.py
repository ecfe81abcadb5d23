"""Make a datastore of the captions of a feature store, with their embeddings.

A store with images is not edited itself, since nothing of it shall be lost: its captions are, in a copy.
"""

from pathlib import Path
from typing import Annotated

import typer

from prefixcap.commands.datastore.captions import print_left

EXAMPLES = """  prefixcap embed data=coco 'features=\\[image,caption]' \\
      data.store=stores/coco

  prefixcap datastore copy stores/coco stores/coco-captions"""


def main(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="A feature store with embeddings of captions: a folder or a URL.")
    ],
    to: Annotated[Path, typer.Argument(metavar="NEW", help="The folder of the datastore, which must not exist.")],
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The split (default: train, or the largest).", show_default=False),
    ] = None,
) -> None:
    """Write the new store. Raises InputError as `copy_sentences`."""
    from prefixcap.store import FeatureStore
    from prefixcap.store.edit import copy_sentences

    opened = FeatureStore(store)
    copy_sentences(opened, split or opened.default_split, to)
    print_left(to, f"datastore: {to}; encoder: {opened.encoder.name}")
