"""Reading a finished feature store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefixcap.encoders.protocol import EncoderIdentity
from prefixcap.errors import InputError
from prefixcap.store.format import UnreadableError, damage_of, open_part, read_ids, read_index, read_texts


@dataclass(frozen=True)
class StoreSplit:
    """The images of one split, in memory.

    Attributes:
        name: of the split.
        ids: N image ids.
        files: N absolute paths.
        domains: N names, "" where there is none.
        embeddings: (N, dim) float16, as the encoder gave them: not normalised.
        captions: C texts.
        caption_images: (C,) int64, the row of each caption's image in the lists above.
    """

    name: str
    ids: list[int | str]
    files: list[Path]
    domains: list[str]
    embeddings: NDArray[np.float16]
    captions: list[str]
    caption_images: NDArray[np.int64]

    def references(self) -> dict[int | str, list[str]]:
        """The captions of each image, by its id."""
        references: dict[int | str, list[str]] = {image_id: [] for image_id in self.ids}
        for caption, row in zip(self.captions, self.caption_images.tolist(), strict=True):
            references[self.ids[row]].append(caption)
        return references


class FeatureStore:
    """A finished store, opened for reading.

    Args:
        path: the store's folder.

    Attributes:
        encoder: who made the embeddings.
        source: what was embedded, as the reader named it.
        image_root: the folder that image files are relative to.
        splits: the number of images of each split.
        captions: the number of captions in all.

    Raises:
        InputError: there is no store at `path`, it is unfinished, of another format or a newer version, or
            a part is missing or truncated.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        index = read_index(self.path)
        if index is None:
            raise InputError(_why_unfinished(self.path))
        for part in index["parts"]:
            if reason := damage_of(self.path, part):
                raise InputError(f"{reason}; run the same `python -m data_prep.embed ...` again to mend it")
        self.encoder = EncoderIdentity(**index["encoder"])
        self.source: str = index["source"]
        self.image_root = Path(index["image_root"])
        self.splits: dict[str, int] = {name: counts["images"] for name, counts in index["splits"].items()}
        self.captions: int = index["captions"]
        self._parts: list[dict[str, Any]] = index["parts"]

    def require_encoder(self, identity: EncoderIdentity) -> None:
        """Check that the embeddings may be mixed with those of another encoder.

        Raises:
            InputError: the weights or the preprocessing differ; the message names both encoders.
        """
        mine, theirs = self.encoder, identity
        if (mine.digest, mine.preprocessing) == (theirs.digest, theirs.preprocessing):
            return
        first, second = mine.name, theirs.name
        if mine.digest == theirs.digest:
            first, second = f"{first} ({mine.preprocessing})", f"{second} ({theirs.preprocessing})"
        elif first == second:
            first, second = f"{first} (weights {mine.digest[:8]})", f"{second} (weights {theirs.digest[:8]})"
        raise InputError(
            f"the feature store {self.path} was made with the encoder {first}, but {second} is asked for; "
            "embed the images again with that encoder, or give the store that it made as data.store=..."
        )

    def split(self, name: str) -> StoreSplit:
        """Read one split into memory.

        Raises:
            InputError: there is no split of that name, or a part cannot be read.
        """
        if name not in self.splits:
            raise InputError(f"{self.path} has no split {name!r}; it has {', '.join(self.splits) or 'none'}")
        ids: list[int | str] = []
        files: list[Path] = []
        domains: list[str] = []
        captions: list[str] = []
        embeddings: list[NDArray[np.float16]] = []
        caption_images: list[NDArray[np.int64]] = []
        for part in self._parts:
            if name not in part["splits"]:
                continue
            with open_part(self.path / part["file"]) as file:
                chosen = np.asarray(read_texts(file["images/split"])) == name
                # The row that each image of this part gets in the split; meaningless where it is not chosen.
                rows = np.cumsum(chosen) - 1 + len(ids)
                ids += [image_id for image_id, take in zip(read_ids(file["images/id"]), chosen, strict=True) if take]
                files += [self.image_root / text for text in _pick(read_texts(file["images/file"]), chosen)]
                domains += _pick(read_texts(file["images/domain"]), chosen)
                embeddings.append(file["images/embedding"][()][chosen])
                images = file["captions/image"][()]
                captions += _pick(read_texts(file["captions/text"]), chosen[images])
                caption_images.append(rows[images[chosen[images]]])
        return StoreSplit(
            name, ids, files, domains, np.concatenate(embeddings), captions, np.concatenate(caption_images)
        )


def _why_unfinished(store: Path) -> str:
    if not store.exists():
        return f"there is no feature store at {store}; make it with `python -m data_prep.embed ...`"
    parts = sorted(store.glob("part-*.h5"))
    for part in parts:
        try:
            with open_part(part) as file:
                total = int(file.attrs["parts"])
        except UnreadableError:
            continue
        return (
            f"the feature store {store} is unfinished ({len(parts)} of {total} parts): "
            "run the same `python -m data_prep.embed ...` again, it goes on where it stopped"
        )
    return f"{store} is not a feature store: it has no index.json and no readable part"


def _pick(values: list[str], chosen: NDArray[np.bool_]) -> list[str]:
    return [value for value, take in zip(values, chosen, strict=True) if take]
