"""Batches of features and caption tokens from a feature store."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Subset

from prefixcap.captioner import Captioner
from prefixcap.data.dataset import CaptionDataset
from prefixcap.data.device import DeviceCopy, features_bytes
from prefixcap.data.neighbours import Neighbours
from prefixcap.data.prompts import PromptFunction, PromptTokens
from prefixcap.data.shapes import choose_shapes
from prefixcap.data.shuffle import ShuffledSampler
from prefixcap.data.tokens import CaptionTokens, Tokens
from prefixcap.errors import InputError, OptionError
from prefixcap.features import Feature
from prefixcap.packing import Batch
from prefixcap.prompts.datastore import Datastore
from prefixcap.store import FeatureStore, StoreSplit
from prefixcap.utils.hardware import free_memory_bytes
from prefixcap.utils.options import Positive, check_value

_DRAWN_BATCHES, _DRAWN_CAPTIONS = 256, 100_000  # at most, to choose the shapes of batches by
_DEVICE_SHARE = 4  # the training data take at most this part of a device's free memory


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
        on_device: copy the training data to the device that trains, and make training batches there, without worker
            processes; "auto": on a GPU, where they fit in a quarter of its free memory. The batches are the same.
        prompts: gives each image a text of its own, which is read before its captions and not predicted; where training
            is from text, each caption. It may draw texts anew for each epoch. None: no image has one.
        max_prompt_tokens: cut longer prompts, which lose their last words; None: none is cut.
        datastore: where captions are retrieved for a mapper that reads such; None: among the store's own.
        retrieval_noise: with `from_text`, the variance of the noise on the embedding that retrieves them.

    Attributes:
        fixed_shapes: pad training batches to at most four shapes, which CUDA graphs need; a rare larger one keeps its
            own. It is read when the first batch is drawn.

    Raises:
        InputError: there is no such store; it was made by another encoder; it has no split "train" or "val", or not the
            features that the mapper reads; its embeddings are on another scale than the captioner reads; a caption does
            not fit the language model's context, by itself or after its prompt; a prompt is no text; or captions are to
            be grouped though each has its own embedding.
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
        on_device: Literal["auto"] | bool = "auto",
        prompts: PromptFunction | None = None,
        max_prompt_tokens: int | None = None,
        datastore: Datastore | None = None,
        retrieval_noise: float = 0.0,
    ) -> None:
        super().__init__()
        if from_text and group_captions:
            raise InputError(
                "group_captions is for captions that share an image's features, and in training on text each "
                "has its own: leave it out"
            )
        if released_tokens and captioner.start_token and not captioner.mapper.prefix_length:
            raise InputError(
                "released_tokens learns the start token from the prefix vector before it, and the mapper makes none: "
                "leave it out"
            )
        if max_prompt_tokens is not None:
            if prompts is None:
                raise InputError("max_prompt_tokens cuts prompts: give prompts, too, or leave it out")
            max_prompt_tokens = check_value("max_prompt_tokens", max_prompt_tokens, Positive)
        self.batch_size = batch_size
        self.num_workers = (2 if torch.cuda.is_available() else 0) if num_workers is None else num_workers
        self.seed = seed
        self.on_device = on_device
        self.fixed_shapes = False
        self._copy: DeviceCopy | None = None
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
        self.train_prompts, self.val_prompts = (
            None if prompts is None else PromptTokens(prompts, split, captioner, from_text, max_prompt_tokens)
            for split in (self.train_split, self.val_split)
        )
        self.train_neighbours, self.val_neighbours = None, None
        if k := captioner.mapper.retrieved:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.train_neighbours, self.val_neighbours = (
                Neighbours(datastore or Datastore.open(opened), split, k, from_text, retrieval_noise, seed, device)
                for split in (self.train_split, self.val_split)
            )
        if prompts is not None:
            self.longest()  # an image whose captions do not fit after its prompt is refused now

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

    def longest(self) -> tuple[Tensor, list[Tokens], int, list[str]]:
        """Data to check a language model with before it is trained.

        Returns:
            (2, …) features of two training images; the token ids of a caption of each, the first about as long as any;
            the most positions that an image has in a row, in training or in validation; and the prompts of the two
            images, none if no image has one.
        """
        captions = self._dataset(self.train_split, by_image=False)
        longest, positions = captions.longest()
        rows = np.array([longest, len(captions) - 1 if longest == 0 else 0])
        by_image = [self._dataset(self.val_split, by_image=True)]
        if self.group_captions:
            by_image.append(self._dataset(self.train_split, by_image=True))
        most_positions = max(positions, *(dataset.longest()[1] for dataset in by_image))
        batch = captions.__getitems__(rows.tolist())
        return batch.embeddings, self.train_tokens[rows], most_positions, batch.prompts

    @property
    def longest_prompt(self) -> int:
        """The most tokens of a prompt of an image, among those with the most bytes; 0 without prompts."""
        return max(0 if prompts is None else prompts.longest for prompts in (self.train_prompts, self.val_prompts))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Captions, or images with all their captions, in random order; an epoch's last batch may be smaller."""
        dataset = self._dataset(self.train_split, self.group_captions, self.learned_start)
        dataset.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        size, items = self.batch_size, range(len(dataset))
        if self.group_captions:
            items = np.unique(self.train_split.caption_images[:])  # type: ignore[assignment]  # is indexed like a range
            size = max(1, round(size * len(items) / len(self.train_split.captions)))
        dataset.copy = self._device_copy(dataset)
        taken = lambda: size * self._batches_taken()  # noqa: E731
        sampler = ShuffledSampler(len(items), self.seed, taken)
        loader = self._loader(Subset(dataset, items), size, sampler)
        loader.begin = partial(self._begin_epoch, dataset, sampler, items, size)
        return loader

    def val_dataloader(self) -> DataLoader[Batch]:
        """Images in the store's order."""
        return self._loader(self._dataset(self.val_split, by_image=True), self.batch_size, None)

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

    def _begin_epoch(self, dataset: CaptionDataset, sampler: ShuffledSampler, items: Sequence[int], size: int) -> None:
        """Tell the data set the epoch, and choose the shapes of training batches, if they are to have few."""
        assert dataset.epoch is not None
        dataset.epoch.fill_(sampler.epoch)
        if self.fixed_shapes and not dataset.shapes:
            drawn = islice(self._draws(items, size), min(_DRAWN_BATCHES, -(-_DRAWN_CAPTIONS // self.batch_size)))
            dataset.shapes = choose_shapes([dataset.layout(batch) for batch in drawn])

    def _draws(self, items: Sequence[int], size: int) -> Iterator[list[int]]:
        """Training batches as they are drawn from the first epoch on, without the smaller ones at an epoch's end."""
        sampler = ShuffledSampler(len(items), self.seed)
        for epoch in count():
            sampler.set_epoch(epoch)
            for batch in BatchSampler(sampler, size, drop_last=size < len(items)):
                yield [items[place] for place in batch]

    def _device_copy(self, dataset: CaptionDataset) -> DeviceCopy | None:
        """The training data on the device that trains, if they are to be there."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if not self.on_device or (self.on_device == "auto" and device.type != "cuda"):
            return None
        if self._copy is None:
            if problem := _why_not_on(device, dataset):
                if self.on_device == "auto":
                    rank_zero_info(f"the training data are read from files: {problem}")
                    return None
                raise OptionError(f"the training data cannot be copied to the device: {problem}", on_device=False)
            self._copy = DeviceCopy(dataset.features, dataset.tokens, device)
        return self._copy

    def _dataset(self, split: StoreSplit, by_image: bool, start_token: int | None = None) -> CaptionDataset:
        training = split is self.train_split
        tokens, prompts = (self.train_tokens, self.train_prompts) if training else (self.val_tokens, self.val_prompts)
        beside = self.train_neighbours if training else self.val_neighbours
        return CaptionDataset(split, self.features, tokens, self.prefix_length, by_image, start_token, prompts, beside)

    def _loader(self, dataset: Dataset[Batch], size: int, sampler: ShuffledSampler | None) -> "_Loader":
        in_place = sampler is not None and self._copy is not None  # batches are made on the device
        num_workers = 0 if in_place else self.num_workers
        return _Loader(
            dataset,
            size,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=_identity,  # `CaptionDataset.__getitems__` returns a batch
            pin_memory=torch.cuda.is_available() and not in_place,
            persistent_workers=num_workers > 0,
            generator=torch.Generator().manual_seed(self.seed),  # torch's global one is that of dropout
        )


class _Loader(DataLoader[Batch]):
    """Begins when the first batch is drawn: only then does the sampler know the epoch, and where to begin in it.

    Attributes:
        begin: called before, and before worker processes get the data set.
    """

    begin: Callable[[], None] = staticmethod(lambda: None)

    def __iter__(self) -> Any:
        self.begin()
        try:
            yield from super().__iter__()
        except InputError as error:
            if not (message := str(error)).startswith("Caught "):
                raise
            raise InputError(message.rpartition("InputError: ")[2].strip()) from error  # without a worker's traceback


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


def _why_not_on(device: torch.device, dataset: CaptionDataset) -> str | None:
    """Why a data set cannot be copied to a device; None: it can."""
    tokens = dataset.tokens.most
    if tokens is None:
        return "their captions are tokenized as they are drawn (keep_tokens)"
    size, free = features_bytes(dataset.features) + 4 * tokens, free_memory_bytes(device)
    if size * _DEVICE_SHARE <= free:
        return None
    return f"they take {size / 1e9:.1f} GB, more than a quarter of the {free / 1e9:.1f} GB that are free on {device}"


def _identity(batch: Any) -> Any:
    return batch
