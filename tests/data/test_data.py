"""What training draws from a store, and the tokens that are kept beside it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.data import tokens as tokens_module
from prefixcap.data.tokens import CaptionTokens
from prefixcap.packing import Batch
from prefixcap.store import FeatureStore
from tests.conftest import small_captioner
from tests.training.test_training import CAPTIONS, make_store


def captions_of(batch: Batch, captioner: Captioner, data: CaptionData) -> list[str]:
    """The captions that a batch predicts, after a look at where each one's image comes from."""
    ends = (batch.targets == captioner.language_model.eos_token_id).nonzero().flatten() + 1
    captions = [captioner.language_model.detokenize(row.tolist()) for row in batch.targets.tensor_split(ends)[:-1]]
    split = data.train_split
    for place, row in enumerate(batch.image_rows):
        np.testing.assert_array_equal(batch.embeddings[place], split.embeddings[row])
    assert captions == split.captions[batch.caption_rows]
    return captions


@pytest.mark.parametrize("keep", [True, False])
def test_an_epoch_has_each_caption_once_with_its_image(keep: bool, tmp_path: Path) -> None:
    captioner = small_captioner()
    data = CaptionData(make_store(tmp_path / "store"), captioner, batch_size=5, keep_tokens=keep)
    batches = list(data.train_dataloader())
    assert [len(batch.caption_rows) for batch in batches] == [5, 5, 2]
    for batch in batches:
        captions_of(batch, captioner, data)
        assert batch.image_rows == data.train_split.caption_images[batch.caption_rows].tolist()
    assert sorted(row for batch in batches for row in batch.caption_rows) == list(range(12))


def test_grouped_captions_come_with_all_captions_of_their_image(tmp_path: Path) -> None:
    captioner = small_captioner()
    store = make_store(tmp_path / "store", captions=(*CAPTIONS, ()))
    data = CaptionData(store, captioner, batch_size=4, group_captions=True)
    batches = list(data.train_dataloader())
    assert [len(batch.image_rows) for batch in batches] == [3, 3, 3]  # of 12 captions of 9 images, 4 a batch
    for batch in batches:
        captions_of(batch, captioner, data)
        of = data.train_split.caption_images[:]
        assert batch.caption_rows == [c for image in batch.image_rows for c in np.flatnonzero(of == image)]
    assert sorted(row for batch in batches for row in batch.caption_rows) == list(range(12))


def test_validation_has_every_image_also_those_without_captions(tmp_path: Path) -> None:
    data = CaptionData(make_store(tmp_path / "store", captions=(*CAPTIONS, ())), small_captioner(), batch_size=3)
    batches = list(data.val_dataloader())
    assert [batch.image_rows for batch in batches] == [[0, 1, 2], [3]]
    assert [batch.caption_rows for batch in batches] == [[0, 1, 2, 3], []]
    assert torch.equal(batches[1].embeddings, torch.from_numpy(data.val_split.embeddings[3:4]).float())


def test_tokens_are_made_once_for_a_tokenizer_and_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "_BLOCK", 5)
    captioner = small_captioner()
    split = FeatureStore(make_store(tmp_path / "store")).split("train")
    every = np.arange(len(split.captions))
    expected = captioner.language_model.tokenize(split.captions[:])

    def tokens() -> list[list[int]]:
        return [list(row) for row in CaptionTokens(split, captioner, None, tmp_path / "tokens")[every]]

    assert tokens() == expected
    some = CaptionTokens(split, captioner, 4, tmp_path / "tokens")[every[[7, 0]]]
    assert [list(row) for row in some] == [[*expected[row][:3], expected[row][-1]] for row in (7, 0)]
    calls: list[int] = []
    made = tokens_module.tokenize_captions
    monkeypatch.setattr(tokens_module, "tokenize_captions", lambda *given: calls.append(1) or made(*given))
    assert tokens() == expected and not calls
    (ends,) = (tmp_path / "tokens").glob("*.ends.npy")
    ends.unlink()  # as if it had been killed before
    assert tokens() == expected and len(calls) == 3
    captioner.language_model.tokenizer.add_tokens(["ring"])
    assert tokens() != expected and len(list((tmp_path / "tokens").glob("*.ends.npy"))) == 2
