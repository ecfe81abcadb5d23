"""Prompts: a text of its own for each image, which is read beside its prefix, before the caption, and is not predicted.

Shapes: N rows of a split, Q tokens of all their prompts.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from prefixcap.captioner import Captioner
from prefixcap.errors import InputError
from prefixcap.language.tokens import cut_prompts, tokenize_prompts
from prefixcap.packing import flatten
from prefixcap.store import StoreSplit
from prefixcap.utils.validation import shortened

_TRIED = 64  # prompts whose tokens are counted to find the longest
_BLOCK = 1 << 16  # rows whose prompts are asked for together


class PromptFunction(Protocol):
    """Gives images their prompts; an instance of a class or a plain function.

    Asked again for the same rows and epoch, it gives the same prompts: what it draws at random depends on a seed of its
    own, the epoch and the row alone. So a run has the same prompts with any number of worker processes, which call it,
    too, and wherever it was stopped and resumed.

    Examples:
        Objects of which each is left out with a probability of 40%, others in each epoch (Fei et al. 2023, "ViECap"):

        >>> objects = [["ring", "star"], ["tree"]]
        >>> def masked(split, rows, epoch):
        ...     prompts = []
        ...     for row in rows.tolist():
        ...         words = objects[row]
        ...         if epoch is not None:
        ...             kept = np.random.default_rng((0, epoch, row)).random(len(words)) >= 0.4
        ...             words = [word for word, keep in zip(words, kept) if keep]
        ...         prompts.append(", ".join(words))
        ...     return prompts
        >>> masked(None, np.array([0, 1]), None)
        ['ring, star', 'tree']
    """

    def __call__(self, split: StoreSplit, rows: NDArray[np.int64], epoch: int | None, /) -> Sequence[str]:
        """The prompts of N rows.

        Args:
            split: of training or of validation.
            rows: (N,) of its images; of its captions, where each is read in place of its image (`from_text`).
            epoch: of training, from 0; None: nothing is drawn at random, as when images are captioned.

        Returns:
            N texts, "" where an image has no prompt.
        """
        ...


class PromptTokens:
    """The prompts of a split as texts and as token ids.

    Args:
        texts: gives the texts.
        split: of training or of validation.
        captioner: its tokenizer is used; its prefix length and context limit what is read.
        of_captions: rows are those of captions, not of images.
        max_tokens: prompts lose their last words until they have at most so many tokens; None: none is cut.

    Attributes:
        first: they are read before the prefix of an image, and not after it.
    """

    def __init__(
        self, texts: PromptFunction, split: StoreSplit, captioner: Captioner, of_captions: bool, max_tokens: int | None
    ) -> None:
        # The language model itself is not kept, as this object is sent to worker processes.
        language_model = captioner.language_model
        self.split, self.max_tokens, self._texts, self._of_captions = split, max_tokens, texts, of_captions
        self._tokenizer, self._name, self._context = (
            language_model.tokenizer,
            language_model.name,
            language_model.context,
        )
        self._prefix_length, self.first = captioner.prefix_length, captioner.prompts_first

    def read(
        self, rows: NDArray[np.int64], epoch: int | None
    ) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        """The prompts of N rows.

        Args:
            rows: (N,), see `PromptFunction`.
            epoch: see `PromptFunction`.

        Returns:
            N texts, (Q,) their token ids, one prompt after another, and (N,) the length of each.

        Raises:
            InputError: there are not N texts.
        """
        texts = self._ask(rows, epoch)
        if self.max_tokens is not None:
            texts = cut_prompts(self._tokenizer, texts, self.max_tokens)
        tokens = tokenize_prompts(self._tokenizer, texts)
        return texts, *flatten(tokens)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """The bytes of the prompt of every row of the split, uncut and with nothing drawn at random."""
        count = len(self.split.captions) if self._of_captions else len(self.split)
        sizes = np.empty(count, np.int64)
        with tqdm(total=count, desc=f"prompts of {self.split.name}", unit=" rows", delay=1) as bar:
            for start in range(0, count, _BLOCK):
                rows = np.arange(start, min(start + _BLOCK, count))
                sizes[rows] = [len(text.encode(errors="replace")) for text in self._ask(rows, None)]
                bar.update(len(rows))
        return sizes

    @property
    def longest(self) -> int:
        """The most tokens of a prompt, among those with the most bytes, with nothing drawn at random."""
        return int(self.read(np.argsort(self.sizes)[-_TRIED:], None)[2].max(initial=0))

    def require_fit(
        self,
        rows: NDArray[np.int64],
        prompt_lengths: NDArray[np.int64],
        lengths: NDArray[np.int64],
        owner: NDArray[np.int64],
    ) -> None:
        """Raise InputError if a prompt and a caption after it exceed the language model's context.

        Args:
            rows: (N,) of the prompts.
            prompt_lengths: (N,) tokens of each.
            lengths: (C,) tokens of captions.
            owner: (C,) which of the N prompts each follows.
        """
        if self._context is None or not len(lengths):
            return
        room = self._context - self._prefix_length
        together = prompt_lengths[owner] + lengths  # (C,)
        worst = int(together.argmax())
        if together[worst] > room:
            row = int(rows[owner[worst]])
            image = self.split.ids[self.split.caption_images[row] if self._of_captions else row]
            fits = room - int(lengths.max())
            cut = f"max_prompt_tokens={fits}" if fits > 0 else "max_caption_tokens"
            raise InputError(
                f"the prompt of image {image} ({self.split.name}) has {prompt_lengths[owner[worst]]} tokens, and a "
                f"caption after it {lengths[worst]}; with a prefix of {self._prefix_length}, language model "
                f"'{self._name}' takes {room}: shorten them, or cut with {cut}"
            )

    def _ask(self, rows: NDArray[np.int64], epoch: int | None) -> list[str]:
        texts = list(self._texts(self.split, rows, epoch))
        if len(texts) != len(rows):
            raise InputError(f"there are {len(texts)} prompts for {len(rows)} rows of split '{self.split.name}'")
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise InputError(f"the prompt of an image must be a text, not {shortened(wrong[0])}")
        return texts
