"""What every importer returns: blocks of images, whatever the format of the files."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity

CHUNK = 10_000  # images that are read together

Array = NDArray[Any]


@dataclass(frozen=True)
class Row:
    """One image as in its source, not checked yet; None where the source has nothing."""

    id: object
    captions: list[Any]
    file: object = None
    split: object = None
    domain: object = None


@dataclass(frozen=True)
class Block:
    """Images whose embeddings are in one file.

    Attributes:
        path: of that file, for messages.
        rows: reads the images, in order.
        embeddings: opens an array of (any number, dim) embeddings.
        places: the row of each image in that array.
        caption_embeddings: opens such an array for the captions, one for each image; None: there is none.
    """

    path: Path
    rows: Callable[[], Iterator[Row]]
    embeddings: Callable[[], Array]
    places: Sequence[int] | NDArray[np.int64]
    caption_embeddings: Callable[[], Array] | None = None


@dataclass(frozen=True)
class Source:
    """A file or folder of embeddings, opened.

    Attributes:
        form: its format, which the store keeps as an attribute.
        path: the file or folder.
        files: all files that determine its content.
        blocks: its images.
    """

    form: str
    path: Path
    files: list[Path]
    blocks: list[Block]

    @property
    def images(self) -> int:
        return sum(len(block.places) for block in self.blocks)


def open_array(path: Path, encoder: EncoderIdentity) -> Array:
    """The (rows, dim) embeddings of a `.npy` file, mapped from the disk, or of an `.npz` file, read.

    Of several arrays in an `.npz` file, `embeddings` is read. Pickled objects are refused.

    Raises:
        InputError: the file cannot be read, holds something else, or embeddings of another width than the encoder's.
    """
    try:
        content: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.lib.npyio.NpzFile):
            with content:
                names = content.files
                if "embeddings" not in names and len(names) != 1:
                    raise InputError(
                        f"{path} has the arrays {', '.join(names) or 'none'}: name the embeddings `embeddings`"
                    )
                content = content["embeddings" if "embeddings" in names else names[0]]
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be read as a file of numbers ({reason}); save it with numpy.save") from error
    array: Array = content
    require_embeddings(array, path, encoder)
    return array


def require_embeddings(array: Array, path: Path, encoder: EncoderIdentity) -> None:
    """Raise InputError, naming the file, unless an array holds (rows, dim) embeddings of the encoder's width."""
    if array.ndim != 2 or array.dtype.kind != "f":
        raise InputError(
            f"{path} holds {array.dtype} of shape {array.shape}; give floating-point embeddings of shape (rows, dim)"
        )
    if array.shape[1] != encoder.dim:
        raise InputError(
            f"{path} has embeddings of width {array.shape[1]}, but encoder {encoder.name} has width {encoder.dim}: "
            "name the encoder that computed them with --encoder"
        )
