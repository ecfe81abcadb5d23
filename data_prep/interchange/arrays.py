"""Embeddings in a plain `.npy` or `.npz` file, with a JSON list of the captions of each row beside it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.interchange.sources import Block, Row, Source, open_array
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.utils.files import read_json


def read_arrays(path: Path, captions: Path, encoder: EncoderIdentity, first: int) -> Source:
    """The rows of an array, each an image.

    Args:
        path: `.npy` or `.npz`.
        captions: a JSON list with an entry a row: a caption, a list of captions, or an object with `caption` or
            `captions` and, if wanted, `image_id` or `id`, `file` or `image`, and `split`.
        encoder: the encoder that computed the embeddings.
        first: the id of the first row, where the entries give none.

    Raises:
        InputError: a file cannot be read, an entry has another form, there are more or fewer entries than rows, or the
            embeddings' width is not the encoder's.
    """
    embeddings = open_array(path, encoder)
    entries = read_json(captions)
    if not isinstance(entries, list):
        raise InputError(f"{captions} is no JSON list: give one entry for each row of {path}")
    if len(entries) != len(embeddings):
        raise InputError(f"{captions} has {len(entries)} entries, but {path} has {len(embeddings)} rows: give one each")
    for number, entry in enumerate(entries):
        captioned = isinstance(entry, dict) and ("caption" in entry or "captions" in entry)
        if not captioned and not isinstance(entry, str | list):
            raise InputError(
                f"{captions}: entry {number} is neither a caption nor a list of captions, and no object with `caption` "
                "or `captions`: write it as one of these"
            )
    block = Block(path, partial(_rows, entries, first), lambda: embeddings, range(len(entries)))
    return Source("arrays and JSON", path, [path, captions], [block])


def _rows(entries: list[Any], first: int) -> Iterator[Row]:
    for number, entry in enumerate(entries, start=first):
        fields = entry if isinstance(entry, dict) else {"captions": entry}
        captions = fields["captions"] if "captions" in fields else fields["caption"]
        yield Row(
            fields.get("image_id", fields.get("id", number)),
            captions if isinstance(captions, list) else [captions],
            fields.get("file", fields.get("image")),
            fields.get("split"),
        )
