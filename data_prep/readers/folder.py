"""A folder of images with captions: in a table, in JSON, or in a text file beside each image."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.readers.inputs import SPLITS, check_shares, clean_caption, draw_splits, is_storable, split_name
from data_prep.readers.names import FileNames
from data_prep.readers.tables import Row, read_rows
from data_prep.records import Dataset, ImageRecord, Skipped, dataset_from_files
from prefixcap.errors import InputError, listed
from prefixcap.utils.images import IMAGE_SUFFIXES

# The usual names of files with captions.
TABLE = re.compile(r"(captions\.(csv|tsv|jsonl|json|txt)|metadata\.(csv|jsonl)|results\.csv|.*\.token(\.txt)?)", re.I)
SIDECARS = (".txt", ".caption")
MOST_BYTES = 1_000_000  # of a text file beside an image


def read_folder(
    root: str | Path,
    captions: str | Path | None = None,
    val_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Read a folder of images with captions.

    Args:
        root: the folder that the image paths are relative to.
        captions: a table with a column of images, one of captions and, if wanted, `split`, or JSON with such keys, see
            `data_prep.readers.tables.read_rows`. An image may have several rows. None: `captions.csv` in `root`; else
            the one file there with a usual name (`TABLE`), or such files in the folders `train`, `val` and `test`, or
            one in another folder; else a text file beside each image, with a caption on each line.
        val_share: share of the images, 0.0 to 1.0, that goes to "val" where no split is given.
        test_share: likewise for "test"; what is left is "train".
        seed: of the draw. The split of an image depends only on its path and the seed, except where images are few:
            then each split with a share gets at least one.

    Returns:
        The images in the order of the file, with the relative paths as ids. An image that is not there under the very
        name is looked for by it in another case, Unicode form or ending, and, if the name has no folder, in the folders
        below. Captions that are empty or no text, rows that cannot be read, and images in the folder that have no
        caption, are in `skipped`.

    Raises:
        InputError: a file or folder is missing, is not UTF-8, lacks a column or has a row that cannot be
            read; a path leaves `root`; an image is given two splits; no caption is left; several files may be the one
            with the captions. The message names the file.

    Examples:
        >>> folder = Path("birds")
        >>> folder.mkdir(exist_ok=True)
        >>> _ = (folder / "1.jpg").write_bytes(Path("photo.jpg").read_bytes())
        >>> _ = (folder / "captions.csv").write_text("image,caption,split\\n1.jpg,A red star.,train")
        >>> samples, skipped = read_folder(folder).shards[0].read()
        >>> samples[0].record
        ImageRecord(id='1.jpg', file='1.jpg', split='train', captions=('A red star.',), domain='')
    """
    root = Path(root)
    check_shares(val_share, test_share)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; set data.root to the folder of the images")
    names = FileNames(root)
    tables: Sequence[tuple[Path, str | None]] = [(Path(captions), None)] if captions is not None else find_tables(root)
    source = ", ".join(str(path) for path, _ in tables) or f"text files in {root}"
    rows = [(path.parent, split, row) for path, split in tables for row in read_rows(path)]
    if not tables:
        rows = [(root, split, row) for split, row in _sidecar_rows(root, names)]
    likeliest = (root,) if captions is not None else ()
    files = names.find(((*likeliest, folder, root), row) for folder, _, row in rows)
    texts: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    skipped: list[Skipped] = []
    for (_, split, row), image_id in zip(rows, files, strict=True):
        if image_id is None:
            skipped.append(Skipped("", str(row.image or Path(source).name), row.problem or ""))
            continue
        given = split if row.split is None else _given_split(row)
        if given is not None and splits.setdefault(image_id, given) != given:
            raise InputError(
                f"{row.where}: {row.image} has the split {row.split!r}; give each image one split, by name"
            )
        texts.setdefault(image_id, [])
        for caption in row.captions:
            try:
                texts[image_id].append(clean_caption(caption))
            except ValueError as error:
                skipped.append(Skipped(image_id, image_id, str(error)))
    captioned = {image_id: tuple(captions) for image_id, captions in texts.items() if captions}
    if not captioned:
        raise InputError(f"{source} has no caption" if rows or tables else _nothing_found(root))
    drawn = draw_splits((image_id for image_id in captioned if image_id not in splits), val_share, test_share, seed)
    splits = drawn | splits
    records = [ImageRecord(image_id, image_id, splits[image_id], own) for image_id, own in captioned.items()]
    uncaptioned = [file for file in names.files if not texts.get(file)]
    skipped += [Skipped(file, file, "image without caption") for file in uncaptioned]
    return dataset_from_files(records, skipped, root, f"captions in {source}", notes=names.notes())


def find_tables(root: Path) -> Sequence[tuple[Path, str | None]]:
    """The files with the captions of a folder, each with the split of its images, if its folder says it.

    Raises:
        InputError: several may be meant.
    """
    if (root / "captions.csv").is_file():
        return [(root / "captions.csv", None)]
    if here := _only_table(root):
        return [(here, None)]
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    split_folders = [path for path in folders if path.name.casefold() in SPLITS]
    tables = [(table, split_name(path.name)) for path in split_folders if (table := _only_table(path))]
    if tables:
        return tables
    below = [table for path in folders if (table := _only_table(path))]
    return [(_only(below), None)] if below else []


def _only_table(folder: Path) -> Path | None:
    tables = sorted(path for path in folder.iterdir() if TABLE.fullmatch(path.name) and path.is_file())
    tables = [path for path in tables if not any(path.with_suffix(suffix).exists() for suffix in IMAGE_SUFFIXES)]
    return _only(tables) if tables else None


def _only(tables: list[Path]) -> Path:
    if len(tables) > 1:
        raise InputError(
            f"any of the {listed('file', tables)} may have the captions: choose by data.reader.captions=FILE"
        )
    return tables[0]


def _given_split(row: Row) -> str:
    name = split_name(row.split) if isinstance(row.split, str) else ""
    if not name or not is_storable(name):
        raise InputError(_two_splits(row))
    return name


def _two_splits(row: Row) -> str:
    return f"{row.where}: {row.image} has the split {row.split!r}; give each image one split, by name"


def _sidecar_rows(root: Path, names: FileNames) -> Iterator[tuple[str | None, Row]]:
    """The captions in text files beside images, with the split that the first folder is named after."""
    sharing: dict[Path, list[str]] = {}
    for image in names.files:
        for suffix in SIDECARS:
            if (file := (root / image).with_suffix(suffix)).is_file():
                sharing.setdefault(file, []).append(image)
                break
    for file, images in sharing.items():
        for image in images:
            folder = image.partition("/")[0]
            split = split_name(folder) if folder != image and folder.casefold() in SPLITS else None
            if len(images) > 1:
                problem = f"{file.name} may be the captions of {listed('file', images)}"
            elif file.stat().st_size > MOST_BYTES:
                problem = f"{file.name} is too long for captions"
            else:
                lines = [line for line in file.read_bytes().splitlines() if line.strip()]
                yield split, Row(str(file), image, tuple(lines) or ("",))
                continue
            yield split, Row(str(file), image, problem=problem)


def _nothing_found(root: Path) -> str:
    return (
        f"cannot read {root / 'captions.csv'}: No such file or directory; put it there, with the columns image and "
        "caption, or a .txt file beside each image, or name another file with data.reader.captions=FILE"
    )
