"""Batches whose rows have prefixes of different lengths, against each row decoded by itself."""

from typing import Any

import pytest
import torch
from torch import Tensor

from prefixcap.decoding import DECODERS, decode
from prefixcap.decoding.cache import KeyValueCache
from prefixcap.decoding.padded import PaddedPrefix, pad_left
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel
from tests.conftest import slow_after, small_lm
from tests.decoding import random_lm, stateful_lm
from tests.decoding.test_captured import METHODS, OneWord, liked_end, options_of
from tests.language.kinds import ACCEPTED, LOCAL, REFUSED, tiny_model

LENGTHS = (5, 0, 2, 9, 1, 3, 0, 5)  # of prompts; a window has seven positions, a prefix three


def own_prompts(lm: LanguageModel, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    return [torch.randint(1, len(lm.head.weight), (length,)).tolist() for length in lengths]


def row_alone(lm: LanguageModel, prefix: Tensor, prompt: list[int]) -> Tensor:
    """(P, E) prefix vectors and the prompt behind them -> (1, P + N, E)."""
    return torch.cat((prefix, lm.embed(torch.tensor(prompt, dtype=torch.long)))).unsqueeze(0)


@torch.no_grad()
def padded_and_alone(lm: LanguageModel, prefix: Tensor, prompts: list[list[int]]) -> tuple[PaddedPrefix, list[Tensor]]:
    padded = pad_left(prefix, prompts, lm)
    assert isinstance(padded, PaddedPrefix)
    return padded, [row_alone(lm, *row) for row in zip(prefix, prompts, strict=True)]


@pytest.mark.parametrize(("method", "options"), [*METHODS, ("contrastive", {}), ("contrastive", {"penalty": 0.9})])
@pytest.mark.parametrize("kind", slow_after(2, ["gpt2", "opt", "llama"]))
def test_a_padded_batch_gives_what_single_images_give(kind: str, method: str, options: dict[str, Any]) -> None:
    lengths = set()
    for seed in range(3):
        lm = random_lm(kind, seed).double()
        prefix = torch.randn(len(LENGTHS), 3, 32, dtype=torch.float64)
        lm.eos_token_id = liked_end(lm, prefix)
        if method.startswith("clipcap"):
            lm.tokenizer = OneWord(lm.eos_token_id)
        padded, alone = padded_and_alone(lm, prefix, own_prompts(lm))
        one_after_another = options_of(method, options)  # a generator goes on to draw the next image's numbers
        expected = [decode(lm, row, method, max_tokens=12, **one_after_another)[0] for row in alone]
        assert decode(lm, padded, method, max_tokens=12, **options_of(method, options)) == expected
        if method != "nucleus":
            order = torch.tensor([6, 0, 3, 1, 2, 7, 5, 4])
            mixed = PaddedPrefix(padded.embeddings[order], padded.padding[order])
            assert decode(lm, mixed, method, max_tokens=12, **options) == [expected[row] for row in order]
        lengths |= {len(caption) for captions in expected for caption in captions}
    assert len(lengths) > 3, "captions of one length only would prove little"


FEW = ["gpt_neox", "gemma3, mixed", "mistral, window", "biogpt"]
KINDS = {**ACCEPTED, "gpt_neo, a window": ("gpt_neo", LOCAL | {"window_size": 7})}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", slow_after(len(FEW), [*FEW, *(kind for kind in KINDS if kind not in FEW)]))
@torch.no_grad()
def test_every_kind_of_model_predicts_what_it_does_for_a_row_alone(kind: str, attention: str) -> None:
    """With windows shorter than a row, after rows have left, and from its cache."""
    lm = tiny_model(*KINDS[kind])
    try:
        lm.model.set_attn_implementation(attention)
    except ValueError as error:
        pytest.skip(" ".join(str(error).split())[:80])
    padded, alone = padded_and_alone(lm, torch.randn(len(LENGTHS), 3, lm.dim), own_prompts(lm))
    tokens = torch.tensor(own_prompts(lm, (4,) * len(LENGTHS)))
    rows, cache = torch.arange(len(LENGTHS)), KeyValueCache(3 + max(LENGTHS) + 4)
    # Copies, as ctrl changes its input in place.
    logits = lm.step(PaddedPrefix(padded.embeddings.clone(), padded.padding), cache)
    for read in range(4):
        inputs = [torch.cat((alone[row], lm.embed(tokens[row : row + 1, :read])), dim=1) for row in rows]
        expected = torch.cat([lm.mask_unknown_ids(lm(each, last=1)[:, -1].float()) for each in inputs])
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3 * float(expected[expected > -1e3].std()))
        if read == 1:  # some leave, and one goes on twice
            kept = torch.tensor([3, 1, 1, 5, 4])
            cache.select(kept)
            rows = rows[kept]
        logits = lm.step(lm.embed(tokens[rows, read].unsqueeze(1)), cache)


@pytest.mark.parametrize("kind", [name for name in REFUSED if "positions itself" in REFUSED[name][2]])
def test_a_model_that_computes_its_positions_is_refused(kind: str) -> None:
    """Its first row is padded, and would be read at other positions than alone."""
    lm = tiny_model(*REFUSED[kind][:2])
    prefix = pad_left(torch.randn(2, 3, lm.dim), [[], [5, 6]], lm)
    with pytest.raises(InputError, match=f"^language model '{lm.name}' (computes its positions|has no key)") as error:
        lm.step(prefix, KeyValueCache(9))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "lfm2", "falcon_h1"])
def test_a_model_that_keeps_states_is_refused(kind: str) -> None:
    lm = stateful_lm(kind, words=470)
    prefix = pad_left(torch.randn(2, 3, lm.dim), [[], [5, 6]], lm)
    with pytest.raises(InputError, match=f"language model '{kind}' has no key/value cache in every layer"):
        decode(lm, prefix, "greedy", max_tokens=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision(attention: str, dtype: torch.dtype) -> None:
    lm = small_lm().to(dtype)
    lm.model.set_attn_implementation(attention)
    prefix = pad_left(torch.randn(3, 4, lm.dim), [[], [5, 6], [7] * 30], lm)
    assert prefix.dtype == dtype, "the language model's precision"
    logits, hidden = lm.step_with_states(prefix, KeyValueCache(40))
    assert logits.isfinite().all() and hidden.isfinite().all()


def test_nothing_is_masked_where_nothing_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = small_lm()
    prefix, read, forward = torch.randn(2, 4, lm.dim), [], lm.model.forward

    def spy(**options: Any) -> Any:
        read.append(options)
        return forward(**options)

    spy.__signature__ = None  # type: ignore[attr-defined]
    monkeypatch.setattr(lm.model, "forward", spy)
    equally_long: list[list[list[int]]] = [[[], []], [[5, 6], [7, 8]]]
    for prompts in equally_long:
        same = pad_left(prefix, prompts, lm)
        assert isinstance(same, Tensor)
        assert torch.equal(same, torch.cat([row_alone(lm, *row) for row in zip(prefix, prompts, strict=True)]))
        decode(lm, same, "greedy", max_tokens=3)
    assert read and all(options.keys().isdisjoint({"attention_mask", "position_ids"}) for options in read)
    decode(lm, pad_left(prefix, [[], [5]], lm), "greedy", max_tokens=3)
    assert read[-1].keys() >= {"attention_mask", "position_ids"}


@pytest.mark.parametrize("before", [[[5, 6], [7, 8]], [[], [5, 6, 7]]])
@pytest.mark.parametrize("prompts", [[[9], [9]], [[], [8, 9]], [[9, 8, 7], []]])
def test_tokens_before_the_prefix(before: list[list[int]], prompts: list[list[int]]) -> None:
    lm = small_lm()
    prefix = torch.randn(2, 4, lm.dim)
    found = pad_left(prefix, prompts, lm, before)
    rows = [
        torch.cat((lm.embed(torch.tensor(ahead, dtype=torch.long)), row_alone(lm, *row)[0]))
        for ahead, *row in zip(before, prefix, prompts, strict=True)
    ]
    read = [found] if isinstance(found, Tensor) else [found.embeddings]
    for row, own in zip(rows, read[0], strict=True):
        assert torch.equal(own[-len(row) :], row)
    if isinstance(found, PaddedPrefix):
        assert found.padding.tolist() == [max(map(len, rows)) - len(row) for row in rows]
    else:
        assert len({len(row) for row in rows}) == 1


def test_padding_in_front_of_every_row_changes_nothing() -> None:
    lm = random_lm("gpt2", 0).double()
    prefix = torch.randn(2, 3, 32, dtype=torch.float64)
    padded = PaddedPrefix(torch.cat((prefix.new_zeros(2, 5, 32), prefix), dim=1), torch.tensor([5, 5]))
    for method in DECODERS:
        if not method.startswith("clipcap"):
            options = {"top_k": 1} if method == "nucleus" else {}
            found = decode(lm, padded, method, max_tokens=9, **options)
            assert found == decode(lm, prefix, method, max_tokens=9, **options)


def test_no_images() -> None:
    lm = small_lm()
    nothing = pad_left(torch.empty(0, 4, lm.dim), [], lm)
    assert nothing.shape == (0, 4, lm.dim) and decode(lm, nothing, "beam") == []


@pytest.mark.parametrize(
    ("shape", "padding", "message"),
    [
        ((2, 4), torch.tensor([0, 1]), r"takes \(batch, length, dim\) embeddings .*, not \(2, 4\) and \(2,\) of int64"),
        ((2, 4, 8), torch.tensor([0]), r"not \(2, 4, 8\) and \(1,\) of int64"),
        ((2, 4, 8), torch.tensor([0.0, 1.0]), r"not \(2, 4, 8\) and \(2,\) of float32"),
        ((2, 4, 8), torch.tensor([0, 4]), "row 1 of a padded prefix has 4 positions of padding, not 0 to 3"),
        ((2, 4, 8), torch.tensor([-1, 0]), "row 0 of a padded prefix has -1 positions of padding"),
    ],
)
def test_a_padded_prefix_that_is_none(shape: tuple[int, ...], padding: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        PaddedPrefix(torch.zeros(shape), padding)
    assert "\n" not in str(error.value)


def test_prompts_that_do_not_fit() -> None:
    lm = small_lm()
    prefix = torch.randn(2, 4, lm.dim)
    with pytest.raises(InputError, match="3 prompts are given for 2 prefixes: give one for each"):
        pad_left(prefix, [[1], [2], [3]], lm)
    with pytest.raises(InputError, match="row 1 of a padded prefix has 1 positions of padding, not 0 to 0"):
        pad_left(prefix[:, :0], [[1], []], lm)
    padded = pad_left(prefix, [[1], [2] * 80], lm)
    with pytest.raises(
        InputError, match=r"a prefix of 84, .* max_tokens=67 exceed the context .*\(96\): set max_tokens to at most 12"
    ):
        decode(lm, padded, "greedy")
    cache = KeyValueCache(200)
    lm.step(prefix, cache)
    with pytest.raises(InputError, match="a padded prefix must be what is read first"):
        lm.step(padded, cache)
