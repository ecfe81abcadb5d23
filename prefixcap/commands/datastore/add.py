"""Add captions to a datastore, embedded by its own encoder.

A SOURCE is one of:

- a .txt file with a caption a line, a .tsv or .csv file with a column caption, a .json or .jsonl file, as `prefixcap \
embed data=text` reads them
- -: captions from the standard input, one a line
- the folder or the URL of another datastore of the same encoder, whose captions need not be embedded again

An interrupted addition goes on where it was when the same command is given again. Captions that are there already are \
added a second time: `prefixcap datastore dedupe` removes such.
"""

import hashlib
import itertools
import shutil
import tempfile
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefixcap.commands.common.options import Device
from prefixcap.commands.datastore.captions import DRY_RUN, MOST_SHOWN, Store, print_left, text_files
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity, Feature
from prefixcap.store.remote import is_remote

if TYPE_CHECKING:
    from data_prep.records import Dataset
    from prefixcap.store import FeatureStore, StoreSplit

UNFINISHED = ".adding-"  # how the folder in the store begins where new captions are embedded

EXAMPLES = """  prefixcap datastore add stores/mine captions.txt more/*.jsonl

  echo "A narwhal in the Thames." | prefixcap datastore add stores/mine -

  prefixcap datastore add stores/mine stores/coco-captions"""


def main(
    store: Store,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Text files, datastores, or -.")],
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", show_default=False,
            help="The split to add to (default: train, or the largest: that from which is retrieved).",
        ),
    ] = None,
    max_words: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Leave out longer captions of text files.", show_default=False),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", show_default=False,
            help="The store's encoder under the name that it has here (default: what the store says).",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_RUN)] = False,
    device: Device = "auto",
) -> None:  # fmt: skip
    """Add them. Raises InputError as `read_text`, `load_encoder`, `editing` and `edit`."""
    files, stores = _sorted(sources)
    from data_prep.readers.inputs import split_name
    from data_prep.readers.text import read_text
    from prefixcap.store import FeatureStore
    from prefixcap.store.edit import edit, editing, new_ids, sentences

    with tempfile.TemporaryDirectory() as folder, editing(store) as opened:
        into = split_name(split or opened.default_split)
        others = [FeatureStore(path) for path in stores]
        for other in others:
            _require_same_encoder(opened, other.encoder, other.location)
        parts = [other.split(other.default_split) for other in others]
        dataset = read_text(text_files(files, Path(folder)), into, max_words=max_words) if files else None
        if dry_run:
            _print_plan(dataset, parts, into)
            return
        work = None
        if dataset is not None:
            work = opened.path / f"{UNFINISHED}{_fingerprint(dataset)}"
            for leftover in opened.path.glob(f"{UNFINISHED}*"):
                if leftover != work:
                    shutil.rmtree(leftover, ignore_errors=True)
            parts.append(_embedded(dataset, opened, work, into, encoder, device))
        dtype = opened.split(next(iter(opened.splits))).feature(Feature.CAPTION).dtype
        ids = new_ids(opened, count := sum(len(part.captions) for part in parts))
        starts = itertools.accumulate((len(part.captions) for part in parts), initial=0)
        pairs = zip(starts, parts, strict=False)
        edit(
            opened,
            added=(block for start, part in pairs for block in sentences(part, ids[start:], into, dtype)),
        )
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    print_left(opened.path, f"added to split {into}: {count:,}")


def _sorted(sources: list[str]) -> tuple[list[str], list[str]]:
    """The text files, or "-", and the stores among sources. Raises InputError if one is neither."""
    files, stores = list[str](), list[str]()
    for source in dict.fromkeys(sources):
        if is_remote(source) or (Path(source) / "index.json").is_file():
            stores.append(source)
        elif source == "-" or Path(source).is_file() or has_magic(source):
            files.append(source)
        else:
            raise InputError(f"there is no {source}: give text files, datastores, or - for the standard input")
    return files, stores


def _fingerprint(dataset: "Dataset") -> str:
    shards = " ".join(shard.fingerprint() for shard in dataset.shards)
    return hashlib.sha256(shards.encode()).hexdigest()[:12]


def _embedded(
    dataset: "Dataset", store: "FeatureStore", work: Path, into: str, encoder: str | None, device: str
) -> "StoreSplit":
    """The sentences of text files, embedded as those of a store are, as a split of a store at `work`."""
    import torch

    from data_prep.embedding import embed
    from prefixcap.encoders import load_encoder
    from prefixcap.store import FeatureStore
    from prefixcap.utils.hardware import usable_device

    try:
        loaded = load_encoder(encoder or store.encoder.name, usable_device(device))
    except InputError as error:
        hint = "" if encoder else f"; this is the encoder of {store.location}: name it as it is called here, --encoder"
        raise InputError(f"{error}{hint}") from error
    _require_same_encoder(store, loaded.identity, "the encoder that is given" if encoder else "what has its name here")
    dtype = store.split(next(iter(store.splits))).feature(Feature.CAPTION).dtype
    report = embed(dataset, loaded, work, [Feature.CAPTION.option], getattr(torch, str(dtype)))
    if report.skipped:
        print(f"left out: {len(report.skipped):,}")
        for skip in report.skipped[:MOST_SHOWN]:
            print(f"  {skip.file}, {skip.id}: {skip.reason}" if skip.id != "" else f"  {skip.file}: {skip.reason}")
    embedded = FeatureStore(work)
    if others := embedded.splits.keys() - {into}:
        print(f"left out: captions of split {', '.join(sorted(others))}")
    return embedded.split(into)


def _require_same_encoder(store: "FeatureStore", identity: EncoderIdentity, what: str) -> None:
    if not store.encoder.agrees_with(identity):
        mine, theirs = store.encoder, identity
        raise InputError(
            f"the captions of {store.location} were embedded with the encoder {mine.name} ({mine.digest[:8]}), but "
            f"{what} is {theirs.name} ({theirs.digest[:8]}): embeddings of both cannot be compared"
        )


def _print_plan(dataset: "Dataset | None", parts: list["StoreSplit"], into: str) -> None:
    count = sum(len(part.captions) for part in parts)
    left_out = 0
    for shard in dataset.shards if dataset is not None else []:
        samples, skipped = shard.read()
        own = sum(sample.record.split == into for sample in samples)
        count, left_out = count + own, left_out + len(samples) - own + len(skipped)
    print(f"would be added to split {into}: {count:,}; left out: {left_out:,}")
