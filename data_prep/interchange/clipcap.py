"""The pickle that ClipCap's scripts write, read without running any code that is pickled in it.

{"clip_embedding": tensor (N, dim), "captions": [{"image_id", "caption", "clip_embedding": row}, ...]}
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch._utils
from torch import Tensor

from data_prep.interchange.sources import CHUNK, Array, Block, Row, Source, require_embeddings
from data_prep.readers.inputs import image_id_of, value_of
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity

# Two rows of one image may differ by so much, as a share of their length: rounding in half precision.
SAME = 1e-3
# How the two forms begin that torch.save writes. A plain pickle of a dictionary begins otherwise.
ZIP, LEGACY = b"PK\x03\x04", pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def read_clipcap(path: Path, encoder: EncoderIdentity) -> Source:
    """The images of a ClipCap pickle, or of the same content written by `torch.save`.

    Each caption has a row of its own. Captions with the same `image_id` become one image, with the first one's row.

    Raises:
        InputError: the file cannot be read, holds something else, or asks for code that tensors do not need; an entry
            points to no row; the rows of an image differ; or the embeddings' width is not the encoder's.
    """
    content = _load(path)
    tensor, entries = (content.get("clip_embedding"), content.get("captions")) if isinstance(content, dict) else (0, 0)
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not isinstance(entries, list):
        raise InputError(
            f"{path} is no ClipCap file: it must hold a tensor `clip_embedding` and a list `captions`, as ClipCap's "
            "parse_coco.py writes them"
        )
    tensor = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
    embeddings: Array = tensor.numpy()
    require_embeddings(embeddings, path, encoder)
    captions: dict[int | str, list[Any]] = {}
    first_row: dict[int | str, int] = {}
    pairs = np.empty((len(entries), 2), np.int64)  # the row of each caption, and the first one of its image
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: entry {number} of `captions` is no dictionary: write it as parse_coco.py does")
        image_id, row = image_id_of(path, entry, "image_id"), value_of(path, entry, "clip_embedding")
        if type(row) is not int or not 0 <= row < len(embeddings):
            raise InputError(
                f"{path}: entry {number} of `captions` (image {image_id!r}) points to row {row!r}, but there are "
                f"{len(embeddings)} embeddings: write the file again"
            )
        pairs[number] = row, first_row.setdefault(image_id, row)
        captions.setdefault(image_id, []).append(value_of(path, entry, "caption"))
    _require_one_embedding(embeddings, pairs, entries, path)
    places = np.fromiter(first_row.values(), np.int64, len(first_row))
    block = Block(path, partial(_rows, captions), lambda: embeddings, places)
    return Source("ClipCap", path, [path], [block])


def _rows(captions: dict[int | str, list[Any]]) -> Iterator[Row]:
    for image_id, texts in captions.items():
        yield Row(image_id, texts)


def _require_one_embedding(embeddings: Array, pairs: Array, entries: list[dict[str, Any]], path: Path) -> None:
    later = np.flatnonzero(pairs[:, 0] != pairs[:, 1])
    for start in range(0, len(later), CHUNK):
        numbers = later[start : start + CHUNK]
        own, first = (embeddings[pairs[numbers, column]].astype(np.float64) for column in (0, 1))
        with np.errstate(invalid="ignore"):  # an embedding that is not finite is skipped later
            differs = np.linalg.norm(own - first, axis=1) > SAME * np.linalg.norm(first, axis=1)
        if differs.any():
            entry = entries[int(numbers[differs.argmax()])]
            raise InputError(
                f"{path}: image {entry['image_id']!r} has embeddings that differ (row {entry['clip_embedding']} from "
                "its first): give images that are not the same different ids"
            )


def _load(path: Path) -> object:
    try:
        with path.open("rb") as file:
            start = file.read(len(LEGACY))
            file.seek(0)
            if start.startswith((ZIP, LEGACY)):
                return _load_torch(path, path, mmap=start.startswith(ZIP))
            return _Unpickler(file, path).load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"{path} cannot be read as a pickle ({reason}); copy it again") from error


class _Unpickler(pickle.Unpickler):
    """Opens plain containers of plain tensors; refuses all else by name, before anything of it runs."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        # Functions made anew: a pickle may set attributes of what it is given here.
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            rebuild: Any = torch._utils._rebuild_tensor_v2
            return lambda *arguments: rebuild(*arguments)
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            # torch's own would unpickle whatever is in these bytes.
            return lambda content: _load_torch(io.BytesIO(content), self.path)
        raise _refusal(self.path, f"{module}.{name}")


def _load_torch(file: Path | BinaryIO, path: Path, mmap: bool = False) -> Any:
    """What `torch.save` wrote, tensors and plain containers only; `path` is for messages."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if name := re.search(r"GLOBAL (\S+)", str(error)):
            raise _refusal(path, name[1]) from error
        raise


def _refusal(path: Path, name: str) -> InputError:
    return InputError(
        f"{path} asks for {name}, which embeddings do not need and which may do harm: nothing of it was run; "
        "get the file from those who made it, or save it with plain tensors only"
    )
