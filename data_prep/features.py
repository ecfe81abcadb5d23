"""What the offline step can store of an image and its captions, beside the records themselves."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from prefixcap.encoders import Encoder
from prefixcap.encoders.regions import aggregate_regions
from prefixcap.errors import InputError

FEATURES = ("image", "patches", "regions", "caption")
CPU_BATCH = 16  # on one thread: small enough for the processor's cache
LARGEST_BATCH = 256  # larger ones are hardly quicker, and take longer to be read


class Features:
    """A choice of features.

    Args:
        chosen: of "image" (the global embedding), "patches" (patch embeddings, and the class token's attention over
            them), "regions" (sub-region features), which need a ViT, and "caption" (the embedding of each caption).
        encoder: makes them.
        dtype: to store them in.
        regions: how many sub-regions of an image. They lie in the order of the class token's attention, so that the
            first few of many are what few would have been.

    Raises:
        InputError: a name is unknown, or there is none.
    """

    def __init__(
        self, chosen: Sequence[str], encoder: Encoder, dtype: torch.dtype = torch.float16, regions: int = 10
    ) -> None:
        if not chosen or (unknown := [name for name in chosen if name not in FEATURES]):
            what = f"{', '.join(map(repr, unknown))} is none of the features" if chosen else "features is empty"
            raise InputError(f"{what}: choose of {', '.join(FEATURES)}, e.g. features=[image,caption]")
        self.names = [name for name in FEATURES if name in chosen]
        self.encoder, self.dtype, self.regions = encoder, dtype, regions

    def encode_images(self, pixels: Tensor) -> dict[str, Tensor]:
        """(batch, 3, height, width) -> the columns of the store, left on the device: nothing waits for them.

        Raises:
            InputError: the encoder has no patches or regions, or the batch is too much for its device.
        """
        if self.names == ["caption"]:
            return {}
        try:
            if {"patches", "regions"} & set(self.names):
                columns = self._encode_patches(pixels)
            else:
                columns = {"images/embedding": self.encoder.encode_images(pixels)}
            return {name: rows.to(self.dtype) for name, rows in columns.items()}
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"a batch of {len(pixels)} images is too much for {self.encoder.device}: lower batch_size"
            ) from error

    def _encode_patches(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.encoder.encode_patches(pixels)
        columns = {}
        if "image" in self.names:
            columns["images/embedding"] = features.embedding
        if "patches" in self.names:
            columns |= {"images/patches": features.patches, "images/attention": features.attention}
        if "regions" in self.names:
            columns["images/regions"] = aggregate_regions(features, self.regions)
        return columns

    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Captions -> the columns of the store. Raises InputError if they are too many for the device."""
        if "caption" not in self.names:
            return {}
        try:
            return {"captions/embedding": self.encoder.encode_texts(captions).to(self.dtype)}
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"a batch of {len(captions)} captions is too much for {self.encoder.device}: lower batch_size"
            ) from error

    @cached_property
    def empty(self) -> dict[str, NDArray[Any]]:
        """The columns without a row, known by trial. Raises InputError as the encoding of many would."""
        columns = self.encode_images(self._blank[None]) | self.encode_captions(["a"])
        return {name: rows[:0].cpu().numpy() for name, rows in columns.items()}

    @cached_property
    def _blank(self) -> Tensor:
        """(3, height, width) pixels."""
        return self.encoder.preprocess(Image.new("RGB", (8, 8)))

    @property
    def image_size(self) -> int:
        """The larger side of what the encoder takes."""
        return max(self._blank.shape[1:])

    def largest_batch(self) -> int:
        """How many images the encoder does well with at once: on a GPU the largest power of two that fits.

        Raises:
            InputError: not even one image fits.
        """
        if self.encoder.device.type == "cpu":
            return CPU_BATCH
        size = LARGEST_BATCH
        while True:
            try:
                self.encode_images(self._blank.expand(size, -1, -1, -1))
                self.encode_captions(["a"] * size)
                return size
            except InputError:
                if size == 1:
                    raise
                size //= 2
            finally:
                torch.cuda.empty_cache()
