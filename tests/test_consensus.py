"""Agreement of captions with those of a datastore, against a plain loop, and what chooses by it."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from prefixcap.captioner import Captioner
from prefixcap.consensus import Consensus
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.language import load_language_model
from prefixcap.prompts.datastore import Datastore
from prefixcap.textonly.memory import MemoryBank

TEXTS = ["a red dog runs", "a dog runs in the grass", "a red dog in the snow", "two cats sleep",
         "a cat asleep on a bed", "the snow is deep", "a dog and a cat run", "a man with a red hat"]  # fmt: skip
CANDIDATES = [["a dog runs", "a red dog runs in the snow", "two cats"], ["a cat", "two cats sleep on a bed"]]


def datastore(texts: list[str], width: int = 4) -> Datastore:
    vectors = np.random.default_rng(0).normal(size=(len(texts), width)).astype(np.float32)
    return Datastore(MemoryBank(vectors, texts), EncoderIdentity("clip:small.pt", "ab", "none", width))


def ngrams(text: str, order: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def cider_d(caption: str, reference: str, corpus: list[str]) -> float:
    """CIDEr-D with one reference (Vedantam et al. 2015), where each text of the corpus is a document."""
    total = 0.0
    for order in range(1, 5):
        weights = []
        for text in (caption, reference):
            counts = ngrams(text, order)
            documents = {gram: sum(gram in ngrams(other, order) for other in corpus) for gram in counts}
            weights.append({gram: n * math.log(len(corpus) / max(1, documents[gram])) for gram, n in counts.items()})
        own, other = weights
        norm = math.prod(math.sqrt(sum(value**2 for value in each.values())) for each in weights)
        product = sum(min(own[gram], other[gram]) * other[gram] for gram in own.keys() & other.keys())
        total += product / norm if norm else 0.0
    difference = (len(caption.split()) - 1) - (len(reference.split()) - 1)
    return 10 * total / 4 * math.exp(-(difference**2) / (2 * 6**2))


def test_scores_are_those_of_a_plain_loop() -> None:
    store = datastore(TEXTS)
    images = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 4))).float()
    cosines = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(store.memory.embeddings(range(8))).T
    scores = Consensus(store, nearest=3).scores(images, CANDIDATES)
    for row, captions in enumerate(CANDIDATES):
        nearest = [TEXTS[index] for index in cosines[row].topk(3).indices.tolist()]
        for caption, score in zip(captions, scores[row], strict=True):
            assert score == pytest.approx(np.mean([cider_d(caption, text, TEXTS) for text in nearest]))
    assert any(score > 0 for row in scores for score in row)


def test_captions_are_ordered_by_it_and_equals_keep_their_order() -> None:
    consensus = Consensus(datastore(TEXTS), nearest=8)
    images = torch.ones(2, 4)
    ordered = consensus.rerank(images, [["zebra", "a dog runs", "yak"], ["x", "y"]])
    assert ordered == [["a dog runs", "zebra", "yak"], ["x", "y"]]


@pytest.mark.parametrize("nearest", [0, 9])
def test_as_many_captions_must_be_there(nearest: int) -> None:
    with pytest.raises(InputError, match=f"the {nearest} nearest captions are asked for, .* has 8: ask for 1 to"):
        Consensus(datastore(TEXTS), nearest)


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    torch.manual_seed(0)
    encoder = load_encoder("demo")
    mapper = {"name": "mlp", "prefix_length": 4}
    return Captioner(load_language_model("demo", "frozen"), encoder.identity, mapper).eval()


def test_a_captioner_chooses_by_agreement(captioner: Captioner) -> None:
    encoder = captioner.encoder()
    images = encoder.encode_texts(["a red circle", "a blue square"])
    options: dict[str, Any] = {"beams": 6, "max_tokens": 8}
    plain = captioner.candidates(images, 6, **options)
    texts = [plain[0][4], plain[1][5], "a green star"]  # agreed with by candidates that are not the decoder's best
    store = Datastore(MemoryBank(encoder.encode_texts(texts), texts), encoder.identity)
    consensus = Consensus(store, nearest=3)
    chosen = captioner.candidates(images, 6, consensus=consensus, **options)
    assert chosen == consensus.rerank(images, plain) != plain
    best = captioner.caption(images, rerank=6, consensus=consensus, **options)
    assert best == [captions[0] for captions in chosen]


def test_mistakes(captioner: Captioner) -> None:
    images = torch.ones(1, captioner.encoder_identity.dim)
    other = Consensus(datastore(TEXTS, captioner.encoder_identity.dim), nearest=2)
    with pytest.raises(InputError, match=r"were embedded with the encoder clip:small\.pt, but demo is needed"):
        captioner.candidates(images, 3, consensus=other)
    with pytest.raises(InputError, match="consensus chooses among several captions: set rerank=20"):
        captioner.caption(images, consensus=other)
