"""Batches of features and caption tokens from a feature store."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from prefixcap.captioner import Captioner
from prefixcap.data.shuffle import ShuffledSampler
from prefixcap.data.tokens import CaptionTokens, Tokens
from prefixcap.errors import InputError, OptionError
from prefixcap.features import Feature
from prefixcap.packing import Batch, pack
from prefixcap.store import FeatureStore, StoreSplit

_TRIED = 64  # texts whose tokens are counted to estimate the longest


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
    """

    def __init__(
        self,
        split: StoreSplit,
        features: str,
        tokens: CaptionTokens,
        prefix_length: int,
        by_image: bool,
        start_token: int | None = None,
    ) -> None:
        self.split, self.features = split, split.feature(features)
        self.from_captions = features.startswith("captions/")
        self.tokens, self.prefix_length, self.start_token = tokens, prefix_length, start_token
        self.ends: NDArray[np.int64] | None = None  # by_image: (images,) the row after an image's last caption
        if by_image:
            self.ends = np.cumsum(np.bincount(split.caption_images[:], minlength=len(split)))

    def __len__(self) -> int:
        return len(self.split.captions if self.ends is None else self.ends)

    def longest(self) -> tuple[int, int]:
        """The item with the most positions in a row, and how many: among those with the most bytes of text."""
        if self.ends is None:
            items = self.split.longest_captions()[:_TRIED]
        else:
            sizes = np.bincount(self.split.caption_images[:], self.split.caption_sizes(), len(self))
            items = np.argsort(sizes)[-_TRIED:]
        positions = [len(self.__getitems__([item]).input_index) for item in items.tolist()]
        return int(items[np.argmax(positions)]), max(positions)

    def __getitems__(self, items: list[int]) -> Batch:
        """The batch of these items. A DataLoader calls it with all items of a batch at once."""
        if self.ends is None:
            captions = np.array(items)
            images, image_of_caption = self.split.caption_images[captions], np.arange(len(items))
            rows = captions if self.from_captions else images
        else:
            images = np.array(items)
            counts = self.ends[images] - np.where(images > 0, self.ends[images - 1], 0)
            image_of_caption = np.repeat(np.arange(len(items)), counts)
            captions = np.repeat(self.ends[images] - np.cumsum(counts), counts) + np.arange(counts.sum())
            # An image without captions gets any row: it has no targets, so that nothing is learned from it.
            rows = np.minimum(self.ends[images] - counts, len(self.features) - 1) if self.from_captions else images
        features = torch.from_numpy(self.features[rows]).float()
        tokens = self.tokens[captions]
        rows_in_split = captions.tolist(), images.tolist()
        return pack(features, tokens, image_of_caption, self.prefix_length, *rows_in_split, self.start_token)


class CaptionData(L.LightningDataModule):
    """Training and validation batches from a feature store.

    Training draws captions at random, each with its image's embedding; validation goes through the images, each with
    all its captions. Embeddings and captions stay on disk: start-up time and memory do not grow with the store.

    Args:
        store: a store, its folder or its URL.
        captioner: the model; the store must be of its encoder, and the captions must fit its context.
        batch_size: captions of a training batch, images of a validation batch.
        num_workers: processes that prepare batches beside the training; 0: none. None: 2 with a GPU, otherwise 0.
        max_caption_tokens: cut longer captions (the end token is kept); None: none is cut.
        seed: seed of the order of training captions.
        group_captions: draw images at random, each with all its captions; a batch has as many images as have about
            `batch_size` captions. A prefix is then computed once for all captions of its image.
        keep_tokens: tokenize all captions once, and keep the token ids beside the store; otherwise they are tokenized
            as they are drawn.
        from_text: use each caption's own embedding in place of its image's features; in validation, that of an image's
            first caption.
        released_tokens: read training captions as MacCap's released code does: their start token is learned, too, if
            the captioner reads one; those longer than `max_caption_tokens` are cut without an end token, and shorter
            ones padded, and padding is learned like other tokens. Validation captions are not changed.

    Raises:
        InputError: there is no such store; it was made by another encoder; it has no split "train" or "val", or not the
            features that the mapper reads; its embeddings are on another scale than the captioner reads; a caption does
            not fit the language model's context; or captions are to be grouped though each has its own embedding.
    """

    def __init__(
        self,
        store: FeatureStore | str | Path,
        captioner: Captioner,
        batch_size: int = 40,
        num_workers: int | None = None,
        max_caption_tokens: int | None = None,
        seed: int = 0,
        group_captions: bool = False,
        keep_tokens: bool = True,
        from_text: bool = False,
        released_tokens: bool = False,
    ) -> None:
        super().__init__()
        if from_text and group_captions:
            raise InputError(
                "group_captions is for captions that share an image's features, and in training on text each "
                "has its own: leave it out"
            )
        self.batch_size = batch_size
        self.num_workers = (2 if torch.cuda.is_available() else 0) if num_workers is None else num_workers
        self.seed = seed
        self._before: dict[str, Any] = {}  # the `state_dict` of the run that is resumed
        self.group_captions = group_captions
        self.prefix_length = captioner.prefix_length
        self.features = Feature.CAPTION if from_text else captioner.features
        opened = store if isinstance(store, FeatureStore) else FeatureStore(store)
        require_match(opened, captioner)
        if missing := {"train", "val"} - opened.splits.keys():
            raise InputError(
                f"{opened.location} has no split '{min(missing)}', only {', '.join(opened.splits)}: embed into another "
                "folder with some images or sentences in that split, by a column `split` or by the reader's option "
                "val_share=0.02"
            )
        self.train_split = opened.split("train")
        self.val_split = opened.split("val")
        for split in (self.train_split, self.val_split):
            if not len(split.captions):
                raise InputError(f"split '{split.name}' of {store} has no captions to train on")
            split.feature(self.features)  # now, rather than when the first batch is drawn
        folder = opened.path / "tokens" if keep_tokens else None
        self.train_tokens = CaptionTokens(self.train_split, captioner, max_caption_tokens, folder, released_tokens)
        self.learned_start = captioner.language_model.start_token if released_tokens and captioner.start_token else None
        self.val_tokens = CaptionTokens(self.val_split, captioner, max_caption_tokens, folder)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: what the order of training captions depends on."""
        return {
            "batch_size": self.batch_size,
            "data.group_captions": self.group_captions,
            "processes": 1 if self.trainer is None else self.trainer.world_size,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict`: within an epoch, a run can continue only with the same batches."""
        self._before = state_dict

    def longest(self) -> tuple[Tensor, list[Tokens], int]:
        """Data to check a language model with before it is trained.

        Returns:
            (2, …) features of two training images; the token ids of a caption of each, the first about as long as any;
            and the most positions that an image has in a row, in training or in validation.
        """
        captions = self._dataset(self.train_split, self.train_tokens, by_image=False)
        longest, positions = captions.longest()
        rows = np.array([longest, len(captions) - 1 if longest == 0 else 0])
        by_image = [self._dataset(self.val_split, self.val_tokens, by_image=True)]
        if self.group_captions:
            by_image.append(self._dataset(self.train_split, self.train_tokens, by_image=True))
        most_positions = max(positions, *(dataset.longest()[1] for dataset in by_image))
        return captions.__getitems__(rows.tolist()).embeddings, self.train_tokens[rows], most_positions

    def train_dataloader(self) -> DataLoader[Batch]:
        """Captions, or images with all their captions, in random order; an epoch's last batch may be smaller."""
        dataset: Dataset[Batch] = self._dataset(
            self.train_split, self.train_tokens, self.group_captions, self.learned_start
        )
        size = self.batch_size
        if self.group_captions:
            captioned = np.unique(self.train_split.caption_images[:])
            size = max(1, round(size * len(captioned) / len(self.train_split.captions)))
            dataset = Subset(dataset, captioned)  # type: ignore[arg-type]  # an array is indexed as a list is
        taken = lambda: size * self._batches_taken()  # noqa: E731
        return self._loader(dataset, size, ShuffledSampler(len(dataset), self.seed, taken))  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Batch]:
        """Images in the store's order."""
        return self._loader(self._dataset(self.val_split, self.val_tokens, by_image=True), self.batch_size, None)

    def _batches_taken(self) -> int:
        """The number of this epoch's training batches before the run was stopped, after which it continues."""
        taken = 0 if self.trainer is None else self.trainer.fit_loop.batch_idx + 1
        changed = [f"{name}={value}" for name, value in self._before.items() if self.state_dict()[name] != value]
        if taken and changed:
            raise InputError(
                f"the run was stopped within an epoch, after {taken} batches with {', '.join(changed)}: continue with "
                "that, or captions would be left out or come twice"
            )
        self._before = {}
        return taken

    def _dataset(
        self, split: StoreSplit, tokens: CaptionTokens, by_image: bool, start_token: int | None = None
    ) -> CaptionDataset:
        return CaptionDataset(split, self.features, tokens, self.prefix_length, by_image, start_token)

    def _loader(self, dataset: Dataset[Batch], size: int, sampler: ShuffledSampler | None) -> DataLoader[Batch]:
        return _Loader(
            dataset,
            size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_identity,  # `CaptionDataset.__getitems__` returns a batch
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator().manual_seed(self.seed),  # torch's global one is that of dropout
        )


class _Loader(DataLoader[Batch]):
    """Begins when the first batch is drawn: only then does the sampler know the epoch, and where to begin in it."""

    def __iter__(self) -> Any:
        yield from super().__iter__()


def require_match(store: FeatureStore, captioner: Captioner) -> None:
    """Check that a captioner can read a store's embeddings.

    Raises:
        InputError: they are from another encoder, or scaled to length one though the captioner reads them unscaled.
    """
    store.require_encoder(captioner.encoder_identity)
    if store.made_with.get("normalized") and not captioner.normalize_embeddings:
        raise OptionError(
            f"the embeddings of {store.location} have unit length, but the captioner reads unscaled ones",
            normalize_embeddings=True,
        )


def _identity(batch: Any) -> Any:
    return batch
