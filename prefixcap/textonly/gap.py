"""The modality gap between the embeddings of images and of their captions (Qiu et al., "Mining Fine-Grained Image-Text
Alignment for Zero-Shot Captioning via Text-Only Training", 2024, MacCap: section 3, Table 1, Figures 1 and 6,
supplement 4).

All embeddings are scaled to unit length first. A pair is an image and one of its captions. Up to three features of the
image are compared with the caption's embedding T:

    global  I_c, the image embedding: one vector.
    region  the sub-regions only. Supplement 4 takes the patch embeddings I_p, so these are used if the store has them
            (images/patches, without the class token); otherwise I_s of equation 12, which is images/regions minus the
            image embedding that equation 13 added.
    mix     I_s + I_c of equation 13: images/regions, the sum of unscaled features (as in the paper's equations; its
            code scales I_s and I_c to unit length before adding them).

If a feature has several vectors for an image, each of them yields a cosine and a gap of its own, and the mean, maximum
and minimum are over all of them and all pairs (the paper does not say how it aggregates its ten). The gap is T - I,
with all dimensions pooled; the length of the mean offset, which pooling hides, is reported separately.

Three numbers suggest a variance (sigma squared, in each dimension) for the noise on text embeddings of unit length.
With c the mean cosine of the pairs and D dimensions they are:

    of the gap      the mean square of T - I, which is (2 - 2c) / D: the zero-mean Gaussian that fits the gap best.
                    Minus the square of the mean offset it is the variance around that offset, for noise added to it.
    of the cosine   (1 / c^2 - 1) / D: the noise that moves a text, scaled to unit length again as in CapDec and MacCap,
                    as far as images are away from it. The paper's c of 0.330 and D of 512 yield 0.0160, the 0.016 that
                    CapDec and MacCap found best; the gap itself would yield 0.0026.
    of the captions CapDec's choice (Nukrai et al. 2022), from text only: sigma is the largest difference in any
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
from prefixcap.features import Feature
from prefixcap.store import FeatureStore, StoreSplit
from prefixcap.store.reader import Column

CHUNK = 1024  # captions read at once
ELEMENTS = 2**21  # values of a feature processed at once
EMBED = "python -m data_prep.embed ... 'features=[image,regions,caption]'"
BIN = 1e-4  # width of a bin; differences of vectors of unit length lie between -2 and 2
BINS = 40_000
MOST_POINTS = 5000  # of each feature in the projection, as in the paper

Floats = NDArray[np.floating[Any]]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Histogram:
    """How many dimension-wise differences fall into each bin; bin i begins at `start` + i * `width`."""

    start: float
    width: float
    counts: list[int]


@dataclass(frozen=True)
class FeatureGap:
    """The gap between one feature of images and their captions.

    Attributes:
        source: the columns of the store.
        vectors: of each image.
        cosine_mean, cosine_max, cosine_min: between a caption and a vector of its image.
        closest_mean: mean over pairs of the highest cosine of an image's vectors.
        closer_share: share of pairs in which a vector is closer to the caption than the global embedding, 0.0-1.0; None
            for the global embedding itself.
        mean, std: of the dimension-wise differences, text minus image.
        excess_kurtosis: of the differences, around their mean; 0 for a Gaussian, positive for heavier tails.
        gaussian_distance: Kolmogorov-Smirnov distance between the differences and the zero-mean Gaussian that fits them
            best, at the edges of bins 0.0001 wide; 0.0-1.0.
        offset_norm: length of the mean difference vector.
        variance: of that Gaussian: the mean square of the differences.
        variance_around_offset: mean over the dimensions of the variance of each.
        variance_of_cosine: see the top of this module; None if the mean cosine is not positive.
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
        features: by name: global, and region and mix if the store has them.
        captions_variance: noise variance from captions only; None if no image has two.
        modality_offset: (dim,) mean image embedding minus mean text embedding over the pairs, both of unit length:
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
    """Measure the gap, in memory that does not grow with the store.

    Args:
        store: with images/embedding, captions/embedding and, for sub-regions, images/regions or images/patches.
        name: of the split.
        pairs: how many pairs to sample; None, or more than there are: all.
        seed: of the sample.

    Raises:
        InputError: there is no such split, it has no captions, the store has no embeddings of images or of captions, or
            `pairs` is below 1.
    """
    split = store.split(name)
    text, readers, notes = _features(store, split)
    sample = _sample(len(split.captions), pairs, seed)
    totals = {feature: _Totals(reader) for feature, reader in readers.items()}
    largest, images_with_two = 0.0, 0
    with tqdm(total=len(split.captions), desc="measuring the gap", unit=" captions", disable=None) as bar:
        for rows, images in _chunks(split):  # (captions,) each
            bar.update(len(rows))
            chosen = _is_sampled(rows, sample)
            siblings = np.isin(images, images[chosen])
            rows, images, chosen = rows[siblings], images[siblings], chosen[siblings]
            if len(rows):
                captions = _unit(text[rows])
                differences = largest_differences(captions, images)
                largest, images_with_two = largest + differences.sum(), images_with_two + len(differences)
                _add_pairs(totals, captions[chosen], images[chosen])
    if not images_with_two:
        notes.append("no image has two captions: there is no noise variance from captions only")
    return Gap(
        pairs=totals["global"].pairs,
        dim=text.shape[1],
        features={feature: total.summary() for feature, total in totals.items()},
        captions_variance=float(largest / images_with_two) ** 2 if images_with_two else None,
        modality_offset=(-totals["global"].sums / totals["global"].pairs).tolist(),
        notes=notes,
    )


def largest_differences(captions: Floats, images: Rows) -> NDArray[np.float64]:
    """The L-infinity distance between two captions of an image, averaged over all pairs of its captions.

    Args:
        captions: (captions, dim) embeddings.
        images: (captions,) row of each caption's image, ascending.

    Returns:
        (images with at least two captions,)

    Examples:
        >>> largest_differences(np.array([[0.0, 1.0], [0.5, 0.9], [0.0, 0.0]]), np.array([0, 0, 1]))
        array([0.5])
    """
    image_numbers = np.unique(images, return_inverse=True)[1]
    sums, counts = np.zeros(len(images)), np.zeros(len(images))
    for step in range(1, len(images)):
        first = np.flatnonzero(images[step:] == images[:-step])
        if not len(first):
            break
        sums += np.bincount(image_numbers[first], np.abs(captions[first + step] - captions[first]).max(1), len(images))
        counts += np.bincount(image_numbers[first], minlength=len(images))
    return sums[counts > 0] / counts[counts > 0]


def sample_points(store: FeatureStore, name: str = "val", pairs: int | None = None, seed: int = 0) -> dict[str, Floats]:
    """The embeddings of at most 5,000 pairs, scaled to unit length, for a projection onto a plane.

    Arguments and errors are those of `measure_gap`.

    Returns:
        By name: text (captions, dim); global (images, dim); and region or mix (images, dim), if the store has them: one
        random sub-region of each image.
    """
    split = store.split(name)
    text, readers, _ = _features(store, split)
    rows = _sample(len(split.captions), min(pairs or MOST_POINTS, MOST_POINTS), seed)
    rows = np.arange(len(split.captions)) if rows is None else rows
    images = np.unique(split.caption_images[rows])
    generator = np.random.default_rng(seed)
    points = {"text": _unit(text[rows])}
    for feature, reader in list(readers.items())[:2]:
        parts = []
        for part in _slices(reader, len(images)):
            vectors = reader.read(images[part])
            parts.append(vectors[np.arange(len(vectors)), generator.integers(vectors.shape[1], size=len(vectors))])
        points[feature] = np.concatenate(parts)
    return points


@dataclass(frozen=True)
class _Reader:
    """Reads a feature of images: `read_raw` returns (rows, vectors, dim) of any length for rows of images."""

    source: str
    vectors: int
    dim: int
    read_raw: Callable[[Rows], Floats]

    def read(self, images: Rows) -> Floats:
        """(rows, vectors, dim) of unit length."""
        return _unit(self.read_raw(images))


class _Totals:
    """Sums over pairs, of one feature."""

    def __init__(self, reader: _Reader) -> None:
        self.reader, self.pairs = reader, 0
        self.cosines, self.most, self.least, self.closest, self.closer = 0.0, -np.inf, np.inf, 0.0, 0
        self.sums, self.squares = np.zeros(reader.dim), np.zeros(reader.dim)  # of T - I, by dimension
        self.cubes, self.fourths = 0.0, 0.0
        self.bins = np.zeros(BINS, np.int64)

    def add(self, text: Floats, vectors: Floats, nearness: Floats) -> None:
        """Add pairs: (pairs, dim) captions, (pairs, vectors, dim) vectors, (pairs,) cosines of the global embedding."""
        cosines = np.einsum("pd,pvd->pv", text, vectors)  # (pairs, vectors)
        closest = cosines.max(1)
        self.pairs += len(text)
        self.cosines += cosines.sum(dtype=np.float64)
        self.most, self.least = max(self.most, closest.max()), min(self.least, cosines.min())
        self.closest += closest.sum(dtype=np.float64)
        self.closer += np.count_nonzero(closest > nearness)
        gaps = (text[:, None] - vectors).reshape(-1, text.shape[1])  # (pairs * vectors, dim)
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
        mean, variance = offset.mean(), max(squares.mean(), 1e-20)  # equal embeddings have none
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
            closer_share=None if self.reader.source == Feature.IMAGE else self.closer / self.pairs,
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
    """Add pairs: (pairs, dim) captions of unit length, and (pairs,) rows of their images."""
    nearness = np.einsum("pd,pd->p", text, totals["global"].reader.read(images)[:, 0])
    for total in totals.values():
        for part in _slices(total.reader, len(text)):
            total.add(text[part], total.reader.read(images[part]), nearness[part])


def _features(store: FeatureStore, split: StoreSplit) -> tuple[Column, dict[str, _Reader], list[str]]:
    """The captions' embeddings, readers of the images' features by name, and notes on what is missing."""
    wanted = (Feature.CAPTION, Feature.IMAGE, Feature.REGIONS, Feature.PATCHES)
    columns = {feature: _column(split, feature) for feature in wanted}
    text, image, regions, patches = columns.values()
    if text is None or image is None:
        missing = " and no ".join(str(feature) for feature in wanted[:2] if columns[feature] is None)
        raise InputError(
            f"{store.location} has no {missing}; the gap is between images and their captions: embed both, `{EMBED}`"
        )
    if not len(text):
        raise InputError(
            f"the images of {store.location}, split {split.name!r}, have no captions: choose another split"
        )
    dim = image.shape[1]
    readers = {"global": _Reader(Feature.IMAGE, 1, dim, lambda rows: image[rows][:, None])}
    if patches is not None:
        readers["region"] = _Reader(Feature.PATCHES, patches.shape[1], dim, lambda rows: patches[rows])
    elif regions is not None:
        readers["region"] = _Reader(
            f"{Feature.REGIONS} less {Feature.IMAGE}", regions.shape[1], dim,
            lambda rows: regions[rows].astype(np.float32) - image[rows][:, None].astype(np.float32),
        )  # fmt: skip
    if regions is not None:
        readers["mix"] = _Reader(Feature.REGIONS, regions.shape[1], dim, lambda rows: regions[rows])
    absent = [name for name in ("region", "mix") if name not in readers]
    note = f"without {Feature.REGIONS} in the store there is no {' and no '.join(absent)} feature: embed with `{EMBED}`"
    return text, readers, [note] if absent else []


def _column(split: StoreSplit, feature: Feature) -> Column | None:
    try:
        return split.feature(feature)
    except InputError:
        return None


def _chunks(split: StoreSplit) -> Iterator[tuple[Rows, Rows]]:
    """Rows of captions and of their images, in chunks that do not separate the captions of an image, up to `CHUNK`."""
    start, end = 0, len(split.captions)
    while start < end:
        images = split.caption_images[start : start + CHUNK]
        if start + len(images) < end and images[0] != images[-1]:
            images = images[: np.searchsorted(images, images[-1])]
        yield np.arange(start, start + len(images)), images
        start += len(images)


def _slices(reader: _Reader, count: int) -> Iterator[slice]:
    """Parts of `count` images, small enough that their vectors fit into memory several times."""
    step = max(1, ELEMENTS // (reader.vectors * reader.dim))
    return (slice(start, start + step) for start in range(0, count, step))


def _sample(count: int, pairs: int | None, seed: int) -> Rows | None:
    """Rows of captions, ascending; None: all."""
    if pairs is not None and pairs < 1:
        raise InputError(f"pairs must be at least 1, not {pairs}")
    if pairs is None or pairs >= count:
        return None
    return np.sort(np.array(random.Random(seed).sample(range(count), pairs)))


def _is_sampled(rows: Rows, sample: Rows | None) -> NDArray[np.bool_]:
    """Which of some consecutive rows are in the sample."""
    if sample is None:
        return np.ones(len(rows), bool)
    first, last = np.searchsorted(sample, [rows[0], rows[-1] + 1])
    chosen = np.zeros(len(rows), bool)
    chosen[sample[first:last] - rows[0]] = True
    return chosen


def _unit(embeddings: Floats) -> Floats:
    """(…, dim) of any length -> of unit length, in float32."""
    embeddings = embeddings.astype(np.float32)
    norms: Floats = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return embeddings / np.maximum(norms, 1e-12)
