"""The captions that are read beside an image, or in training on text beside a caption: which they are, and when."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.data.neighbours import Neighbours
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.language import Tuning
from prefixcap.noise import Noise
from prefixcap.packing import Batch
from prefixcap.prompts import Datastore
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join
from prefixcap.training import CaptionTraining
from prefixcap.training.checkpoints import LastCheckpoint, RandomState
from tests.conftest import IDENTITY, small_lm

K = 3
FUSION = {"name": "fusion", "prefix_length": 4, "clip_length": 2, "layers": 1, "retrieved": K}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Forty training images with two captions each, of which the last repeat those before, and six to validate."""
    folder, generator = tmp_path_factory.mktemp("neighbours"), np.random.default_rng(0)
    records = [
        ImageRecord(n, "", "train" if n < 40 else "val", (f"A red star {n % 36}.", f"A blue ring {n % 36}."))
        for n in range(46)
    ]
    caption_embeddings = generator.normal(size=(92, IDENTITY.dim)).astype(np.float32)
    columns = {
        "captions/embedding": caption_embeddings,
        "images/embedding": (caption_embeddings[::2] + 0.5 * generator.normal(size=(46, IDENTITY.dim))).astype(
            np.float32
        ),
    }
    writer = StoreWriter(folder / "store", IDENTITY, "test", folder, job="test", shards=1)
    writer.write_piece(0, 0, 1, records, columns, [])
    join(folder / "store")
    return FeatureStore(folder / "store")


def captioner(normalize: bool = True, tuning: Tuning = "frozen") -> Captioner:
    torch.manual_seed(0)
    return Captioner(small_lm(tuning), IDENTITY, FUSION, normalize_embeddings=normalize)


def nearest_others(store: FeatureStore, queries: torch.Tensor, own: list[set[str]]) -> list[list[int]]:
    """By all cosines, one row after another: captions of other words, each text once."""
    split = store.split("train")
    unit = F.normalize(torch.from_numpy(split.feature("captions/embedding")[:]), dim=1)
    texts, rows = list(split.captions[:]), []
    for query, texts_of_row in zip(F.normalize(queries, dim=1), own, strict=True):
        order, taken, kept = (unit @ query).argsort(descending=True).tolist(), set(texts_of_row), list[int]()
        for place in order:
            if texts[place] not in taken:
                taken.add(texts[place])
                kept.append(place)
        rows.append(kept[:K])
    return rows


@pytest.mark.parametrize("name", ["train", "val"])
@pytest.mark.parametrize("from_text", [True, False])
def test_they_are_the_nearest_that_are_none_of_its_own(name: str, from_text: bool, store: FeatureStore) -> None:
    split = store.split(name)
    found = Neighbours(Datastore.open(store), split, K, from_text).indices.tolist()
    queries = torch.from_numpy(split.feature("captions/embedding" if from_text else "images/embedding")[:])
    own = [{text} for text in split.captions[:]] if from_text else [set(texts) for texts in split.references().values()]
    assert found == nearest_others(store, queries, own)


def test_noise_changes_which_they_are_and_depends_on_seed_and_row(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    datastore, split = Datastore.open(store), store.split("train")
    clean, noisy, again, other = (
        Neighbours(datastore, split, K, True, noise, seed).indices
        for noise, seed in ((0.0, 0), (0.04, 0), (0.04, 0), (0.04, 1))
    )
    np.testing.assert_array_equal(noisy, again)
    assert (noisy != other).mean() > 0.1 and (noisy != clean).mean() > 0.1
    captions = list(split.captions[:])
    assert all(captions[row] not in [captions[place] for place in places] for row, places in enumerate(noisy))
    monkeypatch.setattr("prefixcap.data.neighbours._BLOCK", 32)
    blocks = Neighbours(datastore, split, K, True, 0.04).indices
    np.testing.assert_array_equal(blocks[:32], Neighbours(datastore, split, K, True, 0.04).indices[:32])
    np.testing.assert_array_equal(Neighbours(datastore, split, K, True).indices, clean)  # of any size of blocks


@pytest.mark.parametrize(("workers", "on_device"), [(0, False), (1, False), (0, True)])
@pytest.mark.parametrize("from_text", [True, False])
def test_batches_have_their_embeddings_behind_each(
    from_text: bool, workers: int, on_device: bool, store: FeatureStore
) -> None:
    options: dict[str, Any] = {"from_text": from_text, "on_device": on_device}
    data = CaptionData(store, captioner(), 7, workers, retrieval_noise=0.04, seed=3, **options)
    caption_embeddings = store.split("train").feature("captions/embedding")[:]
    for split, neighbours, batches in (
        (data.train_split, data.train_neighbours, data.train_dataloader()),
        (data.val_split, data.val_neighbours, data.val_dataloader()),
    ):
        assert neighbours is not None
        own = split.feature("captions/embedding" if from_text else "images/embedding")[:]
        for batch in batches:
            rows = np.array(batch.image_rows)
            if from_text:  # an image that is validated is represented by its first caption
                rows = np.array(batch.caption_rows) if split is data.train_split else 2 * rows
            expected = np.concatenate((own[rows][:, None], caption_embeddings[neighbours.indices[rows]]), axis=1)
            np.testing.assert_array_equal(batch.embeddings.numpy(), expected)


def test_another_datastore_is_retrieved_from(store: FeatureStore) -> None:
    datastore = Datastore.open(store, "val")
    data = CaptionData(store, captioner(), 7, 0, from_text=True, datastore=datastore)
    batch = next(iter(data.train_dataloader()))
    others = torch.from_numpy(store.split("val").feature("captions/embedding")[:])
    assert (batch.embeddings[:, 1:, None] == others).all(-1).any(-1).all()


def test_noise_of_training_is_on_the_caption_alone(store: FeatureStore) -> None:
    model = captioner()
    data = CaptionData(store, model, 7, 0, from_text=True)
    training = CaptionTraining(model, data.val_split, noise=Noise(variance=0.016))
    batch = next(iter(data.train_dataloader()))
    noisy = training.with_noise(batch).embeddings
    torch.testing.assert_close(noisy[:, 1:], batch.embeddings[:, 1:], rtol=0, atol=0)
    moved = noisy[:, 0] - F.normalize(batch.embeddings[:, 0], dim=-1)
    assert (moved.abs() > 1e-4).float().mean() > 0.9


class Killed(Exception):
    pass


class Record(L.Callback):
    """What each step reads, until the run is killed before a step."""

    def __init__(self, end: int) -> None:
        self.end, self.steps = end, dict[int, torch.Tensor]()

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step == self.end:
            raise Killed
        self.steps[trainer.global_step] = batch.embeddings


def fit(store: FeatureStore, folder: Path, end: int) -> tuple[dict[int, torch.Tensor], Captioner]:
    """Train for 16 steps, from the folder's checkpoint if there is one."""
    model, record, last = captioner(), Record(end), folder / "last.ckpt"
    data = CaptionData(store, model, 10, 0, from_text=True, retrieval_noise=0.04, seed=5)
    callbacks = [LastCheckpoint(last, 1), RandomState(), record]
    trainer = L.Trainer(
        max_steps=16, logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        accelerator="cpu", default_root_dir=folder, limit_val_batches=0, callbacks=callbacks,
    )  # fmt: skip
    training = CaptionTraining(model, data.val_split, 1e-2, warmup_steps=2, noise=Noise(variance=0.016))
    with suppress(Killed):
        trainer.fit(training, data, ckpt_path=last if last.exists() else None, weights_only=True)
    return record.steps, model


def test_a_run_that_is_resumed_within_an_epoch_equals_a_whole_one(store: FeatureStore, tmp_path: Path) -> None:
    """An epoch has 8 batches: the run is killed within its second one."""
    torch.manual_seed(1)
    whole, model = fit(store, tmp_path / "whole", -1)
    torch.manual_seed(1)
    first, _ = fit(store, tmp_path / "parts", 11)
    second, resumed = fit(store, tmp_path / "parts", -1)
    assert list(first) == list(range(11)) and list(second) == list(range(11, 16))
    for step, embeddings in whole.items():
        assert torch.equal(embeddings, (first | second)[step])
    before = captioner().mapper.state_dict()
    for name, weight in model.mapper.state_dict().items():
        torch.testing.assert_close(weight, resumed.mapper.state_dict()[name], rtol=0, atol=0)
        assert not torch.equal(weight, before[name]), name


@pytest.mark.parametrize("normalize", [True, False])
def test_a_captioner_retrieves_what_its_mapper_reads(normalize: bool, store: FeatureStore, tmp_path: Path) -> None:
    model = captioner(normalize, "full").eval()
    model.save_pretrained(tmp_path / "saved")
    model = Captioner.from_pretrained(tmp_path / "saved")
    images = torch.from_numpy(store.split("val").embeddings[:])
    with pytest.raises(InputError, match="reads 3 retrieved captions beside each image, and has no datastore: give"):
        model.caption(images, "greedy", max_tokens=4)
    model.use_datastore(store.location)
    caption_embeddings = torch.from_numpy(store.split("train").feature("captions/embedding")[:])
    retrieved = caption_embeddings[torch.tensor(nearest_others(store, images, [set()] * len(images)))]
    together = torch.cat((images[:, None], retrieved), dim=1)  # (6, 1 + K, 16)
    read = F.normalize(together, dim=-1) if normalize else together
    torch.testing.assert_close(model.prefix(images), model.mapper(read))
    torch.testing.assert_close(model.prefix(images), model.prefix(together))
    assert model.caption(images, "greedy", max_tokens=8, batch_size=4) == model.caption(
        together, "greedy", max_tokens=8
    )


def test_what_does_not_fit_is_told(store: FeatureStore, tmp_path: Path) -> None:
    model = captioner()
    for shape in ((2, 8), (2, 3, 16), (2, 4, 8)):
        with pytest.raises(InputError, match=r"but this captioner reads \(batch, 16\)"):
            model.caption(torch.ones(shape))
    datastore = Datastore.open(store)
    other = EncoderIdentity("clip:other.pt", "1" * 64, "none", IDENTITY.dim)
    with pytest.raises(InputError, match=r"embedded with the encoder clip:other.pt, but clip:nowhere.pt is needed"):
        model.use_datastore(Datastore(datastore.memory, other, "another"))
    few = Datastore.open(store, size=2)
    with pytest.raises(InputError, match=r"k=3 captions are to be retrieved, and the datastore .* has 2"):
        model.use_datastore(few)
    with pytest.raises(InputError, match="3 nearest captions are asked for"):
        CaptionData(store, model, from_text=True, datastore=few)
    model.trained_on = {"store": "stores/mine"}
    with pytest.raises(InputError, match=r"has no datastore: give .*, e\.g\. 'stores/mine', from which it learned"):
        model.prefix(torch.ones(2, 16))
    mlp = Captioner(small_lm(), IDENTITY, {"name": "mlp"})
    with pytest.raises(InputError, match="trained without retrieved captions, and takes no datastore"):
        mlp.use_datastore(store)
