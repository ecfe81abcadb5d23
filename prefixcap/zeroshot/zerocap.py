"""ZeroCap (Tewel et al., "ZeroCap: Zero-Shot Image-to-Text Generation for Visual-Semantic Arithmetic", CVPR 2022).

A language model writes; before each token its context, the keys and values of all that it has read, is moved by a few
steps of gradient descent, so that the tokens it finds likely are those that make the text closer to the image.

What costs time in the released code is CLIP, which reads 512 texts of 77 tokens for each beam, step and iteration. Here
a text's beginning is read once and each candidate's end alone (`Continuations`), a candidate that an earlier iteration
has seen is not read again, padding is not read at all, and beams and images are guided together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor
from transformers import DynamicCache

from prefixcap.decoding.cache import KeyValueCache
from prefixcap.encoders import Encoder
from prefixcap.encoders.inputs import Images
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel
from prefixcap.utils.options import Count, NonNegative, Positive, check_fields, check_options
from prefixcap.zeroshot.continuations import Continuations
from prefixcap.zeroshot.inputs import directions, prompt_tokens

Guide = Literal["gradient", "clip", "clip_and_lm"]
Factors = Literal["probability", "logit"]
Past = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (rows, heads, length, width of a head)


@dataclass(frozen=True)
class ZeroCapOptions:
    """The constants of the paper, by their names there, and three of the released code that it does not mention.

    Attributes:
        prompt: what every caption goes on from; it is not part of the caption.
        beams: of the search, which ranks by mean log-probability; of those found, CLIP chooses.
        max_tokens: of a caption.
        iterations: steps of gradient descent for each token.
        step_size: alpha, in each of them (equation 5).
        gradient_power: a gradient is divided by its norm to this power, for the keys and for the values of each layer
            by itself. Released code: 0.9.
        language_weight: lambda, of staying near what the language model would say unguided (equation 2): of the
            Kullback-Leibler divergence from it, as in the released code (the paper calls it a cross-entropy).
        temperature: tau_c, of CLIP's potentials (equation 3).
        candidates: the likeliest next tokens, which CLIP looks at.
        end: the text of the token that ends a caption; the language model's own end token does, too.
        end_factor: f_e, what the probability of `end` is multiplied by; 1.06, from step 1, for arithmetic.
        end_from: t_e, from which step on, the first being 0. In that one no caption ends.
        repetition_factor: what the probability of the tokens of the last few steps is multiplied by.
        repetition_window: how many steps these are: "generated at the last four time-steps".
        capital_factor: what that of pieces of words with a capital is multiplied by (supplement E); 1: nothing.
        forbidden: texts of tokens that are never written.
        factors: of what these are factors: of the "probability", as the paper says, or, as in the released code, of the
            "logit" (a negative one is divided).
        joint_beams: the probabilities of an image's beams add up to one together, not those of each beam, as in the
            released code: from the second token on, each costs about log(beams) more, but one that has ended pays
            nothing, so that shorter captions win.
        fusion: share of the guided log-probability in a token's, the rest is the unguided one. Released code: 0.99.
        guide: "gradient", or, for the ablation of supplement C, no optimization but tokens by CLIP's potentials alone
            ("clip", A1) or times the language model's probability ("clip_and_lm", A2).

    Raises:
        InputError: a value is out of its range.
    """

    prompt: str = "Image of a"
    beams: Count = 5
    max_tokens: Positive = 15
    iterations: Positive = 5
    step_size: NonNegative = 0.3
    gradient_power: NonNegative = 1.0
    language_weight: NonNegative = 0.2
    temperature: Annotated[float, Gt(0)] = 0.01
    candidates: Positive = 512
    end: str = "."
    end_factor: Annotated[float, Gt(0)] = 1.04
    end_from: Annotated[int, Ge(0)] = 3
    repetition_factor: Annotated[float, Gt(0)] = 0.5
    repetition_window: Positive = 4
    capital_factor: Annotated[float, Gt(0)] = 1.0
    forbidden: Sequence[str] = ()
    factors: Factors = "probability"
    fusion: Annotated[float, Interval(gt=0, le=1)] = 1.0
    joint_beams: bool = False
    guide: Guide = "gradient"

    def __post_init__(self) -> None:
        check_fields(self)


class ZeroCap:
    """Captions images without having learned to.

    Args:
        encoder: with a text tower.
        language_model: frozen, on the encoder's device.
        options: values of `ZeroCapOptions`.

    Attributes:
        skipped: steps of gradient descent that were left out, because the gradient was not finite; one for each token
            and beam that it happened to.

    Raises:
        InputError: there is no such option or it is out of its range, or the prompt does not fit.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> from prefixcap.language import load_language_model
        >>> encoder, lm = load_encoder("demo"), load_language_model("demo")  # the paper's: clip:ViT-B/32, gpt2-medium
        >>> zerocap = ZeroCap(encoder, lm, prompt="A", max_tokens=4, candidates=32)
        >>> len(zerocap.caption(["photo.jpg"]))
        1
    """

    def __init__(self, encoder: Encoder, language_model: LanguageModel, **options: Any) -> None:
        self.options = ZeroCapOptions(**check_options("zerocap", ZeroCapOptions, options))
        self.encoder, self.language_model = encoder, language_model.requires_grad_(False).eval()
        self.skipped = 0
        self._continuations = Continuations(encoder)
        if not self.options.prompt.strip():
            raise InputError("the prompt is empty: give one, e.g. 'Image of a'")
        self._prompt = prompt_tokens(self.options.prompt, language_model, encoder, self.options.max_tokens)
        self._end = self._token(self.options.end, "end")
        vocabulary = language_model.head.out_features
        self._factors = torch.ones(vocabulary, device=encoder.device)
        if self.options.capital_factor != 1:
            pieces = language_model.token_strings(list(range(min(vocabulary, len(language_model.tokenizer)))))
            capital = [token for token, piece in enumerate(pieces) if piece.strip()[:1].isupper()]
            self._factors[capital] = self.options.capital_factor
        self._forbidden = [self._token(text, "forbidden") for text in self.options.forbidden]

    def caption(self, images: Images, batch_size: int = 8, progress: bool = False) -> list[str]:
        """A caption of each image; see `candidates`."""
        return [found[0] for found in self.candidates(images, batch_size, progress)]

    def candidates(self, images: Images, batch_size: int = 8, progress: bool = False) -> list[list[str]]:
        """The captions that the search ends with, without the prompt; first those that CLIP finds closest to the image.

        Args:
            images: paths or PIL images, or (batch, dim) embeddings of any length, e.g. of sums and differences.
            batch_size: images that are captioned together.
            progress: show a progress bar on stderr, if it takes longer than a second.

        Raises:
            InputError: an image cannot be read, embeddings have another width, NaN or infinite numbers, no token can
                be written, or the language model keeps something else than keys and values.
        """
        return [
            self._by_similarity(direction, captions)
            for part in directions(images, self.encoder, batch_size, progress)
            for direction, captions in zip(part, self._search(part), strict=True)
        ]

    def _by_similarity(self, direction: Tensor, captions: list[list[int]]) -> list[str]:
        texts = [self.language_model.detokenize(tokens) for tokens in captions]
        cosines = self._continuations.encode([""], [0] * len(texts), texts) @ direction
        return [texts[place] for place in cosines.argsort(descending=True, stable=True).tolist()]

    @torch.no_grad()
    def _search(self, directions: Tensor) -> list[list[list[int]]]:
        """(batch, dim) directions -> the tokens of the beams of each."""
        options, lm = self.options, self.language_model
        device = directions.device
        cache = KeyValueCache(len(self._prompt) + options.max_tokens)
        prompt = torch.tensor([self._prompt], device=device).expand(len(directions), -1)
        lm.step(lm.embed(prompt[:, :-1]), cache)
        images = torch.arange(len(directions), device=device)  # those that are searched
        tokens = torch.empty(len(directions), 1, 0, dtype=torch.long, device=device)  # (open, beams, length)
        scores = torch.zeros(len(directions), 1, device=device)  # (open, beams) sums of log-probabilities
        lengths = torch.zeros_like(scores)
        ended = torch.zeros_like(scores, dtype=torch.bool)
        found: list[list[list[int]]] = [[] for _ in directions]
        for step in range(options.max_tokens):
            read = self._to_read(scores, ended)
            read_images = images.unsqueeze(1).expand_as(read)[read]
            logits = self._next(directions[read_images], tokens[read], prompt[: len(read_images), -1:], cache, step)
            log_probs = logits.new_full((*read.shape, logits.shape[1]), -math.inf)
            log_probs[read] = logits
            log_probs = log_probs - log_probs.logsumexp((1, 2) if options.joint_beams else 2, keepdim=True)
            log_probs[ended] = -math.inf
            log_probs[..., 0].masked_fill_(ended, 0.0)  # a beam that has ended goes on with token 0 at no cost
            lengths = lengths + ~ended
            means = ((scores.unsqueeze(-1) + log_probs) / lengths[..., None]).flatten(1)  # (open, beams * vocabulary)
            means, best = means.topk(min(options.beams, means.shape[1]))
            source, chosen = best // logits.shape[1], best % logits.shape[1]  # (open, beams)
            lengths, ended = lengths.gather(1, source), ended.gather(1, source)
            scores = means * lengths
            tokens = torch.cat((tokens.gather(1, source.unsqueeze(-1).expand(-1, -1, step)), chosen.unsqueeze(-1)), -1)
            ended = ended | (chosen == self._end) | (chosen == lm.eos_token_id) | (means == -math.inf)
            rows = torch.zeros_like(read, dtype=torch.long).masked_scatter(
                read, torch.arange(len(logits), device=device)
            )
            rows = rows.gather(1, source)  # of the cache, that each beam continues
            closed = ended.all(dim=1) | (step + 1 == options.max_tokens)
            for image, *beams in zip(*(x[closed].tolist() for x in (images, tokens, lengths, means)), strict=True):
                found[image] = [
                    written[: int(length)] for written, length, mean in zip(*beams, strict=True) if mean > -math.inf
                ]
            if closed.all():
                break
            images, tokens, scores, lengths, ended, rows = (
                x[~closed] for x in (images, tokens, scores, lengths, ended, rows)
            )
            cache.select(rows[self._to_read(scores, ended)])
        return found

    def _to_read(self, scores: Tensor, ended: Tensor) -> Tensor:
        """(open, beams) bool: the beams that the language model reads, and the cache holds."""
        return ~ended | (scores > -math.inf) if self.options.joint_beams else ~ended

    def _next(self, directions: Tensor, tokens: Tensor, last: Tensor, cache: KeyValueCache, step: int) -> Tensor:
        """(rows, vocabulary) log-probabilities of the next token, not yet normalized; the cache takes in the newest,
        which is unguided."""
        options, lm = self.options, self.language_model
        newest = lm.embed(tokens[:, -1:] if step else last)
        before = lm.step(newest, cache).log_softmax(-1)  # the language model's own
        length = cache.get_seq_length() - 1
        past: Past = [tuple(x[:length].permute(1, 2, 0, 3) for x in (of.keys, of.values)) for of in cache.layers]
        contexts = [lm.decode_raw([*self._prompt[1:], *row]) for row in tokens.tolist()]
        cosines = _Cosines(self._continuations, lm, contexts, directions, before.shape[1])
        if options.guide == "gradient":
            logits = self._guided(newest, past, before, cosines)
        else:
            potentials, likeliest = self._potentials(before, cosines)
            logits = torch.full_like(before, -math.inf).scatter(1, likeliest, potentials.log())
            if options.guide == "clip_and_lm":
                logits = logits + before
        guided = self._with_factors(logits, tokens, step).log_softmax(-1)
        for row in (~guided.isfinite().any(1)).nonzero().flatten().tolist():
            raise InputError(
                f"no token can follow '{contexts[row].strip()}': all {options.candidates} candidates are forbidden, or "
                f"step_size={options.step_size} moves the language model too far"
            )
        if options.fusion == 1:
            return guided
        mixed = options.fusion * guided + (1 - options.fusion) * before
        return mixed.masked_fill(guided == -math.inf, -math.inf)  # of which a very small share is not a number

    @torch.enable_grad()
    def _guided(self, newest: Tensor, past: Past, before: Tensor, cosines: "_Cosines") -> Tensor:
        """Equations 2 to 5: the logits that the newest token has after a context that was moved."""
        options = self.options
        moved = [x.float() for pair in past for x in pair]
        for _ in range(options.iterations):
            moved = [x.detach().requires_grad_() for x in moved]
            log_probs = self._after(newest, moved).log_softmax(-1)
            potentials, likeliest = self._potentials(log_probs.detach(), cosines)
            clip_loss = -(potentials * log_probs.gather(1, likeliest)).sum()
            language_loss = (log_probs.exp() * (log_probs - before)).sum()
            gradients = torch.autograd.grad(clip_loss + options.language_weight * language_loss, moved)
            norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients])  # (2 · layers, rows)
            finite = norms.isfinite().all(0)
            skipped = int((~finite).sum())
            if skipped:
                self.skipped += skipped
                gradients = tuple(gradient.where(finite[:, None, None, None], 0) for gradient in gradients)
                norms = norms.where(finite, 1)
            scales = -options.step_size / norms.clamp_min(1e-15) ** options.gradient_power
            with torch.no_grad():
                moved = [
                    torch.addcmul(x, gradient, scale[:, None, None, None])
                    for x, gradient, scale in zip(moved, gradients, scales, strict=True)
                ]
        with torch.no_grad():
            return self._after(newest, moved)

    def _after(self, newest: Tensor, moved: list[Tensor]) -> Tensor:
        """The logits after the newest token, in the context of these keys and values."""
        cache = DynamicCache()
        for layer in range(len(moved) // 2):
            keys, values = (x.to(newest.dtype) for x in moved[2 * layer : 2 * layer + 2])
            cache.update(keys, values, layer)
        return self.language_model.step(newest, cache)

    def _potentials(self, log_probs: Tensor, cosines: "_Cosines") -> tuple[Tensor, Tensor]:
        """Equation 3 for the likeliest tokens: (rows, candidates) potentials that add up to one; and the tokens."""
        likeliest = log_probs.topk(min(self.options.candidates, log_probs.shape[1])).indices
        return (cosines.of(likeliest) / self.options.temperature).softmax(-1), likeliest

    def _with_factors(self, logits: Tensor, tokens: Tensor, step: int) -> Tensor:
        """(rows, vocabulary) logits after what is wanted more or less often has been multiplied."""
        options = self.options
        factors = self._factors.expand_as(logits).clone()
        recent = tokens[:, -options.repetition_window :]
        factors.scatter_(1, recent, factors.gather(1, recent) * options.repetition_factor)
        if step >= options.end_from:
            factors[:, self._end] *= options.end_factor
        if options.factors == "probability":
            logits = logits + factors.log()
        else:
            logits = torch.where(logits > 0, logits * factors, logits / factors)
        logits[:, self._forbidden] = -math.inf
        if step == 0:
            logits[:, [self._end, self.language_model.eos_token_id]] = -math.inf
        return logits

    def _token(self, text: str, option: str) -> int:
        """The one token that spells a text."""
        tokens: list[int] = self.language_model.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(tokens) != 1:
            raise InputError(f"{option}: '{text}' is {len(tokens)} tokens of '{self.language_model.name}': give one")
        return tokens[0]


class _Cosines:
    """Cosines of images with texts that go on by a token; each is computed when it is first asked for.

    Args:
        contexts: (rows) texts.
        directions: (rows, dim) of the images, of length one.
        vocabulary: how many tokens there are.
    """

    def __init__(
        self, continuations: Continuations, lm: LanguageModel, contexts: list[str], directions: Tensor, vocabulary: int
    ) -> None:
        self._continuations, self._lm, self._directions = continuations, lm, directions
        self._contexts = list(dict.fromkeys(contexts))  # at the first step all images share one
        places = {context: place for place, context in enumerate(self._contexts)}
        self._context_of = torch.tensor([places[context] for context in contexts], device=directions.device)
        self._known = torch.full((len(contexts), vocabulary), math.nan, device=directions.device)

    @torch.no_grad()
    def of(self, tokens: Tensor) -> Tensor:
        """(rows, n) tokens -> (rows, n) cosines."""
        found = self._known.gather(1, tokens)
        rows, columns = found.isnan().nonzero(as_tuple=True)
        if len(rows):
            new = tokens[rows, columns]
            pairs, back = torch.unique(self._context_of[rows] * self._known.shape[1] + new, return_inverse=True)
            of, words = (pairs // self._known.shape[1]).tolist(), (pairs % self._known.shape[1]).tolist()
            embeddings = self._continuations.encode(self._contexts, of, self._lm.token_strings(words))
            self._known[rows, new] = (embeddings[back] * self._directions[rows]).sum(-1)
            found = self._known.gather(1, tokens)
        return found
