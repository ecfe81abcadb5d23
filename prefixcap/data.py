"""Batches of embeddings and caption tokens from a feature store."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from prefixcap.captioner import IGNORE, Captioner
from prefixcap.errors import InputError
from prefixcap.language import tokenize_captions
from prefixcap.shuffle import ShuffledSampler
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


class CaptionDataset(Dataset[Batch]):
    """One split, from which whole batches are drawn: of captions, each with its image, or of images with all theirs.

    Args:
        split: embeddings and captions.
        tokenize: captions -> the token ids of each.
        by_image: whether an item is an image.
    """

    def __init__(self, split: StoreSplit, tokenize: Callable[[list[str]], list[list[int]]], by_image: bool) -> None:
        self.split, self.tokenize = split, tokenize
        self.captions_of: list[list[int]] | None = None
        if by_image:
            self.captions_of = [[] for _ in split.ids]
            for caption, image in enumerate(split.caption_images[:].tolist()):
                self.captions_of[image].append(caption)

    def __len__(self) -> int:
        return len(self.split.captions if self.captions_of is None else self.captions_of)

    def __getitems__(self, items: list[int]) -> Batch:
        """The batch of these items, padded to its own longest caption."""
        if self.captions_of is None:
            captions, images = np.array(items), self.split.caption_images[items]
            image_of_caption = list(range(len(items)))
        else:
            of = [self.captions_of[image] for image in items]
            captions, images = np.array([c for found in of for c in found], np.int64), np.array(items)
            image_of_caption = [place for place, found in enumerate(of) for _ in found]
        tokens = [torch.tensor(row) for row in self.tokenize(self.split.captions[captions])]
        return Batch(
            embeddings=torch.from_numpy(self.split.embeddings[images]).float(),
            tokens=pad_sequence(tokens, batch_first=True, padding_value=IGNORE),
            image_of_caption=torch.tensor(image_of_caption),
            rows=images.tolist(),
        )


class CaptionData(L.LightningDataModule):
    """Training and validation batches from a feature store.

    Training draws captions at random, each with its image's embedding; validation goes through the images, each with
    all its captions. Embeddings and captions stay on disk: start-up and memory do not grow with the store.

    Args:
        store: a store, its folder or its URL.
        captioner: whose encoder, tokenizer and context the batches must fit.
        batch_size: captions a training batch, images a validation batch.
        num_workers: worker processes of each loader; 0 is quickest while a batch is small.
        max_caption_tokens: cut longer captions (the end token is kept); None never cuts.
        seed: of the order of training captions.

    Raises:
        InputError: the store is none, was made by another encoder, lacks the split "train" or "val", has embeddings
            on another scale than the captioner reads, or a caption does not fit the language model's context.
    """

    def __init__(
        self,
        store: FeatureStore | str | Path,
        captioner: Captioner,
        batch_size: int = 40,
        num_workers: int = 0,
        max_caption_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        opened = store if isinstance(store, FeatureStore) else FeatureStore(store)
        require_match(opened, captioner)
        self.train_split = opened.split("train")
        self.val_split = opened.split("val")
        self.tokenize = CaptionTokenizer(captioner, max_caption_tokens)
        for split in (self.train_split, self.val_split):
            if not len(split.captions):
                raise InputError(f"split '{split.name}' of {store} has no captions to train on")
            self.tokenize.require_room(split)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Captions in random order; the last, smaller batch of an epoch is kept."""
        dataset = CaptionDataset(self.train_split, self.tokenize, by_image=False)
        return self._loader(dataset, ShuffledSampler(len(dataset), self.seed))

    def val_dataloader(self) -> DataLoader[Batch]:
        """Images in the store's order."""
        return self._loader(CaptionDataset(self.val_split, self.tokenize, by_image=True), None)

    def _loader(self, dataset: CaptionDataset, sampler: ShuffledSampler | None) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )


def require_match(store: FeatureStore, captioner: Captioner) -> None:
    """Check that a captioner can read a store's embeddings.

    Raises:
        InputError: another encoder made them, or they are scaled to length one and the captioner reads them unscaled.
    """
    store.require_encoder(captioner.encoder_identity)
    if store.made_with.get("normalized") and not captioner.normalize_embeddings:
        raise InputError(
            f"the embeddings of {store.location} are scaled to length one, but the captioner does not scale those of "
            "its encoder: train one with model.normalize_embeddings=true"
        )


class CaptionTokenizer:
    """Token ids of captions, each with the end token, as a captioner's language model takes them.

    Args:
        captioner: whose tokenizer, and whose prefix and context decide how much room a caption has.
        max_tokens: cut longer captions (the end token is kept); None never cuts.
    """

    def __init__(self, captioner: Captioner, max_tokens: int | None = None) -> None:
        # Not the language model itself: this goes to worker processes.
        self.tokenizer, self.max_tokens = captioner.language_model.tokenizer, max_tokens
        self.name, context = captioner.language_model.name, captioner.language_model.context
        self.prefix_length = captioner.mapper_options["prefix_length"]
        self.room = None if context is None else context - self.prefix_length

    def __call__(self, captions: list[str]) -> list[list[int]]:
        most = self.max_tokens
        tokens = tokenize_captions(self.tokenizer, captions)
        return tokens if most is None else [[*row[: most - 1], row[-1]] if len(row) > most else row for row in tokens]

    def require_room(self, split: StoreSplit) -> None:
        """Check that every caption of a split fits the language model's context beside the prefix.

        Raises:
            InputError: one does not; its image is named.
        """
        if self.room is None:
            return
        # No caption has more tokens than bytes, but for the end token and one that some tokenizers put in front.
        for caption in split.captions_longer_than(self.room - 2).tolist():
            text = split.captions[caption]
            length = len(self([text])[0])
            if length > self.room:
                raise InputError(
                    f"caption {text[:40]!r}… of image {split.ids[split.caption_images[caption]]} "
                    f"({split.name}) has {length} tokens; with a prefix of {self.prefix_length}, language model "
                    f"'{self.name}' takes {self.room}: shorten it, or cut with max_caption_tokens={self.room}"
                )


def _as_it_is(batch: Any) -> Any:
    return batch
