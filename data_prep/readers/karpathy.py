"""Flickr30k and other data sets in Karpathy's format: splits, file names and captions in one JSON file."""

from pathlib import Path

from data_prep.readers.inputs import clean_caption, object_list, relative_file, split_of, text_of, value_of
from data_prep.records import Dataset, ImageRecord, Skipped, dataset_from_files
from prefixcap.errors import InputError
from prefixcap.utils.files import read_json


def read_karpathy(
    root: str | Path, split_file: str = "dataset_flickr30k.json", images: str = "flickr30k-images"
) -> Dataset:
    """Read one of Karpathy's files, with the captions that are in it.

    Args:
        root: the folder that holds the folder of images.
        split_file: Karpathy's file; relative to `root`, or absolute.
        images: the folder below `root` that `filename`, or `filepath` and `filename`, are relative to.

    Returns:
        The images in the order of the file; their ids are the `filename`s, as in published results on
        Flickr30k. "restval" counts as "train". Captions and images that cannot be used are in `skipped`.

    Raises:
        InputError: the file is missing, is not JSON or lacks a key; two images have the same file name; a path
            leaves `root`; no image is left. The message names the file.
    """
    root = Path(root)
    path = root / split_file
    records: list[ImageRecord] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for image in object_list(path, read_json(path), "images"):
        name = text_of(path, image, "filename")
        if name in seen:
            raise InputError(f"{path}: the image {name!r} comes twice; take one of its entries out")
        seen.add(name)
        folder = text_of(path, image, "filepath") if "filepath" in image else ""
        file = relative_file(root, str(Path(images) / folder / name), str(path))
        split = split_of(path, image)
        captions: list[str] = []
        for sentence in object_list(path, image, "sentences"):
            caption = value_of(path, sentence, "raw")
            try:
                captions.append(clean_caption(caption))
            except ValueError as error:
                skipped.append(Skipped(name, file, str(error)))
        if captions:
            records.append(ImageRecord(name, file, split, (*captions,)))
        else:
            skipped.append(Skipped(name, file, "image without caption"))
    if not records:
        raise InputError(f"no image of {path} has a caption")
    return dataset_from_files(records, skipped, root, f"captions of {path}")
