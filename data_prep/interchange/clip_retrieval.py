"""clip-retrieval's output folder: `img_emb/img_emb_0.npy`, `text_emb/text_emb_0.npy`, `metadata/metadata_0.parquet`."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_prep.interchange.sources import CHUNK, Block, Row, Source, open_array
from data_prep.records import import_pyarrow
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity

COLUMNS = ("key", "image_path", "caption", "captions", "split", "domain")


def read_clip_retrieval(folder: Path, encoder: EncoderIdentity, first: int) -> Source:
    """The images of a folder, in the order of the files' numbers.

    An image's id is its `key`, else its `image_path`, else a running number; its captions are the list `captions`,
    else the one `caption`. `text_emb` may be missing. So may any column.

    Args:
        folder: with `img_emb` and `metadata` in it.
        encoder: the encoder that computed the embeddings.
        first: the first running number.

    Raises:
        InputError: a file is missing or cannot be read, its number of rows is another than that of the embeddings,
            their width is not the encoder's, or pyarrow is not installed.
    """
    images = _numbered(folder / "img_emb", ".npy")
    texts = _numbered(folder / "text_emb", ".npy")
    tables = _numbered(folder / "metadata", ".parquet")
    if not images:
        raise InputError(f"{folder / 'img_emb'} has no file img_emb_0.npy: give the output folder of clip-retrieval")
    for kind, files in [("metadata", tables)] + [("text_emb", texts)] * bool(texts):
        if odd := sorted(files.keys() ^ images.keys()):
            raise InputError(
                f"{folder / kind} and {folder / 'img_emb'} do not have the same files: number {odd[0]} is in one only; "
                "put the missing file there, or take the other away"
            )
    blocks = []
    for number, path in sorted(images.items()):
        size = len(open_array(path, encoder))
        table = tables[number]
        columns, rows = _describe(table)
        counts = {table: rows} | ({texts[number]: len(open_array(texts[number], encoder))} if texts else {})
        for file, count in counts.items():
            if count != size:
                raise InputError(f"{file} has {count} rows, but {path} has {size}: they must be of the same images")
        blocks.append(
            Block(
                path,
                partial(_rows, table, columns, first),
                partial(open_array, path, encoder),
                range(size),
                partial(open_array, texts[number], encoder) if texts else None,
            )
        )
        first += size
    return Source("clip-retrieval", folder, [*images.values(), *texts.values(), *tables.values()], blocks)


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """The files `<folder's name>_<number><suffix>`, by number."""
    files: dict[int, Path] = {}
    for path in sorted(folder.glob(f"*{suffix}")):
        if match := re.fullmatch(rf"{folder.name}_(\d+)", path.stem):
            other = files.setdefault(int(match[1]), path)
            if other != path:
                raise InputError(f"{other} and {path} have the same number: take one away")
    return files


def _describe(table: Path) -> tuple[list[str], int]:
    """Those of the columns that a Parquet file has, and its number of rows."""
    pyarrow = import_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(table) as file:
            return [name for name in COLUMNS if name in file.schema_arrow.names], file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(table, error) from error


def _rows(table: Path, columns: list[str], first: int) -> Iterator[Row]:
    pyarrow = import_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(table) as file:
            for batch in file.iter_batches(CHUNK, columns=columns):
                for number, row in enumerate(batch.to_pylist(), start=first):
                    captions = row.get("captions")
                    if captions is None:
                        captions = [row["caption"]] if "caption" in row else []
                    image_id = row.get("key", row.get("image_path", number))
                    yield Row(image_id, captions, row.get("image_path"), row.get("split"), row.get("domain"))
                first += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(table, error) from error


def _unreadable(table: Path, error: Exception) -> InputError:
    return InputError(f"{table} cannot be read as Parquet ({' '.join(str(error).split())[:200]}); copy it again")
