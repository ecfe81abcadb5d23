"""ZeroCap from the paper's equations with nothing kept and nothing shared, to compare with.

One image and one beam at a time. For each step of gradient descent the language model (a GPT-2, written out) reads
the whole text again, its context's keys and values are moved as plain tensors, and each candidate is encoded whole.
Where the paper is silent, the docstring of `ZeroCapOptions` says what is meant.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from prefixcap.language import LanguageModel
from prefixcap.zeroshot.zerocap import ZeroCapOptions


class Iteration(NamedTuple):
    """What a step of gradient descent starts from."""

    candidates: list[int]
    clip_loss: float
    language_loss: float


class Beam(NamedTuple):
    """Tokens, the sum of their log-probabilities, and whether the last one ends the caption."""

    tokens: tuple[int, ...]
    score: float
    ended: bool

    @property
    def mean(self) -> float:
        return self.score / len(self.tokens)


def read(lm: LanguageModel, tokens: list[int], past: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
    """GPT-2: logits of the next token, and (heads, length, width) keys and values of each layer, also of the past."""
    body, config = lm.model.transformer, lm.model.config
    start = 0 if past is None else past[0].shape[1]
    places = torch.arange(start, start + len(tokens), device=body.wte.weight.device)
    x = body.wte.weight[torch.tensor(tokens, device=places.device)] + body.wpe.weight[places]  # (length, width)
    made = []
    for number, block in enumerate(body.h):
        projected = block.ln_1(x) @ block.attn.c_attn.weight + block.attn.c_attn.bias
        query, key, value = projected.view(len(tokens), 3, config.n_head, -1).permute(1, 2, 0, 3)
        if past is not None:
            key, value = torch.cat((past[2 * number], key), 1), torch.cat((past[2 * number + 1], value), 1)
        made += [key, value]
        scores = query @ key.transpose(1, 2) / key.shape[-1] ** 0.5
        hidden = torch.arange(key.shape[1], device=places.device) > places.unsqueeze(1)
        attended = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value  # (heads, length, width of a head)
        attended = attended.transpose(0, 1).reshape(len(tokens), -1)
        x = x + attended @ block.attn.c_proj.weight + block.attn.c_proj.bias
        wide = block.ln_2(x) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
        wide = 0.5 * wide * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)))
        x = x + wide @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
    return body.ln_f(x[-1]) @ body.wte.weight.T, made


class PlainZeroCap:
    """Captions one image.

    Args:
        encode_texts: texts -> (n, dim) embeddings of any length.
        language_model: what `read` knows to read: a GPT-2.
        options: as ZeroCap's.
        read: as the function of that name.

    Attributes:
        seen: for each text that was gone on with, by its tokens after the prompt, the steps of gradient descent.
    """

    def __init__(
        self,
        encode_texts: Callable[[list[str]], Tensor],
        language_model: LanguageModel,
        options: ZeroCapOptions,
        read: Callable[..., tuple[Tensor, list[Tensor]]] = read,
    ) -> None:
        self.encode_texts, self.lm, self.options, self.read = encode_texts, language_model, options, read
        tokenizer = language_model.tokenizer
        self.prompt = [tokenizer.bos_token_id, *tokenizer.encode(options.prompt)]
        (self.end,) = tokenizer.encode(options.end)
        self.forbidden = {token for text in options.forbidden for token in tokenizer.encode(text)}
        self.seen: dict[tuple[int, ...], list[Iteration]] = {}

    def captions(self, embedding: Tensor) -> list[str]:
        """(dim,) -> captions, the closest to the image first."""
        direction = embedding / embedding.norm()
        if self.options.joint_beams:
            return self.by_similarity(self.jointly_normalized(direction), direction)
        beams = [Beam((), 0.0, False)]
        for step in range(self.options.max_tokens):
            found = [beam for beam in beams if beam.ended]
            for beam in beams:
                if not beam.ended:
                    log_probs = self.next_token(beam.tokens, direction, step)
                    best = log_probs.topk(self.options.beams)
                    for log_prob, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                        ended = token in (self.end, self.lm.eos_token_id)
                        found.append(Beam((*beam.tokens, token), beam.score + log_prob, ended))
            beams = sorted(found, key=lambda beam: -beam.mean)[: self.options.beams]
            if all(beam.ended for beam in beams):
                break
        return self.by_similarity([list(beam.tokens) for beam in sorted(beams, key=lambda beam: -beam.mean)], direction)

    def jointly_normalized(self, direction: Tensor) -> list[list[int]]:
        """The search of the released code: probabilities are divided by their sum over all beams, of which those that
        have ended read on, token 0 after token 0, and may write nothing else, at no cost. The tokens of each beam."""
        most = self.options.beams
        texts: list[tuple[int, ...]] = [()]
        sums, lengths, stopped = [0.0], [0], [False]  # of each beam
        for step in range(self.options.max_tokens):
            weights = [self.mixed(text, direction, step).double().exp() for text in texts]
            total = sum(float(row.sum()) for row in weights)
            candidates = []
            for beam, row in enumerate(weights):
                length = lengths[beam] + (not stopped[beam])
                row = row / total
                for token in [0] if stopped[beam] else row.topk(most).indices.tolist():
                    score = sums[beam] + (0.0 if stopped[beam] else math.log(float(row[token])))
                    candidates.append((score / length, score, length, beam, token))
            best = sorted(candidates, reverse=True)[:most]
            ends = (self.end, self.lm.eos_token_id)
            texts = [(*texts[beam], token) for _, _, _, beam, token in best]
            stopped = [stopped[beam] or token in ends for _, _, _, beam, token in best]
            sums, lengths = [score for _, score, *_ in best], [length for _, _, length, *_ in best]
            if all(stopped):
                break
        return [list(text[:length]) for text, length in zip(texts, lengths, strict=True)]

    def by_similarity(self, written: list[list[int]], direction: Tensor) -> list[str]:
        texts = [self.lm.detokenize(tokens) for tokens in written]
        cosines = self.cosines(texts, direction).tolist()
        return [text for _, text in sorted(zip(cosines, texts, strict=True), key=lambda pair: -pair[0])]

    def next_token(self, tokens: tuple[int, ...], direction: Tensor, step: int) -> Tensor:
        """(vocabulary,) log-probabilities after the prompt and these tokens."""
        return self.mixed(tokens, direction, step).log_softmax(0)

    def mixed(self, tokens: tuple[int, ...], direction: Tensor, step: int) -> Tensor:
        """(vocabulary,) log of guided ** fusion * unguided ** (1 - fusion): probabilities that do not add up to one."""
        options = self.options
        text = [*self.prompt, *tokens]
        with torch.no_grad():
            before = self.read(self.lm, text)[0].log_softmax(0)
        if options.guide == "gradient":
            deltas: list[Tensor] | None = None
            self.seen[tokens] = []
            for _ in range(options.iterations):
                deltas = self.moved(text, deltas, before, direction)
            logits = self.after(text, deltas)
        else:
            candidates = before.topk(min(options.candidates, len(before))).indices
            logits = torch.full_like(before, -torch.inf)
            logits[candidates] = self.potentials(text, candidates, direction).log()
            if options.guide == "clip_and_lm":
                logits = logits + before
        for token in range(len(logits)):
            self.weigh(logits, token, tokens, step)
        guided = logits.log_softmax(0)
        return options.fusion * guided + (1 - options.fusion) * before if options.fusion != 1 else guided

    def weigh(self, logits: Tensor, token: int, tokens: tuple[int, ...], step: int) -> None:
        """Multiply what one token gets."""
        options, factor = self.options, 1.0
        if token in tokens[-options.repetition_window :]:
            factor *= options.repetition_factor
        if token == self.end and step >= options.end_from:
            factor *= options.end_factor
        if options.capital_factor != 1 and self.lm.tokenizer.decode([token]).strip()[:1].isupper():
            factor *= options.capital_factor
        if options.factors == "probability":
            logits[token] += torch.tensor(factor).log()
        else:
            logits[token] *= factor if logits[token] > 0 else 1 / factor
        if token in self.forbidden or (step == 0 and token in (self.end, self.lm.eos_token_id)):
            logits[token] = -torch.inf

    def moved(self, text: list[int], deltas: list[Tensor] | None, before: Tensor, direction: Tensor) -> list[Tensor]:
        """Equations 2 and 5: what is added to the context's keys and values, after one more step."""
        options = self.options
        with torch.no_grad():
            context = self.read(self.lm, text[:-1])[1]
        deltas = [(torch.zeros_like(x) if deltas is None else deltas[i]) for i, x in enumerate(context)]
        moved = [(x + delta).requires_grad_() for x, delta in zip(context, deltas, strict=True)]
        probabilities = self.read(self.lm, text[-1:], moved)[0].softmax(0)
        candidates = probabilities.topk(min(options.candidates, len(probabilities))).indices
        potentials = self.potentials(text, candidates, direction)
        clip_loss = -(potentials * probabilities[candidates].log()).sum()
        language_loss = (probabilities * (probabilities.log() - before)).sum()
        (clip_loss + options.language_weight * language_loss).backward()
        self.seen.setdefault(tuple(text[len(self.prompt) :]), []).append(
            Iteration(candidates.tolist(), clip_loss.item(), language_loss.item())
        )
        gradients = [x.grad for x in moved]
        return [
            delta - options.step_size * gradient / gradient.norm() ** options.gradient_power
            for delta, gradient in zip(deltas, gradients, strict=True)
            if gradient is not None
        ]

    @torch.no_grad()
    def after(self, text: list[int], deltas: list[Tensor] | None) -> Tensor:
        """(vocabulary,) logits after the moved context."""
        context = self.read(self.lm, text[:-1])[1]
        assert deltas is not None
        return self.read(self.lm, text[-1:], [x + delta for x, delta in zip(context, deltas, strict=True)])[0]

    @torch.no_grad()
    def potentials(self, text: list[int], candidates: Tensor, direction: Tensor) -> Tensor:
        """Equation 3."""
        written = self.lm.tokenizer.decode(text[1:], clean_up_tokenization_spaces=False)
        special = self.lm.tokenizer.all_special_ids
        pieces = ["" if token in special else self.lm.tokenizer.decode([token]) for token in candidates.tolist()]
        cosines = self.cosines([written + piece for piece in pieces], direction)
        return (cosines / self.options.temperature).softmax(0)

    @torch.no_grad()
    def cosines(self, texts: list[str], direction: Tensor) -> Tensor:
        embeddings = self.encode_texts(texts).float()
        lengths: Tensor = embeddings.norm(dim=1)
        return embeddings @ direction / lengths
