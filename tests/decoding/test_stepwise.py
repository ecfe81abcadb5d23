"""Drawing tokens at random: the right distribution, the same captions again, and what the options leave."""

from typing import Any

import pytest
import torch

from prefixcap.decoding import decode
from tests.conftest import small_lm
from tests.decoding import random_lm


def test_tokens_are_drawn_with_their_probabilities() -> None:
    lm = random_lm("gpt2", 0)
    lm.eos_token_id = 39
    prefix = torch.randn(1, 3, 32)
    logits = lm.model(inputs_embeds=prefix).logits[0, -1].detach() / 2.0
    allowed = logits.topk(6).indices
    captions = decode(
        lm, prefix, "nucleus", num_captions=3000, max_tokens=1, top_p=1.0, top_k=6, temperature=2.0,
        generator=torch.Generator().manual_seed(0),
    )[0]  # fmt: skip
    counts = torch.bincount(torch.tensor([caption[0] if caption else 39 for caption in captions]), minlength=40)
    assert set(counts.nonzero().flatten().tolist()) <= set(allowed.tolist())
    expected = 3000 * logits[allowed].softmax(-1)
    chi_square = float(((counts[allowed] - expected) ** 2 / expected).sum())
    assert chi_square < 25.7, "one in ten thousand, at five degrees of freedom"


def test_a_nucleus_is_the_fewest_tokens_with_that_probability() -> None:
    lm = random_lm("gpt2", 1)
    prefix = torch.randn(1, 3, 32)
    probabilities, words = lm.model(inputs_embeds=prefix).logits[0, -1].detach().softmax(-1).sort(descending=True)
    size = int((probabilities.cumsum(0) < 0.9).sum()) + 1
    captions = decode(lm, prefix, "nucleus", num_captions=3000, max_tokens=1, top_p=0.9)[0]
    drawn = {caption[0] if caption else lm.eos_token_id for caption in captions}
    assert drawn <= set(words[:size].tolist()) and words[0].item() in drawn and len(drawn) > 1


def test_a_seed_gives_the_same_captions_whatever_the_batch() -> None:
    lm = random_lm("llama", 2)
    prefix = torch.randn(6, 3, 32)

    def drawn(seed: int, batch_size: int) -> list[list[list[int]]]:
        generator = torch.Generator().manual_seed(seed)
        batches = [prefix[start : start + batch_size] for start in range(0, 6, batch_size)]
        found = [decode(lm, batch, "nucleus", num_captions=3, max_tokens=9, generator=generator) for batch in batches]
        return [captions for of_batch in found for captions in of_batch]

    assert drawn(0, 6) == drawn(0, 2) == drawn(0, 1)
    assert drawn(0, 6) != drawn(1, 6)
    assert len({tuple(caption) for caption in drawn(0, 6)[0]}) > 1


def test_one_word_to_draw_from_is_greedy() -> None:
    lm = random_lm("opt", 3)
    prefix = torch.randn(5, 3, 32)
    assert decode(lm, prefix, "nucleus", top_k=1, max_tokens=9) == decode(lm, prefix, "greedy", max_tokens=9)


@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e-45, 1e-30])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    """Divided by it as they are, logits would be infinite, and no token likely."""
    lm = small_lm()
    prefix = torch.randn(5, 4, lm.dim)
    assert decode(lm, prefix, "nucleus", temperature=temperature, max_tokens=9) == decode(
        lm, prefix, "greedy", max_tokens=9
    )


def test_the_smallest_share_is_the_likeliest_token() -> None:
    lm = small_lm()
    prefix = torch.randn(5, 4, lm.dim)
    assert decode(lm, prefix, "nucleus", top_p=1e-300, max_tokens=9) == decode(lm, prefix, "greedy", max_tokens=9)


def test_an_endless_temperature_draws_all_words_alike_but_those_that_are_ruled_out() -> None:
    lm = random_lm("gpt2", seed=0, words=6)
    lm.eos_token_id = 5
    options: dict[str, Any] = {
        "temperature": 1e300,
        "top_p": 1.0,
        "min_tokens": 1,
        "max_tokens": 1,
        "generator": torch.Generator().manual_seed(0),
    }
    drawn = [tokens[0] for tokens in decode(lm, torch.randn(1, 3, 32), "nucleus", 5000, **options)[0]]
    counts = torch.bincount(torch.tensor(drawn), minlength=6)
    assert counts[5] == 0 and (counts[:5] - 1000).abs().max() < 150
