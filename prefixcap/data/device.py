"""The training data on the device that trains, so that a batch is gathered there and little crosses from the host."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from prefixcap.data.tokens import CaptionTokens
from prefixcap.packing import to_device
from prefixcap.store.reader import Column

_BLOCK_BYTES, _BLOCK_CAPTIONS = 1 << 26, 1 << 16  # that are read together


class DeviceCopy:
    """A split's features and token ids on a device.

    Args:
        features: M rows of features.
        tokens: token ids of C captions.
        device: where they are copied to.

    Attributes:
        features: (M, …) in the type of the store.
        tokens: int32 ids of all captions, one after another.
        ends: (C,) where each caption ends among them; on the host.
    """

    def __init__(self, features: Column, tokens: CaptionTokens, device: torch.device) -> None:
        captions, ids, lengths = len(tokens.split.captions), [], []
        rows = max(1, _BLOCK_BYTES * len(features) // features_bytes(features))  # of a block
        bar = tqdm(total=len(features) + captions, desc=f"copying the training data to {device}", unit=" rows", delay=1)
        with bar:
            for start in range(0, len(features), rows):
                block = torch.from_numpy(features[start : start + rows])
                if not start:
                    self.features = torch.empty(features.shape, dtype=block.dtype, device=device)
                self.features[start : start + rows] = block
                bar.update(len(block))
            for start in range(0, captions, _BLOCK_CAPTIONS):
                some, their_lengths = tokens.flat(np.arange(start, min(start + _BLOCK_CAPTIONS, captions)))
                ids.append(some.astype(np.int32))
                lengths.append(their_lengths)
                bar.update(len(their_lengths))
        self.tokens = torch.from_numpy(np.concatenate(ids)).to(device)
        self.ends = np.cumsum(np.concatenate(lengths))

    def read(
        self, rows: NDArray[np.int64], captions: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor, NDArray[np.int64], NDArray[np.int64]]:
        """What a batch is made of: float32 features of these rows; the token ids of all captions, where those of each
        of these captions begin, and their lengths."""
        starts = np.where(captions > 0, self.ends[captions - 1], 0)
        features = self.features.index_select(0, to_device(rows, self.features.device)).float()
        return features, self.tokens, starts, self.ends[captions] - starts


def features_bytes(features: Column) -> int:
    """The size of features."""
    size: int = math.prod(features.shape) * features.dtype.itemsize
    return size
