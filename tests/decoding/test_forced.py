"""Beam search for captions that have given words, against all sequences there are."""

import itertools
import re
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from prefixcap.decoding import DECODERS, decode, decoder_options
from prefixcap.decoding.padded import pad_left
from prefixcap.errors import InputError, OptionError
from prefixcap.language import LanguageModel, load_tokenizer
from prefixcap.language.tokens import bad_words_ids, force_words_ids, tokenize_texts
from tests.conftest import small_captioner, small_lm

TOKENS = ["<end>", "Ġdog", "dog", "s", "Ġa", ".", "Ġd", "og"]
DOG = [[1], [2], [6, 7]]  # its spellings: the second one without a space, which is a word at the beginning only
A_DOG = [[4, 1], [4, 6, 7]]
MOST = 4


def tiny_lm(seed: int) -> LanguageModel:
    """A language model of eight tokens that spell words in several ways."""
    vocabulary = {token: number for number, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=8, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)  # far from uniform
    return LanguageModel(
        model.eval(), PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>"), "eight tokens"
    )


@torch.inference_mode()
def all_captions(lm: LanguageModel, prefix: Tensor, length_penalty: float) -> list[tuple[float, list[int]]]:
    """Every caption of at most `MOST` tokens after a (P, dim) prefix, the best first, read without a cache."""
    rows = torch.tensor(list(itertools.product(range(8), repeat=MOST)))
    inputs = torch.cat((prefix.expand(len(rows), -1, -1), lm.embed(rows)), dim=1)
    log_probs = lm.model(inputs_embeds=inputs).logits[:, len(prefix) - 1 : -1].log_softmax(-1)
    sums = log_probs.gather(2, rows.unsqueeze(-1)).squeeze(-1).cumsum(1).tolist()
    scores = {}
    for row, of_row in zip(rows.tolist(), sums, strict=True):
        length = row.index(0) + 1 if 0 in row else MOST
        scores[tuple(row[:length])] = of_row[length - 1] / length**length_penalty
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    return [(score, [token for token in tokens if token]) for tokens, score in ranked]


@pytest.mark.parametrize("length_penalty", [1.0, 0.0])
@pytest.mark.parametrize(
    ("words", "patterns"),
    [
        ([DOG], ["(^| )dog"]),
        ([A_DOG], [" a dog"]),
        ([DOG, [[4]]], ["(^| )dog", " a"]),
        ([[[4]], [[6]]], [" a", " d"]),
        ([[[5]], [[1, 3], [6, 7, 3]]], [r"\.", " dogs"]),
        ([[[2, 3]]], ["^dogs"]),
    ],
)
def test_a_wide_beam_finds_the_best_of_all_sequences(
    words: list[list[list[int]]], patterns: list[str], length_penalty: float
) -> None:
    """What has the words is read off the text, where a word begins after a space or at the beginning."""
    for seed in range(2):
        lm = tiny_lm(seed)
        prefix = torch.randn(2, 3, 16)
        found = decode(
            lm, prefix, "beam", 6, beams=350, max_tokens=MOST, length_penalty=length_penalty, force_words_ids=words
        )
        for captions, row in zip(found, prefix, strict=True):
            expected = []
            for _, tokens in all_captions(lm, row, length_penalty):
                text = lm.decode_raw(tokens)
                if all(re.search(rf"{word}(?!\w)", text) for word in patterns):
                    expected.append(tokens)
            assert captions == expected[:6] and len(expected) > 6


def test_same_captions_where_the_words_come_anyway() -> None:
    """With a wide beam; a narrow one has fewer beams for what has the words."""
    found = []
    for seed in range(6):
        lm, prefix = tiny_lm(seed), torch.randn(12, 3, 16)
        free = decode(lm, prefix, "beam", beams=200, max_tokens=7)
        have = [bool(re.search(r"(^| )dog\b", lm.decode_raw(caption))) for (caption,) in free]
        forced = decode(lm, prefix, "beam", beams=200, max_tokens=7, force_words_ids=[DOG])
        assert [a == b for a, b in zip(free, forced, strict=True)] == have
        found += have
    assert 10 < sum(found) < len(found) - 10


@pytest.mark.parametrize(
    "options",
    [
        {"beams": 3},
        {"beams": 1},
        {"beams": 6, "groups": 3, "diversity": 1.0, "num_captions": 6},
        {"beams": 4, "num_captions": 4, "length_penalty": 0.0, "min_tokens": 6},
        {"beams": 4, "no_repeat_ngram": 3, "repetition_penalty": 1.2, "bad_words_ids": [[300], [40, 41]]},
    ],
)
def test_every_caption_has_every_word(options: dict[str, Any]) -> None:
    words = ["dog", "red", "in front of the", "zebra"]
    lm = small_lm()
    ids, prefix = force_words_ids(lm.tokenizer, words), torch.randn(4, 4, lm.dim) * 2
    fewest = sum(min(map(len, spellings)) for spellings in ids)
    for most in (fewest, fewest + 6):
        together = decode(lm, prefix, "beam", max_tokens=most, force_words_ids=ids, **options)
        for caption in itertools.chain(*together):
            assert len(caption) <= most
            text = lm.detokenize(caption)
            for word in words:
                assert re.search(rf"(?<!\w)[{word[0]}{word[0].upper()}]{word[1:]}(?!\w)", text), (word, text)
        alone = [decode(lm, row[None], "beam", max_tokens=most, force_words_ids=ids, **options)[0] for row in prefix]
        assert together == alone


def test_with_prompts_of_several_lengths() -> None:
    lm = small_lm()
    ids, prefix = force_words_ids(lm.tokenizer, ["dog"]), torch.randn(3, 4, lm.dim)
    prompts = [lm.tokenize_prompt(text) for text in ("A red", "", "There is a big")]
    padded = decode(lm, pad_left(prefix, prompts, lm), "beam", max_tokens=8, force_words_ids=ids)
    for row, prompt, captions in zip(prefix, prompts, padded, strict=True):
        assert decode(lm, pad_left(row[None], [prompt], lm), "beam", max_tokens=8, force_words_ids=ids) == [captions]


def test_nothing_is_forced_by_no_words() -> None:
    lm = small_lm()
    prefix = torch.randn(4, 4, lm.dim)
    assert decode(lm, prefix, "beam", 3, max_tokens=8, force_words_ids=[]) == decode(
        lm, prefix, "beam", 3, max_tokens=8
    )


def test_captioner_with_rerank_and_prompt() -> None:
    captioner = small_captioner()
    ids = force_words_ids(captioner.language_model.tokenizer, ["dog", "red"], "A red")
    for caption in captioner.caption(torch.randn(3, 16), prompt="A red", force_words_ids=ids, max_tokens=8):
        assert caption.startswith("A red") and re.search(r"\bdog\b", caption)


def test_spellings() -> None:
    tokenizer = load_tokenizer("demo")

    def texts(*words: str, prompt: str = "") -> list[set[str]]:
        spelled = force_words_ids(tokenizer, words, prompt)
        return [{tokenizer.decode(ids) for ids in spellings} for spellings in spelled]

    assert texts("dog", " New  York ") == [{" dog", "dog", " Dog", "Dog"}, {" New York", "New York"}]
    assert texts("dog", prompt="A") == [{" dog", " Dog"}]
    assert texts("dog", "red", "car", prompt="A red carpet") == [{" dog", " Dog"}, {" car", " Car"}]
    assert force_words_ids(tokenizer, ["dog"])[0][0] == tokenize_texts(tokenizer, [" dog"])[0]


def test_spellings_of_a_tokenizer_that_knows_words_alone() -> None:
    words = models.WordPiece({"<unk>": 0, "a": 1, "dog": 2, "##s": 3, "Dog": 4}, unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="<unk>")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert force_words_ids(tokenizer, ["dogs"]) == [[[2, 3], [4, 3]]]
    with pytest.raises(InputError, match="'cat' cannot be forced: the language model has no token for a part of it"):
        force_words_ids(tokenizer, ["dog", "cat"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"force_words_ids": [[]]}, r"force_words_ids\[0\] has no spelling: leave it out"),
        ({"force_words_ids": [[[3]], [[4], []]]}, r"force_words_ids\[1\] has a spelling without a token"),
        ({"force_words_ids": [[[3, 470]]]}, r"force_words_ids\[0\] has the token 470: give those of .* 0 to 469"),
        ({"force_words_ids": [[["dog"]]]}, r"force_words_ids\[0\]\[0\]\[0\] must be an integer, not 'dog'"),
        ({"force_words_ids": [[3]]}, r"force_words_ids\[0\]\[0\] must be a list, not 3"),
        ({"force_words_ids": [[[3, 4], [5, 6, 7]], [[8]]], "max_tokens": 2}, "take 3 tokens, max_tokens=2: set max_t"),
        (
            {"force_words_ids": [[[40, 41, 42]]], "bad_words_ids": [[9], [41, 42]]},
            r"force_words_ids\[0\], '.*', has what bad_words_ids rules out: leave out one of them",
        ),
        (
            {"force_words_ids": [[[34]], [[3]], [[35, 3], [36]]]},
            r"force_words_ids\[0\] and \[2\] can only begin a caption: spell them with a space before, as",
        ),
        (
            {"force_words_ids": [[[5, 4]], [[6, 4]]], "no_repeat_ngram": 1, "max_tokens": 5},
            "no caption of at most max_tokens=5 with all words of force_words_ids was found: raise max_tokens",
        ),
    ],
)
def test_what_cannot_be_forced_is_told(options: dict[str, Any], message: str) -> None:
    lm = small_lm()
    with pytest.raises(InputError, match=message):
        decode(lm, torch.randn(1, 4, lm.dim), "beam", **options)


def test_room_is_told_as_an_option() -> None:
    lm = small_lm()
    with pytest.raises(OptionError) as error:
        decode(lm, torch.randn(1, 4, lm.dim), "beam", max_tokens=1, force_words_ids=[[[3, 4]]])
    assert error.value.options == {"max_tokens": 2}


@pytest.mark.parametrize("method", sorted(DECODERS.keys() - {"beam"}))
def test_other_decoders_say_which_one_forces(method: str) -> None:
    lm = small_lm()
    with pytest.raises(InputError, match=f"decoder '{method}' takes no force_words_ids: only beam search .* 'beam'"):
        decode(lm, torch.randn(1, 4, lm.dim), method, force_words_ids=[[[3]]])
    assert "force_words_ids" not in decoder_options(method)


def test_a_spelling_that_is_ruled_out_is_left_out() -> None:
    lm = small_lm()
    bad = bad_words_ids(lm.tokenizer, ["Dog"])[:2]  # "Dog" and " Dog"
    found = decode(
        lm, torch.randn(4, 4, lm.dim), "beam", 5, max_tokens=8,
        force_words_ids=force_words_ids(lm.tokenizer, ["dog"]), bad_words_ids=bad,
    )  # fmt: skip
    assert all(re.search(r"\bdog\b", text) and "Dog" not in text for row in found for text in map(lm.detokenize, row))
