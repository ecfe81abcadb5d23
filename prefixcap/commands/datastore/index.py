"""Index the captions of a datastore of millions, to search them approximately.

The index, by faiss (pip install 'prefixcap\\[faiss]'), lies beside the captions and is used wherever the datastore \
is. Without one all captions are compared, which is exact, and fast enough for some hundred thousand. With one the \
nearest of those that it proposes are found by exact comparison, and a few may be missed.

After captions were added or removed it is not used any more, and a warning says so: make it again.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefixcap.commands.datastore.captions import Store
from prefixcap.errors import InputError

if TYPE_CHECKING:
    from prefixcap.prompts.datastore import Datastore
    from prefixcap.prompts.index import CaptionIndex

EXAMPLES = """  prefixcap datastore index stores/cc3m

  prefixcap datastore index stores/cc3m --lists 4096 --bytes 64 --probes 64"""


def main(
    store: Store,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The split (default: train, or the largest).", show_default=False),
    ] = None,
    lists: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", show_default=False,
            help="Lists that captions are sorted into (default: about four times the square root of their number).",
        ),
    ] = None,
    size: Annotated[
        int, typer.Option("--bytes", min=1, metavar="N", help="Bytes for each caption, a divisor of the width.")
    ] = 64,
    probes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Lists to look into; more find more, and take longer.")
    ] = 32,
    seed: Annotated[int, typer.Option(metavar="N", help="The random seed of the captions that it learns from.")] = 0,
) -> None:  # fmt: skip
    """Write the index. Raises InputError as `CaptionIndex.build`."""
    from prefixcap.prompts.datastore import Datastore
    from prefixcap.prompts.index import CaptionIndex, index_path, require_faiss
    from prefixcap.store import FeatureStore
    from prefixcap.store.remote import is_remote

    require_faiss()
    if is_remote(store):
        raise InputError(f"{store} is a URL, and an index is written to the folder of a datastore: copy it first")
    opened = FeatureStore(store)
    datastore = Datastore.open(opened, split, indexed=False)
    assert datastore.split is not None
    file = index_path(opened.path, datastore.split.name)
    index = _with_other_probes(file, datastore, lists, size, probes)
    if index is None:
        index = CaptionIndex.build(datastore.memory, datastore.split.digest, lists, size, probes, seed, progress=True)
    index.save(file)
    about = index.about
    print(f"index: {file} ({file.stat().st_size / 1e6:.1f} MB)")
    print(f"captions: {len(datastore):,}; lists: {about.lists}; bytes: {about.size}; probes: {about.probes}")


def _with_other_probes(
    file: Path, datastore: "Datastore", lists: int | None, size: int, probes: int
) -> "CaptionIndex | None":
    """The index that is there, if it differs in nothing but the number of probes."""
    from prefixcap.prompts.index import CaptionIndex

    assert datastore.split is not None
    try:
        index = CaptionIndex.open(file, datastore.split, datastore.memory.dim)
    except InputError:  # there is none, or another
        return None
    if index.about.probes == probes or index.about.size != size or index.about.lists != (lists or index.about.lists):
        return None
    index.about.probes = probes
    return index
