"""Contrastive search against its definition: no cache, one image and one candidate at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.decoding import decode
from prefixcap.language import LanguageModel
from tests.decoding import random_lm


@torch.inference_mode()
def by_definition(lm: LanguageModel, prefix: Tensor, top_k: int, penalty: float, most: int) -> list[int]:
    def read(written: list[int]) -> tuple[Tensor, Tensor]:
        words = lm.embed(torch.tensor(written, dtype=torch.long))
        output = lm.model(inputs_embeds=torch.cat((prefix, words)).unsqueeze(0), output_hidden_states=True)
        return output.logits[0, -1].softmax(-1), output.hidden_states[-1][0]

    tokens: list[int] = []
    while len(tokens) < most:
        probabilities, states = read(tokens)
        ranked = []
        for probability, word in zip(*(values.tolist() for values in probabilities.topk(top_k)), strict=True):
            own = read([*tokens, word])[1][-1]
            similarity = max(float(F.cosine_similarity(own, state, dim=0)) for state in states)
            ranked.append(((1 - penalty) * probability - penalty * similarity, word))
        chosen = max(ranked)[1]
        if chosen == lm.eos_token_id:
            break
        tokens.append(chosen)
    return tokens


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize(("top_k", "penalty"), [(4, 0.6), (6, 0.3), (3, 0.0)])
def test_same_tokens_as_the_definition(kind: str, top_k: int, penalty: float) -> None:
    lengths, differs = set(), 0
    for seed in range(4):
        lm = random_lm(kind, seed)
        prefixes = torch.randn(4, 3, 32)
        lm.eos_token_id = int(decode(lm, prefixes, "greedy", max_tokens=3)[0][0][-1])
        expected = [[by_definition(lm, prefix, top_k, penalty, 10)] for prefix in prefixes]
        assert decode(lm, prefixes, "contrastive", top_k=top_k, penalty=penalty, max_tokens=10) == expected
        lengths |= {len(captions[0]) for captions in expected}
        differs += expected != decode(lm, prefixes, "greedy", max_tokens=10)
    assert len(lengths) > 1 and (differs > 0) == (penalty > 0)


def test_a_token_that_is_ruled_out_is_never_the_most_unlike() -> None:
    """Its probability is 0, but where all tokens are looked at, it may be less like the others than any."""
    lm = random_lm("gpt2", seed=0, words=6)
    prefix = torch.randn(20, 3, 32)
    for lm.eos_token_id in range(6):
        captions = decode(lm, prefix, "contrastive", top_k=6, penalty=1.0, max_tokens=4, min_tokens=4)
        assert all(len(tokens) == 4 for (tokens,) in captions)
