"""The decoders against `transformers.generate`, and their limits."""

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from prefixcap.decoding import decode
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel, load_language_model
from tests.conftest import small_lm


def random_model(kind: str, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    common: dict[str, Any] = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model: PreTrainedModel
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**common, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    elif kind == "opt":
        options = {"ffn_dim": 64, "num_attention_heads": 2, "max_position_embeddings": 64, "word_embed_proj_dim": 32}
        model = OPTForCausalLM(OPTConfig(**common, hidden_size=32, num_hidden_layers=2, **options))
    else:
        options = {"intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
        model = LlamaForCausalLM(LlamaConfig(**common, hidden_size=32, num_hidden_layers=2, **options))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # far from uniform, so that nothing hangs on rounding
    return model.eval()


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
    ],
)
def test_same_tokens_as_generate(kind: str, method: str, options: dict[str, Any], of_generate: dict[str, Any]) -> None:
    lengths = set()
    for seed in range(4):
        model = random_model(kind, seed)
        lm = LanguageModel(model, load_language_model("demo").tokenizer, "random")
        prefix = torch.randn(8, 5, 32)
        common = {"inputs_embeds": prefix, "attention_mask": torch.ones(8, 5), "max_new_tokens": 14, "do_sample": False}
        endless = model.generate(**common, eos_token_id=None, pad_token_id=0)
        end = int(endless[:, 2:].flatten().mode().values)  # a word that the model likes: captions of many lengths
        lm.end_token = end
        generated = model.generate(**common, eos_token_id=end, pad_token_id=end, **of_generate).tolist()
        expected = [row[: row.index(end)] if end in row else row for row in generated]
        assert decode(lm, prefix, method, max_tokens=14, **options) == expected
        lengths |= {len(row) for row in expected}
    assert len(lengths) > 1, "captions of one length only would prove little"


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_a_batch_gives_what_single_images_give(method: str) -> None:
    lm = small_lm()
    prefix = torch.randn(6, 4, lm.dim) * 2
    together = decode(lm, prefix, method, max_tokens=12)
    assert together == [decode(lm, row.unsqueeze(0), method, max_tokens=12)[0] for row in prefix]
    assert all(len(row) <= 12 for row in together)


def test_more_beams_than_words_is_no_error() -> None:
    lm = LanguageModel(
        GPT2LMHeadModel(GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)).eval(),
        load_language_model("demo").tokenizer,
        "three words",
    )
    lm.end_token = 0
    assert len(decode(lm, torch.randn(2, 2, 8), "beam", beams=5, max_tokens=4)) == 2


def test_no_images_give_no_captions() -> None:
    lm = small_lm()
    assert decode(lm, torch.empty(0, 4, lm.dim), "greedy") == []
    assert decode(lm, torch.empty(0, 4, lm.dim), "beam") == []


def test_bad_requests_are_told() -> None:
    lm = small_lm()
    prefix = torch.randn(1, 4, lm.dim)
    with pytest.raises(InputError, match="unknown decoder 'magic': choose one of greedy, beam"):
        decode(lm, prefix, "magic")
    with pytest.raises(InputError, match=r"decoder 'greedy'.*beams"):
        decode(lm, prefix, "greedy", beams=3)
    with pytest.raises(InputError, match=r"exceed the context of language model 'random' \(96\).*at most 92"):
        decode(lm, prefix, "beam", max_tokens=93)
    with pytest.raises(InputError, match="max_tokens must be at least 1"):
        decode(lm, prefix, "greedy", max_tokens=0)
    with pytest.raises(InputError, match="beams must be at least 1"):
        decode(lm, prefix, "beam", beams=0)
