"""The features of images and captions that are stored beside their records."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from prefixcap.encoders import Encoder, hidden_states
from prefixcap.encoders.regions import aggregate_regions
from prefixcap.errors import InputError
from prefixcap.features import Feature

CPU_BATCH = 16  # on one thread: small enough for the processor's cache
LARGEST_BATCH = 256  # larger ones are hardly faster, and take longer to load


class Features:
    """A choice of features.

    Args:
        chosen: options of `Feature`: "image" (the global embedding), "patches" (patch embeddings, and the class token's
            attention over them if there is one) and "regions" (sub-region features), which need a ViT, "hidden"
            (hidden states of a ViT's last layer), and "caption" (the embedding of each caption).
        encoder: the encoder to use.
        dtype: of the features in the store.
        regions: the number of sub-regions of an image. They are in the order of the class token's attention, so the
            first few of many are the same as a store with few would have.

    Attributes:
        chosen: the features, in the order of `Feature`.

    Raises:
        InputError: a name is unknown, or there is none.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> encoder = load_encoder("demo")
        >>> pixels = encoder.preprocess(Image.new("RGB", (64, 64)))[None]
        >>> columns = Features(["image", "regions"], encoder, regions=5).encode_images(pixels)
        >>> {str(feature): tuple(rows.shape) for feature, rows in columns.items()}
        {'images/embedding': (1, 128), 'images/regions': (1, 5, 128)}
    """

    def __init__(
        self, chosen: Sequence[str], encoder: Encoder, dtype: torch.dtype = torch.float16, regions: int = 10
    ) -> None:
        options = [feature.option for feature in Feature]
        if not chosen or (unknown := [name for name in chosen if name not in options]):
            what = f"{', '.join(map(repr, unknown))} is none of the features" if chosen else "features is empty"
            raise InputError(f"{what}: choose from {', '.join(options)}, e.g. features=[image,caption]")
        self.chosen = [feature for feature in Feature if feature.option in chosen]
        self.encoder, self.dtype, self.regions = encoder, dtype, regions

    def encode_images(self, pixels: Tensor) -> dict[str, Tensor]:
        """(batch, 3, height, width) -> the columns of the store, still on the device, so that nothing waits for them.

        Raises:
            InputError: the encoder has no patches or regions, or the batch does not fit in its device's memory.
        """
        if self.chosen == [Feature.CAPTION]:
            return {}
        try:
            if any(feature.ndim == 3 for feature in self.chosen):
                columns = self._encode_patches(pixels)
            else:
                columns = {Feature.IMAGE: self.encoder.encode_images(pixels)}
            return {name: rows.to(self.dtype) for name, rows in columns.items()}
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"a batch of {len(pixels)} images is too much for {self.encoder.device}: lower batch_size"
            ) from error

    def _encode_patches(self, pixels: Tensor) -> dict[str, Tensor]:
        """The same for features that need the patches: these are computed once for all of them."""
        patches = self.encoder.encode_patches(pixels)
        columns: dict[str, Tensor] = {}
        if Feature.IMAGE in self.chosen:
            columns[Feature.IMAGE] = patches.embedding
        if Feature.PATCHES in self.chosen:
            columns[Feature.PATCHES] = patches.patches
            if patches.attention is not None:
                columns["images/attention"] = patches.attention
        if Feature.REGIONS in self.chosen:
            columns[Feature.REGIONS] = aggregate_regions(patches, self.regions)
        if Feature.HIDDEN in self.chosen:
            columns[Feature.HIDDEN] = hidden_states(self.encoder, patches)
        return columns

    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Captions -> the columns of the store. Raises InputError if they do not fit in the device's memory."""
        if Feature.CAPTION not in self.chosen:
            return {}
        try:
            return {Feature.CAPTION: self.encoder.encode_texts(captions).to(self.dtype)}
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"a batch of {len(captions)} captions is too much for {self.encoder.device}: lower batch_size"
            ) from error

    @cached_property
    def empty(self) -> dict[str, NDArray[Any]]:
        """The columns without rows, from a trial. Raises InputError as `encode_images` and `encode_captions`."""
        columns = self.encode_images(self._blank[None]) | self.encode_captions(["a"])
        return {name: rows[:0].cpu().numpy() for name, rows in columns.items()}

    @cached_property
    def _blank(self) -> Tensor:
        """(3, height, width) pixels."""
        return self.encoder.preprocess(Image.new("RGB", (8, 8)))

    @property
    def image_size(self) -> int:
        """The larger side of the images that the encoder takes, in pixels."""
        return max(self._blank.shape[1:])

    def largest_batch(self) -> int:
        """A good batch size: on a GPU the largest power of two that fits in memory, at most `LARGEST_BATCH`.

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
