"""ClipCap's two decoders against a loop that reads the whole sequence again for every token, one image at a time."""

import pytest
import torch
from torch import Tensor

from prefixcap.decoding import decode
from prefixcap.language import LanguageModel
from tests.conftest import slow_after
from tests.decoding import random_lm


@torch.inference_mode()
def published_beam(lm: LanguageModel, prefix: Tensor, stop: int, beams: int = 5, most: int = 67) -> list[list[int]]:
    """The captions of one (length, dim) prefix, the best first."""

    def log_probs(written: list[list[int]]) -> Tensor:
        words = lm.embed(torch.tensor(written, dtype=torch.long))
        logits = lm.model(inputs_embeds=torch.cat((prefix.expand(len(words), -1, -1), words), dim=1)).logits
        return torch.log_softmax(logits[:, -1], -1)

    first = log_probs([[]])[0].topk(beams)
    scores, tokens = first.values.tolist(), [[word] for word in first.indices.tolist()]
    lengths = [1] * beams
    stopped = [caption[-1] == stop for caption in tokens]
    while len(tokens[0]) < most and not all(stopped):
        candidates = []  # (mean, beam that it comes from, token)
        lengths = [length + (not ended) for length, ended in zip(lengths, stopped, strict=True)]
        for beam, own in enumerate(log_probs(tokens)):
            if stopped[beam]:
                candidates.append((scores[beam] / lengths[beam], beam, 0))
            else:
                means = (scores[beam] + own) / lengths[beam]
                candidates += [(mean, beam, word) for word, mean in enumerate(means.tolist())]
        best = sorted(candidates, key=lambda candidate: -candidate[0])[:beams]
        lengths = [lengths[beam] for _, beam, _ in best]
        scores = [mean * length for (mean, _, _), length in zip(best, lengths, strict=True)]
        tokens = [[*tokens[beam], word] for _, beam, word in best]
        stopped = [stopped[beam] or word == stop for _, beam, word in best]
    order = sorted(range(beams), key=lambda beam: -scores[beam] / lengths[beam])
    return [tokens[beam][: lengths[beam]] for beam in order]


@torch.inference_mode()
def published_greedy(lm: LanguageModel, prefix: Tensor, stop: int, most: int = 67) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < most and tokens[-1:] != [stop]:
        words = lm.embed(torch.tensor(tokens, dtype=torch.long))
        tokens.append(int(lm.model(inputs_embeds=torch.cat((prefix, words)).unsqueeze(0)).logits[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("quarter", slow_after(1, range(4)))
def test_same_tokens_as_the_published_code(quarter: int) -> None:
    """240 models, each with prefixes of its own: captions that end early, late and never, beams that end apart."""
    captions_ended = apart = 0
    for seed in range(60 * quarter, 60 * quarter + 60):
        lm = random_lm(["gpt2", "gpt2", "opt", "llama"][seed % 4], seed)
        prefixes = torch.randn(2, 3, 32)
        lm.eos_token_id = -1
        endless = torch.tensor(decode(lm, prefixes, "greedy", max_tokens=8))[..., 2:]
        stop = int(endless.flatten().mode().values)  # a word that the model likes
        lm.tokenizer = OneWord(stop)
        most = 8 if seed % 10 else 30
        beams = [published_beam(lm, prefix, stop, most=most) for prefix in prefixes]
        assert decode(lm, prefixes, "clipcap", num_captions=5, max_tokens=most) == beams
        assert decode(lm, prefixes, "clipcap", max_tokens=most) == [captions[:1] for captions in beams]
        greedy = [[published_greedy(lm, prefix, stop, most)] for prefix in prefixes]
        assert decode(lm, prefixes, "clipcap_greedy", max_tokens=most) == greedy
        captions_ended += sum(caption[-1] == stop for captions in beams for caption in captions)
        apart += sum(len({len(caption) for caption in captions}) > 1 for captions in beams)
    assert 100 < captions_ended < 580 and apart > 20, "searches that all end alike would prove little"


class OneWord:
    """A tokenizer that knows the full stop alone."""

    def __init__(self, stop: int) -> None:
        self.stop = stop

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert (text, add_special_tokens) == (".", False)
        return [self.stop]
