"""Packing: captions of several images in one row of a language model's batch, so that little of it is padding.

A row holds images one after another, each as its prefix, its prompt (a text about it that is read and not predicted,
if it has one) and its captions:

    prefix prefix ring, red A red ring A ring that is red prefix prefix Two stars ...
    '-- prefix -' '-prompt-' '----- two captions -----'
    '--------------------- image 0 ---------------------' '----- image 1 -------

A token attends to the prefix and the prompt of its image and to the earlier tokens of its caption, and to nothing else,
so that the losses are the same as if each caption were read by itself after its own prefix and prompt (block-diagonal
attention; Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination"). The captions of an image share
its prefix and its prompt. The prompt may also be read before the prefix.

Shapes: I images, C captions, P prefix vectors of an image, Q tokens of all prompts (0 where there are none), N tokens
of all captions, I * P + Q + N - C inputs (prefix vectors and tokens; the last token of a caption is only predicted), R
rows, L positions of a row.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_PADDING, _PREFIX = -1, -1  # in place of an image's number, and of a caption's
_ROW = 128  # rough length of a row: attention costs its square, and short rows leave more padding
MULTIPLE = 8  # a row's length is a multiple of this, for GPU kernels


@dataclass(frozen=True)
class BatchShape:
    """The sizes of a batch's tensors. Batches of one shape can be read by one CUDA graph.

    Attributes:
        images: I.
        rows: R.
        length: L, positions of a row.
        input_ids: tokens that are read, Q + N - C.
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

    One that is padded to a `BatchShape` has more images, inputs and targets; these inputs have the position R * L,
    behind the last row.

    Attributes:
        embeddings: (I, dim) or (I, patches, dim), as the encoder returned them.
        input_ids: (Q + N - C,) token ids that the language model reads: those of all prompts, image by image, then
            those of all captions without the last of each.
        input_index: (I * P + Q + N - C,) the position of each input among the R * L flattened ones: first of all prefix
            vectors, image by image, then of `input_ids`.
        images: (R, L) the image at each position; -1: padding.
        captions: (R, L) the caption at each position; -1: prefix, prompt or padding.
        position_ids: (R, L) position from where the image begins, the same for all its captions.
        targets: (T,) token ids to predict: those of all captions, T = N; and C start tokens if these are predicted.
        logit_index: (T,) the flattened position whose logits predict each target.
        weights: (T,) float32 of each target in the loss: 1, or 0 for those that only pad the batch to a shape.
        caption_rows: row of each caption in its split.
        image_rows: row of each image in its split.
        prompts: the prompt of each image as text; empty if no image has one.
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
    prompts: list[str] = field(default_factory=list)

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

        def padded(index: Tensor, more: int) -> Tensor:
            return F.pad(moved(index), (0, more), value=shape.rows * shape.length)

        prefix_index, token_index = self.input_index.tensor_split([len(self.input_index) - own.input_ids])
        prefix_length = len(prefix_index) // max(own.images, 1)
        return Batch(
            torch.cat((self.embeddings, self.embeddings.new_zeros(images, *self.embeddings.shape[1:]))),
            input_ids=F.pad(self.input_ids, (0, input_ids)),
            input_index=torch.cat((padded(prefix_index, images * prefix_length), padded(token_index, input_ids))),
            images=F.pad(self.images, (0, length, 0, rows), value=_PADDING),
            captions=F.pad(self.captions, (0, length, 0, rows), value=_PREFIX),
            position_ids=F.pad(self.position_ids, (0, length, 0, rows)),
            targets=F.pad(self.targets, (0, targets)),
            logit_index=F.pad(moved(self.logit_index), (0, targets)),
            weights=F.pad(self.weights, (0, targets)),
            caption_rows=self.caption_rows,
            image_rows=self.image_rows,
            prompts=self.prompts,
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
        # Prefix vectors and prompts are visible to each other and to all captions of their image.
        same_caption_or_prefix = (captions == self.captions.unsqueeze(2)) | (captions == _PREFIX)  # (R, L, L)
        return (causal & same_image & same_caption_or_prefix).unsqueeze(1)


@dataclass(frozen=True)
class Layout:
    """Where the images and captions of a batch lie in its rows. It follows from their lengths, without any tensor.

    Attributes:
        prefix_length: P.
        prompt_lengths: (I,) tokens of each image's prompt.
        sizes: (I,) positions that each image takes.
        image_start: (I,) the flattened position where each begins.
        lengths: (C,) tokens of each caption.
        owner: (C,) the image of each caption.
        caption_start: (C,) the flattened position of the first token of each.
        shape: the sizes of the batch's tensors.
        padded: the shape that the batch is to be padded to; None: it stays as it is.
    """

    prefix_length: int
    prompt_lengths: NDArray[np.int64]
    sizes: NDArray[np.int64]
    image_start: NDArray[np.int64]
    lengths: NDArray[np.int64]
    owner: NDArray[np.int64]
    caption_start: NDArray[np.int64]
    shape: BatchShape
    padded: BatchShape | None


def lay_out(
    lengths: NDArray[np.int64],
    owner: NDArray[np.int64],
    num_images: int,
    prefix_length: int,
    start_learned: bool = False,
    shapes: Sequence[BatchShape] = (),
    prompt_lengths: NDArray[np.int64] | None = None,
) -> Layout:
    """Distribute images over rows.

    Args:
        lengths: (C,) tokens of each caption.
        owner: (C,) the image of each caption, ascending.
        num_images: I.
        prefix_length: P.
        start_learned: start tokens are predicted, too, one for each caption.
        shapes: see `pack`.
        prompt_lengths: (I,) tokens of each image's prompt; None: no image has one.
    """
    if prompt_lengths is None:
        prompt_lengths = np.zeros(num_images, np.int64)
    # An image takes a position for each prefix vector and each token that is read.
    num_inputs = lengths - 1  # (C,) of each caption: its last token is only predicted
    sizes = prefix_length + prompt_lengths + np.bincount(owner, num_inputs, num_images).astype(np.int64)  # (I,)
    input_ids = int(prompt_lengths.sum() + num_inputs.sum())
    targets = int(lengths.sum()) + start_learned * len(lengths)

    # Rows: those of the first shape that holds the batch, or about as long as `_ROW`.
    for padded in shapes:
        if padded.holds(BatchShape(num_images, 0, 0, input_ids, targets)):
            row, column = assign_rows(sizes, padded.rows)  # (I,) where each image starts
            if int((column + sizes).max()) <= padded.length:
                shape = BatchShape(num_images, padded.rows, padded.length, input_ids, targets)
                break
    else:
        padded = None
        row, column = assign_rows(sizes, -(-int(sizes.sum()) // max(_ROW, int(sizes.max()))))
        length = -(-int((column + sizes).max()) // MULTIPLE) * MULTIPLE  # rounded up
        shape = BatchShape(num_images, int(row.max()) + 1, length, input_ids, targets)
    image_start = row * shape.length + column  # (I,) in the flattened positions

    # Captions: each starts behind the prefix, the prompt and the earlier captions of its image.
    inputs_before = np.cumsum(num_inputs) - num_inputs  # (C,) in the batch
    inputs_before -= inputs_before[np.searchsorted(owner, owner)]  # less those before the image's first caption
    caption_start = (image_start + prefix_length + prompt_lengths)[owner] + inputs_before  # (C,)
    return Layout(prefix_length, prompt_lengths, sizes, image_start, lengths, owner, caption_start, shape, padded)


def fill(
    layout: Layout,
    embeddings: Tensor,
    tokens: Tensor,
    token_start: NDArray[np.int64],
    start_token: int | None = None,
    caption_rows: Sequence[int] = (),
    image_rows: Sequence[int] = (),
    prompts: NDArray[np.int64] | None = None,
    prompts_first: bool = False,
) -> Batch:
    """The batch of a layout, on the device of the tokens. Nothing waits for a GPU.

    Args:
        layout: of the batch.
        embeddings: see `pack`.
        tokens: (any,) token ids, those of each caption one after another.
        token_start: (C,) where each caption begins among them.
        start_token: see `pack`.
        caption_rows: see `Batch`.
        image_rows: see `Batch`.
        prompts: (Q,) token ids of the images' prompts, one prompt after another; None: no image has one.
        prompts_first: see `pack`.
    """
    num_images, prefix_length, num_captions = layout.shape.images, layout.prefix_length, len(layout.lengths)
    positions = layout.shape.rows * layout.shape.length
    before = np.cumsum(layout.lengths) - layout.lengths  # (C,) tokens of earlier captions
    # (C,) the position from which the first token of each caption is predicted: the last of its prefix and prompt.
    first_logit = (layout.image_start + prefix_length + layout.prompt_lengths)[layout.owner] - 1
    columns = (layout.owner, layout.caption_start, token_start, before, first_logit, layout.lengths)
    # Counted from where an image begins: its prefix, (I,), and each prompt token, with the number of its image.
    before_prefix = layout.prompt_lengths if prompts_first else np.zeros(num_images, np.int64)
    prompt_image = np.repeat(np.arange(num_images), layout.prompt_lengths)  # (Q,)
    prompts_before = np.cumsum(layout.prompt_lengths) - layout.prompt_lengths  # (I,) tokens of earlier prompts
    prompt_offset = np.arange(len(prompt_image)) - prompts_before[prompt_image]  # (Q,)
    prompt_offset += 0 if prompts_first else prefix_length
    by_token = (prompt_image, prompt_offset, np.empty(0, np.int64) if prompts is None else prompts)
    num_inputs = layout.shape.input_ids - len(prompt_image)  # N - C
    by_image = (layout.image_start, before_prefix)
    numbers = to_device(np.concatenate((*by_image, *columns, *by_token)), tokens.device)  # one copy
    each_image, by_caption, by_prompt = numbers.split((2 * num_images, 6 * num_captions, 3 * len(prompt_image)))
    image_start, prefix_start = each_image.view(2, -1)  # (I,)
    table, (prompt_images, prompt_offsets, prompt_ids) = by_caption.view(6, -1), by_prompt.view(3, -1)  # (6, C), (Q,)
    owner, lengths = table[0], table[5]  # (C,)
    arange = partial(torch.arange, device=tokens.device)

    # Targets: a token is predicted from the position before it; the first of a caption from before it.
    caption = torch.repeat_interleave(lengths, output_size=num_inputs + num_captions)  # (N,) of each token
    _, first_position, first_token, before_caption, first_logit_of, _ = table.index_select(1, caption)  # (N,) each
    offset = arange(len(caption)) - before_caption  # (N,) from 0 in each caption
    targets = tokens[first_token + offset].long()  # (N,)
    logit_index = torch.where(offset == 0, first_logit_of, first_position + offset - 1)  # (N,)
    if start_token is not None:  # and the start token, once for each caption, from the vector before it
        logit_index = torch.cat((logit_index, (image_start + prefix_start)[owner] + prefix_length - 2))
        targets = torch.cat((targets, targets.new_full((num_captions,), start_token)))

    # Inputs: all prefix vectors, then all prompts, then all tokens but the last of each caption.
    caption = torch.repeat_interleave(lengths - 1, output_size=num_inputs)  # (N - C,)
    image, first_position, first_token, before_caption, first_logit_of, _ = table.index_select(1, caption)  # (N - C,)
    offset = arange(num_inputs) - (before_caption - caption)  # (N - C,), without the last token of earlier captions
    prefix_offsets = prefix_start.unsqueeze(1) + arange(prefix_length)  # (I, P)
    prefix_index = image_start.unsqueeze(1) + prefix_offsets  # (I, P)
    prompt_index = image_start[prompt_images] + prompt_offsets  # (Q,)
    token_index = first_position + offset  # (N - C,)
    input_index = torch.cat((prefix_index.flatten(), prompt_index, token_index))  # (I * P + Q + N - C,)

    # What is at each of the R * L positions.
    image_of_input = torch.cat((arange(num_images).repeat_interleave(prefix_length), prompt_images, image))
    images = input_index.new_full((positions,), _PADDING).index_copy_(0, input_index, image_of_input)
    captions = input_index.new_full((positions,), _PREFIX).index_copy_(0, token_index, caption)
    first_offset = first_logit_of - image_start[image] + 1  # (N - C,) prefix vectors and prompt tokens before
    offsets = torch.cat((prefix_offsets.flatten(), prompt_offsets, first_offset + offset))
    position_ids = input_index.new_zeros(positions).index_copy_(0, input_index, offsets)
    rows = (layout.shape.rows, layout.shape.length)
    batch = Batch(
        embeddings,
        input_ids=torch.cat((prompt_ids, tokens[first_token + offset].long())),
        input_index=input_index,
        images=images.view(rows),
        captions=captions.view(rows),
        position_ids=position_ids.view(rows),
        targets=targets,
        logit_index=logit_index,
        weights=torch.ones(len(targets), device=tokens.device),
        caption_rows=list(caption_rows),
        image_rows=list(image_rows),
    )
    return batch if layout.padded is None else batch.padded(layout.padded)


def pack(
    embeddings: Tensor,
    tokens: Sequence[Sequence[int] | NDArray[np.integer]],
    image_of_caption: Sequence[int] | NDArray[np.int64],
    prefix_length: int,
    caption_rows: Sequence[int] = (),
    image_rows: Sequence[int] = (),
    start_token: int | None = None,
    shapes: Sequence[BatchShape] = (),
    prompts: Sequence[Sequence[int]] | None = None,
    prompts_first: bool = False,
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
        shapes: the batch is padded to the first of these that holds it; if none does, it stays as it is.
        prompts: token ids of a text about each of I images, which are read between its prefix and its captions and not
            predicted; an image may have none. None: no image has any.
        prompts_first: a prompt is read before the prefix of its image, and not after it.

    Examples:
        >>> batch = pack(torch.randn(2, 512), [[5, 6, 0], [7, 0], [8, 9, 0]], [0, 0, 1], prefix_length=2)
        >>> batch.input_ids  # without the last token of each caption
        tensor([5, 6, 7, 8, 9])
        >>> batch.captions  # both images fit into one row; the first caption of image 0 has two inputs
        tensor([[-1, -1,  0,  0,  1, -1, -1,  2,  2, -1, -1, -1, -1, -1, -1, -1]])
        >>> batch.logit_index  # the first token of a caption is predicted from the last prefix vector
        tensor([1, 2, 3, 1, 4, 6, 7, 8])
        >>> batch = pack(torch.randn(1, 512), [[5, 6, 0], [7, 0]], [0, 0], prefix_length=2, prompts=[[3, 4]])
        >>> batch.input_ids, batch.position_ids  # both captions follow the prompt
        (tensor([3, 4, 5, 6, 7]), tensor([[0, 1, 2, 3, 4, 5, 4, 0]]))
        >>> first = pack(torch.randn(1, 512), [[5, 0]], [0], prefix_length=2, prompts=[[3, 4]], prompts_first=True)
        >>> first.input_index  # of the two prefix vectors, of the prompt, and of the caption
        tensor([2, 3, 0, 1, 4])
    """
    flat, lengths = flatten(tokens)  # (N,), (C,)
    owner, learned = np.asarray(image_of_caption, np.int64), start_token is not None
    prompt_ids, prompt_lengths = (None, None) if prompts is None else flatten(prompts)
    layout = lay_out(lengths, owner, len(embeddings), prefix_length, learned, shapes, prompt_lengths)
    first_token = np.cumsum(lengths) - lengths  # (C,)
    rows = caption_rows, image_rows
    return fill(layout, embeddings, torch.from_numpy(flat), first_token, start_token, *rows, prompt_ids, prompts_first)


def flatten(rows: Sequence[Sequence[int] | NDArray[np.integer]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of all rows, one row after another, and (rows,) the length of each."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.concatenate([np.empty(0, np.int64), *rows], dtype=np.int64, casting="unsafe"), lengths


def to_device(numbers: NDArray[np.int64], device: torch.device) -> Tensor:
    """A copy on the device, which a GPU makes from page-locked memory while the program goes on."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def assign_rows(sizes: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distribute images over rows of about the same length, the largest first, each to the emptiest row.

    Args:
        sizes: (I,) positions that each image takes.
        count: R.

    Returns:
        (I,) the row of each image, and (I,) the position in the row where it starts.
    """
    row, column = np.empty_like(sizes), np.empty_like(sizes)
    filled = [(0, number) for number in range(count)]  # a heap of (positions filled, row)
    for image in np.argsort(-sizes, kind="stable").tolist():
        start, number = filled[0]
        row[image], column[image] = number, start
        heapq.heapreplace(filled, (start + int(sizes[image]), number))
    return row, column
