"""Texts are plain text to every tokenizer, whatever they say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prefixcap.data.tokens import CaptionTokens
from prefixcap.errors import InputError
from prefixcap.language import load_tokenizer, tokenize_captions, tokenize_texts
from prefixcap.language.tokens import tokenize_prompt
from prefixcap.metrics.perplexity import negative_log_likelihood
from prefixcap.store import FeatureStore
from prefixcap.textonly.vqa import write_answers
from prefixcap.textonly.vqa_files import Question
from tests.conftest import small_captioner, small_lm
from tests.training.test_training import make_store

CORPUS = ["A red star at night.", "a sign says </s> or <unk>, <s> and <pad>", "<|endoftext|> | (x) & y / z < w >"] * 4
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def unigram() -> PreTrainedTokenizerBase:
    """As T5's and XGLM's: to its vocabulary special tokens are words like any other."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=[*SPECIAL.values()], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def bytes_and_pieces() -> PreTrainedTokenizerBase:
    """As Llama 2's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = [*SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=tokens, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def byte_level() -> PreTrainedTokenizerBase:
    """As OPT's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=[*SPECIAL.values()], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


TOKENIZERS = {"gpt2": load_tokenizer("demo"), "opt": byte_level(), "llama": bytes_and_pieces(), "t5": unigram()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_only_the_last_token_of_a_caption_is_special(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    letters = sorted(set("".join(CORPUS)) - set("</|>"))  # which every one of them knows
    spelled = set(tokenizer.all_special_tokens) - ({"<unk>"} if kind == "t5" else set())  # which it has for all unknown
    part = st.one_of(st.sampled_from(sorted(spelled)), st.text(letters, max_size=6))
    text = " ".join("".join(data.draw(st.lists(part, min_size=1, max_size=6))).split())
    (row,) = tokenize_captions(tokenizer, [text])
    assert row[-1] == tokenizer.eos_token_id and not set(row[:-1]) & set(tokenizer.all_special_ids)
    assert " ".join(tokenizer.decode(row, skip_special_tokens=True).split()) == text


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_plain_captions_have_the_tokens_that_they_had(kind: str) -> None:
    texts = ["A red star at night.", "", " a night", "日本"]
    assert tokenize_texts(TOKENIZERS[kind], texts) == TOKENIZERS[kind](texts, add_special_tokens=False)["input_ids"]
    assert tokenize_texts(TOKENIZERS[kind], []) == []


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_prompt_is_stripped(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    expected = tokenizer("A red", add_special_tokens=False)["input_ids"]
    for prompt in ("A red", "A red ", "  A red", "A red\n", "\tA red \r\n", "A red\u00a0"):
        assert tokenize_prompt(tokenizer, prompt) == expected
    assert tokenize_prompt(tokenizer, None) == tokenize_prompt(tokenizer, " \n") == tokenize_prompt(tokenizer, "") == []
    assert not set(tokenize_prompt(tokenizer, f"A {tokenizer.eos_token}")) & {tokenizer.eos_token_id}


@pytest.mark.parametrize("prompt", [["a", "b"], b"A red", 3, 0, [], False, ("a",), {"a": 1}, "A \udce9"])
def test_what_is_no_prompt_is_told(prompt: object) -> None:
    with pytest.raises(InputError, match=r"^prompt ") as error:
        tokenize_prompt(TOKENIZERS["gpt2"], prompt)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_perplexity_reads_all_of_a_caption() -> None:
    """A caption that ends in the text of the end token is not the caption without it."""
    lm = small_lm()
    nats, tokens = negative_log_likelihood(lm, ["A red star", "A red star <|endoftext|> at night"])
    letters = len(lm.tokenizer("A red star < |endoftext| > at night", add_special_tokens=False)["input_ids"])
    assert tokens[1] > tokens[0] + 5 and tokens[1] <= letters and nats[1] > nats[0]


def test_questions_are_plain_text_and_stripped() -> None:
    lm = small_lm()
    read: list[torch.Tensor] = []
    embed = lm.embed
    lm.embed = lambda tokens: (read.append(tokens), embed(tokens))[1]  # type: ignore[method-assign, func-returns-value]
    question = Question(1, 1, "what is it?", "a star")
    write_answers(lm, [question], [" A sign that says <|endoftext|>"], max_tokens=2)
    assert lm.eos_token_id not in read[0].tolist()[0]
    assert lm.tokenizer.decode(read[0][0]) == "A sign that says <|endoftext|> Question: what is it? Answer:"


def test_tokens_that_were_kept_with_end_tokens_inside_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the version before, whose digest had no number."""
    store = make_store(tmp_path / "store", captions=(("A sign that says <|endoftext|>",), ("A red star",)))
    captioner, folder = small_captioner(), tmp_path / "tokens"
    split = FeatureStore(store).split("train")
    rows = np.arange(2)
    with monkeypatch.context() as patch:
        patch.setattr("prefixcap.data.tokens._VERSION", 1)
        patch.setattr(
            "prefixcap.data.tokens.tokenize_captions",
            lambda tokenizer, texts: [
                [*row, tokenizer.eos_token_id] for row in tokenizer(texts, add_special_tokens=False)["input_ids"]
            ],
        )
        before = CaptionTokens(split, captioner, folder=folder)[rows]
    after = CaptionTokens(split, captioner, folder=folder)[rows]
    end = captioner.language_model.eos_token_id
    assert [list(row).count(end) for row in before] == [2, 1] and [list(row).count(end) for row in after] == [1, 1]
