"""The approximate index of a datastore, beside exact search: by faiss, and by the datastore without the index."""

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import prefixcap.prompts.datastore
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.prompts.datastore import Datastore
from prefixcap.prompts.index import CaptionIndex, index_path
from prefixcap.prompts.protocol import Item
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join
from prefixcap.store.edit import copy_sentences, edit, editing
from prefixcap.textonly.memory import MemoryBank

faiss = pytest.importorskip("faiss")

DIM, CAPTIONS = 32, 4000
ENCODER = EncoderIdentity("clip:x.pt", "ab" * 32, "none", DIM)


def clustered(count: int, seed: int) -> np.ndarray:
    """(count, DIM) embeddings in clusters, of several lengths."""
    centres, generator = np.random.default_rng(9).normal(size=(60, DIM)), np.random.default_rng(seed)
    made = centres[generator.integers(60, size=count)] + 0.6 * generator.normal(size=(count, DIM))
    return (made * generator.uniform(0.5, 3, size=(count, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of images with two captions each, two parts, and an index of its training captions."""
    path = tmp_path_factory.mktemp("indexed") / "store"
    writer = StoreWriter(path, ENCODER, "scenes", path.parent, "job", 2)
    rows = clustered(CAPTIONS, 0).astype(np.float16)
    for shard in range(2):
        numbers = range(shard * CAPTIONS // 4, (shard + 1) * CAPTIONS // 4)
        records = [
            ImageRecord(number, "", "val" if number % 50 == 0 else "train", (f"a {2 * number}", f"a {2 * number + 1}"))
            for number in numbers
        ]
        writer.write_piece(shard, 0, 1, records, {"captions/embedding": rows[2 * numbers[0] : 2 * numbers[-1] + 2]}, [])
    join(path)
    datastore = Datastore.open(str(path))
    assert datastore.index is None and datastore.split is not None
    index = CaptionIndex.build(datastore.memory, datastore.split.digest, lists=32, size=16, probes=8)
    index.save(index_path(path, "train"))
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / "store"))


def agree(items: list[Item], others: list[Item]) -> bool:
    """Whether they are the same captions, with the same scores but for rounding."""
    scores = [[item.score for item in several] for several in (items, others)]
    return {item.text for item in items} == {item.text for item in others} and np.allclose(*scores, atol=1e-5)


QUERIES = torch.from_numpy(clustered(100, 1))


def test_recall_beside_the_exact_search_of_faiss(made: Path) -> None:
    datastore = Datastore.open(str(made))
    assert datastore.index is not None and len(datastore) == CAPTIONS - 80
    flat = faiss.IndexFlatIP(DIM)
    flat.add(datastore.memory.units(range(len(datastore))).numpy())
    units = QUERIES / QUERIES.norm(dim=1, keepdim=True)
    cosines, exact = flat.search(units.numpy(), 8)
    for probes, least in ((1, 0.5), (8, 0.95), (32, 0.98)):
        datastore.index.about.probes = probes
        proposed = datastore.index.candidates(datastore.memory.normalized(QUERIES), 64)
        found, scores = datastore.memory.nearest_among(units, proposed, 8)
        recall = np.mean([len({*mine} & {*theirs}) / 8 for mine, theirs in zip(found.tolist(), exact, strict=True)])
        assert recall >= least
        same = found.numpy() == exact
        assert np.abs(scores.numpy() - cosines)[same].max() < 1e-5
    assert probes == 32 and (np.abs(scores.numpy()[:, 0] - cosines[:, 0]) < 1e-5).mean() >= 0.98


def test_the_file_keeps_it(made: Path, tmp_path: Path) -> None:
    datastore = Datastore.open(str(made))
    assert datastore.index is not None and datastore.split is not None
    datastore.index.save(tmp_path / "copy")
    again = CaptionIndex.open(tmp_path / "copy", datastore.split, DIM)
    queries = datastore.memory.normalized(QUERIES)
    assert again.about == datastore.index.about and again.about.probes == 8
    assert np.array_equal(again.candidates(queries, 20), datastore.index.candidates(queries, 20))


def test_captions_are_left_out_as_without_an_index(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indexed, exact = Datastore.open(str(made)), Datastore.open(str(made), indexed=False)
    assert indexed.index is not None and exact.index is None and indexed.split is not None
    indexed.index.about.probes = 32  # all lists
    split, rows = indexed.split, np.arange(0, 3000, 30)
    queries = torch.from_numpy(split.feature("captions/embedding")[rows]).float()
    texts, owners = split.captions[rows], [split.ids[image] for image in split.caption_images[rows]]
    own = [[text] for text in texts]
    searched = list[int]()
    nearest = MemoryBank.nearest
    monkeypatch.setattr(
        MemoryBank, "nearest", lambda memory, rows, count: (searched.append(len(rows)), nearest(memory, rows, count))[1]
    )
    for options in ({}, {"leave_out": own}, {"images": owners}, {"leave_out": own, "images": owners}):
        found = indexed.nearest(queries, 4, **options)
        assert searched == []  # all by the index
        expected = exact.nearest(queries, 4, **options)
        searched.clear()
        assert np.mean([agree(*pair) for pair in zip(found, expected, strict=True)]) > 0.9
        for number, items in enumerate(found):
            own = {f"a {2 * owners[number]}", f"a {2 * owners[number] + 1}"}
            mine = {item.text for item in items}
            if "images" in options:
                assert not mine & own
            elif "leave_out" in options:
                assert texts[number] not in mine
            else:
                assert items[0].text == texts[number]


def test_where_the_lists_have_too_few_all_are_compared(made: Path) -> None:
    indexed, exact = Datastore.open(str(made)), Datastore.open(str(made), indexed=False)
    assert indexed.index is not None
    indexed.index.about.probes = 1
    for count in (300, 900):  # more than are in a list; so many that an index is no help
        found, expected = indexed.nearest(QUERIES[:5], count), exact.nearest(QUERIES[:5], count)
        assert all(agree(*pair) for pair in zip(found, expected, strict=True))
    near = [item.text for item in exact.nearest(QUERIES[:1], 200)[0]]
    options = {"leave_out": [near]}
    assert agree(*indexed.nearest(QUERIES[:1], 4, **options), *exact.nearest(QUERIES[:1], 4, **options))


def test_an_index_of_other_captions_is_not_used(store: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="is the index of other captions than those that are there now: make it again"):
        assert spoilt(store, digest="cd" * 32).index is None
    copy_sentences(FeatureStore(store), "train", tmp_path / "copy")
    memory = Datastore.open(str(tmp_path / "copy"))
    assert memory.split is not None
    CaptionIndex.build(memory.memory, memory.split.digest, 8, 8).save(index_path(tmp_path / "copy", "train"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Datastore.open(str(tmp_path / "copy")).index is not None
        assert Datastore.open(str(tmp_path / "copy"), size=100).index is None
    with editing(tmp_path / "copy") as opened:
        edit(opened, [np.arange(len(memory)) != 7])
    with pytest.warns(UserWarning, match="other captions"):
        after = Datastore.open(str(tmp_path / "copy"))
    assert after.index is None and len(after.nearest(QUERIES, 3)) == 100


def spoilt(store: Path, metadata: dict[str, str] | None = None, digest: str = "", **arrays: np.ndarray) -> Datastore:
    """The datastore, with an index in which something is different."""
    file = index_path(store, "train")
    kept = load_file(file)
    split = FeatureStore(store).split("train")
    about = {"digest": digest or split.digest, "lists": 32, "size": 16, "probes": 8}
    save_file(kept | arrays, file, metadata or {"format": "prefixcap caption index", "about": json.dumps(about)})
    return Datastore.open(str(store))


def test_a_damaged_index_is_not_used(store: Path) -> None:
    file = index_path(store, "train")
    whole, arrays = file.read_bytes(), load_file(file)
    twice, beyond, nan = arrays["rows"].copy(), arrays["rows"].copy(), arrays["centroids"].copy()
    twice[0], beyond[0], nan[0, 0] = twice[1], CAPTIONS, np.nan
    negative = arrays["lengths"].copy()
    negative[:2] += [10**6, -(10**6)]
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: spoilt(store, rows=twice), "a caption is missing or comes twice"),
        (lambda: spoilt(store, rows=beyond), "a caption is missing or comes twice"),
        (lambda: spoilt(store, lengths=negative), "the lists do not add up"),
        (lambda: spoilt(store, lengths=arrays["lengths"] + 1), "the lists do not add up"),
        (lambda: spoilt(store, centroids=nan), "a number is not finite"),
        (lambda: spoilt(store, codes=arrays["codes"][:, :8].copy()), "codes is missing or of another shape"),
        (lambda: spoilt(store, codes=arrays["codes"].astype(np.int32)), "codes is missing or of another shape"),
        (lambda: spoilt(store, {"format": "another"}), "is no index of captions"),
        (lambda: spoilt(store, {"format": "prefixcap caption index"}), "digest"),
        (lambda: spoilt(store, {"format": "prefixcap caption index", "about": "["}), "cannot be read"),
    ]
    for call, message in cases:
        file.write_bytes(whole)
        with pytest.warns(UserWarning, match=re.escape(message)) as told:
            assert call().index is None
        assert "all captions are compared" in str(told[0].message) and "\n" not in str(told[0].message)
    for content in (b"", whole[:1000], whole[:-100], b"\xff" * 100):
        file.write_bytes(content)
        with pytest.warns(UserWarning, match="cannot be read"):
            assert Datastore.open(str(store)).index is None


def test_without_faiss(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datastore = Datastore.open(str(store), indexed=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'needs faiss: pip install "prefixcap\[faiss\]"'):
        CaptionIndex.build(datastore.memory, "ab" * 32)
    with pytest.warns(UserWarning, match="needs faiss: pip install"):
        opened = Datastore.open(str(store))
    assert opened.index is None and opened.nearest(QUERIES, 3) == datastore.nearest(QUERIES, 3)


def test_mistakes(made: Path) -> None:
    memory = Datastore.open(str(made), indexed=False).memory
    few = MemoryBank(clustered(255, 0), ["a"] * 255)
    for call, message in (
        (lambda: CaptionIndex.build(few, "ab" * 32), "at least 256 captions, and there are 255"),
        (lambda: CaptionIndex.build(memory, "ab" * 32, lists=5000), "5000 lists for 3920 captions"),
        (lambda: CaptionIndex.build(memory, "ab" * 32, 8, size=12), "give a divisor of 32, 1, 2, 4, 8, 16 or 32"),
        (lambda: CaptionIndex.build(memory, "ab" * 32, 8, size=0), "size"),
        (lambda: CaptionIndex.build(memory, "ab" * 32, 8, probes=0), "probes"),
        (lambda: Datastore.open(str(made)).nearest(torch.ones(1, 5), 3), "give (n, 32)"),
        (lambda: Datastore.open(str(made)).nearest(torch.zeros(1, DIM), 3), "NaN, infinite or all zero"),
    ):
        with pytest.raises(InputError, match=re.escape(message)) as error:
            call()
        assert "\n" not in str(error.value)
    assert prefixcap.prompts.datastore.PROPOSED > 1
