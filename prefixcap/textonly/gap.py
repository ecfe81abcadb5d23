"""The gap between the embeddings of images and of their captions (Qiu et al., "Mining Fine-Grained Image-Text Alignment
for Zero-Shot Captioning via Text-Only Training", 2024, MacCap: section 3, Table 1, Figures 1 and 6, supplement 4).

All embeddings are scaled to length one first. A pair is an image and one of its captions. Up to three features of the
image are compared with the caption's embedding T:

    global  I_c, the image embedding: one vector.
    region  the subregions alone. Supplement 4 takes the patch embeddings I_p, so these are taken if the store has them
            (images/patches; the class token is not among them); else I_s of equation 12, which is what images/regions
            holds less the image embedding that equation 13 added.
    mix     I_s + I_c of equation 13: images/regions, which the encoder's features were summed for as they are (the
            paper's equations; its code scales I_s and I_c to length one before it adds them).

Where a feature has several vectors for an image, each of them makes a cosine and a gap of its own, and the mean,
maximum and minimum go over all of them and all pairs (the paper does not say how it sums up its ten). The gap is T - I,
and all its dimensions are pooled; a mean offset of single dimensions, which pooling hides, is reported as its length.

Three numbers suggest a variance (sigma squared, of each dimension) for the noise on text embeddings of length one. With
c the mean pair cosine and D dimensions they are:

    of the gap      the mean square of T - I, which is (2 - 2c) / D: the zero-mean Gaussian that fits the gap best. Less
                    the mean offset it is the variance around it, for noise that is added together with that offset.
    of the cosine   (1 / c^2 - 1) / D: noise after which a text, scaled to length one again as CapDec and MacCap do it,
                    is as far from what it was as images are. The paper's c of 0.330 and its D of 512 give 0.0160, the
                    0.016 that CapDec and MacCap found best; the gap itself would give 0.0026.
    of the captions what CapDec took (Nukrai et al. 2022), from text alone: sigma is the largest difference in any
                    dimension between two captions of an image (their L-infinity distance), averaged over the pairs of
                    its captions and then over images.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from prefixcap.errors import InputError
from prefixcap.store import FeatureStore, StoreSplit
from prefixcap.store.reader import Column

CHUNK = 1024  # captions read at once
ELEMENTS = 2**21  # numbers of a feature worked on at once
IMAGE = "images/embedding"
EMBED = "python -m data_prep.embed ... 'features=[image,regions,caption]'"
BIN = 1e-4  # width of a bin; differences of vectors of length one lie between -2 and 2
BINS = 40_000
MOST_POINTS = 5000  # of a kind in the projection, as in the paper's

Floats = NDArray[np.floating[Any]]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Histogram:
    """How many dimension-wise differences fall into each bin: bin i begins at `start` + i · `width`."""

    start: float
    width: float
    counts: list[int]


@dataclass(frozen=True)
class FeatureGap:
    """What separates one feature of images from their captions.

    Attributes:
        source: the columns of the store.
        vectors: of an image.
        cosine_mean, cosine_max, cosine_min: of a caption and a vector of its image.
        closest_mean: mean over pairs of the cosine of the closest vector.
        closer_share: of the pairs in which a vector is closer to the caption than the global embedding is; None for
            that itself.
        mean, std: of the dimension-wise differences, text less image.
        excess_kurtosis: of the differences, around their mean; 0 for a Gaussian, above it for heavier tails.
        gaussian_distance: largest distance between the distribution functions of the differences and of the zero-mean
            Gaussian that fits them best (Kolmogorov and Smirnov's), taken at the edges of bins 0.0001 wide; 0 to 1.
        offset_norm: length of the mean difference vector.
        variance: of that Gaussian: the mean square of the differences.
        variance_around_offset: mean over the dimensions of the variance of each.
        variance_of_cosine: see the head of this module; None if the mean cosine is not above 0.
        histogram: of the differences.
    """

    source: str
    vectors: int
    cosine_mean: float
    cosine_max: float
    cosine_min: float
    closest_mean: float
    closer_share: float | None
    mean: float
    std: float
    excess_kurtosis: float
    gaussian_distance: float
    offset_norm: float
    variance: float
    variance_around_offset: float
    variance_of_cosine: float | None
    histogram: Histogram


@dataclass(frozen=True)
class Gap:
    """The gap between the images of a split and their captions.

    Attributes:
        pairs: how many.
        dim: of the embeddings.
        features: by name: global, and region and mix where the store has them.
        captions_variance: noise variance from captions alone; None if no image has two.
        modality_offset: (dim,) mean image embedding less mean text embedding over the pairs, both of length one:
            CapDec's offset to add in training.
        notes: what could not be computed, and what to do about it.
    """

    pairs: int
    dim: int
    features: dict[str, FeatureGap]
    captions_variance: float | None
    modality_offset: list[float]
    notes: list[str]


def measure_gap(store: FeatureStore, name: str = "val", pairs: int | None = None, seed: int = 0) -> Gap:
    """Measure the gap, reading some rows at a time: the memory that it takes does not grow with the store.

    Args:
        store: with images/embedding, captions/embedding and, for the subregions, images/regions or images/patches.
        name: of the split.
        pairs: how many pairs to draw; None, or more than there are: all.
        seed: of the draw.

    Raises:
        InputError: there is no such split, it has no captions, the store has no embeddings of images or of captions, or
            `pairs` is below 1.
    """
    split = store.split(name)
    text, readers, notes = _features(store, split)
    drawn = _draw(len(split.captions), pairs, seed)
    totals = {feature: _Totals(reader) for feature, reader in readers.items()}
    largest, images_with_two = 0.0, 0
    with tqdm(total=len(split.captions), desc="measuring the gap", unit=" captions", disable=None) as bar:
        for rows, images in _chunks(split):
            bar.update(len(rows))
            chosen = _are_drawn(rows, drawn)
            siblings = np.isin(images, images[chosen])
            rows, images, chosen = rows[siblings], images[siblings], chosen[siblings]
            if len(rows):
                captions = _unit(text[rows])
                differences = largest_differences(captions, images)
                largest, images_with_two = largest + differences.sum(), images_with_two + len(differences)
                _add_pairs(totals, captions[chosen], images[chosen])
    if not images_with_two:
        notes.append("no image has two captions: there is no noise variance from captions alone")
    return Gap(
        pairs=totals["global"].pairs,
        dim=text.shape[1],
        features={feature: of.summary() for feature, of in totals.items()},
        captions_variance=float(largest / images_with_two) ** 2 if images_with_two else None,
        modality_offset=(-totals["global"].sums / totals["global"].pairs).tolist(),
        notes=notes,
    )


def largest_differences(captions: Floats, images: Rows) -> NDArray[np.float64]:
    """The L-infinity distance of two captions of an image, averaged over all pairs of its captions.

    Args:
        captions: (captions, dim) embeddings.
        images: (captions,) whose they are, never falling.

    Returns:
        One number for each image that has two captions or more.
    """
    places = np.unique(images, return_inverse=True)[1]
    sums, counts = np.zeros(len(images)), np.zeros(len(images))
    for step in range(1, len(images)):
        first = np.flatnonzero(images[step:] == images[:-step])
        if not len(first):
            break
        sums += np.bincount(places[first], np.abs(captions[first + step] - captions[first]).max(1), len(images))
        counts += np.bincount(places[first], minlength=len(images))
    return sums[counts > 0] / counts[counts > 0]


def sample_points(store: FeatureStore, name: str = "val", pairs: int | None = None, seed: int = 0) -> dict[str, Floats]:
    """The embeddings of at most 5,000 pairs, scaled to length one, by name: text, (captions, dim), global, (images,
    dim), and region (or mix), (images, dim), if the store has them: one subregion of each image, drawn at random.

    For the arguments, and what is raised, see `measure_gap`.
    """
    split = store.split(name)
    text, readers, _ = _features(store, split)
    rows = _draw(len(split.captions), min(pairs or MOST_POINTS, MOST_POINTS), seed)
    rows = np.arange(len(split.captions)) if rows is None else rows
    images = np.unique(split.caption_images[rows])
    generator = np.random.default_rng(seed)
    points = {"text": _unit(text[rows])}
    for feature, reader in list(readers.items())[:2]:
        found = []
        for part in _slices(reader, len(images)):
            vectors = reader.read(images[part])
            found.append(vectors[np.arange(len(vectors)), generator.integers(vectors.shape[1], size=len(vectors))])
        points[feature] = np.concatenate(found)
    return points


@dataclass(frozen=True)
class _Reader:
    """How a feature of images is read: `rows_of` gives (rows, vectors, dim) for rows of images, of any length."""

    source: str
    vectors: int
    dim: int
    rows_of: Callable[[Rows], Floats]

    def read(self, images: Rows) -> Floats:
        """(rows, vectors, dim), of length one."""
        return _unit(self.rows_of(images))


class _Totals:
    """What is summed up of a feature over pairs."""

    def __init__(self, reader: _Reader) -> None:
        self.reader, self.pairs = reader, 0
        self.cosines, self.most, self.least, self.closest, self.closer = 0.0, -np.inf, np.inf, 0.0, 0
        self.sums, self.squares = np.zeros(reader.dim), np.zeros(reader.dim)  # of T - I, by dimension
        self.cubes, self.fourths = 0.0, 0.0
        self.bins = np.zeros(BINS, np.int64)

    def add(self, text: Floats, vectors: Floats, nearness: Floats) -> None:
        """(pairs, dim) captions, (pairs, vectors, dim) and (pairs,) cosines of the caption and the global embedding."""
        cosines = np.einsum("pd,pvd->pv", text, vectors)
        closest = cosines.max(1)
        self.pairs += len(text)
        self.cosines += cosines.sum(dtype=np.float64)
        self.most, self.least = max(self.most, closest.max()), min(self.least, cosines.min())
        self.closest += closest.sum(dtype=np.float64)
        self.closer += np.count_nonzero(closest > nearness)
        gaps = (text[:, None] - vectors).reshape(-1, text.shape[1])
        squares = gaps * gaps
        self.sums += gaps.sum(0, dtype=np.float64)
        self.squares += squares.sum(0, dtype=np.float64)
        self.cubes += (squares * gaps).sum(dtype=np.float64)
        self.fourths += (squares * squares).sum(dtype=np.float64)
        self.bins += np.bincount(((gaps.ravel() + 2) / BIN).astype(np.int64).clip(0, BINS - 1), minlength=BINS)

    def summary(self) -> FeatureGap:
        vectors, dim = self.pairs * self.reader.vectors, self.reader.dim
        offset, squares = self.sums / vectors, self.squares / vectors
        cubes, fourths = self.cubes / (vectors * dim), self.fourths / (vectors * dim)
        mean, variance = offset.mean(), max(squares.mean(), 1e-20)  # of equal embeddings it is none
        around_mean = max(variance - mean**2, 1e-20)
        fourth_moment = fourths - 4 * mean * cubes + 6 * mean**2 * variance - 3 * mean**4
        edges = torch.from_numpy(np.arange(1, BINS + 1) * BIN - 2)
        fitted = torch.special.ndtr(edges / variance**0.5).numpy()
        cosine = self.cosines / vectors
        return FeatureGap(
            source=self.reader.source,
            vectors=self.reader.vectors,
            cosine_mean=float(cosine),
            cosine_max=float(self.most),
            cosine_min=float(self.least),
            closest_mean=float(self.closest / self.pairs),
            closer_share=None if self.reader.source == IMAGE else self.closer / self.pairs,
            mean=float(mean),
            std=float(around_mean**0.5),
            excess_kurtosis=float(fourth_moment / around_mean**2 - 3),
            gaussian_distance=float(np.abs(np.cumsum(self.bins) / self.bins.sum() - fitted).max()),
            offset_norm=float(np.linalg.norm(offset)),
            variance=float(variance),
            variance_around_offset=float((squares - offset**2).mean().clip(0)),
            variance_of_cosine=float((1 / cosine**2 - 1) / dim) if cosine > 0 else None,
            histogram=self._histogram(variance**0.5),
        )

    def _histogram(self, sigma: float) -> Histogram:
        """Bins about a tenth of sigma wide, from the lowest difference to the highest."""
        merged = max(1, round(sigma / BIN / 10))
        counts = np.pad(self.bins, (0, -BINS % merged)).reshape(-1, merged).sum(1)
        filled = np.flatnonzero(counts)
        first, last = filled[0], filled[-1]
        return Histogram(float(first * merged * BIN - 2), merged * BIN, counts[first : last + 1].tolist())


def _add_pairs(totals: dict[str, _Totals], text: Floats, images: Rows) -> None:
    """Add pairs of (pairs, dim) captions of length one and rows of images."""
    nearness = np.einsum("pd,pd->p", text, totals["global"].reader.read(images)[:, 0])
    for of in totals.values():
        for part in _slices(of.reader, len(text)):
            of.add(text[part], of.reader.read(images[part]), nearness[part])


def _features(store: FeatureStore, split: StoreSplit) -> tuple[Column, dict[str, _Reader], list[str]]:
    """The captions' embeddings, readers of the images' by name, and notes on what is missing."""
    columns = {name: _column(split, name) for name in ("captions/embedding", IMAGE, "images/regions", "images/patches")}
    text, image, regions, patches = columns.values()
    if text is None or image is None:
        missing = " and no ".join(name for name in ("captions/embedding", IMAGE) if columns[name] is None)
        raise InputError(
            f"{store.location} has no {missing}; the gap is between images and their captions: embed both, `{EMBED}`"
        )
    if not len(text):
        raise InputError(
            f"the images of {store.location}, split {split.name!r}, have no captions: choose another --split"
        )
    dim = image.shape[1]
    readers = {"global": _Reader(IMAGE, 1, dim, lambda rows: image[rows][:, None])}
    if patches is not None:
        readers["region"] = _Reader("images/patches", patches.shape[1], dim, lambda rows: patches[rows])
    elif regions is not None:
        readers["region"] = _Reader(
            f"images/regions less {IMAGE}", regions.shape[1], dim,
            lambda rows: regions[rows].astype(np.float32) - image[rows][:, None].astype(np.float32),
        )  # fmt: skip
    if regions is not None:
        readers["mix"] = _Reader("images/regions", regions.shape[1], dim, lambda rows: regions[rows])
    absent = [name for name in ("region", "mix") if name not in readers]
    note = f"without images/regions in the store there is no {' and no '.join(absent)} feature: embed with `{EMBED}`"
    return text, readers, [note] if absent else []


def _column(split: StoreSplit, name: str) -> Column | None:
    try:
        return split.feature(name)
    except InputError:
        return None


def _chunks(split: StoreSplit) -> Iterator[tuple[Rows, Rows]]:
    """Rows of captions and of their images, some at a time. The captions of an image stay together, up to `CHUNK`."""
    start, end = 0, len(split.captions)
    while start < end:
        images = split.caption_images[start : start + CHUNK]
        if start + len(images) < end and images[0] != images[-1]:
            images = images[: np.searchsorted(images, images[-1])]
        yield np.arange(start, start + len(images)), images
        start += len(images)


def _slices(reader: _Reader, count: int) -> Iterator[slice]:
    """Parts of `count` images, so small that their vectors fit into memory several times."""
    step = max(1, ELEMENTS // (reader.vectors * reader.dim))
    return (slice(start, start + step) for start in range(0, count, step))


def _draw(count: int, pairs: int | None, seed: int) -> Rows | None:
    """Rows of captions, rising; None: all."""
    if pairs is not None and pairs < 1:
        raise InputError(f"--pairs is at least 1, not {pairs}")
    if pairs is None or pairs >= count:
        return None
    return np.sort(np.array(random.Random(seed).sample(range(count), pairs)))


def _are_drawn(rows: Rows, drawn: Rows | None) -> NDArray[np.bool_]:
    """Which of consecutive rows are among those drawn."""
    if drawn is None:
        return np.ones(len(rows), bool)
    first, last = np.searchsorted(drawn, [rows[0], rows[-1] + 1])
    chosen = np.zeros(len(rows), bool)
    chosen[drawn[first:last] - rows[0]] = True
    return chosen


def _unit(embeddings: Floats) -> Floats:
    """(..., dim) of any length -> of length one, in float32."""
    embeddings = embeddings.astype(np.float32)
    norms: Floats = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return embeddings / np.maximum(norms, 1e-12)
