"""Prompts of entities: beside loops over names and captions, on the small world, and in training on text."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import COLOURS, SHAPES, random_scene
from prefixcap.encoders import Encoder, embed_images
from prefixcap.errors import InputError
from prefixcap.prompts import ClipEntities, Datastore, Item, Prompt, RetrievedEntities
from prefixcap.prompts.entities import CLIP_TEMPLATES, embed_vocabulary, mask
from prefixcap.store import FeatureStore
from prefixcap.vocabulary import Vocabulary
from tests.prompts.conftest import datastore_of, random_datastore

OBJECTS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def plain_directions(encoder: Encoder, names: list[str], templates: list[str]) -> np.ndarray:
    rows = []
    for name in names:
        texts = [template.replace("{}", name) for template in templates]
        rows.append(unit(np.mean([unit(row) for row in encoder.encode_texts(texts).numpy()], axis=0)))
    return np.array(rows, np.float64)


@pytest.mark.parametrize("templates", [None, ["{}"], ["a {}", "There is a {}."]])
@pytest.mark.parametrize(("top_k", "threshold", "temperature"), [(3, 0.2, 0.01), (1, 0.0, 1.0), (100, 0.05, 0.05)])
def test_by_clip_beside_a_loop(
    encoder: Encoder, templates: list[str] | None, top_k: int, threshold: float, temperature: float
) -> None:
    generator = np.random.default_rng(0)
    pictures = [draw(random_scene(generator), generator) for _ in range(6)]
    embeddings = embed_images(encoder, pictures)
    provider = ClipEntities(encoder, None, OBJECTS, top_k, threshold, temperature, templates)
    directions = plain_directions(encoder, OBJECTS, templates or list(CLIP_TEMPLATES))
    np.testing.assert_allclose(provider.embeddings.numpy(), directions, atol=1e-5)
    for prompt, row in zip(provider.prompts(5 * embeddings), embeddings.double().numpy(), strict=True):
        logits = directions @ unit(row) / temperature
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        likely = [place for place in np.argsort(-probabilities)[:top_k] if probabilities[place] >= threshold]
        assert [item.text for item in prompt.items] == [OBJECTS[place] for place in likely]
        assert [item.score for item in prompt.items] == pytest.approx(probabilities[likely].tolist(), abs=1e-3)
        named = ", ".join(OBJECTS[place] for place in likely) or "something"
        assert prompt.text == f"There are {named} in image."


def test_by_clip_the_small_worlds_unseen_objects_are_named(encoder: Encoder) -> None:
    """Of words that no training caption has: what a captioner by itself has right in 0%."""
    generator = np.random.default_rng(1)
    scenes = [random_scene(generator, "out-of-domain") for _ in range(40)]
    embeddings = embed_images(encoder, [draw(scene, generator) for scene in scenes])
    provider = ClipEntities(encoder, None, OBJECTS, top_k=1, threshold=0.0, templates=["a {}"])
    named = [prompt.items[0].text for prompt in provider.prompts(embeddings)]
    right = [name == f"{scene.colour} {scene.shape}" for name, scene in zip(named, scenes, strict=True)]
    assert np.mean(right) >= 0.9


def test_in_batches_it_is_the_same(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = ClipEntities(encoder, None, OBJECTS, threshold=0.0)
    embeddings = encoder.encode_texts(OBJECTS[::7])
    at_once = provider.prompts(embeddings)
    monkeypatch.setattr("prefixcap.prompts.entities._QUERIES", 4)
    monkeypatch.setattr("prefixcap.prompts.entities._TEXTS", 9)
    one_by_one = [provider.prompts(row[None])[0] for row in embeddings]
    assert [prompt.text for prompt in provider.prompts(embeddings)] == [prompt.text for prompt in at_once]
    assert [prompt.text for prompt in one_by_one] == [prompt.text for prompt in at_once]
    assert provider.prompts(embeddings[:0]) == []


def test_a_vocabulary_is_embedded_once(encoder: Encoder, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    encode = type(encoder).encode_texts

    def counting(self: Encoder, given: list[str]) -> torch.Tensor:
        texts.extend(given)
        return encode(self, given)

    monkeypatch.setattr(type(encoder), "encode_texts", counting)
    vocabulary = Vocabulary(["red circle: red disc", "blue star"])
    first = embed_vocabulary(encoder, vocabulary)
    assert len(texts) == 14 and len(set(texts)) == 14
    assert torch.equal(embed_vocabulary(encoder, vocabulary), first) and len(texts) == 14
    embed_vocabulary(encoder, Vocabulary(["blue star", "red circle"]))
    embed_vocabulary(encoder, vocabulary, ["a {}"])
    assert len(texts) == 14 + 14 + 2
    files = list((cache / "vocabularies").iterdir())
    assert len(files) == 3
    for file in files:
        np.savez(file, embeddings=np.ones((2, 3), np.float32))  # written by something else
    assert torch.equal(embed_vocabulary(encoder, vocabulary), first)


def plain_frequent(captions: list[str], names: list[str], least: int) -> list[tuple[str, float]]:
    counts = {name: sum(bool(re.search(rf"\b{name}\b", text)) for text in captions) for name in names}
    return sorted(
        ((name, count / len(captions)) for name, count in counts.items() if count >= least), key=lambda p: -p[1]
    )


@pytest.mark.parametrize(("k", "least"), [(9, 5), (9, 1), (1, 1)])
def test_by_retrieval_beside_a_loop(store: FeatureStore, encoder: Encoder, k: int, least: int) -> None:
    datastore = Datastore.open(store)
    names = [*COLOURS, *SHAPES]
    provider = RetrievedEntities(encoder, datastore, names, k, least)
    val = store.split("val")
    embeddings = torch.from_numpy(val.feature("captions/embedding")[:])
    for prompt, items in zip(provider.prompts(embeddings), datastore.nearest(embeddings, k), strict=True):
        expected = plain_frequent([item.text.lower() for item in items], names, least)
        assert sorted(prompt.items) == sorted(expected)
        scores = [item.score for item in prompt.items]
        assert scores == sorted(scores, reverse=True)
        assert prompt.text == f"There are {', '.join(item.text for item in prompt.items) or 'something'} in image."


def test_by_retrieval_own_captions_are_not_counted(encoder: Encoder) -> None:
    datastore = datastore_of(["a red circle", "a red disc", "a red ring", "a blue star"], encoder)
    provider = RetrievedEntities(encoder, datastore, ["red", "circle", "star"], k=2, least=1)
    query = encoder.encode_texts(["a red circle"])
    assert "circle" in [item.text for item in provider.prompts(query)[0].items]
    assert "circle" not in [item.text for item in provider.prompts(query, [["A red circle."]])[0].items]


def test_a_share_of_entities_is_masked() -> None:
    generator = torch.Generator().manual_seed(0)
    entities = [f"thing {number}" for number in range(20_000)]
    kept = mask(entities, 0.4, generator)
    assert abs(len(kept) / len(entities) - 0.6) < 0.015  # four standard deviations
    assert kept == [entity for entity in entities if entity in set(kept)]
    assert mask(entities, 0.0) == entities and mask(entities, 1.0) == [] == mask([], 0.4)
    again = mask(entities, 0.4, torch.Generator().manual_seed(0))
    assert again == kept
    with pytest.raises(InputError, match="entities is to be masked"):
        mask(entities, 1.5)


def test_prompts_of_captions_in_training_on_text(encoder: Encoder) -> None:
    provider = ClipEntities(encoder, None, ["person: man, women", "dog", "hot dog", "grass"], template="With {}.")
    caption = "A man and two women feed hot-dogs to dogs"
    prompts = provider.of_captions([caption] * 300, 0.0, torch.Generator().manual_seed(0))
    texts = [prompt.text for prompt in prompts]
    orders = {tuple(item.text for item in prompt.items) for prompt in prompts}
    assert len(orders) == 6 and all(sorted(order) == ["dog", "hot dog", "person"] for order in orders)
    assert set(texts) == {f"With {', '.join(order)}." for order in orders}
    masked = provider.of_captions([caption] * 300, generator=torch.Generator().manual_seed(0))
    assert abs(np.mean([len(prompt.items) for prompt in masked]) - 1.8) < 0.2
    assert masked == provider.of_captions([caption] * 300, generator=torch.Generator().manual_seed(0))
    assert provider.of_captions(["nothing of it", ""]) == [Prompt("With something.")] * 2
    assert provider.of_captions(["grass"], 0.0) == [Prompt("With grass.", (Item("grass", 1.0),))]


def test_what_is_left_when_an_item_is_taken_away(encoder: Encoder) -> None:
    provider = ClipEntities(encoder, None, ["dog", "cat"], top_k=2, nothing="nothing known")
    assert provider.compose(["dog", "cat"]) == "There are dog, cat in image."
    assert provider.compose([]) == "There are nothing known in image."


def test_mistakes(encoder: Encoder) -> None:
    datastore = datastore_of(["a red circle", "a blue star"], encoder)
    names = ["dog", "cat"]

    def by_clip(**options: Any) -> ClipEntities:
        return ClipEntities(encoder, None, **{"vocabulary": names, "top_k": 1, **options})

    for call, message in (
        (lambda: by_clip(vocabulary=["dog"]), "the vocabulary has 1 name: give at least 2"),
        (lambda: by_clip(vocabulary=[]), "the vocabulary has 0 names"),
        (lambda: by_clip(vocabulary="none.txt"), "cannot read none.txt"),
        (lambda: by_clip(top_k=3), "top_k=3, but the vocabulary has 2 names: give at most as many"),
        (lambda: by_clip(template="There are."), "template must have {} once, where the items go, not 'There are.'"),
        (lambda: by_clip(templates=["a {} or {}"]), "templates must have {} once"),
        (lambda: by_clip().prompts(torch.ones(2, 5)), "embeddings of shape (2, 5): give (n, 128)"),
        (lambda: by_clip().prompts(torch.full((2, 128), torch.nan)), "NaN or infinite"),
        (lambda: RetrievedEntities(encoder, datastore, names, k=3, least=1), "k=3 captions are to be retrieved, and"),
        (lambda: RetrievedEntities(encoder, datastore, names, k=1, least=2), "least=2 of k=1 captions cannot"),
        (lambda: RetrievedEntities(encoder, random_datastore(9, 9), names), "but demo is needed"),
    ):
        with pytest.raises(InputError, match=re.escape(message)) as error:
            call()
        assert "\n" not in str(error.value)
