"""Batches of embeddings and caption tokens from a feature store."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from prefixcap.captioner import IGNORE, Captioner
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore, StoreSplit


@dataclass
class Batch:
    """Images and captions of them.

    Attributes:
        embeddings: (images, dim) as the encoder gave them.
        tokens: (captions, length) token ids with the end token, filled with `IGNORE`.
        image_of_caption: (captions,) row of each caption's image in `embeddings`.
        rows: row of each image in its split.
    """

    embeddings: Tensor
    tokens: Tensor
    image_of_caption: Tensor
    rows: list[int]


Item = tuple[int, Tensor, list[Tensor]]  # row of the image in its split, its embedding, tokens of its captions


class CaptionDataset(Dataset[Item]):
    """One split, an item a caption or an item an image with all its captions.

    Args:
        split: embeddings and captions.
        tokens: the token ids of each caption.
        by_image: whether an item is an image.
    """

    def __init__(self, split: StoreSplit, tokens: Sequence[Tensor], by_image: bool) -> None:
        self.embeddings = torch.from_numpy(split.embeddings)
        self.tokens = tokens
        self.items: list[tuple[int, list[int]]]
        if by_image:
            of_image: list[list[int]] = [[] for _ in split.ids]
            for caption, image in enumerate(split.caption_images.tolist()):
                of_image[image].append(caption)
            self.items = list(enumerate(of_image))
        else:
            self.items = [(image, [caption]) for caption, image in enumerate(split.caption_images.tolist())]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        image, captions = self.items[index]
        return image, self.embeddings[image].float(), [self.tokens[caption] for caption in captions]


def collate(items: list[Item]) -> Batch:
    """Join items to a batch, padded to its own longest caption."""
    return Batch(
        embeddings=torch.stack([embedding for _, embedding, _ in items]),
        tokens=pad_sequence([row for _, _, rows in items for row in rows], batch_first=True, padding_value=IGNORE),
        image_of_caption=torch.tensor([place for place, (_, _, rows) in enumerate(items) for _ in rows]),
        rows=[image for image, _, _ in items],
    )


class CaptionData(L.LightningDataModule):
    """Training and validation batches from a feature store.

    Training draws captions at random, each with its image's embedding; validation goes through the images, each with
    all its captions.

    Args:
        store: the store's folder.
        captioner: whose encoder, tokenizer and context the batches must fit.
        batch_size: captions a training batch, images a validation batch.
        num_workers: worker processes of each loader; 0 is quickest while a batch is small.
        max_caption_tokens: cut longer captions (the end token is kept); None never cuts.

    Raises:
        InputError: the store is none, was made by another encoder, lacks the split "train" or "val", or a caption
            does not fit the language model's context.
    """

    def __init__(
        self,
        store: str | Path,
        captioner: Captioner,
        batch_size: int = 40,
        num_workers: int = 0,
        max_caption_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        opened = FeatureStore(store)
        opened.require_encoder(captioner.encoder_identity)
        self.train_split = opened.split("train")
        self.val_split = opened.split("val")
        for split in (self.train_split, self.val_split):
            if not split.captions:
                raise InputError(f"split '{split.name}' of {store} has no captions to train on")
        self.train_tokens = tokenize_captions(self.train_split, captioner, max_caption_tokens)
        self.val_tokens = tokenize_captions(self.val_split, captioner, max_caption_tokens)

    def train_dataloader(self) -> DataLoader[Item]:
        """Captions in random order; the last, smaller batch of an epoch is kept."""
        return self._loader(CaptionDataset(self.train_split, self.train_tokens, by_image=False), shuffle=True)

    def val_dataloader(self) -> DataLoader[Item]:
        """Images in the store's order."""
        return self._loader(CaptionDataset(self.val_split, self.val_tokens, by_image=True), shuffle=False)

    def _loader(self, dataset: CaptionDataset, shuffle: bool) -> DataLoader[Item]:
        return DataLoader(
            dataset,
            self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )


def tokenize_captions(split: StoreSplit, captioner: Captioner, max_tokens: int | None = None) -> list[Tensor]:
    """Token ids of every caption of a split, each with the end token.

    Raises:
        InputError: a caption and the prefix do not fit the language model's context; the image is named.
    """
    language_model = captioner.language_model
    prefix_length = captioner.mapper_options["prefix_length"]
    tokens = language_model.tokenize(split.captions)
    if max_tokens is not None:
        tokens = [[*row[: max_tokens - 1], row[-1]] if len(row) > max_tokens else row for row in tokens]
    if language_model.context is not None:
        room = language_model.context - prefix_length
        for caption, row in enumerate(tokens):
            if len(row) > room:
                raise InputError(
                    f"caption {split.captions[caption][:40]!r}… of image {split.ids[split.caption_images[caption]]} "
                    f"({split.name}) has {len(row)} tokens; with a prefix of {prefix_length}, language model "
                    f"'{language_model.name}' takes {room}: shorten it, or cut with max_caption_tokens={room}"
                )
    return [torch.tensor(row) for row in tokens]
