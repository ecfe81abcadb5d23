"""The small world's encoder, and captions of its scenes in a feature store."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prefixcap.demo.scenes import captions, random_scene
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.features import EncoderIdentity
from prefixcap.prompts.datastore import Datastore
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join
from prefixcap.textonly.memory import MemoryBank


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return load_encoder("demo")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache of the test's own."""
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def store(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Sixty-one scenes for training and five for validation, with five captions each, in two parts."""
    folder = tmp_path_factory.mktemp("datastore")
    generator = np.random.default_rng(0)
    made = StoreWriter(folder / "store", encoder.identity, "scenes", folder, "job", 2)
    for shard in range(2):
        records = []
        for number in range(shard * 33, shard * 33 + 33):
            texts = tuple(captions(random_scene(generator), generator))
            records.append(ImageRecord(f"scene {number}", "", "val" if number % 13 == 12 else "train", texts))
        embeddings = encoder.encode_texts([text for record in records for text in record.captions]).numpy()
        made.write_piece(shard, 0, 1, records, {"captions/embedding": embeddings}, [])
    join(folder / "store")
    return FeatureStore(folder / "store")


def datastore_of(texts: list[str], encoder: Encoder) -> Datastore:
    return Datastore(MemoryBank(encoder.encode_texts(texts), texts), encoder.identity, "these captions")


def random_datastore(count: int, distinct: int, dim: int = 16, seed: int = 0) -> Datastore:
    """Captions with random embeddings; those of the same text need not have the same."""
    generator = np.random.default_rng(seed)
    texts = [f"caption {number}" for number in generator.integers(distinct, size=count)]
    embeddings = generator.normal(size=(count, dim)).astype(np.float32)
    return Datastore(MemoryBank(embeddings, texts), EncoderIdentity("clip:x.pt", "ab" * 32, "none", dim))


def queries(count: int, dim: int = 16) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(1))
