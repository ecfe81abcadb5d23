"""Diverse beam search against a plain loop: no cache, one image and one caption at a time."""

import pytest
import torch
from torch import Tensor

from prefixcap.decoding import decode
from prefixcap.language import LanguageModel
from tests.decoding import random_lm

Caption = tuple[float, list[int]]  # the sum of log-probabilities, or the mean; and the tokens


@torch.inference_mode()
def plain_loop(lm: LanguageModel, prefix: Tensor, width: int, groups: int, diversity: float, most: int) -> list[str]:
    writing: list[list[Caption]] = [[(0.0, [])] for _ in range(groups)]
    ended: list[list[Caption]] = [[] for _ in range(groups)]
    for length in range(1, most + 1):
        taken = torch.zeros(40)
        for group in range(groups):
            candidates: list[Caption] = []
            for score, tokens in writing[group]:
                words = lm.embed(torch.tensor(tokens, dtype=torch.long))
                logits = lm.model(inputs_embeds=torch.cat((prefix, words)).unsqueeze(0)).logits[0, -1]
                scores = score + torch.log_softmax(logits, -1) - diversity * taken
                candidates += [(float(value), [*tokens, word]) for word, value in enumerate(scores)]
            candidates = sorted(candidates, reverse=True)[: 2 * width]
            for rank, (score, tokens) in enumerate(candidates):
                if rank < width and (tokens[-1] == lm.eos_token_id or length == most):
                    ended[group].append((score / length, tokens))
            ended[group] = sorted(ended[group], reverse=True)[:width]
            writing[group] = [caption for caption in candidates if caption[1][-1] != lm.eos_token_id][:width]
            for _, tokens in writing[group]:
                taken[tokens[-1]] += 1
            is_full = len(ended[group]) == width
            if writing[group] and is_full and writing[group][0][0] / length <= ended[group][-1][0]:
                writing[group] = []
    rounds = [sorted((own[place] for own in ended if len(own) > place), reverse=True) for place in range(width)]
    return [str([t for t in tokens if t != lm.eos_token_id]) for captions in rounds for _, tokens in captions]


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize(("beams", "groups", "diversity"), [(4, 2, 0.7), (6, 3, 2.0), (3, 3, 0.3)])
def test_same_captions_as_a_plain_loop(kind: str, beams: int, groups: int, diversity: float) -> None:
    lengths = set()
    for seed in range(3):
        lm = random_lm(kind, seed)
        prefixes = torch.randn(4, 3, 32)
        lm.eos_token_id = int(decode(lm, prefixes, "greedy", max_tokens=3)[0][0][-1])
        found = decode(lm, prefixes, "beam", beams, beams=beams, groups=groups, diversity=diversity, max_tokens=7)
        expected = [plain_loop(lm, prefix, beams // groups, groups, diversity, 7) for prefix in prefixes]
        assert [[str(caption) for caption in captions] for captions in found] == expected
        lengths |= {len(caption) for captions in found for caption in captions}
    assert len(lengths) > 2


def test_groups_differ_by_diversity_alone() -> None:
    lm = random_lm("gpt2", 0)
    prefixes = torch.randn(8, 3, 32)
    alone = decode(lm, prefixes, "beam", beams=2, max_tokens=6)
    alike = decode(lm, prefixes, "beam", 3, beams=6, groups=3, diversity=0.0, max_tokens=6)
    assert alike == [captions * 3 for captions in alone]
    apart = decode(lm, prefixes, "beam", 3, beams=6, groups=3, diversity=5.0, max_tokens=6)
    assert sum(len({str(caption) for caption in captions}) for captions in apart) > 20
