"""A text transformer read in pieces equals one that reads all at once."""

from pathlib import Path

import clip
import pytest
import torch
from torch import Tensor

from prefixcap.encoders import Encoder, load_encoder, text_tower
from prefixcap.encoders.text_tower import TextTower

END = 49407
TEXTS = ["a red star", "", "A zebra, it's on the left!", "café", "one two three four five six seven", "x " * 100]


@pytest.fixture(scope="module", params=["clip", "transformers"])
def encoder(request: pytest.FixtureRequest, clip_file: Path, clip_folder: Path) -> Encoder:
    return load_encoder(f"clip:{clip_file}" if request.param == "clip" else f"transformers:{clip_folder}")


@pytest.fixture
def tower(encoder: Encoder) -> TextTower:
    assert encoder.text_tower is not None
    return encoder.text_tower


@torch.no_grad()
def published(encoder: Encoder, sentences: list[list[int]]) -> Tensor:
    """The model's own code on sentences of 77 tokens, of which those behind the end are padding."""
    tokens = torch.tensor([row + [0] * (77 - len(row)) for row in sentences])
    model = encoder._model  # type: ignore[attr-defined]
    if encoder.identity.name.startswith("clip:"):
        return model.encode_text(tokens)  # type: ignore[no-any-return]
    return model.text_projection(model.text_model(tokens).pooler_output)  # type: ignore[no-any-return]


def cut(sentences: Tensor) -> list[list[int]]:
    """Up to the first end token."""
    return [row[: row.index(END) + 1] for row in sentences.tolist()]


def padded(sentences: list[list[int]]) -> Tensor:
    """With end tokens, at least one."""
    longest = max(map(len, sentences))
    return torch.tensor([row + [END] * (longest + 1 - len(row)) for row in sentences])


def random_sentences(count: int, seed: int) -> list[list[int]]:
    """Of 2 to 77 tokens, many of which begin alike."""
    generator = torch.Generator().manual_seed(seed)

    def words(most: int) -> list[int]:
        return torch.randint(
            0, 49406, (int(torch.randint(0, most, (), generator=generator)),), generator=generator
        ).tolist()

    stem = words(40)
    return [[49406, *stem[: len(words(41))], *words(36), END] for _ in range(count)]


def test_sentences_equal_clips_own(encoder: Encoder, tower: TextTower) -> None:
    sentences = tower.sentences(TEXTS)
    assert cut(sentences) == cut(clip.tokenize(TEXTS, truncate=True))
    expected = published(encoder, cut(sentences))
    torch.testing.assert_close(tower.encode(sentences), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder.encode_texts(TEXTS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokenized_at_once", [2048, 2])
def test_sentences_of_parts(tower: TextTower, tokenized_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_tower, "TOKENIZED_AT_ONCE", tokenized_at_once)
    texts = ["", "star", "a red ", "one <|endoftext|> two", "x y " * 50]
    pairs = [(one, other) for one in range(len(texts)) for other in range(len(texts))]
    found = tower.sentences(texts, *zip(*pairs, strict=True))
    tokens = tower.tokenize(texts)
    whole = [[49406, *(tokens[one] + tokens[other])[:75], END] for one, other in pairs]
    assert cut(found) == [row[: row.index(END) + 1] for row in whole]


@pytest.mark.parametrize(("most", "least"), [(2048, 1), (40, 1), (2048, 100), (400, 200), (10_000, 10_000)])
def test_any_beginning_and_rest_equal_the_whole(
    encoder: Encoder, tower: TextTower, most: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tower, "ELSEWHERE", (most, least))
    sentences = random_sentences(40, seed=0)
    beginnings = [row[: 1 + place * 7 % len(row)] for place, row in enumerate(sentences[:12])]
    beginnings += [[49406], [49406, 1, 2, 3], sentences[0], [5, 6]]  # alike but for the start, whole, and not at all
    expected = published(encoder, sentences)
    for turn in range(3):
        of = [(3 * place + 5 * turn) % len(beginnings) for place in range(len(sentences))]
        torch.testing.assert_close(
            tower.encode(padded(sentences), padded(beginnings), of), expected, atol=1e-5, rtol=1e-5
        )
    torch.testing.assert_close(tower.encode(padded(sentences)), expected, atol=1e-5, rtol=1e-5)


def test_every_split_of_a_sentence(encoder: Encoder, tower: TextTower) -> None:
    (sentence,) = random_sentences(1, seed=3)
    assert len(sentence) > 9
    beginnings = [sentence[:length] for length in range(1, len(sentence) + 1)]
    found = tower.encode(padded([sentence] * len(beginnings)), padded(beginnings), range(len(beginnings)))
    torch.testing.assert_close(found, published(encoder, [sentence] * len(beginnings)), atol=1e-5, rtol=1e-5)


def test_only_what_differs_is_read(tower: TextTower, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    embed = tower.token_embedding.forward

    def counted(tokens: Tensor) -> Tensor:
        read.append(tokens.numel())
        return embed(tokens)

    monkeypatch.setattr(tower.token_embedding, "forward", counted)
    beginning = [49406, *range(100, 120)]
    sentences = [[*beginning, 7, END], [*beginning, 8, 9, END], [*beginning[:-1], END]]
    tower.encode(padded(sentences), padded([beginning]), [0, 0, 0])
    assert sum(read) == len(beginning) + 1 + 2 + 3 + 1  # the end token behind the beginning, too


def test_half_precision(encoder: Encoder, clip_file: Path, clip_folder: Path) -> None:
    name = encoder.identity.name
    half = load_encoder(name, dtype=torch.bfloat16)
    embeddings = half.encode_texts(TEXTS)
    assert embeddings.dtype == torch.bfloat16
    cosines = torch.cosine_similarity(embeddings.float(), encoder.encode_texts(TEXTS), dim=1)
    assert cosines.min() > 0.995
