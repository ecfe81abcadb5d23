"""What every reader of a data set gives: the same records, whatever the files looked like."""

from dataclasses import dataclass
from pathlib import Path

from prefixcap.store import ImageRecord, Skipped

__all__ = ["Dataset", "ImageRecord", "Skipped"]


@dataclass(frozen=True)
class Dataset:
    """Images with captions, ready to be embedded.

    Attributes:
        records: one an image, in the order in which they are stored.
        skipped: what the reader left out, with reasons.
        image_root: the folder that `ImageRecord.file` is relative to.
        source: what was read, as the store's attributes say it.
    """

    records: list[ImageRecord]
    skipped: list[Skipped]
    image_root: Path
    source: str
