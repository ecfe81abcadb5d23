"""Data sets as img2dataset downloads them (Conceptual Captions, CC12M): tars, parquet files or folders of images."""

import contextlib
import hashlib
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from os import scandir
from pathlib import Path
from typing import Any, TypeVar

from data_prep.readers.inputs import SPLITS, check_shares, clean_caption, draw_split, draw_splits, split_name
from data_prep.readers.remote import RemoteShard, list_shards
from data_prep.readers.tar import list_tar
from data_prep.records import (
    Dataset,
    ImageRecord,
    ParquetCell,
    Sample,
    Shard,
    Skipped,
    TarMember,
    import_pyarrow,
    read_column,
)
from prefixcap.errors import InputError
from prefixcap.store.remote import is_remote
from prefixcap.utils.files import parse_json, read_json
from prefixcap.utils.images import IMAGE_SUFFIXES

IMAGE_COLUMNS = ("jpg", "png", "webp", "image")
CAPTION_COLUMNS = ("caption", "captions", "text", "TEXT")
CAPTION_KEYS = ("captions", "caption", "text", "TEXT")  # in JSON
TEXTS = (".txt", ".caption")
MOST_TEXT = 10_000_000  # bytes of a text or JSON file
MOST_IMAGE = 1_000_000_000

# The key, the file, where the image is, its captions; or why it has none.
Row = tuple[str, str, Path | TarMember | ParquetCell | None, list[object] | str]
FileOrMember = TypeVar("FileOrMember", Path, TarMember)


def read_img2dataset(root: str | Path, val_share: float = 0.01, test_share: float = 0.01, seed: int = 0) -> Dataset:
    """Read what img2dataset wrote, in its forms "webdataset", "parquet" and "files".

    A shard is a tar of KEY.jpg with KEY.txt or KEY.caption, a caption a line, or, where these are missing, KEY.json
    with a "caption", "captions", "text" or a list; a parquet file with a column of images ("jpg", "png", "webp" or
    "image") and one of captions ("caption", "captions", "text" or "TEXT"); or a folder of such files as a tar holds.
    Several lines are one caption if KEY.json says so, as img2dataset's does. A parquet file beside a tar or folder of
    its name only describes that, and is left aside.

    An image's id is its KEY where all shards have different names of one length and their keys begin with them,
    as img2dataset's do, and SHARD/KEY elsewhere: no two shards can have the same.

    Args:
        root: the folder of the shards, or its URL (then only tars and parquet files are read). Those in its folders
            `train`, `val` and `test`, or other spellings of these, are of that split.
        val_share: share of the other images, 0.0 to 1.0, that goes to "val".
        test_share: likewise for "test"; what is left is "train".
        seed: of the draw. The split of an image depends only on its id and the seed, except in a single shard of few
            images, where each split with a share gets at least one.

    Returns:
        The shards, by name; none of them is read yet.

    Raises:
        InputError: there is no such folder, or no shard in it, or pyarrow is needed and not installed.
    """
    check_shares(val_share, test_share)
    remote = list_shards(str(root)) if is_remote(root) else {}
    root = str(root).rstrip("/") if is_remote(root) else Path(root)
    files = _shard_files(root) if isinstance(root, Path) else {name: file for name, (file, _) in remote.items()}
    if not files:
        raise InputError(
            f"{root} holds no tar (00000.tar), parquet file (00000.parquet) or folder of images (00000/), nor do "
            "train/, val/, validation/ or test/ in it; set data.root to the output folder of img2dataset"
        )
    stems = {posixpath.basename(name) for name in files}
    keys_differ = len(stems) == len(files) and len({len(stem) for stem in stems}) == 1
    shards: list[Shard] = []
    for name, file in sorted(files.items()):
        split = split_name(posixpath.dirname(name)) or None
        size = _size(root, name, file) if isinstance(root, Path) else None
        shard = DownloadedShard(
            Path(root), name, file, size, keys_differ, split, val_share, test_share, seed, len(files) == 1
        )
        shards.append(shard if isinstance(root, Path) else RemoteShard(root, shard, remote[name][1]))
    return Dataset(shards, [], root, f"img2dataset's output in {root}")


@dataclass(frozen=True)
class DownloadedShard:
    """A tar, a parquet file or a folder of images with captions.

    Attributes:
        root: the folder of the data set.
        name: of the shard, relative to `root`, with forward slashes and without suffix.
        file: the same with suffix.
        size: images as img2dataset counted them, or rows of the parquet file.
        keys_differ: no other shard has keys that begin with this one's name.
        split: of all its images; None: drawn.
        val_share: of the draw, as are `test_share` and `seed`.
        single: there is no other shard.
    """

    root: Path
    name: str
    file: str
    size: int | None
    keys_differ: bool
    split: str | None
    val_share: float
    test_share: float
    seed: int
    single: bool = False

    def fingerprint(self) -> str:
        path = self.root / self.file
        content = _listing(path) if path.is_dir() else path.stat().st_size
        split = self.split or [self.val_share, self.test_share, self.seed]
        return hashlib.sha256(json.dumps([self.file, content, self.keys_differ, split]).encode()).hexdigest()

    def read(self) -> tuple[list[Sample], list[Skipped]]:
        """Its images, and what had to be left out. Raises InputError if the disk does not give the file."""
        path = self.root / self.file
        try:
            if path.is_dir():
                samples, skipped = self._select(_paired(self.file, _files(path), Path.read_bytes, _bytes_of))
            elif path.suffix == ".tar":
                samples, skipped = self._read_tar(path)
            else:
                samples, skipped = self._read_parquet(path)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; run the same command again") from error
        if not samples and not skipped:
            skipped = [Skipped("", self.file, "holds no image")]
        return samples, skipped

    def _read_tar(self, path: Path) -> tuple[list[Sample], list[Skipped]]:
        try:
            members, cut = list_tar(path)
        except ValueError as error:
            return [], [Skipped("", self.file, str(error))]
        with path.open("rb") as tar:

            def content(member: TarMember) -> bytes:
                tar.seek(member.offset)
                return tar.read(member.size)

            named = [(posixpath.normpath(member.name), member) for member in members]  # without a leading "./"
            samples, skipped = self._select(_paired(self.file, named, content, lambda member: member.size))
        if cut:
            skipped.append(Skipped("", self.file, "the tar is cut short; what comes before is taken"))
        return samples, skipped

    def _read_parquet(self, path: Path) -> tuple[list[Sample], list[Skipped]]:
        pyarrow = import_pyarrow()
        with path.open("rb") as file:
            try:
                parquet = pyarrow.parquet.ParquetFile(file)
                image = _image_column(parquet.schema_arrow)
                caption = next((name for name in CAPTION_COLUMNS if name in parquet.schema_arrow.names), None)
                if not image or not caption:
                    wanted = f"images ({', '.join(IMAGE_COLUMNS)}) and one of captions ({', '.join(CAPTION_COLUMNS)})"
                    return [], [Skipped("", self.file, f"has not a column of {wanted}")]
                rows = list(_parquet_rows(path, self.file, parquet, image, caption))
            except Exception as error:  # pyarrow raises anything on a damaged file
                if isinstance(error, OSError) and error.errno:
                    raise
                return [], [Skipped("", self.file, "not a parquet file, or a damaged one")]
        return self._select(rows)

    def _select(self, rows: Iterable[Row]) -> tuple[list[Sample], list[Skipped]]:
        """The images with a caption, and the other rows with the reason."""
        captioned: list[tuple[str, str, Path | TarMember | ParquetCell, tuple[str, ...]]] = []
        skipped: list[Skipped] = []
        seen: set[str] = set()
        for key, file, where, captions in rows:
            is_id = self.keys_differ and key.startswith(posixpath.basename(self.name))
            image_id, file = _storable(key if is_id else f"{self.name}/{key}"), _storable(file)
            problem = _problem(where, captions, image_id in seen)
            if where is None or isinstance(captions, str) or problem:
                skipped.append(Skipped(image_id, file, problem))
                continue
            seen.add(image_id)
            texts: list[str] = []
            for caption in captions:
                try:
                    texts.append(clean_caption(caption))
                except ValueError as error:
                    skipped.append(Skipped(image_id, file, str(error)))
            if texts:
                captioned.append((image_id, file, where, tuple(texts)))
        splits = self._splits([image_id for image_id, _, _, _ in captioned])
        samples = [
            Sample(ImageRecord(image_id, file, splits[image_id], texts), where)
            for image_id, file, where, texts in captioned
        ]
        return samples, skipped

    def _splits(self, ids: list[str]) -> dict[str, str]:
        if self.split is not None:
            return dict.fromkeys(ids, self.split)
        shares = (self.val_share, self.test_share, self.seed)
        return (
            draw_splits(ids, *shares) if self.single else {image_id: draw_split(image_id, *shares) for image_id in ids}
        )


def _problem(where: object, captions: list[object] | str, seen: bool) -> str:
    """Why an image is left out; "": it is not."""
    if where is None:
        return "caption without image"
    if seen:
        return "id comes twice"
    if isinstance(captions, str):
        return captions
    return "" if captions else "image without caption"


def _shard_files(root: Path) -> dict[str, str]:
    """The files and folders that are shards, relative to `root`, by their names without suffix."""
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; set data.root to the output folder of img2dataset")
    splits = [path for path in root.iterdir() if path.name.casefold() in SPLITS and path.is_dir()]
    paths = [path for folder in (root, *splits) for path in folder.iterdir()]
    tars = [path for path in paths if path.suffix == ".tar" and path.is_file()]
    folders = [path for path in paths if path.is_dir() and path not in splits]
    tables = [path for path in paths if path.suffix == ".parquet" and path.is_file()]
    files: dict[str, str] = {}
    for path in [*tars, *filter(_has_image, folders), *tables]:
        file = path.relative_to(root).as_posix()
        files.setdefault(file if path.is_dir() else posixpath.splitext(file)[0], file)
    return files


def _has_image(folder: Path) -> bool:
    with scandir(folder) as entries:
        return any(_is_image(entry.name) for entry in entries)


def _is_image(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _size(root: Path, name: str, file: str) -> int | None:
    """How many images img2dataset says a shard has; else, how many rows a parquet file has."""
    path = root / file
    pyarrow = import_pyarrow() if path.suffix == ".parquet" and path.is_file() else None
    with contextlib.suppress(InputError):
        stats = read_json(root / f"{name}_stats.json")
        if isinstance(stats, dict) and isinstance(stats.get("successes"), int):
            return int(stats["successes"])
    with contextlib.suppress(Exception):  # a damaged file, which is reported when it is read
        return int(pyarrow.parquet.read_metadata(path).num_rows) if pyarrow else None
    return None


def _files(folder: Path) -> list[tuple[str, Path]]:
    return [(path.name, path) for path in sorted(folder.iterdir()) if path.is_file()]


def _listing(folder: Path) -> list[tuple[str, int]]:
    return [(name, path.stat().st_size) for name, path in _files(folder)]


def _paired(
    shard: str,
    files: list[tuple[str, FileOrMember]],
    content: Callable[[FileOrMember], bytes],
    size: Callable[[FileOrMember], int],
) -> Iterator[Row]:
    """The images among files, in their order, with the captions; then the captions that have no image."""
    images: list[tuple[str, str, FileOrMember]] = []
    texts: dict[str, tuple[str, FileOrMember]] = {}
    metadata: dict[str, tuple[str, FileOrMember]] = {}
    for name, where in files:
        key, suffix = posixpath.splitext(name)
        if _is_image(name):
            images.append((key, name, where))
        elif suffix.lower() in TEXTS:
            texts.setdefault(key, (name, where))
        elif suffix.lower() == ".json":
            metadata.setdefault(key, (name, where))
    for key, name, where in images:
        captions: list[object] | str = "the file is too large" if size(where) > MOST_IMAGE else []
        beside = [table[key][1] if key in table else None for table in (texts, metadata)]
        if any(file is not None and size(file) > MOST_TEXT for file in beside):
            captions = "the caption is too long"
        elif captions == []:
            text, json_file = beside
            captions = _lines(content(text)) if text is not None else []
            if json_file is not None and len(captions) != 1:
                captions = _resolve(captions, _captions_in(content(json_file)))
        yield key, f"{shard}/{_within(name)}", where, captions
    have_image = {key for key, _, _ in images}
    for key, (name, _) in (metadata | texts).items():
        if key not in have_image:
            yield key, f"{shard}/{_within(name)}", None, []


def _lines(text: bytes) -> list[object]:
    """The captions in a text file, a line each; a blank one where there is nothing else."""
    return [line for line in text.splitlines() if line.strip()] or [text]


def _resolve(lines: list[object], in_json: list[object]) -> list[object]:
    """The captions of an image from its text file, if it has one, and its JSON, which shows whether lines are one."""
    joined = b" ".join(line for line in lines if isinstance(line, bytes)).decode("utf-8-sig", "replace").split()
    if not lines or any(isinstance(caption, str) and caption.split() == joined for caption in in_json):
        return in_json
    return lines


def _captions_in(metadata: bytes) -> list[object]:
    """The captions in the JSON beside an image; none if it is damaged or has none."""
    try:
        content = parse_json(metadata.decode("utf-8-sig"), "JSON")
    except UnicodeDecodeError:
        return [metadata]  # refused for the same reason
    except InputError:
        return []
    if isinstance(content, dict):
        content = next((content[key] for key in CAPTION_KEYS if content.get(key) is not None), [])
    return _listed(content)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _bytes_of(file: Path) -> int:
    return file.stat().st_size


def _within(name: str) -> str:
    """A name in an archive as a path that does not lead out of it."""
    return posixpath.normpath(f"/{name}").lstrip("/")


def _image_column(schema: Any) -> str | None:
    """The column that holds images, or the field of it that does."""
    types = import_pyarrow().types
    for name in IMAGE_COLUMNS:
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if types.is_binary(kind) or types.is_large_binary(kind):
            return name
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return f"{name}.bytes"  # as Hugging Face data sets have it
    return None


def _parquet_rows(path: Path, shard: str, parquet: Any, image: str, caption: str) -> Iterator[Row]:
    number = 0
    for group in range(parquet.num_row_groups):
        absent = _absent(parquet, group, image)
        captions = [_listed(value) for value in _texts(read_column(parquet, group, caption))]
        keys = _texts(read_column(parquet, group, "key")) if "key" in parquet.schema_arrow.names else []
        for row, is_absent in enumerate(absent):
            key = keys[row] if keys else None
            name = key.decode("utf-8", "replace") if isinstance(key, bytes) else str(number if key is None else key)
            where = None if is_absent else ParquetCell(path, image, group, row)
            yield name, f"{shard}/{_within(name)}", where, captions[row]
            number += 1


def _absent(parquet: Any, group: int, image: str) -> list[bool]:
    """Of each row of a row group, whether it has no image, as what could not be downloaded has none."""
    described = parquet.metadata.row_group(group)
    for column in map(described.column, range(described.num_columns)):
        statistics = column.statistics if column.path_in_schema == image else None
        if statistics is not None and statistics.has_null_count and statistics.null_count == 0:
            return [False] * described.num_rows  # without reading the images
    absent: list[bool] = read_column(parquet, group, image).is_null().to_pylist()
    return absent


def _texts(column: Any) -> list[object]:
    """The values of a column; strings as bytes, because they may be no UTF-8."""
    pyarrow = import_pyarrow()
    types = pyarrow.types
    if types.is_string(column.type) or types.is_large_string(column.type):
        column = column.cast("large_binary" if types.is_large_string(column.type) else "binary")
    elif types.is_list(column.type) and types.is_string(column.type.value_type):
        column = column.cast(pyarrow.list_(pyarrow.binary()))
    values: list[object] = column.to_pylist()
    return values


def _storable(name: str) -> str:
    """A name as a store can hold it: without NUL, and with "?" for what is no UTF-8."""
    return name.replace("\0", "").encode("utf-8", "replace").decode()
