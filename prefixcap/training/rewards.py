"""Rewards of sampled captions for self-critical sequence training (Rennie et al. 2017), and advantages from them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.errors import InputError, OptionError, RowsError
from prefixcap.features import Feature
from prefixcap.metrics.cider import consensus
from prefixcap.metrics.clip_score import clip_scores_of_texts
from prefixcap.metrics.ngrams import take_images
from prefixcap.metrics.ptb import tokenize
from prefixcap.metrics.references import tokenized_references


class Reward(Protocol):
    """A function that says how good captions are."""

    def __call__(self, captions: Sequence[str], images: Sequence[int], embeddings: Tensor) -> NDArray[np.float64]:
        """The reward of each caption: the higher, the better.

        Args:
            captions: N captions.
            images: N rows of their images in the training split.
            embeddings: (N, D) embeddings of their images, without noise.

        Returns:
            (N,) rewards.
        """
        ...


class CiderReward:
    """CIDEr-D (Vedantam et al. 2015) of a caption against the references of its image.

    Document frequencies are those of the training split: the reward equals the score of pycocoevalcap for the image
    among all images of the split. The references are tokenized and counted once, and their n-grams kept in a file
    (`prefixcap.metrics.cache`): for COCO's 113,000 training images this takes a minute, and the next time seconds. They
    take half a GB of memory.

    Args:
        references: the captions of each image of the split. Images without captions do not count, and have no reward.

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
        """(N,) CIDEr-D, 0 to 10.

        Args:
            captions: N captions, any number of an image.
            images: N rows of their images in the split.
            embeddings: not used.

        Raises:
            InputError: there are not as many images as captions, or an image has no references.
        """
        if len(captions) != len(images):
            raise InputError(f"{len(captions)} captions of {len(images)} images: name the image of each caption")
        references = take_images(self.references, np.asarray(images, np.int64))
        without_references = np.setdiff1d(np.arange(len(images)), references.images)  # indices of captions
        if len(without_references):
            rows = sorted({int(images[index]) for index in without_references})
            raise RowsError("images of the training split", rows, "without captions: train on images that have some")
        return consensus([tokenize(caption) for caption in captions], references, self.described)


class ClipReward:
    """CLIPScore of a caption and its image (Hessel et al. 2021), which needs no references.

    Args:
        captioner: the captioner whose encoder is used. It is loaded for the first captions, onto the same device.

    Raises:
        InputError: the captioner reads patches or regions of images, which captions cannot be compared with.
    """

    def __init__(self, captioner: Captioner) -> None:
        if captioner.features is not Feature.IMAGE:
            raise OptionError(
                f"CLIPScore compares captions with an image's embedding, and this captioner reads {captioner.features}",
                reward="cider",
            )
        self.captioner = captioner

    def __call__(self, captions: Sequence[str], images: Sequence[int], embeddings: Tensor) -> NDArray[np.float64]:
        """(N,) CLIPScore, 0 to 2.5.

        Args:
            captions: N captions, at least one; what exceeds the encoder's context is cut.
            images: not used.
            embeddings: (N, D) embeddings of their images, on any device; or (N, 1 + retrieved, D), with those of
                retrieved captions behind.

        Raises:
            InputError: there are not as many embeddings as captions, they are of another width than the encoder's, or
                one is NaN, infinite or all zero.
        """
        whole = embeddings if embeddings.ndim == 2 else embeddings[:, 0]  # (N, D)
        scores = clip_scores_of_texts(self.captioner.encoder(), whole, captions)["CLIPScore"]
        return scores.double().numpy()


def self_critical_weights(rewards: NDArray[np.float64], samples: int) -> NDArray[np.float64]:
    """The advantage of each caption: its reward less the mean reward of the other captions of its image.

    Luo 2020, "A Better Variant of Self-Critical Sequence Training", section 3: no greedy caption is needed.

    Args:
        rewards: (B·K,) rewards of K captions for each of B images, those of an image next to each other.
        samples: K.

    Returns:
        (B·K,) weights of the captions' log-probabilities; those of an image sum to 0.

    Raises:
        InputError: K is below 2, or the number of rewards is not a multiple of K.

    Examples:
        >>> self_critical_weights(np.array([1.0, 2.0, 6.0]), samples=3).tolist()
        [-3.0, -1.5, 4.5]
    """
    if samples < 2:
        raise InputError(f"self-critical training compares the captions of an image: sample at least 2, not {samples}")
    if len(rewards) % samples:
        raise InputError(f"{len(rewards)} rewards are not {samples} for each image")
    rewards = rewards.reshape(-1, samples)  # (B, K)
    baseline = (rewards.sum(axis=1, keepdims=True) - rewards) / (samples - 1)  # (B, K) mean of the others
    weights: NDArray[np.float64] = (rewards - baseline).reshape(-1)
    return weights
