"""The prompts of training by a provider: what is left out, and what is drawn anew in each epoch."""

import numpy as np
import pytest

from prefixcap.data.provided import ProvidedPrompts
from prefixcap.encoders import Encoder
from prefixcap.prompts import Datastore, build_provider
from prefixcap.store import FeatureStore
from prefixcap.vocabulary import Vocabulary, entities_in
from tests.prompts.conftest import cache as cache
from tests.prompts.conftest import encoder as encoder
from tests.prompts.conftest import store as store

VOCABULARY = ["red", "blue", "green", "star", "ring", "circle", "small", "large", "striped", "dotted", "left", "top"]
ROWS = np.arange(60)


def test_a_caption_does_not_retrieve_itself(encoder: Encoder, store: FeatureStore) -> None:
    described = {"name": "retrieved_captions", "k": 1, "template": "{}"}
    split = store.split("train")
    provider = build_provider(described, encoder, Datastore.open(store))
    prompts = ProvidedPrompts(provider, from_text=True, noise=0.02, seed=3)
    retrieved, captions = prompts(split, ROWS, None), split.captions[ROWS]
    assert not any(text == caption for text, caption in zip(retrieved, captions, strict=True))
    # What each would retrieve first is itself.
    nearest = provider.prompts(encoder.encode_texts(list(captions)))
    assert [prompt.items[0].text for prompt in nearest] == list(captions)
    first, again, later = prompts(split, ROWS, 0), prompts(split, ROWS[::-1], 0)[::-1], prompts(split, ROWS, 1)
    assert first == again  # whatever else is asked for with it
    assert first != later and first != retrieved


def test_entities_of_a_caption_are_masked_anew_in_each_epoch(encoder: Encoder, store: FeatureStore) -> None:
    described = {"name": "clip_entities", "vocabulary": VOCABULARY, "template": "{}", "nothing": ""}
    split, vocabulary = store.split("train"), Vocabulary(VOCABULARY)
    prompts = ProvidedPrompts(build_provider(described, encoder), from_text=True, masked=0.4, seed=3)
    named = [set(entities_in(caption, vocabulary)) for caption in split.captions[ROWS]]
    assert [set(filter(None, text.split(", "))) for text in prompts(split, ROWS, None)] == named
    epochs = [prompts(split, ROWS, epoch) for epoch in range(20)]
    assert epochs[3] == prompts(split, ROWS, 3) and epochs[3] != epochs[4]
    kept = [set(filter(None, text.split(", "))) for epoch in epochs for text in epoch]
    assert all(some <= every for some, every in zip(kept, named * 20, strict=True))
    total = 20 * sum(map(len, named))
    share, deviation = 1 - sum(map(len, kept)) / total, (0.4 * 0.6 / total) ** 0.5
    assert share == pytest.approx(0.4, abs=4 * deviation)


def test_another_seed_masks_others(encoder: Encoder, store: FeatureStore) -> None:
    provider = build_provider({"name": "clip_entities", "vocabulary": VOCABULARY}, encoder)
    first, second = (ProvidedPrompts(provider, True, 0.4, seed=seed) for seed in (0, 1))
    assert first(store.split("train"), ROWS, 0) != second(store.split("train"), ROWS, 0)
