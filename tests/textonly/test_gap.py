"""The modality gap against plain loops, known gaps and published numbers, and the command on the small world."""

import importlib.util
import json
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data_prep.embedding import embed
from data_prep.readers.demo import read_demo
from data_prep.readers.text import read_text
from prefixcap.commands.gap import draw_histograms, draw_projection, project, report_gap
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.noise import read_offset
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join
from prefixcap.textonly.gap import largest_differences, measure_gap, sample_points
from tests.conftest import IDENTITY

Array = np.ndarray[Any, Any]


def make_store(path: Path, captions_of_images: list[int], features: dict[str, Array], shards: int = 1) -> FeatureStore:
    """A store of one split, val, whose images have so many captions, with these features of all images or captions."""
    dim = features[next(iter(features))].shape[-1]
    writer = StoreWriter(path, replace(IDENTITY, dim=dim), "test", path.parent, job="test", shards=shards)
    ends = np.cumsum([0, *captions_of_images])
    cuts = np.linspace(0, len(captions_of_images), shards + 1).astype(int).tolist()
    for shard, (first, last) in enumerate(pairwise(cuts)):
        images = [
            ImageRecord(number, f"{number}.jpg", "val", ("a star.",) * captions_of_images[number])
            for number in range(first, last)
        ]
        rows = {"images": slice(first, last), "captions": slice(ends[first], ends[last])}
        columns = {name: values[rows[name.partition("/")[0]]] for name, values in features.items()}
        writer.write_piece(shard, 0, 1, images, columns, [])
    join(path)
    return FeatureStore(path)


def unit(vectors: Array) -> Array:
    """In float64."""
    return vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)


def random_features(images: int, captions: int, dim: int, seed: int = 0) -> dict[str, Array]:
    """Skewed, and of any length."""
    generator = np.random.default_rng(seed)
    return {
        name: (3 * generator.normal(size=(*shape, dim)) ** 2 - generator.normal(size=(*shape, 1))).astype(np.float16)
        for name, shape in (
            ("images/embedding", (images,)),
            ("captions/embedding", (captions,)),
            ("images/regions", (images, 3)),
            ("images/patches", (images, 5)),
        )
    }


@pytest.mark.parametrize("patches", [True, False])
def test_all_numbers_against_a_loop_over_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patches: bool) -> None:
    """Chunks end within the captions of an image, and an image has more captions than a chunk."""
    monkeypatch.setattr("prefixcap.textonly.gap.CHUNK", 4)
    monkeypatch.setattr("prefixcap.textonly.gap.ELEMENTS", 70)
    monkeypatch.setattr("prefixcap.store.writer.PART_BYTES", 1000)
    counts = [3, 2, 0, 1, 6, 3, 0, 2, 1]
    features = random_features(len(counts), sum(counts), dim=12)
    if not patches:
        del features["images/patches"]
    store = make_store(tmp_path / "store", counts, features, shards=3)
    assert len(list((tmp_path / "store").glob("part-*"))) > 1
    gap = measure_gap(store)

    text, image = unit(features["captions/embedding"]), unit(features["images/embedding"])
    regions, alone = features["images/regions"], features["images/embedding"][:, None].astype(np.float64)
    expected = {"global": image[:, None], "mix": unit(regions)}
    expected["region"] = unit(features["images/patches"] if patches else regions - alone)
    owners = np.repeat(np.arange(len(counts)), counts)
    assert gap.pairs == sum(counts) and gap.dim == 12 and not gap.notes
    assert [*gap.features] == ["global", "region", "mix"]
    for name, of in gap.features.items():
        cosines, differences, closest, closer = [], [], [], 0
        for caption, owner in zip(text, owners, strict=True):
            near = [float(caption @ vector) for vector in expected[name][owner]]
            closer += max(near) > caption @ image[owner]
            closest.append(max(near))
            cosines += near
            differences += [caption - vector for vector in expected[name][owner]]
        pooled = np.concatenate(differences)
        deviations = pooled - pooled.mean()
        sigma = math.sqrt((pooled**2).mean())
        assert of.vectors == len(expected[name][0])
        assert (of.cosine_mean, of.cosine_max, of.cosine_min) == pytest.approx(
            (np.mean(cosines), max(cosines), min(cosines)), abs=1e-6
        )
        assert of.closest_mean == pytest.approx(np.mean(closest), abs=1e-6)
        assert of.closer_share == (None if name == "global" else closer / len(text))
        assert (of.mean, of.std) == pytest.approx((pooled.mean(), pooled.std()), abs=1e-6)
        assert of.excess_kurtosis == pytest.approx((deviations**4).mean() / pooled.var() ** 2 - 3, abs=1e-4)
        assert of.offset_norm == pytest.approx(np.linalg.norm(np.mean(differences, axis=0)), abs=1e-6)
        assert of.variance == pytest.approx(sigma**2, rel=1e-5)
        assert of.variance == pytest.approx((2 - 2 * np.mean(cosines)) / 12, rel=1e-5)
        assert of.variance_around_offset == pytest.approx(np.var(differences, axis=0).mean(), rel=1e-5)
        below = [NormalDist(0, sigma).cdf(value) for value in sorted(pooled)]
        farthest = max(max(share - i / len(below), (i + 1) / len(below) - share) for i, share in enumerate(below))
        assert of.gaussian_distance == pytest.approx(farthest, abs=2 / len(below))
        histogram = of.histogram
        edges = histogram.start + histogram.width * np.arange(len(histogram.counts) + 1)
        assert abs(np.histogram(pooled, edges)[0] - histogram.counts).sum() <= 2  # one may lie on an edge
        assert sum(histogram.counts) == len(pooled) and sigma / 12 < histogram.width < sigma / 8
    assert gap.modality_offset == pytest.approx((image[owners] - text).mean(0).tolist(), abs=1e-6)


def capdec_sigma(text: Array, owners: Array) -> float:
    """The mean over images of the mean over pairs of captions of their L-infinity distance."""
    means = []
    for image in np.unique(owners):
        captions = unit(text[owners == image])
        if len(captions) > 1:
            means.append(np.mean([np.abs(first - second).max() for first, second in combinations(captions, 2)]))
    return float(np.mean(means))


def test_the_variance_from_captions_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The captions of an image are not torn apart where a chunk ends."""
    monkeypatch.setattr("prefixcap.textonly.gap.CHUNK", 7)
    counts = [5, 1, 0, 2, 7, 5]
    features = random_features(len(counts), sum(counts), dim=8)
    owners = np.repeat(np.arange(len(counts)), counts)
    found = measure_gap(make_store(tmp_path / "store", counts, features)).captions_variance
    assert found == pytest.approx(capdec_sigma(features["captions/embedding"], owners) ** 2, rel=1e-5)
    assert largest_differences(np.array([[0.0, 0], [3, 1], [0, 0]]), np.array([4, 4, 9])).tolist() == [3]


def test_a_known_gap_is_recovered(tmp_path: Path) -> None:
    """Captions are images with an offset and Gaussian noise, too short to change their length much."""
    images, dim, variance = 3000, 64, 1e-5
    generator = np.random.default_rng(0)
    image = unit(generator.normal(size=(images, dim)))
    offset = 0.02 * unit(generator.normal(size=dim))
    text = image + generator.normal(scale=variance**0.5, size=image.shape)
    features = {"images/embedding": image.astype(np.float32), "captions/embedding": text.astype(np.float32)}
    plain = measure_gap(make_store(tmp_path / "plain", [1] * images, features))
    features["captions/embedding"] = (text + offset).astype(np.float32)
    moved = measure_gap(make_store(tmp_path / "moved", [1] * images, features))
    of = plain.features["global"]
    assert of.variance == pytest.approx(variance, rel=0.03)
    assert of.variance_of_cosine == pytest.approx(variance, rel=0.03)
    assert abs(of.mean) < 1e-4 and abs(of.excess_kurtosis) < 0.05 and of.offset_norm < 0.001
    assert of.gaussian_distance < 0.02  # bins are 0.03 sigma wide
    of = moved.features["global"]
    assert of.variance_around_offset == pytest.approx(variance, rel=0.03)
    assert of.variance == pytest.approx(variance + 0.02**2 / dim, rel=0.03)
    assert moved.modality_offset == pytest.approx((-offset).tolist(), abs=5e-4)
    assert plain.captions_variance is None
    assert plain.notes == [
        "without images/regions in the store there is no region and no mix feature: embed with "
        "`python -m data_prep.embed ... 'features=[image,regions,caption]'`",
        "no image has two captions: there is no noise variance from captions only",
    ]


def test_the_cosine_of_the_paper_suggests_the_variance_of_the_paper(tmp_path: Path) -> None:
    """Table 1's mean cosine at ViT-B/32's width gives 0.016, which noise turns into that cosine again."""
    generator = np.random.default_rng(0)
    image, other = generator.normal(size=(2, 200, 512))
    image = unit(image)
    across = unit(other - (other * image).sum(1, keepdims=True) * image)
    text = 0.330 * image + math.sqrt(1 - 0.330**2) * across
    features = {"images/embedding": image.astype(np.float32), "captions/embedding": text.astype(np.float32)}
    of = measure_gap(make_store(tmp_path / "store", [1] * 200, features)).features["global"]
    assert of.cosine_mean == pytest.approx(0.330, abs=1e-5)
    assert of.variance_of_cosine is not None and round(of.variance_of_cosine, 3) == 0.016
    torch.manual_seed(0)
    captions = torch.from_numpy(text)
    noisy = F.normalize(captions + of.variance_of_cosine**0.5 * torch.randn_like(captions), dim=-1)
    assert float((noisy * captions).sum(1).mean()) == pytest.approx(0.330, abs=0.01)
    features["captions/embedding"] = -features["captions/embedding"]
    opposed = measure_gap(make_store(tmp_path / "opposed", [1] * 200, features)).features["global"]
    assert opposed.variance_of_cosine is None


def test_drawn_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of drawn captions the pairs are made; the captions of their images tell the variance from text alone."""
    monkeypatch.setattr("prefixcap.textonly.gap.CHUNK", 16)
    counts = [2, 0, 3, 5] * 25
    features = random_features(len(counts), sum(counts), dim=8)
    store = make_store(tmp_path / "store", counts, features)
    assert measure_gap(store, pairs=sum(counts)) == measure_gap(store)
    drawn = measure_gap(store, pairs=7, seed=3)
    assert drawn.pairs == 7 and drawn == measure_gap(store, pairs=7, seed=3) != measure_gap(store, pairs=7, seed=4)
    points = sample_points(store, pairs=7, seed=3)
    assert len(points["text"]) == 7
    every, owners = unit(features["captions/embedding"]), np.repeat(np.arange(len(counts)), counts)
    rows = [int(np.abs(every - caption).sum(1).argmin()) for caption in points["text"]]
    assert len(set(rows)) == 7 and sorted(rows) == rows
    images = unit(features["images/embedding"])[owners[rows]]
    assert drawn.features["global"].cosine_mean == pytest.approx((every[rows] * images).sum(1).mean(), abs=1e-6)
    family = np.isin(owners, owners[rows])
    sigma = capdec_sigma(features["captions/embedding"][family], owners[family])
    assert drawn.captions_variance == pytest.approx(sigma**2, rel=1e-5)
    assert np.allclose(points["global"], unit(features["images/embedding"])[np.unique(owners[rows])], atol=1e-6)
    parts = unit(features["images/patches"])[np.unique(owners[rows])]
    assert all(np.abs(of - one).sum(1).min() < 1e-5 for of, one in zip(parts, points["region"], strict=True))


def test_memory_does_not_grow_with_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefixcap.textonly.gap.CHUNK", 64)
    monkeypatch.setattr("prefixcap.textonly.gap.ELEMENTS", 2**12)
    peaks = []
    for images in (100, 8000):
        features = random_features(images, 3 * images, dim=32)
        store = make_store(tmp_path / str(images), [3] * images, features)
        measure_gap(store, pairs=10)  # what is read once, as torch's own modules
        tracemalloc.start()
        measure_gap(store)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 30_000  # the captions' embeddings alone are 3 MB in float32


def test_principal_components_and_their_shares() -> None:
    generator = np.random.default_rng(0)
    points = {"text": generator.normal(size=(40, 6)), "global": generator.normal(size=(30, 6)) * [1, 4, 1, 2, 1, 1]}
    plane, labels = project({name: of.astype(np.float32) for name, of in points.items()})
    together = np.concatenate(list(points.values()))
    left, sizes, _ = np.linalg.svd(together - together.mean(0), full_matrices=False)
    found = np.concatenate([plane["text"], plane["global"]])
    assert [len(of) for of in plane.values()] == [40, 30]
    assert np.allclose(np.abs(found), np.abs(left[:, :2] * sizes[:2]), atol=1e-4)
    assert labels[0] == f"principal component 1 ({sizes[0] ** 2 / (sizes**2).sum():.0%} of the variance)"
    with pytest.raises(InputError, match="no projection 'tsne': choose pca or umap"):
        project({"text": found}, "tsne")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a smaller small world, embedded with the CLIP that was made for it, and a store of sentences."""
    folder = tmp_path_factory.mktemp("gap")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefixcap.demo.world.SPLITS", {"train": {"in-domain": 4}, "val": {"in-domain": 30}})
        dataset = read_demo(folder / "images")
    encoder = load_encoder("demo")
    embed(dataset, encoder, folder / "store", ["image", "regions", "caption"], progress=False)
    embed(dataset, encoder, folder / "uncaptioned", ["image"], progress=False)
    (folder / "sentences.txt").write_text("a red star.\na blue ring.\n")
    embed(read_text(folder / "sentences.txt", "val"), encoder, folder / "text", ["caption"], progress=False)
    return folder


def test_the_command_on_the_small_world(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefixcap.commands import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["prefixcap", "gap", str(world / "store")])
    main()
    printed = capsys.readouterr().out
    folder = tmp_path / "runs" / "gap" / "store-val"
    files = ["gap.json", "modality_offset.npy", "gap_histogram.png", "gap_projection.png"]
    assert printed.splitlines()[-1] == f"written to runs/gap/store-val: {', '.join(files)}"
    assert {file.name for file in folder.iterdir()} == set(files)
    for name, least in (("gap_histogram.png", 1500), ("gap_projection.png", 800)):
        with Image.open(folder / name) as picture:
            assert picture.width >= least and picture.height > 500
    gap = json.loads((folder / "gap.json").read_text())
    assert (gap["pairs"], gap["dim"], gap["encoder"], gap["notes"]) == (150, 128, "demo", [])
    for name in ("global", "region", "mix"):
        of = gap["features"][name]
        assert f"\n{name:8}  {of['cosine_mean']:.3f}  {of['cosine_max']:.3f}" in printed
    suggested = [f"{gap['features'][name]['variance_of_cosine']:.3g}" for name in gap["features"]]
    assert f"cosine: noise that is normalized after {' '.join(suggested)} gap:" in " ".join(printed.split())

    split = FeatureStore(world / "store").split("val")
    encoder = load_encoder("demo")
    with torch.inference_mode():
        text = F.normalize(encoder.encode_texts(split.captions[:]), dim=-1)
        pixels = torch.stack([encoder.preprocess(Image.open(file).convert("RGB")) for file in split.files])
        image = F.normalize(encoder.encode_images(pixels), dim=-1)
    cosines = (text * image[split.caption_images[:]]).sum(1)
    assert gap["features"]["global"]["cosine_mean"] == pytest.approx(float(cosines.mean()), abs=1e-3)
    offset = read_offset(folder / "modality_offset.npy")
    torch.testing.assert_close(offset, image.mean(0) - text.mean(0), atol=1e-3, rtol=0)
    assert gap["features"]["global"]["offset_norm"] == pytest.approx(float(offset.norm()), abs=1e-5)
    assert 0 < gap["features"]["mix"]["closer_share"] < 1
    # What CLIP pairs is closer than what it does not.
    assert gap["features"]["global"]["cosine_mean"] > 0.2 + float((text[:50] @ image[-15:].T).mean())


def test_the_figures_say_what_they_show(world: Path) -> None:
    store = FeatureStore(world / "store")
    gap = measure_gap(store)
    figure = draw_histograms(gap)
    assert [axes.get_title() for axes in figure.axes] == [
        "global: whole image", "region: a part of the image", "mix: a part and the whole"
    ]  # fmt: skip
    for axes, of in zip(figure.axes, gap.features.values(), strict=True):
        heights, edges, _ = axes.patches[0].get_data()  # type: ignore[attr-defined]
        assert (heights * np.diff(edges)).sum() == pytest.approx(1)
        curve = axes.lines[0]
        assert float(torch.trapezoid(*map(torch.tensor, (curve.get_ydata(), curve.get_xdata())))) == pytest.approx(
            1, abs=1e-3
        )
        assert max(curve.get_ydata()) == pytest.approx(NormalDist(0, of.variance**0.5).pdf(0), rel=1e-3)
        assert axes.get_xlabel() == "caption less image, per dimension"
    plane, labels = project(sample_points(store))
    panel = draw_projection(plane, labels).axes[0]
    assert [len(points.get_offsets()) for points in panel.collections] == [150, 30, 30]
    assert panel.get_xlabel().startswith("principal component 1")


def test_mistakes(world: Path, tmp_path: Path, mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def gap(*options: object) -> str:
        return mistake("prefixcap.__main__", "gap", *map(str, options))

    embedding = "embed both, `python -m data_prep.embed ... 'features=[image,regions,caption]'`"
    message = gap(world / "text")
    assert "text has no images/embedding; the gap is between images and their captions" in message
    assert embedding in message
    assert "uncaptioned has no captions/embedding;" in gap(world / "uncaptioned")
    assert "no split 'test'; it has train, val" in gap(world / "store", "--split", "test")
    assert "pairs must be at least 1, not 0" in gap(world / "store", "--pairs", "0")
    assert "there is no feature store at" in gap(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    assert "cannot write" in gap(world / "store", "--pairs", "5", "--out", tmp_path / "file" / "gap")
    empty = random_features(3, 0, dim=16)
    make_store(tmp_path / "empty", [0] * 3, empty)
    assert "split 'val', have no captions" in gap(tmp_path / "empty")

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("umap", "matplotlib") else find(name)
    )
    with pytest.raises(InputError, match="pip install umap-learn"):
        project(sample_points(FeatureStore(world / "store"), pairs=5), "umap")
    with pytest.raises(InputError, match=r'pip install "prefixcap\[plot\]"'):
        report_gap(str(world / "store"))
