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
_VERSION = 2  # of the way captions are tokenized: files of another version are not used
_OF_ANOTHER = "the tokens kept beside the store are of another tokenizer: delete its folder tokens"

Tokens = Sequence[int] | NDArray[np.integer]


class CaptionTokens:
    """Token ids of a split's captions for a captioner's language model, each caption with the end token.

    Args:
        split: the split with the captions.
        captioner: its tokenizer is used; its prefix length and context limit the length of a caption.
        max_tokens: cut longer captions (the end token is kept); None: none is cut.
        released: as in MacCap's released code, captions that are cut lose their end token, and shorter ones are padded
            with the padding token (the end token, if the tokenizer has none), which is learned like other tokens.
        folder: where the token ids of all captions are kept. If they are not there yet for this tokenizer and these
            captions, all are tokenized at once; if the folder cannot be written, they are kept in the user's cache.
            None: captions are tokenized whenever they are read, and nothing is kept.

    Raises:
        InputError: a caption is too long for the language model's context after the prefix (its image is named), or
            captions are to be padded and `max_tokens` is None.
    """

    def __init__(
        self,
        split: StoreSplit,
        captioner: Captioner,
        max_tokens: int | None = None,
        folder: Path | None = None,
        released: bool = False,
    ) -> None:
        # The language model itself is not kept, as this object is sent to worker processes.
        self.split, self.tokenizer, self.max_tokens = split, captioner.language_model.tokenizer, max_tokens
        self.released, pad_token_id = released, self.tokenizer.pad_token_id
        self.pad_token_id: int = captioner.language_model.eos_token_id if pad_token_id is None else pad_token_id
        if released and max_tokens is None:
            raise InputError("released_tokens pads captions to max_caption_tokens: give that, too")
        self._vocabulary = len(self.tokenizer)
        self._stored = None if folder is None else _stored_tokens(split, self.tokenizer, folder)
        if max_tokens is None and captioner.language_model.context is not None:
            self._check_lengths(captioner.language_model.context, captioner)

    def __getitem__(self, captions: NDArray[np.int64]) -> list[Tokens]:
        """The token ids of each of these captions, which are rows of the split."""
        tokens, lengths = self.flat(captions)
        return list(np.split(tokens, np.cumsum(lengths)[:-1])) if len(lengths) else []

    def flat(self, captions: NDArray[np.int64]) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
        """The token ids of C captions, which are rows of the split.

        Returns:
            (N,) the ids, one caption after another, and (C,) the length of each.
        """
        if self._stored is None:
            rows = tokenize_captions(self.tokenizer, self.split.captions[captions])
            every: NDArray[np.integer] = np.concatenate([np.empty(0, np.int64), *rows], dtype=np.int64)
            ends = np.cumsum(list(map(len, rows)), dtype=np.int64)
            starts = np.concatenate(([0], ends))[:-1]
        else:
            every, all_ends = self._stored
            starts, ends = np.where(captions > 0, all_ends[captions - 1], 0), all_ends[captions]
            if len(captions) and not (starts.min() >= 0 and (starts < ends).all() and ends.max() <= len(every)):
                raise InputError(_OF_ANOTHER)
        lengths = ends - starts  # (C,)
        kept = lengths if self.max_tokens is None else np.minimum(lengths, self.max_tokens)
        last = np.cumsum(kept)  # (C,) the place behind each caption's last token
        offset = np.arange(last[-1] if len(last) else 0) - np.repeat(last - kept, kept)  # (N,) in its caption
        index = np.repeat(starts, kept) + offset  # (N,)
        if not self.released:
            index[last - 1] = ends - 1  # the end token, also where the caption is cut
        tokens = every[index]
        if self._stored is not None and len(tokens) and tokens.max() >= self._vocabulary:
            raise InputError(_OF_ANOTHER)
        if self.released:
            assert self.max_tokens is not None
            padded = np.full((len(captions), self.max_tokens), self.pad_token_id, np.int64)
            padded[np.arange(self.max_tokens) < kept[:, None]] = tokens
            return padded.ravel(), np.full(len(captions), self.max_tokens)
        return tokens, kept

    @property
    def most(self) -> int | None:
        """Most tokens that all captions have together; None if they are not kept."""
        if self._stored is None:
            return None
        return len(self.split.captions) * self.max_tokens if self.released and self.max_tokens else len(self._stored[0])

    def _check_lengths(self, context: int, captioner: Captioner) -> None:
        room = context - captioner.prefix_length
        # A caption has at most as many tokens as bytes, and the end token and one that some tokenizers put in front.
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


def _stored_tokens(
    split: StoreSplit, tokenizer: "PreTrainedTokenizerBase", folder: Path
) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """From files: (tokens,) ids of all captions, one after another, and (captions,) where each caption ends."""
    dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
    plain = split.name if re.fullmatch(r"[\w-]{1,60}", split.name) else hashlib.sha256(split.name.encode()).hexdigest()
    name = f"{plain}-{_digest(split, tokenizer)[:16]}"
    cache = user_cache() / "tokens"
    home = next((home for home in (folder, cache) if (home / f"{name}.ends.npy").is_file()), None)
    if home is None:
        home = folder if os.access(folder if folder.is_dir() else folder.parent, os.W_OK) else cache
        with lock(home):
            if not (home / f"{name}.ends.npy").is_file():  # another process may have written them meanwhile
                _tokenize_all(split, tokenizer, home, name, dtype)
    try:
        ends = np.load(home / f"{name}.ends.npy", mmap_mode="r", allow_pickle=False)
        tokens = np.memmap(home / f"{name}.tokens", dtype, mode="r") if len(ends) else np.empty(0, dtype)
        complete = ends.dtype == np.int64 and ends.shape == (len(split.captions),) and ends[-1:].sum() == len(tokens)
    except (OSError, ValueError, EOFError, TypeError):
        complete = False
    if not complete:
        raise InputError(f"{home} does not hold the tokens of {name}: delete that folder, and they are written again")
    return tokens.view(np.ndarray), ends.view(np.ndarray)


def _tokenize_all(
    split: StoreSplit, tokenizer: "PreTrainedTokenizerBase", folder: Path, name: str, dtype: np.dtype
) -> None:
    """Write the files of `_stored_tokens`."""
    count = len(split.captions)
    lengths = np.empty(count, np.int64)
    bar = tqdm(total=count, desc=f"tokenizing {split.name}", unit=" captions", delay=1)
    remove_leftovers(folder)
    with atomic_write(folder / f"{name}.tokens") as temporary, temporary.open("wb") as file, bar:
        for start in range(0, count, _BLOCK):
            rows = tokenize_captions(tokenizer, split.captions[start : start + _BLOCK])
            lengths[start : start + _BLOCK] = list(map(len, rows))
            np.concatenate([np.array(row, dtype) for row in rows]).tofile(file)
            bar.update(len(rows))
    # Written last: if it exists, the other file is complete.
    with atomic_write(folder / f"{name}.ends.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.cumsum(lengths))


def _digest(split: StoreSplit, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A digest of all that the tokens depend on."""
    digest = hashlib.sha256(f"{_VERSION} {split.digest} {tokenizer.eos_token_id}".encode())
    with tempfile.TemporaryDirectory() as folder:
        for file in sorted(map(Path, tokenizer.save_pretrained(folder))):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
