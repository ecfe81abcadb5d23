"""Decoders of one's own: what they are asked for, what they must give, and whose mistake an error is."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from prefixcap.commands.caption import read_options
from prefixcap.decoding import (
    DECODERS,
    GenerationLimits,
    decode,
    decoder_label,
    decoder_options,
    takes_num_captions,
)
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel
from prefixcap.mappers import MAPPERS, Mapper, build_mapper
from prefixcap.web.schema import Settings, decoder_settings
from tests.conftest import small_captioner, small_lm
from tests.decoding import random_lm

Captions = list[list[list[int]]]


@pytest.fixture
def own() -> Iterator[None]:
    """The decoders below, registered."""
    before = dict(DECODERS)
    DECODERS.update(
        one=one, short=short, long=long, uneven=uneven, fewer_images=fewer_images, strings=strings, broken=broken,
        sampler=sampler, numbered=numbered,
    )  # fmt: skip
    yield
    DECODERS.clear()
    DECODERS.update(before)


def one(language_model: LanguageModel, prefix: Tensor, limits: GenerationLimits, num_captions: int = 1) -> Captions:
    """Takes `num_captions` and ignores it."""
    return [[[1, 2]] for _ in prefix]


def short(language_model: LanguageModel, prefix: Tensor, limits: GenerationLimits) -> Captions:
    return [[] for _ in prefix]


def long(language_model: LanguageModel, prefix: Tensor, limits: GenerationLimits, num_captions: int = 5) -> Captions:
    return [[[number] for number in range(num_captions + 1)] for _ in prefix]


def uneven(language_model: LanguageModel, prefix: Tensor, limits: GenerationLimits, num_captions: int) -> Captions:
    return [[[1]] * (num_captions - (row == 1)) for row in range(len(prefix))]


def fewer_images(language_model: LanguageModel, prefix: Tensor, limits: GenerationLimits) -> Captions:
    return [[[1]] for _ in prefix[1:]]


def strings(language_model: LanguageModel, prefix: Tensor, limits: GenerationLimits) -> Any:
    return [["a red star"] for _ in prefix]


def broken(language_model: LanguageModel, prefix: Tensor, limits: GenerationLimits, width: int = 3) -> Captions:
    return [[[1] + None] for _ in prefix]  # type: ignore[operator]


def sampler(
    language_model: LanguageModel, prefix: Tensor, limits: GenerationLimits, generator: torch.Generator | None = None
) -> Captions:
    return [[torch.randint(3, 20, (5,), generator=generator).tolist()] for _ in prefix]


def numbered(
    language_model: LanguageModel, prefix: Tensor, limits: GenerationLimits, num_captions: int = 1
) -> Captions:
    """Tokens that say which image and which of its captions they are of."""
    return [[[int(row[0, 0]), number + 3] for number in range(num_captions)] for row in prefix]


@pytest.mark.parametrize(
    ("method", "captions", "message"),
    [
        ("one", 2, "decoder 'one' returned 1 of 2 captions for an image"),
        ("short", 1, "decoder 'short' returned 0 of 1 captions for an image"),
        ("long", 2, "decoder 'long' returned 3 of 2 captions for an image"),
        ("uneven", 2, "decoder 'uneven' returned 1 of 2 captions for an image"),
        ("fewer_images", 1, "decoder 'fewer_images' returned captions for 3 images, not for 4"),
        ("strings", 1, "decoder 'strings' returned a str in place of a list of token ids"),
        ("short", 2, "decoder 'short' returns one caption for each image, not 2"),
    ],
)
def test_captions_that_are_not_those_asked_for(own: None, method: str, captions: int, message: str) -> None:
    """Where they were counted over all images, one image would get those of the next."""
    with pytest.raises(InputError, match=message) as error:
        small_captioner().candidates(torch.randn(4, 16), captions, method)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [1, 3])
def test_each_image_has_its_own_captions(own: None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = small_captioner()
    marks = torch.arange(5.0)
    monkeypatch.setattr(
        type(captioner),
        "prefix_and_memory",
        lambda self, reads: (marks[: len(reads), None, None].expand(-1, 4, 32), None),
    )
    monkeypatch.setattr(LanguageModel, "detokenize", lambda self, row: " ".join(map(str, row)))
    found = captioner.candidates(torch.randn(5, 16), count, "numbered")
    assert found == [[f"{image} {number + 3}" for number in range(count)] for image in range(5)]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("beam", {"beams": 600}),
        ("beam", {"beams": 600, "no_repeat_ngram": 1}),
        ("beam", {"beams": 600, "min_tokens": 1}),
    ],
)
def test_built_in_decoders_that_find_fewer(method: str, options: dict[str, Any]) -> None:
    lm = small_lm()
    words, ends = lm.head.out_features, options.get("min_tokens", 0)
    with pytest.raises(InputError, match=rf"returned {words - ends} of 600 captions") as error:
        decode(lm, torch.randn(2, 4, lm.dim), method, 600, max_tokens=1, **options)
    assert re.search("longer ones with max_tokens", str(error.value))


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
@pytest.mark.parametrize("method", ["beam", "clipcap"])
def test_what_cannot_be_written_is_no_caption(method: str, max_tokens: int) -> None:
    """A vocabulary of six words, in which all that may be written can be counted: as many beams find it all."""
    lm = random_lm("gpt2", seed=0, words=6)
    lm.eos_token_id, stop = 5, 5
    options = {"stop": lm.tokenizer.decode([stop])} if method == "clipcap" else {}

    def possible(written: tuple[int, ...]) -> list[tuple[int, ...]]:
        """All captions that go on from here: no word twice, and no end before the second."""
        if (written and written[-1] == stop) or len(written) == max_tokens:
            return [written]
        words = [word for word in range(6) if word not in written and not (word == stop and not written)]
        return [caption for word in words for caption in possible((*written, word))]

    keeps = method == "clipcap"
    expected = {tuple(word for word in caption if keeps or word != stop) for caption in possible(())}
    beams = 6 if keeps else 200
    asked = min(beams, len(expected))
    limits: dict[str, Any] = {"max_tokens": max_tokens, "min_tokens": 1, "no_repeat_ngram": 1}
    (found,) = decode(lm, torch.randn(1, 3, 32), method, min(asked, 5), beams=beams, **limits, **options)
    assert {tuple(caption) for caption in found} <= expected
    if not keeps:
        (everything,) = decode(lm, torch.randn(1, 3, 32), method, asked, beams=beams, **limits)
        assert sorted(map(tuple, everything)) == sorted(expected)
        with pytest.raises(InputError, match=f"returned {asked} of {asked + 1} captions"):
            decode(lm, torch.randn(1, 3, 32), method, asked + 1, beams=beams, **limits)


@pytest.mark.parametrize("method", ["greedy", "nucleus", "contrastive"])
def test_rules_that_leave_no_token_are_told(method: str) -> None:
    lm = random_lm("gpt2", seed=0, words=6)
    lm.eos_token_id = 5
    with pytest.raises(
        InputError, match="no_repeat_ngram=1 and min_tokens=6 leave no possible token: lower min_tokens"
    ):
        decode(lm, torch.randn(2, 3, 32), method, max_tokens=8, min_tokens=6, no_repeat_ngram=1)
    for tokens in decode(lm, torch.randn(20, 3, 32), method, max_tokens=5, min_tokens=5, no_repeat_ngram=1):
        assert sorted(tokens[0]) == [0, 1, 2, 3, 4], "each word once, and never the end"


def test_a_mistake_inside_a_part_keeps_its_traceback(own: None) -> None:
    """Its author wants to see it; who only uses it is told that it is none of theirs."""
    with pytest.raises(TypeError, match="can only concatenate list"):
        small_captioner().caption(torch.randn(1, 16), "broken")
    with pytest.raises(
        InputError, match="decoder 'broken': got an unexpected keyword argument 'depth'; its options: width"
    ):
        small_captioner().caption(torch.randn(1, 16), "broken", depth=1)
    with pytest.raises(InputError, match="decoder 'broken': width must be an integer, not 'wide'"):
        small_captioner().caption(torch.randn(1, 16), "broken", width="wide")


def test_a_mistake_inside_a_mapper_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Mapper):
        def __init__(self, embedding_dim: int, lm_dim: int, depth: int = 2, wide: bool = False) -> None:
            super().__init__()
            self.sizes = [embedding_dim] + lm_dim  # type: ignore[operator]  # noqa: RUF005

    monkeypatch.setitem(MAPPERS, "broken", Broken)
    with pytest.raises(TypeError, match="can only concatenate list"):
        build_mapper("broken", 4, 8, depth=3)
    with pytest.raises(
        InputError, match="mapper 'broken': got an unexpected keyword argument 'width'; its options: depth"
    ):
        build_mapper("broken", 4, 8, width=3)
    for name, options in (("broken", {"depth": 2.0}), ("mlp", {"prefix_length": 0}), ("mlp", {"hidden": [4, 0.5]})):
        with pytest.raises(InputError, match=rf"mapper '{name}': \w+.* must be"):
            build_mapper(name, 4, 8, **options)


def test_whoever_takes_a_generator_draws(own: None) -> None:
    captioner = small_captioner()
    images = torch.randn(6, 16)
    first, second, other = (captioner.caption(images, "sampler", seed=seed) for seed in (3, 3, 4))
    assert first == second != other
    generator = torch.Generator().manual_seed(3)
    assert captioner.caption(images, "sampler", batch_size=2, seed=generator) == first
    assert read_options("sampler", ["seed=3"]) == {"seed": 3}
    assert decoder_settings("sampler")[::4] == ["max_tokens", "seed"]
    assert Settings.model_validate({"decode": "sampler", "seed": 3}).job().seed == 3
    with pytest.raises(InputError, match="'one' does not draw: leave it out"):
        captioner.caption(images, "one", seed=3)
    with pytest.raises(InputError, match="has no option 'generator': seed takes a number or a generator"):
        captioner.caption(images, "sampler", generator=generator)


def test_the_parameter_that_was_called_captions_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def old(language_model: LanguageModel, prefix: Tensor, limits: GenerationLimits, captions: int = 1) -> Captions:
        return [[[number] for number in range(captions)] for _ in prefix]

    monkeypatch.setitem(DECODERS, "old", old)
    lm, prefix = small_lm(), torch.randn(2, 4, 32)
    assert takes_num_captions("old") and "captions" not in decoder_options("old")
    with pytest.warns(FutureWarning, match="the parameter 'captions' of decoder 'old' is called num_captions now"):
        assert decode(lm, prefix, "old", 3) == [[[0], [1], [2]]] * 2
    with pytest.warns(FutureWarning, match="the argument 'captions' of decode is called num_captions now"):
        assert decode(lm, prefix, "beam", captions=2) == decode(lm, prefix, "beam", num_captions=2)
    for name in ("captions", "num_captions"):
        with pytest.raises(InputError, match=f"decoder 'beam' has no option '{name}': the number of captions is count"):
            small_captioner().candidates(torch.randn(1, 16), 2, "beam", **{name: 2})


def test_a_decoder_is_described_by_its_docstring_and_annotations(own: None) -> None:
    assert decoder_label("numbered") == "Tokens that say which image and which of its captions they are of"
    assert decoder_label("short") == "short"
    assert all(decoder_label(name) != name for name in DECODERS if name not in globals())
    for name in set(DECODERS) - globals().keys():
        assert all(option.description for option in decoder_options(name).values()), name
