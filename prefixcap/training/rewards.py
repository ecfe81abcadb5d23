"""Rewards of sampled captions for self-critical sequence training (Rennie et al. 2017), and advantages from them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.errors import InputError, RowsError
from prefixcap.metrics.cider import consensus
from prefixcap.metrics.clip_score import clip_scores_of_texts
from prefixcap.metrics.ngrams import take_images
from prefixcap.metrics.ptb import tokenize
from prefixcap.metrics.references import tokenized_references


class Reward(Protocol):
    """How good captions are."""

    def __call__(self, captions: Sequence[str], images: Sequence[int], embeddings: Tensor) -> NDArray[np.float64]:
        """(captions,) rewards: the higher, the better.

        Args:
            captions: as the captioner writes them.
            images: of each caption, the row of its image in the training split.
            embeddings: (captions, dim) of each caption, the embedding of its image as the encoder gave it.
        """
        ...


class CiderReward:
    """CIDEr-D against the references of the caption's image, with document frequencies from the whole training split.

    Equal to what pycocoevalcap gives the image where it is given all images of the split. The references are tokenized
    and counted once; the next time, their n-grams come from a file (`prefixcap.metrics.cache`): for COCO's 113,000
    training images a minute, then seconds. These take half a GB of memory.

    Args:
        references: the captions of each image of the split. Images without any are not counted, and have no reward.

    Raises:
        InputError: no image has references.

    Examples:
        >>> reward = CiderReward([["A red circle.", "a circle in red"], ["A blue square."]])
        >>> reward(["a red circle", "a red circle", "a blue square"], [0, 1, 1]).round(2).tolist()
        [4.76, 0.0, 7.5]
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        self.described = sum(1 for texts in references if texts)
        if not self.described:
            raise InputError("no image of the training split has a caption: CIDEr as reward needs references")
        self.references = tokenized_references(references).grams

    def __call__(
        self, captions: Sequence[str], images: Sequence[int], embeddings: Tensor | None = None
    ) -> NDArray[np.float64]:
        """(captions,) CIDEr-D, 0 to 10; see `Reward`.

        Args:
            captions: any number of each image.
            images: of each caption, the row of its image in the split.
            embeddings: not looked at.

        Raises:
            InputError: there are not as many captions as images, or an image has no references.
        """
        if len(captions) != len(images):
            raise InputError(f"{len(captions)} captions of {len(images)} images: name the image of each caption")
        references = take_images(self.references, np.asarray(images, np.int64))
        bare = np.setdiff1d(np.arange(len(images)), references.images)
        if len(bare):
            of_bare = sorted({int(images[place]) for place in bare})
            raise RowsError("images of the training split", of_bare, "without captions: train on images that have some")
        return consensus([tokenize(caption) for caption in captions], references, self.described)


class ClipReward:
    """CLIPScore of a caption and its image (Hessel et al. 2021), which needs no references.

    Args:
        captioner: whose encoder judges; it is loaded for the first captions, onto the captioner's device.

    Raises:
        InputError: the captioner reads patches or regions of images, and no embedding to compare captions with.
    """

    def __init__(self, captioner: Captioner) -> None:
        if captioner.features != "images/embedding":
            raise InputError(
                "CLIPScore compares captions with an image's embedding, and this captioner reads "
                f"{captioner.features}: set scst.reward=cider"
            )
        self.captioner = captioner

    def __call__(self, captions: Sequence[str], images: Sequence[int], embeddings: Tensor) -> NDArray[np.float64]:
        """(captions,) CLIPScore, 0 to 2.5; see `Reward`.

        Args:
            captions: at least one; what exceeds the encoder's context is cut.
            images: not looked at.
            embeddings: (captions, dim) of their images, on any device.

        Raises:
            InputError: there are not as many embeddings as captions, they are of another width than the encoder's, or
                one is NaN, infinite or all zero.
        """
        scores = clip_scores_of_texts(self.captioner.encoder(), embeddings, captions)["CLIPScore"]
        return scores.double().numpy()


def self_critical_weights(rewards: NDArray[np.float64], samples: int) -> NDArray[np.float64]:
    """By how much each caption's reward exceeds the mean reward of the other captions of its image.

    Luo 2020, "A Better Variant of Self-Critical Sequence Training", section 3: no greedy caption is needed.

    Args:
        rewards: (images · samples,) the captions of an image next to each other.
        samples: captions an image.

    Returns:
        (images · samples,) weights of the captions' log-probabilities, which sum to 0 in each image.

    Raises:
        InputError: an image has fewer than two captions, or the rewards are no whole number of images.

    Examples:
        >>> self_critical_weights(np.array([1.0, 2.0, 6.0]), samples=3).tolist()
        [-3.0, -1.5, 4.5]
    """
    if samples < 2:
        raise InputError(f"self-critical training compares the captions of an image: sample at least 2, not {samples}")
    if len(rewards) % samples:
        raise InputError(f"{len(rewards)} rewards are no whole number of images with {samples} captions each")
    of_image = rewards.reshape(-1, samples)
    others = (of_image.sum(axis=1, keepdims=True) - of_image) / (samples - 1)
    weights: NDArray[np.float64] = (of_image - others).reshape(-1)
    return weights
