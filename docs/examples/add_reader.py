"""A dataset reader of your own: images whose file names are their captions, as in `a red star.jpg`.

python docs/examples/add_reader.py data=custom data.reader.name=file_names data.root=photos encoder=demo
"""

from pathlib import Path

from data_prep.readers import READERS
from data_prep.readers.inputs import draw_splits
from data_prep.records import Dataset, ImageRecord, dataset_from_files
from prefixcap.commands.common.hydra_main import run
from prefixcap.commands.embed import main
from prefixcap.errors import InputError


def read_file_names(
    root: str | Path, pattern: str = "*.jpg", val_share: float = 0.1, test_share: float = 0.1, seed: int = 0
) -> Dataset:
    """Read a folder of images whose names are their captions.

    Args:
        root: the folder.
        pattern: of the names of images.
        val_share: share of the images, 0.0 to 1.0, that goes to "val".
        test_share: likewise for "test"; the rest is "train".
        seed: of the split.

    Raises:
        InputError: there is no such image.
    """
    names = sorted(path.name for path in Path(root).glob(pattern))
    if not names:
        raise InputError(f"there is no {pattern} in {root}: give another folder or pattern")
    splits = draw_splits(names, val_share, test_share, seed)
    records = [ImageRecord(name, name, splits[name], (Path(name).stem,)) for name in names]  # id, file, split, captions
    return dataset_from_files(records, skipped=[], image_root=Path(root), source=f"file names in {root}")


READERS["file_names"] = read_file_names

if __name__ == "__main__":
    run(main, "embed")
