"""One split of a feature store, from which batches are drawn.

Shapes: I images of a batch, C captions, Q tokens of the images' prompts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from prefixcap.data.device import DeviceCopy
from prefixcap.data.neighbours import Neighbours
from prefixcap.data.prompts import PromptTokens
from prefixcap.data.tokens import CaptionTokens
from prefixcap.packing import Batch, BatchShape, Layout, fill, lay_out
from prefixcap.store import StoreSplit

_TRIED = 64  # texts whose tokens are counted to estimate the longest


class _Drawn(NamedTuple):
    """Rows of a split that make a batch: (I,) of its images and of their features, (C,) of its captions, and (C,) the
    image of each caption in the batch."""

    images: NDArray[np.int64]
    features: NDArray[np.int64]
    captions: NDArray[np.int64]
    owner: NDArray[np.int64]


class CaptionDataset(Dataset[Batch]):
    """One split, from which batches are drawn: of captions, each with its image, or of images, each with its captions.

    If the features are those of captions, each caption stands in for its image; an image is represented by its first
    caption.

    Args:
        split: features and captions.
        features: the feature that the mapper reads, by its name in the store.
        tokens: token ids of the captions.
        prefix_length: vectors that the language model reads before a caption.
        by_image: an item is an image with all of its captions, not a caption with its image.
        start_token: a start token that is learned, too, see `pack`.
        prompts: the split's prompts; None: no image has one.
        neighbours: the captions that are read beside each image; None: none are.

    Attributes:
        epoch: () the number of the epoch, from 0, in memory that worker processes share; None: nothing is drawn at
            random for prompts.
        shapes: those that batches are padded to, see `pack`.
        copy: the split's features and tokens on a device, where batches are then made; None: they are read from files.
    """

    def __init__(
        self,
        split: StoreSplit,
        features: str,
        tokens: CaptionTokens,
        prefix_length: int,
        by_image: bool,
        start_token: int | None = None,
        prompts: PromptTokens | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        self.split, self.features = split, split.feature(features)
        self.from_captions = features.startswith("captions/")
        self.tokens, self.prefix_length, self.start_token = tokens, prefix_length, start_token
        self.prompts, self.neighbours = prompts, neighbours
        self.epoch: Tensor | None = None
        self.shapes: Sequence[BatchShape] = ()
        self.copy: DeviceCopy | None = None
        self.ends: NDArray[np.int64] | None = None  # by_image: (images,) the row after an image's last caption
        if by_image:
            self.ends = np.cumsum(np.bincount(split.caption_images[:], minlength=len(split)))

    def __len__(self) -> int:
        return len(self.split.captions if self.ends is None else self.ends)

    def longest(self) -> tuple[int, int]:
        """The item with the most positions in a row, and how many: among those with the most bytes of text.

        Raises:
            InputError: a caption of these does not fit the language model's context after its prompt.
        """
        if self.ends is None:
            items = self.split.longest_captions()[:_TRIED]
        else:
            sizes = np.bincount(self.split.caption_images[:], self.split.caption_sizes(), len(self))
            items = np.argsort(sizes)[-_TRIED:]
        if self.prompts is not None:
            sizes = self.split.caption_sizes() if self.ends is None else sizes
            sizes = sizes + self.prompts.sizes[self._draw(np.arange(len(self))).features]
            items = np.union1d(items, np.argsort(sizes)[-_TRIED:])
        positions = self.layout(items, None).sizes
        return int(items[np.argmax(positions)]), int(positions.max())

    def __getitems__(self, items: list[int]) -> Batch:
        """The batch of these items. A DataLoader calls it with all items of a batch at once."""
        drawn = self._draw(items)
        texts, prompts, prompt_lengths = self._prompts(drawn, None if self.epoch is None else int(self.epoch.numpy()))
        if self.copy is not None:
            features, tokens, first_token, lengths = self.copy.read(drawn.features, drawn.captions)
        else:
            features = torch.from_numpy(self.features[drawn.features]).float()
            flat, lengths = self.tokens.flat(drawn.captions)
            tokens, first_token = torch.from_numpy(flat.astype(np.int64)), np.cumsum(lengths) - lengths
        if self.neighbours is not None:
            features = self.neighbours.append(features, drawn.features)
        layout = self._lay_out(lengths, drawn, prompt_lengths)
        rows_in_split = drawn.captions.tolist(), drawn.images.tolist()
        prompts_first = self.prompts is not None and self.prompts.first
        batch = fill(layout, features, tokens, first_token, self.start_token, *rows_in_split, prompts, prompts_first)
        batch.prompts = texts
        return batch

    def layout(self, items: Sequence[int] | NDArray[np.int64], epoch: int | None = 0) -> Layout:
        """Where images and captions lie in the batch of these items; no features are read.

        Args:
            items: of the batch.
            epoch: for prompts, see `prefixcap.data.prompts.PromptFunction`.
        """
        drawn = self._draw(items)
        return self._lay_out(self.tokens.flat(drawn.captions)[1], drawn, self._prompts(drawn, epoch)[2])

    def _lay_out(self, lengths: NDArray[np.int64], drawn: _Drawn, prompt_lengths: NDArray[np.int64] | None) -> Layout:
        if self.prompts is not None and prompt_lengths is not None:
            self.prompts.require_fit(drawn.features, prompt_lengths, lengths, drawn.owner)
        learned = self.start_token is not None
        return lay_out(
            lengths, drawn.owner, len(drawn.images), self.prefix_length, learned, self.shapes, prompt_lengths
        )

    def _prompts(
        self, drawn: _Drawn, epoch: int | None
    ) -> tuple[list[str], NDArray[np.int64] | None, NDArray[np.int64] | None]:
        """The prompts of images: texts, (Q,) token ids and (I,) lengths; nothing if no image of the split has one."""
        return ([], None, None) if self.prompts is None else self.prompts.read(drawn.features, epoch)

    def _draw(self, items: Sequence[int] | NDArray[np.int64]) -> _Drawn:
        if self.ends is None:
            captions = np.asarray(items)
            images = self.split.caption_images[captions]
            return _Drawn(images, captions if self.from_captions else images, captions, np.arange(len(items)))
        images = np.asarray(items)
        counts = self.ends[images] - np.where(images > 0, self.ends[images - 1], 0)
        captions = np.repeat(self.ends[images] - np.cumsum(counts), counts) + np.arange(counts.sum())
        # An image without captions gets any row: it has no targets, so that nothing is learned from it.
        rows = np.minimum(self.ends[images] - counts, len(self.features) - 1) if self.from_captions else images
        return _Drawn(images, rows, captions, np.repeat(np.arange(len(items)), counts))
