"""Retrieved captions as prompts, and providers by name."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from prefixcap.encoders import Encoder
from prefixcap.errors import InputError
from prefixcap.prompts import PROVIDERS, Datastore, RetrievedCaptions, build_provider, check_provider
from prefixcap.store import FeatureStore
from tests.prompts.conftest import datastore_of, random_datastore

TEXTS = ["a red circle", "a red ring. ", "A red  star!", "a blue star", "a blue ring"]


def test_the_template_is_smallcaps(encoder: Encoder) -> None:
    datastore = datastore_of(TEXTS, encoder)
    provider = RetrievedCaptions(encoder, datastore, k=3)
    assert provider.compose(["a dog", "a cat"]) == "Similar images show\n\na dog\n\na cat.\n\nThis image shows"
    assert provider.compose(["a dog", "a  cat. "]) == "Similar images show\n\na dog\n\na cat.\n\nThis image shows"
    assert provider.compose([]) == ""
    query = encoder.encode_texts(["a blue star"])
    (prompt,) = provider.prompts(query)
    (nearest,) = datastore.nearest(query, 3)
    assert list(prompt.items) == nearest and prompt.items[0].text == "a blue star"
    assert prompt.text == provider.compose([item.text for item in nearest])
    (without,) = provider.prompts(query, leave_out=[["A blue star."]])
    assert "a blue star" not in without.text and len(without.items) == 3
    assert provider.prompts(query[:0]) == []


def test_braces_in_captions_stay(encoder: Encoder) -> None:
    provider = RetrievedCaptions(encoder, datastore_of(TEXTS, encoder), k=1, template="Like: {}", separator="; ")
    assert provider.compose(["a {} sign", "{0}"]) == "Like: a {} sign; {0}."


def test_another_datastore_says_other_things(store: FeatureStore, encoder: Encoder) -> None:
    made = RetrievedCaptions(encoder, Datastore.open(store), k=2)
    swapped = build_provider(made.describe(), encoder, datastore_of(TEXTS, encoder))
    query = encoder.encode_texts(["a blue star"])
    assert {item.text for item in swapped.prompts(query)[0].items} <= set(TEXTS)
    assert not {item.text for item in made.prompts(query)[0].items} & set(TEXTS)


@pytest.mark.parametrize(
    "description",
    [
        {"name": "clip_entities", "vocabulary": ["red circle: red disc", "blue star"], "top_k": 2, "threshold": 0.0,
         "temperature": 0.1, "templates": ["a {}"], "template": "With {}.", "nothing": "none"},
        {"name": "retrieved_entities", "vocabulary": ["red", "blue"], "k": 3, "least": 2, "template": "{}",
         "nothing": "?"},
        {"name": "retrieved_captions", "k": 2, "template": "Like {}", "separator": " | "},
    ],
)  # fmt: skip
def test_a_description_makes_the_same_provider_again(description: dict[str, Any], encoder: Encoder) -> None:
    datastore = datastore_of(TEXTS, encoder)
    provider = build_provider(description, encoder, datastore)
    described = provider.describe()
    assert {key: value for key, value in described.items() if key != "datastore"} == description
    assert ("datastore" in described) == getattr(PROVIDERS[description["name"]], "needs_datastore", None)
    again = build_provider(json.loads(json.dumps(described)), encoder, datastore)
    embeddings = encoder.encode_texts(["a red circle", "a blue star on the left"])
    assert again.prompts(embeddings) == provider.prompts(embeddings)
    assert again.describe() == described


def test_defaults_are_the_published_values(encoder: Encoder) -> None:
    datastore = random_datastore(20, 20, 128)
    object.__setattr__(datastore, "encoder", encoder.identity)
    names = ["dog", "cat", "car"]
    clip = build_provider({"name": "clip_entities", "vocabulary": names}, encoder).describe()
    assert (clip["top_k"], clip["temperature"], clip["template"]) == (3, 0.01, "There are {} in image.")
    found = build_provider({"name": "retrieved_entities", "vocabulary": names}, encoder, datastore).describe()
    assert (found["k"], found["least"]) == (9, 5)
    assert build_provider({"name": "retrieved_captions"}, encoder, datastore).describe()["k"] == 4


def test_mistakes(store: FeatureStore, encoder: Encoder) -> None:
    described = RetrievedCaptions(encoder, Datastore.open(store), k=2).describe()
    small = datastore_of(TEXTS, encoder)
    for call, message in (
        (lambda: build_provider({"name": "tags"}, encoder), "unknown prompts 'tags': choose one of clip_entities, "),
        (lambda: build_provider({}, encoder), "unknown prompts 'None'"),
        (lambda: check_provider({"name": "retrieved_captions", "size": 3}), "unexpected keyword argument 'size'"),
        (lambda: check_provider({"name": "clip_entities"}), "missing a required argument: 'vocabulary'"),
        (lambda: check_provider({"name": "retrieved_captions", "k": 0}), "k must be between 1 and 10000, not 0"),
        (
            lambda: check_provider({"name": "clip_entities", "vocabulary": "x", "temperature": 0.0}),
            "temperature must be above 0.0, not 0.0",
        ),
        (lambda: build_provider(described, encoder), "need a datastore: give a feature store with embeddings of cap"),
        (lambda: build_provider(described, encoder), f"e.g. {store.location!r}, with which it was made"),
        (lambda: build_provider({**described, "k": 6}, encoder, small), "k=6 captions are to be retrieved, and the"),
        (lambda: build_provider({**described, "template": "{}{}"}, encoder, small), "template must have {} once"),
        (lambda: build_provider(described, encoder, random_datastore(9, 9)), "but demo is needed"),
    ):
        with pytest.raises(InputError, match=re.escape(message)) as error:
            call()
        assert "\n" not in str(error.value)


def test_options_are_checked_without_torch() -> None:
    program = """
import sys
from prefixcap.prompts import check_provider
print(check_provider({"name": "clip_entities", "vocabulary": "names.txt", "top_k": 2}), "torch" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "('clip_entities', {'vocabulary': 'names.txt', 'top_k': 2}) False"


def test_one_of_ones_own(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed:
        needs_datastore = False

        def __init__(self, encoder: Any, datastore: Any, text: str = "A photograph.") -> None:
            self.text = text

        def prompts(self, embeddings: torch.Tensor, leave_out: Any = None, images: Any = None) -> list[str]:
            return [self.text] * len(embeddings)

    monkeypatch.setitem(PROVIDERS, "fixed", Fixed)
    assert build_provider({"name": "fixed", "text": "x"}, encoder).prompts(torch.ones(2, 3)) == ["x", "x"]
    with pytest.raises(InputError, match="prompts 'fixed': text must be a text, not 3"):
        check_provider({"name": "fixed", "text": 3})
