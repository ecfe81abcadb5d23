"""Retrieval from a datastore, beside a sort of all captions in a loop."""

import re

import numpy as np
import pytest
import torch

from prefixcap.encoders import Encoder
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.prompts.datastore import Datastore
from prefixcap.store import FeatureStore
from prefixcap.textonly.memory import MemoryBank
from tests.prompts.conftest import datastore_of, queries, random_datastore


def plain(
    embeddings: np.ndarray, texts: list[str], query: np.ndarray, count: int, barred: set[str]
) -> list[tuple[str, float]]:
    """All captions sorted by cosine, the barred ones and repetitions left out."""
    cosines = [float(row @ query / np.linalg.norm(row) / np.linalg.norm(query)) for row in embeddings]
    nearest: dict[str, float] = {}
    for row in sorted(range(len(texts)), key=lambda row: -cosines[row]):
        if texts[row] not in barred:
            nearest.setdefault(texts[row], cosines[row])
    return list(nearest.items())[:count]


@pytest.mark.parametrize(("distinct", "count"), [(1000, 4), (12, 5), (12, 12), (3, 3)])
def test_beside_a_loop(distinct: int, count: int) -> None:
    """Also where most captions repeat others, so that many more must be searched for than are asked for."""
    datastore, asked = random_datastore(400, distinct), queries(20)
    texts = datastore.memory.captions(range(400))
    count = min(count, len(set(texts)))
    barred = [{f"caption {row}"} if row % 2 and count < len(set(texts)) else set() for row in range(20)]
    found = datastore.nearest(asked, count, barred)
    for row, items in enumerate(found):
        embeddings = np.random.default_rng(0)
        embeddings.integers(distinct, size=400)
        expected = plain(embeddings.normal(size=(400, 16)), texts, asked[row].numpy(), count, barred[row])
        assert [item.text for item in items] == [text for text, _ in expected]
        assert [item.score for item in items] == pytest.approx([cosine for _, cosine in expected], abs=1e-5)


def test_the_same_words_are_the_same_caption(encoder: Encoder) -> None:
    texts = ["A red circle.", "a red  circle", "A RED CIRCLE", "a blue star", "a large ring"]
    datastore = datastore_of(texts, encoder)
    query = encoder.encode_texts(["a red circle"])
    (items,) = datastore.nearest(query, 2)
    assert items[0].text in texts[:3]
    assert len({item.text for item in items} & set(texts[:3])) == 1
    (items,) = datastore.nearest(query, 2, leave_out=[["a red circle!"]])
    assert {item.text for item in items} == {"a blue star", "a large ring"}


def test_captions_of_an_image_are_left_out_by_text_and_by_id(store: FeatureStore, encoder: Encoder) -> None:
    datastore = Datastore.open(store)
    split = store.split("train")
    own = list(split.references().values())
    embeddings = encoder.encode_texts([captions[0] for captions in own])
    by_default = datastore.nearest(embeddings, 4)
    assert all(items[0].text == captions[0] for items, captions in zip(by_default, own, strict=True))
    by_text = datastore.nearest(embeddings, 4, leave_out=own)
    by_id = datastore.nearest(embeddings, 4, images=split.ids)
    for captions, of_text, of_id in zip(own, by_text, by_id, strict=True):
        assert len(of_text) == 4 and not {item.text for item in of_text} & set(captions)
        assert [item.text for item in of_id] == [item.text for item in of_text]
        assert [item.score for item in of_text] == sorted((item.score for item in of_text), reverse=True)


def test_a_part_of_a_store(store: FeatureStore, encoder: Encoder) -> None:
    datastore = Datastore.open(str(store.path), size=40, seed=1)
    assert len(datastore) == 40 and datastore.split is not None and datastore.split.name == "train"
    assert datastore.describe() == {
        "source": store.location, "split": "train", "captions": 40, "encoder": encoder.identity.digest
    }  # fmt: skip
    split = store.split("train")
    owner = {text: split.ids[row] for text, row in zip(split.captions[:], split.caption_images[:], strict=True)}
    queried = [datastore.memory.captions([index])[0] for index in range(40)]
    ids = [owner[text] for text in queried]
    for items, image in zip(datastore.nearest(encoder.encode_texts(queried), 3, images=ids), ids, strict=True):
        assert all(owner[item.text] != image for item in items)
    assert len(Datastore.open(store, "val")) == 25


def test_references_in_the_datastore_are_counted(store: FeatureStore) -> None:
    datastore = Datastore.open(store)
    references = list(store.split("train").references().values())
    assert datastore.leaks(references) == len(references) > 50
    others = [[f"another {number}", "and one more"] for number in range(7)]
    assert datastore.leaks([*others, [references[0][0].upper().rstrip("."), "other"]]) == 1
    assert datastore.leaks(others) == datastore.leaks([]) == 0


def test_one_search_serves_all_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    nearest = MemoryBank.nearest

    def counting(memory: MemoryBank, embeddings: torch.Tensor, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append((len(embeddings), count))
        return nearest(memory, embeddings, count)

    monkeypatch.setattr(MemoryBank, "nearest", counting)
    random_datastore(300, 10_000).nearest(queries(50), 4)
    assert calls == [(50, 8)]


def test_mistakes(store: FeatureStore, encoder: Encoder) -> None:
    datastore = random_datastore(20, 5)
    assert datastore.nearest(torch.empty(0, 16), 3) == []
    left = len(set(datastore.memory.captions(range(20)))) - 2
    gone = datastore.memory.captions(range(20))
    for call, message in (
        (lambda: datastore.nearest(queries(2), 21), "the 21 nearest captions are asked for, and the datastore"),
        (lambda: datastore.nearest(queries(2), 0), "ask for 1 to as many"),
        (lambda: datastore.nearest(queries(2), 6), "different ones left for embeddings 0, 1: ask for fewer"),
        (
            lambda: datastore.nearest(queries(1), left + 1, leave_out=[sorted(set(gone))[:2]]),
            f"has only {left} different ones left for embedding 0",
        ),
        (lambda: datastore.nearest(queries(2), 1, leave_out=[[]]), "leave_out has 1 entries for 2 embeddings"),
        (lambda: datastore.nearest(queries(2), 1, images=[1, 2]), "does not know of which images"),
        (lambda: datastore.nearest(torch.ones(2, 5), 1), "give (n, 16)"),
        (lambda: datastore.nearest(torch.zeros(2, 16), 1), "NaN, infinite or all zero"),
        (lambda: datastore.require_encoder(encoder.identity), "were embedded with the encoder clip:x.pt, but demo is"),
        (
            lambda: datastore.require_encoder(EncoderIdentity("clip:x.pt", "cd" * 32, "none", 16)),
            "encoder clip:x.pt (abababab), but clip:x.pt (cdcdcdcd) is needed",
        ),
        (lambda: Datastore.open(store, "test"), "has no split 'test'"),
        (lambda: Datastore.open("nowhere"), "there is no feature store at nowhere"),
        (lambda: random_datastore(0, 1), "the memory of captions is empty"),
    ):
        with pytest.raises(InputError, match=re.escape(message)) as error:
            call()
        assert "\n" not in str(error.value)
