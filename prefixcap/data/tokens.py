"""Token ids of the captions that a captioner is trained on."""

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from prefixcap.captioner import Captioner
from prefixcap.errors import InputError
from prefixcap.language import tokenize_captions
from prefixcap.store import StoreSplit
from prefixcap.store.remote import lock, remove_leftovers
from prefixcap.utils.files import atomic_write, user_cache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BLOCK = 1 << 16  # captions that are tokenized together
_VERSION = 2  # of how captions are tokenized: kept tokens of an older one are made again

Tokens = Sequence[int] | NDArray[np.integer]


class CaptionTokens:
    """Token ids of a split's captions, each with the end token, as a captioner's language model takes them.

    Args:
        split: whose captions.
        captioner: whose tokenizer, and whose prefix and context decide how much room a caption has.
        most: cut longer captions (the end token is kept); None never cuts.
        released: as MacCap's released code reads captions: those that are cut lose their end token, and shorter ones
            are filled up with padding (or end tokens, if the tokenizer has none), which is learned like words.
        folder: where to keep the tokens of all captions, made at once if they are not there, for this tokenizer and
            these captions; where nobody may write there, they are kept in the user's cache. None: captions are
            tokenized whenever they are asked for, and nothing is kept.

    Raises:
        InputError: a caption does not fit the language model's context beside the prefix; its image is named. Or
            captions are to be filled up, and it is not known how far.
    """

    def __init__(
        self,
        split: StoreSplit,
        captioner: Captioner,
        most: int | None = None,
        folder: Path | None = None,
        released: bool = False,
    ) -> None:
        # Not the language model itself: this goes to worker processes.
        self.split, self.tokenizer, self.most = split, captioner.language_model.tokenizer, most
        self.released, padding = released, self.tokenizer.pad_token_id
        self.padding: int = captioner.language_model.eos_token_id if padding is None else padding
        if released and most is None:
            raise InputError("released_tokens=true fills captions up: say how far by max_caption_tokens")
        self._vocabulary = len(self.tokenizer)
        self._kept = None if folder is None else _kept(split, self.tokenizer, folder)
        if most is None and captioner.language_model.context is not None:
            self._require_room(captioner.language_model.context, captioner)

    def __getitem__(self, captions: NDArray[np.int64]) -> list[Tokens]:
        """The tokens of these captions, by their rows in the split."""
        found: list[Tokens]
        if self._kept is None:
            found = list(tokenize_captions(self.tokenizer, self.split.captions[captions]))
        else:
            tokens, ends = self._kept
            starts = np.where(captions > 0, ends[captions - 1], 0)
            kept = [tokens[start:end] for start, end in zip(starts, ends[captions], strict=True)]
            if not all(len(row) and row.max() < self._vocabulary for row in kept):
                raise InputError("the tokens kept beside the store are of another tokenizer: delete its folder tokens")
            found = list(kept)
        if self.most is None:
            return found
        if self.released:
            return [_filled(row, self.most, self.padding) for row in found]
        return [[*row[: self.most - 1], row[-1]] if len(row) > self.most else row for row in found]

    def _require_room(self, context: int, captioner: Captioner) -> None:
        room = context - captioner.prefix_length
        # No caption has more tokens than bytes, but for the end token and one that some tokenizers put in front.
        for caption in self.split.captions_longer_than(room - 2).tolist():
            length = len(self[np.array([caption])][0])
            if length > room:
                text = self.split.captions[caption]
                raise InputError(
                    f"caption {text[:40]!r}… of image {self.split.ids[self.split.caption_images[caption]]} "
                    f"({self.split.name}) has {length} tokens; with a prefix of {captioner.prefix_length}, language "
                    f"model '{captioner.language_model.name}' takes {room}: shorten it, or cut with "
                    f"max_caption_tokens={room}"
                )


def _filled(tokens: Tokens, length: int, padding: int) -> Tokens:
    return [*tokens[:length], *[padding] * (length - len(tokens))]


def _kept(
    split: StoreSplit, tokenizer: "PreTrainedTokenizerBase", folder: Path
) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """All tokens of a split, one caption after another, and where each caption ends; both in files."""
    kind = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
    plain = split.name if re.fullmatch(r"[\w-]{1,60}", split.name) else hashlib.sha256(split.name.encode()).hexdigest()
    name = f"{plain}-{_digest(split, tokenizer)[:16]}"
    cache = user_cache() / "tokens"
    home = next((home for home in (folder, cache) if (home / f"{name}.ends.npy").is_file()), None)
    if home is None:
        home = folder if os.access(folder if folder.is_dir() else folder.parent, os.W_OK) else cache
        with lock(home):
            if not (home / f"{name}.ends.npy").is_file():  # as another process may have made it meanwhile
                _make(split, tokenizer, home, name, kind)
    try:
        ends = np.load(home / f"{name}.ends.npy", mmap_mode="r", allow_pickle=False)
        tokens = np.memmap(home / f"{name}.tokens", kind, mode="r") if len(ends) else np.empty(0, kind)
        fit = ends.dtype == np.int64 and ends.shape == (len(split.captions),) and ends[-1:].sum() == len(tokens)
    except (OSError, ValueError, EOFError, TypeError):
        fit = False
    if not fit:
        raise InputError(f"{home} does not hold the tokens of {name}: delete that folder, they are made again")
    return tokens.view(np.ndarray), ends.view(np.ndarray)


def _make(split: StoreSplit, tokenizer: "PreTrainedTokenizerBase", folder: Path, name: str, kind: np.dtype) -> None:
    count = len(split.captions)
    lengths = np.empty(count, np.int64)
    bar = tqdm(total=count, desc=f"tokenizing {split.name}", unit=" captions", delay=1)
    remove_leftovers(folder)
    with atomic_write(folder / f"{name}.tokens") as temporary, temporary.open("wb") as file, bar:
        for start in range(0, count, _BLOCK):
            rows = tokenize_captions(tokenizer, split.captions[start : start + _BLOCK])
            lengths[start : start + _BLOCK] = list(map(len, rows))
            np.concatenate([np.array(row, kind) for row in rows]).tofile(file)
            bar.update(len(rows))
    # Written last: where it is, the other one is whole.
    with atomic_write(folder / f"{name}.ends.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.cumsum(lengths))


def _digest(split: StoreSplit, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of all that the tokens depend on."""
    digest = hashlib.sha256(f"{_VERSION} {split.digest} {tokenizer.eos_token_id}".encode())
    with tempfile.TemporaryDirectory() as folder:
        for file in sorted(map(Path, tokenizer.save_pretrained(folder))):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
