"""The decoders against `transformers.generate`, and their limits."""

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from prefixcap.decoding import DECODERS, decode
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel, load_language_model
from tests.conftest import small_lm
from tests.decoding import random_lm, stateful_lm

SEEDED = {"nucleus": {"top_k": 1}}  # the likeliest alone can be drawn
RULES = {"min_tokens": 3, "repetition_penalty": 1.3, "no_repeat_ngram": 2}
RULES_OF_GENERATE = {"min_new_tokens": 3, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize(
    ("method", "options", "of_generate"),
    [
        ("greedy", {}, {}),
        ("beam", {"beams": 1}, {"num_beams": 1}),
        ("beam", {"beams": 3}, {"num_beams": 3}),
        ("beam", {"beams": 5}, {"num_beams": 5}),
        ("beam", {"beams": 5, "length_penalty": 0.0}, {"num_beams": 5, "length_penalty": 0.0}),
        ("beam", {"beams": 4, "length_penalty": 2.0}, {"num_beams": 4, "length_penalty": 2.0}),
        ("beam", {"beams": 4, "num_captions": 3}, {"num_beams": 4, "num_return_sequences": 3}),
        ("greedy", RULES, RULES_OF_GENERATE),
        ("beam", {"beams": 3, **RULES}, {"num_beams": 3, **RULES_OF_GENERATE}),
    ],
)
def test_same_tokens_as_generate(kind: str, method: str, options: dict[str, Any], of_generate: dict[str, Any]) -> None:
    lengths = set()
    for seed in range(4):
        lm = random_lm(kind, seed)
        prefix = torch.randn(8, 5, 32)
        common = {"inputs_embeds": prefix, "attention_mask": torch.ones(8, 5), "max_new_tokens": 14, "do_sample": False}
        endless = lm.model.generate(**common, eos_token_id=None, pad_token_id=0)
        end = int(endless[:, 2:].flatten().mode().values)  # a word that the model likes: captions of many lengths
        lm.eos_token_id = end
        generated = lm.model.generate(**common, eos_token_id=end, pad_token_id=end, **of_generate).tolist()
        expected = [row[: row.index(end)] if end in row else row for row in generated]
        found = decode(lm, prefix, method, max_tokens=14, **options)
        assert [caption for of_image in found for caption in of_image] == expected
        lengths |= {len(row) for row in expected}
    assert len(lengths) > 1, "captions of one length only would prove little"


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize(
    ("method", "options", "of_generate"), [("greedy", {}, {}), ("beam", {"beams": 3}, {"num_beams": 3})]
)
def test_bad_words_as_in_generate(kind: str, method: str, options: dict[str, Any], of_generate: dict[str, Any]) -> None:
    """Tokens, pairs and triples that the captions would have, also at their beginning."""
    for seed in range(3):
        lm = random_lm(kind, seed)
        prefix = torch.randn(8, 5, 32)
        free = [caption for of_image in decode(lm, prefix, method, max_tokens=10, **options) for caption in of_image]
        bad = [[free[0][1]], free[1][:2], free[2][3:5], free[3][:3], free[4][2:5], free[5][4:5]]
        bad = [ids for ids in bad if ids and ids != [lm.eos_token_id]]
        common = {"inputs_embeds": prefix, "attention_mask": torch.ones(8, 5), "max_new_tokens": 10, "do_sample": False}
        end = lm.eos_token_id
        generated = lm.model.generate(
            **common, eos_token_id=end, pad_token_id=end, bad_words_ids=bad, **of_generate
        ).tolist()
        expected = [row[: row.index(end)] if end in row else row for row in generated]
        found = decode(lm, prefix, method, max_tokens=10, bad_words_ids=bad, **options)
        assert [caption for of_image in found for caption in of_image] == expected != free


@pytest.mark.parametrize("method", DECODERS)
def test_no_decoder_writes_bad_words(method: str) -> None:
    lm = small_lm()
    prefix = torch.randn(6, 4, lm.dim) * 2
    options = SEEDED.get(method, {})
    bad = [caption[start : start + size] for ((caption,), size, start) in zip(
        decode(lm, prefix, method, max_tokens=8, **options), (1, 2, 3, 1, 2, 3), (0, 0, 0, 1, 2, 3), strict=True
    )]  # fmt: skip
    bad = [ids for ids in bad if ids]
    for (caption,) in decode(lm, prefix, method, max_tokens=8, bad_words_ids=bad, **options):
        parts = {tuple(caption[i:j]) for i in range(len(caption)) for j in range(i + 1, len(caption) + 1)}
        assert parts.isdisjoint(map(tuple, bad))


@pytest.mark.parametrize("method", ["greedy", "beam", "contrastive", "clipcap", "clipcap_greedy"])
def test_a_batch_gives_what_single_images_give(method: str) -> None:
    lm = small_lm()
    prefix = torch.randn(6, 4, lm.dim) * 2
    together = decode(lm, prefix, method, max_tokens=12)
    assert together == [decode(lm, row.unsqueeze(0), method, max_tokens=12)[0] for row in prefix]
    assert all(len(caption) <= 12 for of_image in together for caption in of_image)


def test_more_beams_than_words_is_no_error() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0))
    lm = LanguageModel(model.eval(), load_language_model("demo").tokenizer, "three words")
    lm.eos_token_id = 0
    assert len(decode(lm, torch.randn(2, 2, 8), "beam", beams=5, max_tokens=4)) == 2


def test_no_images_give_no_captions() -> None:
    lm = small_lm()
    assert decode(lm, torch.empty(0, 4, lm.dim), "greedy") == []
    assert decode(lm, torch.empty(0, 4, lm.dim), "beam") == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", DECODERS)
def test_half_precision(method: str, dtype: torch.dtype) -> None:
    lm = small_lm()
    prefix = torch.randn(3, 4, lm.dim) * 2
    in_float = decode(lm, prefix, method, max_tokens=4, **SEEDED.get(method, {}))
    lm.to(dtype)
    in_half = decode(lm, prefix.to(dtype), method, max_tokens=4, **SEEDED.get(method, {}))
    assert [len(of_image) for of_image in in_half] == [1, 1, 1]
    same = sum(a[0][0] == b[0][0] for a, b in zip(in_float, in_half, strict=True))
    assert same >= 2, "the first words are the likeliest in float32 too, but for a rare tie"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("magic", {}, "unknown decoder 'magic': choose one of greedy, beam"),
        ("greedy", {"beams": 3}, r"decoder 'greedy'.*beams"),
        ("greedy", {"num_captions": 2}, "decoder 'greedy' returns one caption for each image, not 2"),
        ("beam", {"max_tokens": 93}, r"exceed the context of language model 'random' \(96\).*at most 92"),
        ("greedy", {"max_tokens": 0}, "max_tokens must be at least 1"),
        ("greedy", {"max_tokens": 4, "min_tokens": 5}, "min_tokens must lie between 0 and max_tokens=4, not 5"),
        ("greedy", {"repetition_penalty": 0.0}, r"repetition_penalty must be between 0\.01 and 100\.0, not 0\.0"),
        ("greedy", {"bad_words_ids": [[3], []]}, "bad_words_ids has a sequence without a token"),
        ("greedy", {"no_repeat_ngram": -1}, "no_repeat_ngram must be at least 0"),
        ("beam", {"beams": 0}, "beams must be between 1 and 10000, not 0"),
        ("beam", {"beams": 5, "groups": 2}, "a multiple of groups=2, not 5"),
        ("beam", {"num_captions": 6}, "captions must lie between 1 and beams=5, not 6"),
        ("nucleus", {"top_p": 0.0}, r"decoder 'nucleus': top_p must be above 0\.0 and at most 1\.0, not 0\.0"),
        ("contrastive", {"top_k": 0}, "decoder 'contrastive': top_k must be at least 1, not 0"),
        ("clipcap", {"stop": "no such word"}, "'no such word' is not one token of language model 'random'"),
        ("clipcap", {"num_captions": 6}, "captions must lie between 1 and beams=5, not 6"),
    ],
)
def test_bad_requests_are_told(method: str, options: dict[str, Any], message: str) -> None:
    lm = small_lm()
    with pytest.raises(InputError, match=message):
        decode(lm, torch.randn(1, 4, lm.dim), method, **options)


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "lfm2", "falcon_h1"])
@pytest.mark.parametrize("method", DECODERS)
def test_a_language_model_that_keeps_states_is_refused(method: str, kind: str) -> None:
    """It would read the newest word alone, and write on from that."""
    with pytest.raises(InputError, match=f"language model '{kind}' has no key/value cache in every layer"):
        decode(stateful_lm(kind, words=470), torch.randn(1, 4, 32), method)
