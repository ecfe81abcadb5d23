"""Flickr8k in the forms in which it is passed around: as published, as on Kaggle, and in Karpathy's file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from data_prep.readers.inputs import check_shares, clean_caption, draw_splits, is_storable, relative_file
from data_prep.readers.karpathy import read_karpathy
from data_prep.readers.tables import read_rows
from data_prep.readers.text import SentenceRules
from data_prep.records import Dataset, ImageRecord, Skipped, dataset_from_files
from prefixcap.errors import InputError
from prefixcap.utils.files import read_text
from prefixcap.utils.images import IMAGE_SUFFIXES

CAPTIONS = ("dataset_flickr8k.json", "Flickr8k.token.txt", "captions.txt")  # the first one there is read
IMAGES = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")  # the first is that of the published archive
SPLIT_FILES = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}


def read_flickr8k(
    root: str | Path,
    captions: str | None = None,
    images: str | None = None,
    val_share: float = 0.125,
    test_share: float = 0.125,
    seed: int = 0,
) -> Dataset:
    """Read Flickr8k (Hodosh, Young and Hockenmaier 2013).

    Args:
        root: the folder of its files. These may also be in a folder below it, such as `Flickr8k_text`.
        captions: Karpathy's `dataset_flickr8k.json`; or the captions as published, `Flickr8k.token.txt`; or Kaggle's
            `captions.txt`; relative to `root`, or absolute. None: the first of these that is there.
        images: the folder of the images, below `root`. None: `Flicker8k_Dataset`, as the published archive calls it, or
            another of `IMAGES`.
        val_share: without Karpathy's file and without `SPLIT_FILES`, the share of the images, 0.0 to 1.0, that is drawn
            for "val". The default is 1,000 of 8,000, as published.
        test_share: likewise for "test"; the rest is then "train".
        seed: of the draw. The split of an image depends only on its name and the seed.

    Returns:
        The images in the order of Karpathy's file, of the split files, or else of the captions; their ids are the file
        names. Images in no split, names that are none of image files (`2258277193_586949ec62.jpg.1`), and captions that
        cannot be used are in `skipped`.

    Raises:
        InputError: a file is missing or cannot be read; an image is in two splits; a path leaves `root`; no image is
            left; the shares are none. The message names the file, and those that were looked for.

    Examples:
        >>> folder = Path("flickr8k")
        >>> folder.mkdir(exist_ok=True)
        >>> _ = (folder / "captions.txt").write_text("image,caption\\n1.jpg,A dog, wet.\\n1.jpg,A wet dog.\\n")
        >>> samples, skipped = read_flickr8k(folder, images="images").shards[0].read()
        >>> samples[0].record
        ImageRecord(id='1.jpg', file='images/1.jpg', split='train', captions=('A dog, wet.', 'A wet dog.'), domain='')
    """
    root = Path(root)
    check_shares(val_share, test_share)
    file = root / captions if captions is not None else _captions_file(root)
    notes = []
    if images is None:
        images = _find(root, IMAGES)
        if images is None:
            notes = [f"there is no folder of images in {root}: looked for {', '.join(IMAGES)}, also one folder below"]
            images = IMAGES[0]
    if file.suffix.lower() == ".json":
        dataset = read_karpathy(root, str(file.absolute()), images)
        return replace(dataset, source=f"captions of {file}", notes=notes)
    texts, skipped = _read_captions(file, root, images)
    splits, split_notes = _split_names(root, file.parent), []
    if splits is None:
        splits = draw_splits(texts, val_share, test_share, seed)
        split_notes = [
            f"there are no {', '.join(SPLIT_FILES.values())}: the splits are drawn, {val_share:.1%} val and "
            f"{test_share:.1%} test with seed {seed}; scores are not comparable with published ones"
        ]
    elif unsplit := [name for name in texts if name not in splits]:
        skipped += [Skipped(name, f"{images}/{name}", "image is in no split file") for name in unsplit]
        split_notes = [f"images with captions that are in no split file are left out: {len(unsplit):,}"]
    records = []
    for name, split in splits.items():
        path = relative_file(root, str(Path(images) / name), str(file))
        if texts.get(name):
            records.append(ImageRecord(name, path, split, tuple(texts[name])))
        else:
            skipped.append(Skipped(name, path, "image without caption"))
    if not records:
        raise InputError(f"no image of the splits has a caption in {file}")
    return dataset_from_files(records, skipped, root, f"captions of {file}", notes=[*notes, *split_notes])


def read_flickr8k_text(
    root: str | Path,
    captions: str | None = None,
    val_share: float = 0.125,
    test_share: float = 0.125,
    seed: int = 0,
    max_words: int | None = None,
) -> Dataset:
    """Read Flickr8k's captions as sentences without images, in the splits of their images.

    Args:
        root: as in `read_flickr8k`, like `captions`, `val_share`, `test_share` and `seed`.
        max_words: leave out longer captions; None: keep all.

    Raises:
        InputError: as `read_flickr8k`; `max_words` is no such number; no caption is that short.
    """
    rules = SentenceRules("train", 0.0, max_words)
    dataset = read_flickr8k(root, captions, IMAGES[0], val_share, test_share, seed)
    images = (sample.record for shard in dataset.shards for sample in shard.read()[0])
    sentences = [(caption, image.split) for image in images for caption in image.captions]
    records, long = rules.apply(dataset.source, [(number, *sentence) for number, sentence in enumerate(sentences)])
    if not records:
        raise InputError(f"all {dataset.source} have more than {max_words} words; set data.reader.max_words")
    texts = dataset_from_files(records, [*dataset.skipped, *long], Path(root), dataset.source, notes=dataset.notes)
    return replace(texts, has_images=False)


def _find(root: Path, names: tuple[str, ...]) -> str | None:
    """The first of these files or folders in `root` or in a folder in it, relative to it; None: none is there."""
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; set data.root to the folder of Flickr8k's files")
    below = sorted(path.name for path in root.iterdir() if path.name[0] not in "._" and path.is_dir())
    paths = (f"{folder}/{name}".lstrip("/") for name in names for folder in ("", *below))
    return next((path for path in paths if (root / path).exists()), None)


def _captions_file(root: Path) -> Path:
    if (path := _find(root, CAPTIONS)) is None:
        names = ", ".join(CAPTIONS)
        raise InputError(f"no captions of Flickr8k in {root}: looked for {names}, also one folder below; set data.root")
    return root / path


def _read_captions(file: Path, root: Path, images: str) -> tuple[dict[str, list[str]], list[Skipped]]:
    """The captions by the names of the images, and what is left out."""
    texts: dict[str, list[str]] = {}
    skipped: list[Skipped] = []
    other: set[str] = set()  # names of no image files
    for row in read_rows(file, commas_in_captions=True):
        if row.problem:
            skipped.append(Skipped("", file.name, row.problem))
            continue
        if not is_storable(row.image) or not row.image:
            raise InputError(f"{row.where}: {row.image!r} is no name of an image")
        path = relative_file(root, str(Path(images) / row.image), row.where)
        if Path(row.image).suffix.lower() not in IMAGE_SUFFIXES:
            other.add(row.image)
            continue
        own = texts.setdefault(row.image, [])
        for caption in row.captions:
            try:
                own.append(clean_caption(caption))
            except ValueError as error:
                skipped.append(Skipped(row.image, path, str(error)))
    return texts, [*skipped, *(Skipped(name, "", "not the name of an image file") for name in sorted(other))]


def _split_names(root: Path, beside: Path) -> Mapping[str, str] | None:
    """The split of each image by the published files, in their order; None: there are none."""
    files = {split: _split_file(root, beside, name) for split, name in SPLIT_FILES.items()}
    if not any(files.values()):
        return None
    splits: dict[str, str] = {}
    for split, file in files.items():
        if file is None:
            there = next(str(path) for path in files.values() if path)
            raise InputError(f"there is {there}, but no {SPLIT_FILES[split]}; put it beside")
        names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
        if not names:
            raise InputError(f"{file} names no image; is it the right file?")
        for name in names:
            if not is_storable(name):
                raise InputError(f"{file}: {name!r} is no name of an image")
            if splits.setdefault(name, split) != split:
                raise InputError(f"{file}: the image {name!r} is in {splits[name]!r}, too; take it out of one split")
    return splits


def _split_file(root: Path, beside: Path, name: str) -> Path | None:
    if (beside / name).exists():
        return beside / name
    path = _find(root, (name,))
    return root / path if path else None
