"""The memory of captions, beside plain computations over all of it at once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join
from prefixcap.store.reader import Column
from prefixcap.textonly import memory
from prefixcap.textonly.memory import MemoryBank

DIM = 32
ENCODER = EncoderIdentity("clip:small", "ab" * 32, "none", dim=DIM)


def captions(count: int, clusters: int = 20, seed: int = 0) -> np.ndarray:
    """Embeddings (count, DIM) in clusters, of lengths between 1 and 10."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(clusters, DIM))
    made = centres[generator.integers(clusters, size=count)] + 0.5 * generator.normal(size=(count, DIM))
    return (made * generator.uniform(0.2, 2, size=(count, 1))).astype(np.float16)


def bank_of(embeddings: np.ndarray) -> MemoryBank:
    return MemoryBank(embeddings, [f"caption {row}" for row in range(len(embeddings))])


def unit(embeddings: np.ndarray) -> np.ndarray:
    exact = embeddings.astype(np.float64)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True)


def plain(queries: np.ndarray, embeddings: np.ndarray, temperature: float) -> np.ndarray:
    """DeCap's projection, written down in float64."""
    cosines = unit(queries) @ unit(embeddings).T
    weights = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / temperature)
    return unit(weights @ unit(embeddings))


@pytest.mark.parametrize("temperature", [0.002, 0.01, 0.05, 1.0, 100.0])
def test_projection(temperature: float) -> None:
    embeddings, queries = captions(3000), captions(70, seed=1)
    found = bank_of(embeddings).project(torch.from_numpy(queries), temperature)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - plain(queries, embeddings, temperature)).max() < 1e-5


@pytest.mark.parametrize(("queries_at_once", "captions_at_once"), [(7, 1), (13, 64), (20, 100), (100, 5000)])
def test_in_any_pieces(monkeypatch: pytest.MonkeyPatch, queries_at_once: int, captions_at_once: int) -> None:
    monkeypatch.setattr(memory, "QUERIES", queries_at_once)
    monkeypatch.setattr(memory, "CAPTIONS", captions_at_once)
    embeddings, queries = captions(700), captions(20, seed=1)
    bank = bank_of(embeddings)
    found = bank.project(torch.from_numpy(queries))
    assert np.abs(found.numpy() - plain(queries, embeddings, 0.01)).max() < 1e-5
    places, _ = bank.nearest(torch.from_numpy(queries), 3)
    assert (places.numpy() == np.argsort(-(unit(queries) @ unit(embeddings).T))[:, :3]).all()


@pytest.mark.parametrize(("clusters", "sparse"), [(1, False), (500, True)])
def test_with_and_without_a_second_product(monkeypatch: pytest.MonkeyPatch, clusters: int, sparse: bool) -> None:
    """Where captions are alike, all enter the sum; where they are not, the near ones are picked out."""
    picked = []
    bag = F.embedding_bag

    def counting(places: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        picked.append(len(places))
        return bag(places, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "embedding_bag", counting)
    embeddings, queries = captions(3 * memory.CAPTIONS, clusters), captions(70, clusters, seed=1)
    found = bank_of(embeddings).project(torch.from_numpy(queries))
    assert (len(picked) == 3 and 0 < sum(picked) < 0.1 * 70 * len(embeddings)) if sparse else not picked
    assert np.abs(found.numpy() - plain(queries, embeddings, 0.01)).max() < 1e-5


def test_many_small_weights_count() -> None:
    """None of 20,000 captions far behind the nearest changes the sum in float32; together they do."""
    embeddings = np.zeros((20_001, 3), np.float32)
    embeddings[:] = 0.83, 0, (1 - 0.83**2) ** 0.5  # 0.17 behind: each weighs e^-17, all together 0.0008
    embeddings[10_000] = 1, 0, 0
    query = np.array([[1.0, 0, 0]], np.float32)
    found = bank_of(embeddings).project(torch.from_numpy(query)).numpy()
    assert found[0, 2] > 0.0004
    assert np.abs(found - plain(query, embeddings, 0.01)).max() < 1e-6


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.sampled_from([0.003, 0.01, 0.3]), st.randoms(use_true_random=False))
def test_order_and_lengths_do_not_matter(count: int, queries: int, temperature: float, random: object) -> None:
    order = list(range(count))
    random.shuffle(order)  # type: ignore[attr-defined]
    embeddings = captions(count).astype(np.float32)
    asked = torch.from_numpy(captions(queries, seed=1)).float()
    bank, other = bank_of(embeddings), bank_of(3 * embeddings[order])
    assert torch.allclose(bank.project(asked, temperature), other.project(0.1 * asked, temperature), atol=1e-5)
    assert bank.retrieve(asked) == [f"caption {order[int(text.split()[1])]}" for text in other.retrieve(asked)]


def test_a_caption_alone_and_near_ones() -> None:
    embeddings = torch.from_numpy(captions(50)).float()
    alone = bank_of(embeddings[:1].numpy())
    assert torch.allclose(alone.project(torch.randn(3, DIM)), F.normalize(embeddings[:1]).expand(3, -1), atol=1e-6)
    bank = bank_of(embeddings.numpy())
    assert torch.allclose(bank.project(embeddings, temperature=1e-4), F.normalize(embeddings), atol=1e-5)
    assert bank.retrieve(embeddings) == bank.captions(range(50)) == [f"caption {row}" for row in range(50)]


def test_copies_weigh_as_often() -> None:
    embeddings, query = captions(2), captions(1, seed=1)
    found = bank_of(embeddings[[0, 1, 1, 1]]).project(torch.from_numpy(query), 1.0)
    weights = np.exp(unit(query) @ unit(embeddings).T) * [1, 3]
    assert np.allclose(found.numpy(), unit(weights @ unit(embeddings)), atol=1e-6)


@pytest.mark.parametrize("with_faiss", [False, True])
def test_nearest(monkeypatch: pytest.MonkeyPatch, with_faiss: bool) -> None:
    if with_faiss:
        pytest.importorskip("faiss")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(memory, "CAPTIONS", 700)
    embeddings, queries = captions(3000), captions(80, seed=1)
    places, cosines = bank_of(embeddings).nearest(torch.from_numpy(queries), 10)
    expected = unit(queries) @ unit(embeddings).T
    order = np.argsort(-expected, axis=1, kind="stable")[:, :10]
    assert (places.numpy() == order).all()
    assert np.abs(cosines.numpy() - np.take_along_axis(expected, order, 1)).max() < 1e-6


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("length", [1.0, 1e-4, 60.0, 3e4])
def test_nearest_to_few(dtype: type, length: float) -> None:
    """One query after the other; in half precision short embeddings lose digits, and products of long ones overflow."""
    embeddings = unit(captions(3000)) * length
    embeddings[1000:1040] = embeddings[0] * 0.5  # as near as each other
    embeddings = embeddings.astype(dtype)
    queries = np.concatenate([captions(1, seed=1), embeddings[:1], embeddings[7:8]]).astype(np.float32)
    bank = MemoryBank(embeddings, [f"caption {row}" for row in range(3000)])
    expected = unit(queries.astype(np.float64)) @ unit(embeddings.astype(np.float64)).T
    for count in (1, 10, 60):
        places, cosines = bank.nearest(torch.from_numpy(queries), count)
        best = -np.sort(-expected, axis=1)[:, :count]
        assert np.abs(cosines.numpy() - best).max() < 2e-6
        assert np.abs(np.take_along_axis(expected, places.numpy(), 1) - best).max() < 2e-6
        assert all(len(set(row)) == count for row in places.tolist())


@pytest.mark.parametrize("size", [None, 200])
def test_few_and_many_find_the_same_in_a_store(store: FeatureStore, size: int | None) -> None:
    split = store.split("train")
    queries = torch.from_numpy(captions(30, seed=2))
    indices, cosines = MemoryBank.from_store(split, size).nearest(queries, 5)
    bank = MemoryBank.from_store(split, size)
    few = [bank.nearest(query[None], 5) for query in queries]
    assert torch.equal(torch.cat([one for one, _ in few]), indices)
    assert torch.allclose(torch.cat([one for _, one in few]), cosines, atol=1e-6)


@pytest.mark.parametrize("count", [1, 30])
def test_an_embedding_that_cannot_be_scaled_is_named(count: int) -> None:
    embeddings = captions(2000)
    embeddings[1500], embeddings[1510] = np.nan, 0
    with pytest.raises(InputError, match="captions of the memory: rows 1500, 1510"):
        bank_of(embeddings).nearest(torch.randn(count, DIM))


def test_no_embeddings() -> None:
    bank = bank_of(captions(64))
    assert bank.project(torch.empty(0, DIM)).shape == (0, DIM)
    assert bank.nearest(torch.empty(0, DIM), 2)[0].shape == (0, 2)
    assert bank.retrieve(torch.empty(0, DIM)) == []


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """600 sentences for training and as many others, in turn, in several parts."""
    monkeypatch.setattr("prefixcap.store.writer.PART_BYTES", 20_000)
    embeddings = captions(1200)
    made = StoreWriter(tmp_path / "store", ENCODER, "sentences", tmp_path, "job", 4)
    for shard in range(4):
        rows = range(300 * shard, 300 * (shard + 1))
        records = [ImageRecord(row, "", ("train", "val")[row % 2], (f"caption {row}",)) for row in rows]
        made.write_piece(shard, 0, 1, records, {"captions/embedding": embeddings[rows]}, [])
    join(tmp_path / "store")
    return FeatureStore(tmp_path / "store")


def test_of_a_store(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    runs = Column.runs

    def counting(column: Column, size: int) -> Iterator[tuple[int, np.ndarray]]:
        for start, rows in runs(column, size):
            read.append(len(rows))
            yield start, rows

    monkeypatch.setattr(Column, "runs", counting)
    monkeypatch.setattr(memory, "CAPTIONS", 100)
    embeddings, queries = captions(1200)[::2], captions(20, seed=1)
    bank = MemoryBank.from_store(store.split("train"))
    assert (len(bank), bank.dim) == (600, DIM)
    found = bank.project(torch.from_numpy(queries)).numpy()
    assert max(read) == 100 and sum(read) == 600, "in chunks"
    assert np.abs(found - plain(queries, embeddings, 0.01)).max() < 1e-5
    best = (unit(queries) @ unit(embeddings).T).argmax(1)
    assert bank.retrieve(torch.from_numpy(queries)) == [f"caption {2 * row}" for row in best]


def test_a_sample(store: FeatureStore) -> None:
    split = store.split("train")
    bank = MemoryBank.from_store(split, size=50, seed=3)
    assert len(bank) == len(set(bank.rows.tolist())) == 50
    assert (bank.rows == MemoryBank.from_store(split, size=50, seed=3).rows).all()
    assert (bank.rows != MemoryBank.from_store(split, size=50, seed=4).rows).any()
    assert len(MemoryBank.from_store(split, size=5000)) == 600, "at most so many"
    embeddings = captions(1200)[::2][bank.rows]
    assert bank.retrieve(torch.from_numpy(embeddings)) == [f"caption {2 * row}" for row in bank.rows]


def test_mistakes() -> None:
    embeddings = captions(10)
    bank = bank_of(embeddings)
    with pytest.raises(InputError, match="memory of captions is empty"):
        MemoryBank(np.empty((0, DIM), np.float16), [])
    with pytest.raises(InputError, match=r"9 captions, but embeddings of shape \(10, 32\)"):
        MemoryBank(embeddings, ["a cat"] * 9)
    with pytest.raises(InputError, match="size must be at least 1"):
        MemoryBank(embeddings, ["a cat"] * 10, size=0)
    for temperature in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="give one above 0"):
            bank.project(torch.ones(1, DIM), temperature)
    for shape in ((2, DIM + 1), (DIM,)):
        with pytest.raises(InputError, match=r"memory's captions have 32 dimensions: give \(n, 32\)"):
            bank.project(torch.ones(shape))
    for count in (0, 11):
        with pytest.raises(InputError, match="give 1 to 10"):
            bank.nearest(torch.ones(1, DIM), count)
    queries = torch.ones(3, DIM)
    queries[1, 0], queries[2] = torch.nan, 0
    with pytest.raises(InputError, match="embeddings: rows 1, 2 NaN, infinite or all zero"):
        bank.retrieve(queries)
    embeddings[7] = np.nan
    with pytest.raises(InputError, match="captions of the memory: row 7 NaN"):
        bank_of(embeddings).project(torch.ones(1, DIM))


def test_embeddings_are_those_of_the_captions_of_a_sample() -> None:
    every = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float16)
    bank = MemoryBank(every, [str(number) for number in range(50)], size=20, seed=1)
    indices = np.array([[3, 19, 3], [0, 7, 1]])
    read = bank.embeddings(indices)
    assert read.shape == (2, 3, 4) and read.dtype == torch.float32
    texts = np.array(bank.captions(indices.ravel()), int).reshape(2, 3)
    np.testing.assert_array_equal(read.numpy(), every[texts].astype(np.float32))
