"""Packing: captions of several images in one row of a language model's batch, so that little of it is padding.

A row holds images one after another, each as its prefix followed by its captions:

    prefix prefix A red ring A ring that is red prefix prefix Two stars ...
    '--------------- image 0 -----------------' '----- image 1 -------

A token attends to the prefix of its image and to the earlier tokens of its caption, and to nothing else, so that the
losses are the same as if each caption were read by itself after its own prefix (block-diagonal attention; Krell et al.
2021, "Efficient Sequence Packing without Cross-contamination"). The captions of an image share its prefix.

Shapes: I images, C captions, P prefix vectors of an image, N tokens of all captions, I * P + N - C inputs (prefix
vectors and tokens; the last token of a caption is only predicted), R rows, L positions of a row.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_PADDING, _PREFIX = -1, -1  # in place of an image's number, and of a caption's
_ROW = 128  # rough length of a row: attention costs its square, and short rows leave more padding
_MULTIPLE = 8  # a row's length is a multiple of this, for GPU kernels


@dataclass(frozen=True)
class BatchShape:
    """The sizes of a batch's tensors. Batches of one shape can be read by one CUDA graph.

    Attributes:
        images: I.
        rows: R.
        length: L, positions of a row.
        input_ids: tokens that are read, N - C.
        targets: T, tokens that are predicted.
    """

    images: int
    rows: int
    length: int
    input_ids: int
    targets: int

    def holds(self, other: "BatchShape") -> bool:
        """Whether a batch of the other shape can be padded to this one."""
        return all(own >= others for own, others in zip(astuple(self), astuple(other), strict=True))


@dataclass
class Batch:
    """Images and their captions, packed into R rows of L positions.

    A batch that is padded to a `BatchShape` has images, inputs and targets beyond those of its captions; the inputs
    among them have the position R * L, behind the last row.

    Attributes:
        embeddings: (I, dim) or (I, patches, dim), as the encoder returned them.
        input_ids: (N - C,) token ids that the language model reads: those of all captions without the last of each.
        input_index: (I * P + N - C,) the position of each input among the R * L flattened ones: first of all prefix
            vectors, image by image, then of `input_ids`.
        images: (R, L) the image at each position; -1: padding.
        captions: (R, L) the caption at each position; -1: prefix or padding.
        position_ids: (R, L) position from the beginning of the image's prefix, the same for all its captions.
        targets: (T,) token ids to predict: those of all captions, T = N; and C start tokens if these are predicted.
        logit_index: (T,) the flattened position whose logits predict each target.
        weights: (T,) float32 of each target in the loss: 1, or 0 for those that only pad the batch to a shape.
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
    weights: Tensor
    caption_rows: list[int]
    image_rows: list[int]

    @property
    def shape(self) -> BatchShape:
        """The sizes of its tensors."""
        rows, length = self.images.shape
        return BatchShape(len(self.embeddings), rows, length, len(self.input_ids), len(self.targets))

    def padded(self, shape: BatchShape) -> "Batch":
        """The batch padded to a shape; losses and gradients stay the same.

        Raises:
            ValueError: the batch is larger than the shape.

        Examples:
            >>> batch = pack(torch.randn(2, 512), [[5, 6, 0], [7, 0], [8, 9, 0]], [0, 0, 1], prefix_length=2)
            >>> batch.padded(BatchShape(images=3, rows=1, length=16, input_ids=6, targets=10)).weights
            tensor([1., 1., 1., 1., 1., 1., 1., 1., 0., 0.])
        """
        own = self.shape
        if not shape.holds(own):
            raise ValueError(f"a batch of {own} cannot be padded to {shape}")
        images, rows, length = shape.images - own.images, shape.rows - own.rows, shape.length - own.length
        input_ids, targets = shape.input_ids - own.input_ids, shape.targets - own.targets

        def moved(index: Tensor) -> Tensor:  # flattened positions, where rows are longer
            return index // own.length * shape.length + index % own.length

        prefix_index, token_index = self.input_index.tensor_split([len(self.input_index) - own.input_ids])
        prefix_length, behind = len(prefix_index) // max(own.images, 1), shape.rows * shape.length
        return Batch(
            torch.cat((self.embeddings, self.embeddings.new_zeros(images, *self.embeddings.shape[1:]))),
            input_ids=F.pad(self.input_ids, (0, input_ids)),
            input_index=torch.cat(
                (
                    F.pad(moved(prefix_index), (0, images * prefix_length), value=behind),
                    F.pad(moved(token_index), (0, input_ids), value=behind),
                )
            ),
            images=F.pad(self.images, (0, length, 0, rows), value=_PADDING),
            captions=F.pad(self.captions, (0, length, 0, rows), value=_PREFIX),
            position_ids=F.pad(self.position_ids, (0, length, 0, rows)),
            targets=F.pad(self.targets, (0, targets)),
            logit_index=F.pad(moved(self.logit_index), (0, targets)),
            weights=F.pad(self.weights, (0, targets)),
            caption_rows=self.caption_rows,
            image_rows=self.image_rows,
        )

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which a GPU copies asynchronously; called by DataLoader."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(**vars(self) | tensors)

    def attention_mask(self) -> Tensor:
        """(R, 1, L, L) bool: the positions (last dimension) that each position attends to."""
        length = self.images.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.images.device).tril()  # (L, L)
        same_image = self.images.unsqueeze(2) == self.images.unsqueeze(1)  # (R, L, L)
        captions = self.captions.unsqueeze(1)
        # Prefix vectors are visible to each other and to all captions of their image.
        same_caption_or_prefix = (captions == self.captions.unsqueeze(2)) | (captions == _PREFIX)  # (R, L, L)
        return (causal & same_image & same_caption_or_prefix).unsqueeze(1)


def pack(
    embeddings: Tensor,
    tokens: Sequence[Sequence[int] | NDArray[np.integer]],
    image_of_caption: Sequence[int] | NDArray[np.int64],
    prefix_length: int,
    caption_rows: Sequence[int] = (),
    image_rows: Sequence[int] = (),
    start_token: int | None = None,
) -> Batch:
    """Pack captions of images into rows.

    Args:
        embeddings: (I, …) features of each image.
        tokens: token ids of each of C captions, with the end token.
        image_of_caption: (C,) row of each caption's image in `embeddings`, ascending.
        prefix_length: P, vectors before a caption, the start token included.
        caption_rows: see `Batch`.
        image_rows: see `Batch`.
        start_token: id of the token that ends every prefix, if it is to be predicted too, once for each caption, as in
            MacCap's released code; None: only the captions are predicted.

    Examples:
        >>> batch = pack(torch.randn(2, 512), [[5, 6, 0], [7, 0], [8, 9, 0]], [0, 0, 1], prefix_length=2)
        >>> batch.input_ids  # without the last token of each caption
        tensor([5, 6, 7, 8, 9])
        >>> batch.captions  # both images fit into one row; the first caption of image 0 has two inputs
        tensor([[-1, -1,  0,  0,  1, -1, -1,  2,  2, -1, -1, -1, -1, -1, -1, -1]])
        >>> batch.logit_index  # the first token of a caption is predicted from the last prefix vector
        tensor([1, 2, 3, 1, 4, 6, 7, 8])
    """
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))  # (C,)
    owner = np.asarray(image_of_caption, np.int64)  # (C,)
    all_tokens = np.concatenate([np.empty(0, np.int64), *tokens], dtype=np.int64, casting="unsafe")  # (N,)

    # Rows: an image takes a position for each prefix vector and each token that is read.
    num_inputs = lengths - 1  # (C,) of each caption: its last token is only predicted
    sizes = prefix_length + np.bincount(owner, num_inputs, len(embeddings)).astype(np.int64)  # (I,)
    row, column = _assign_rows(sizes)  # (I,) where each image starts
    rows, length = int(row.max()) + 1, int((column + sizes).max())
    length = -(-length // _MULTIPLE) * _MULTIPLE  # rounded up
    image_start = row * length + column  # (I,) in the flattened positions

    # Captions: each starts behind the prefix and the earlier captions of its image.
    inputs_before = np.cumsum(num_inputs) - num_inputs  # (C,) in the batch
    inputs_before -= inputs_before[np.searchsorted(owner, owner)]  # less those before the image's first caption
    caption_start = image_start[owner] + prefix_length + inputs_before  # (C,)

    # Tokens: the offset of each in its caption, and its flattened position.
    caption = np.repeat(np.arange(len(lengths)), lengths)  # (N,) the caption of each token
    offset = np.arange(len(all_tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # (N,) from 0
    position = caption_start[caption] + offset  # (N,)

    # Targets: a token is predicted from the position before it; the first of a caption from the last prefix vector.
    logit_index = np.where(offset == 0, image_start[owner[caption]] + prefix_length - 1, position - 1)  # (N,)
    targets = all_tokens
    if start_token is not None:  # and the start token, once for each caption, from the vector before it
        logit_index = np.concatenate((logit_index, image_start[owner] + prefix_length - 2))
        targets = np.concatenate((all_tokens, np.full(len(owner), start_token)))

    # Inputs: all prefix vectors, then all tokens but the last of each caption.
    is_input = offset < num_inputs[caption]  # (N,)
    prefix_index = (image_start[:, None] + np.arange(prefix_length)).ravel()  # (I * P,)
    token_index = position[is_input]  # (N - C,)

    # What is at each of the R * L positions.
    images = np.full(rows * length, _PADDING)
    captions = np.full(rows * length, _PREFIX)
    position_ids = np.zeros(rows * length, np.int64)
    images[prefix_index] = np.repeat(np.arange(len(embeddings)), prefix_length)
    images[token_index] = owner[caption[is_input]]
    captions[token_index] = caption[is_input]
    position_ids[prefix_index] = np.tile(np.arange(prefix_length), len(embeddings))
    position_ids[token_index] = prefix_length + offset[is_input]
    return Batch(
        embeddings,
        input_ids=torch.from_numpy(all_tokens[is_input]),
        input_index=torch.from_numpy(np.concatenate((prefix_index, token_index))),
        images=torch.from_numpy(images.reshape(rows, length)),
        captions=torch.from_numpy(captions.reshape(rows, length)),
        position_ids=torch.from_numpy(position_ids.reshape(rows, length)),
        targets=torch.from_numpy(targets),
        logit_index=torch.from_numpy(logit_index),
        weights=torch.ones(len(targets)),
        caption_rows=list(caption_rows),
        image_rows=list(image_rows),
    )


def _assign_rows(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distribute images over rows of about the same length, the largest first, each to the emptiest row.

    Args:
        sizes: (I,) positions that each image takes.

    Returns:
        (I,) the row of each image, and (I,) the position in the row where it starts.
    """
    row, column = np.empty_like(sizes), np.empty_like(sizes)
    count = -(-int(sizes.sum()) // max(_ROW, int(sizes.max())))
    filled = [(0, number) for number in range(count)]  # a heap of (positions filled, row)
    for image in np.argsort(-sizes, kind="stable").tolist():
        start, number = filled[0]
        row[image], column[image] = number, start
        heapq.heapreplace(filled, (start + int(sizes[image]), number))
    return row, column
