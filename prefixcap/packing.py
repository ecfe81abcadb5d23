"""Captions of images, laid out in rows for a language model without padding each of them.

A row holds several images one after another: an image's prefix, then the words of its captions. Words see the prefix of
their image and the earlier words of their caption, and nothing else, so that the losses are those of each caption alone
after its own prefix (block-diagonal attention, as in packing; Krell et al. 2021). Captions of one image share its
prefix.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PADDING, _PREFIX = -1, -1
_ROW = 128  # positions of a row, about: attention costs their square, and a short row wastes its end
_MULTIPLE = 8  # of which a row's length is one: kernels of GPUs want it


@dataclass
class Batch:
    """Images, and the captions of each.

    What is read (`reads`: all prefix vectors of the first image, of the second, ..., and then all words) is scattered
    over `rows` x `length` positions.

    Attributes:
        embeddings: (images, dim) or (images, patches, dim), as the encoder gave them.
        input_ids: (words,) token ids that are read after a prefix: those of all captions but for the last of each.
        input_index: (reads,) where each read goes, in the flattened positions.
        images: (rows, length) image of each position; -1: nothing is there.
        captions: (rows, length) caption of each position; -1: it is of a prefix.
        position_ids: (rows, length) counted from the beginning of the image's prefix.
        targets: (targets,) token ids to predict: those of all captions, and their start tokens if these are learned.
        logit_index: (targets,) the flattened position that each is predicted from.
        caption_rows: row of each caption in its split.
        image_rows: row of each image in its split.
    """

    embeddings: Tensor
    input_ids: Tensor
    input_index: Tensor
    images: Tensor
    captions: Tensor
    position_ids: Tensor
    targets: Tensor
    logit_index: Tensor
    caption_rows: list[int]
    image_rows: list[int]

    def pin_memory(self) -> "Batch":
        """The batch in memory that a GPU can copy from beside other work; a DataLoader calls it."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(**vars(self) | tensors)

    def attention_mask(self) -> Tensor:
        """(rows, 1, length, length) bool: which positions (last) each position sees."""
        length = self.images.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.images.device).tril()
        same_image = self.images.unsqueeze(2) == self.images.unsqueeze(1)
        captions = self.captions.unsqueeze(1)
        in_caption = (captions == self.captions.unsqueeze(2)) | (captions == _PREFIX)
        return (causal & same_image & in_caption).unsqueeze(1)


def pack(
    embeddings: Tensor,
    tokens: Sequence[Sequence[int] | NDArray[np.integer]],
    image_of_caption: Sequence[int] | NDArray[np.int64],
    prefix_length: int,
    caption_rows: Sequence[int] = (),
    image_rows: Sequence[int] = (),
    start_token: int | None = None,
) -> Batch:
    """Lay out captions of images.

    Args:
        embeddings: (images, …) features of each image.
        tokens: of each caption, with the end token.
        image_of_caption: whose caption each is, by place in `embeddings`; the captions of an image stand together, in
            the order of the images.
        prefix_length: vectors that are read before a caption, the start token included.
        caption_rows: see `Batch`.
        image_rows: see `Batch`.
        start_token: with which every prefix ends, to be predicted from what stands before it, too, once for each
            caption, as in MacCap's released code; None: it is read, if there is one, and not predicted.
    """
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    owner = np.asarray(image_of_caption, np.int64)
    flat = np.concatenate([np.empty(0, np.int64), *tokens], dtype=np.int64, casting="unsafe")
    read = lengths - 1  # the last token is only predicted
    sizes = prefix_length + np.bincount(owner, read, len(embeddings)).astype(np.int64)
    row, start_in_row = _in_rows(sizes)
    rows, length = int(row.max()) + 1, int((start_in_row + sizes).max())
    length = -(-length // _MULTIPLE) * _MULTIPLE
    start = row * length + start_in_row  # of each image, in the flattened positions
    before = np.cumsum(read) - read
    before -= before[np.searchsorted(owner, owner)]  # words of the image's earlier captions
    caption_start = start[owner] + prefix_length + before

    caption = np.repeat(np.arange(len(lengths)), lengths)  # of each target
    place = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # in its caption
    position = caption_start[caption] + place  # where each token is read
    logit_index = np.where(place == 0, start[owner[caption]] + prefix_length - 1, position - 1)
    targets = flat
    if start_token is not None:
        logit_index = np.concatenate((logit_index, start[owner] + prefix_length - 2))
        targets = np.concatenate((flat, np.full(len(owner), start_token)))
    is_read = place < read[caption]
    of_prefix = (start[:, None] + np.arange(prefix_length)).ravel()
    input_index = np.concatenate((of_prefix, position[is_read]))

    images = np.full(rows * length, _PADDING)
    captions = np.full(rows * length, _PREFIX)
    position_ids = np.zeros(rows * length, np.int64)
    images[of_prefix] = np.repeat(np.arange(len(embeddings)), prefix_length)
    images[position[is_read]] = owner[caption[is_read]]
    captions[position[is_read]] = caption[is_read]
    position_ids[of_prefix] = np.tile(np.arange(prefix_length), len(embeddings))
    position_ids[position[is_read]] = prefix_length + place[is_read]
    return Batch(
        embeddings,
        input_ids=torch.from_numpy(flat[is_read]),
        input_index=torch.from_numpy(input_index),
        images=torch.from_numpy(images.reshape(rows, length)),
        captions=torch.from_numpy(captions.reshape(rows, length)),
        position_ids=torch.from_numpy(position_ids.reshape(rows, length)),
        targets=torch.from_numpy(targets),
        logit_index=torch.from_numpy(logit_index),
        caption_rows=list(caption_rows),
        image_rows=list(image_rows),
    )


def _in_rows(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row of each image, and where in it the image starts: the largest first, each to the emptiest row."""
    row, start = np.empty_like(sizes), np.empty_like(sizes)
    count = -(-int(sizes.sum()) // max(_ROW, int(sizes.max())))
    filled = [(0, number) for number in range(count)]
    for image in np.argsort(-sizes, kind="stable").tolist():
        taken, number = filled[0]
        row[image], start[image] = number, taken
        heapq.heapreplace(filled, (taken + int(sizes[image]), number))
    return row, start
