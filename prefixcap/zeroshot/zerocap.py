"""ZeroCap (Tewel et al., "ZeroCap: Zero-Shot Image-to-Text Generation for Visual-Semantic Arithmetic", CVPR 2022).

A language model generates the caption. Before each token its context, the keys and values of all tokens so far, is
moved by a few steps of gradient descent, so that the likeliest next tokens are those that bring the text closer to the
image.

Most of the released code's time is spent in CLIP, which reads 512 texts of 77 tokens for each beam, step and iteration.
Here the beginning of a text is read once and only the end of each candidate is read for itself (`Continuations`), a
candidate of an earlier iteration is not read again, padding is not read at all, and beams and images are guided
together.

Shapes: B images still being searched, W beams of an image, R beams that the language model reads, of all images, V
vocabulary, K candidates, T tokens generated so far, L positions of prompt and tokens, H heads, D width of a head, N
layers.
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
Past = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (R, H, L, D) each


@dataclass(frozen=True)
class ZeroCapOptions:
    """The constants of the paper, by their names there, and three of the released code that the paper does not mention.

    Attributes:
        prompt: the text that every caption continues; it is not part of the caption.
        beams: W; the search ranks by mean log-probability, and CLIP chooses among the beams at the end.
        max_tokens: maximum number of tokens of a caption.
        iterations: steps of gradient descent for each token.
        step_size: alpha, of each of them (equation 5).
        gradient_power: a gradient is divided by its norm to this power, separately for the keys and the values of each
            layer. Released code: 0.9.
        language_weight: lambda, of staying near the unguided language model (equation 2): weight of the
            Kullback-Leibler divergence from it, as in the released code (the paper calls it a cross-entropy).
        temperature: tau_c, of CLIP's potentials (equation 3).
        candidates: K, the likeliest next tokens, which CLIP scores.
        end: the text of the token that ends a caption; the language model's own end token also ends it.
        end_factor: f_e, the factor on the probability of `end`; for arithmetic 1.06, from step 1.
        end_from: t_e, the step from which on it applies, the first being 0. At step 0 no caption ends.
        repetition_factor: the factor on the probability of tokens of the last few steps.
        repetition_window: how many steps these are: "generated at the last four time-steps".
        capital_factor: the factor on the probability of tokens that begin with a capital (supplement E); 1: none.
        forbidden: texts of tokens that are never chosen.
        factors: what these factors multiply: the "probability", as the paper says, or the "logit", as in the released
            code (a negative logit is divided).
        joint_beams: normalize the probabilities of all beams of an image together instead of each beam's, as in the
            released code: from the second token on, each token then costs about log(beams) more, but a beam that has
            ended pays nothing, so that shorter captions win.
        fusion: weight of the guided log-probability of a token; the unguided one has the rest. Released code: 0.99.
        guide: "gradient"; or, for the ablation of supplement C, no optimization but tokens by CLIP's potentials only
            ("clip", A1) or multiplied by the language model's probability ("clip_and_lm", A2).

    Raises:
        InputError: a value is out of range.
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
    """Captions images without any training.

    Args:
        encoder: any CLIP; one that reads texts causally is many times faster, see `Continuations`.
        language_model: the model to decode with, on the encoder's device; it is frozen.
        options: values of `ZeroCapOptions`.

    Attributes:
        skipped: how many steps of gradient descent were skipped because their gradient was not finite, counted for each
            token and beam.

    Raises:
        InputError: there is no such option, a value is out of range, or the prompt is empty or too long.

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
        """The best caption of each image; arguments and errors as those of `candidates`."""
        return [captions[0] for captions in self.candidates(images, batch_size, progress)]

    def candidates(self, images: Images, batch_size: int = 8, progress: bool = False) -> list[list[str]]:
        """All captions of the search for each image, without the prompt, the closest to the image first.

        Args:
            images: paths or PIL images, or (batch, dim) embeddings of any length, e.g. sums and differences.
            batch_size: images that are captioned together.
            progress: show a progress bar on stderr, if it takes longer than a second.

        Raises:
            InputError: an image cannot be read, embeddings have the wrong width or NaN or infinite values, no token is
                possible, or the language model has no key/value cache.
        """
        return [
            self._by_similarity(direction, captions)
            for part in directions(images, self.encoder, batch_size, progress)
            for direction, captions in zip(part, self._search(part), strict=True)
        ]

    def _by_similarity(self, direction: Tensor, captions: list[list[int]]) -> list[str]:
        """The texts of an image's captions, by the cosine with its (dim,) embedding, the highest first."""
        texts = [self.language_model.detokenize(tokens) for tokens in captions]
        cosines = self._continuations.encode([""], [0] * len(texts), texts) @ direction
        return [texts[index] for index in cosines.argsort(descending=True, stable=True).tolist()]

    @torch.no_grad()
    def _search(self, directions: Tensor) -> list[list[list[int]]]:
        """(batch, dim) image embeddings of unit length -> the tokens of the beams of each image."""
        options, lm = self.options, self.language_model
        device = directions.device
        # The cache holds all of the prompt but its last token, which is read at step 0.
        cache = KeyValueCache(len(self._prompt) + options.max_tokens)
        prompt = torch.tensor([self._prompt], device=device).expand(len(directions), -1)
        lm.step(lm.embed(prompt[:, :-1]), cache)
        images = torch.arange(len(directions), device=device)  # (B,)
        tokens = torch.empty(len(directions), 1, 0, dtype=torch.long, device=device)  # (B, W, T)
        scores = torch.zeros(len(directions), 1, device=device)  # (B, W) sums of log-probabilities
        lengths = torch.zeros_like(scores)  # (B, W) tokens of each beam
        ended = torch.zeros_like(scores, dtype=torch.bool)  # (B, W)
        beams_of_image: list[list[list[int]]] = [[] for _ in directions]
        for step in range(options.max_tokens):
            # The next token's guided log-probabilities, for the R beams that the language model reads.
            is_read = self._is_read(scores, ended)  # (B, W)
            image_of_beam = images.unsqueeze(1).expand_as(is_read)[is_read]  # (R,)
            last = prompt[: len(image_of_beam), -1:]
            logits = self._next(directions[image_of_beam], tokens[is_read], last, cache, step)  # (R, V)
            log_probs = logits.new_full((*is_read.shape, logits.shape[1]), -math.inf)  # (B, W, V)
            log_probs[is_read] = logits
            log_probs = log_probs - log_probs.logsumexp((1, 2) if options.joint_beams else 2, keepdim=True)
            # A beam that has ended has one continuation: token 0 at no cost.
            log_probs[ended] = -math.inf
            log_probs[..., 0].masked_fill_(ended, 0.0)
            lengths = lengths + ~ended
            # New beams: the W continuations with the highest mean log-probability.
            means = ((scores.unsqueeze(-1) + log_probs) / lengths[..., None]).flatten(1)  # (B, W * V)
            means, best = means.topk(min(options.beams, means.shape[1]))  # (B, new W)
            parent, chosen = best // logits.shape[1], best % logits.shape[1]
            lengths, ended = lengths.gather(1, parent), ended.gather(1, parent)
            scores = means * lengths
            tokens = torch.cat((tokens.gather(1, parent.unsqueeze(-1).expand(-1, -1, step)), chosen.unsqueeze(-1)), -1)
            ended = ended | (chosen == self._end) | (chosen == lm.eos_token_id) | (means == -math.inf)
            # (B, new W) the row of the cache, which has R, that each new beam continues.
            row_of_beam = torch.zeros_like(is_read, dtype=torch.long).masked_scatter(
                is_read, torch.arange(len(logits), device=device)
            )
            rows = row_of_beam.gather(1, parent)
            # Images whose beams have all ended leave the batch.
            closed = ended.all(dim=1) | (step + 1 == options.max_tokens)
            for image, *beams in zip(*(x[closed].tolist() for x in (images, tokens, lengths, means)), strict=True):
                beams_of_image[image] = [
                    beam[: int(length)] for beam, length, mean in zip(*beams, strict=True) if mean > -math.inf
                ]
            if closed.all():
                break
            images, tokens, scores, lengths, ended, rows = (
                x[~closed] for x in (images, tokens, scores, lengths, ended, rows)
            )
            cache.select(rows[self._is_read(scores, ended)])
        return beams_of_image

    def _is_read(self, scores: Tensor, ended: Tensor) -> Tensor:
        """(B, W) bool: the beams that the language model reads, and that have a row in the cache."""
        return ~ended | (scores > -math.inf) if self.options.joint_beams else ~ended

    def _next(self, directions: Tensor, tokens: Tensor, last: Tensor, cache: KeyValueCache, step: int) -> Tensor:
        """The guided log-probabilities of the next token, not yet normalized over beams.

        Args:
            directions: (R, dim) the image of each beam.
            tokens: (R, T) generated so far.
            last: (R, 1) the last token of the prompt, which is read at step 0.
            cache: of all tokens but the newest, whose unguided keys and values are added here.
            step: from 0.

        Returns:
            (R, V)
        """
        options, lm = self.options, self.language_model
        newest = lm.embed(tokens[:, -1:] if step else last)  # (R, 1, width)
        unguided = lm.step(newest, cache).log_softmax(-1)  # (R, V)
        # The context that is moved: the keys and values of all tokens before the newest.
        length = cache.get_seq_length() - 1
        past: Past = [
            tuple(x[:length].permute(1, 2, 0, 3) for x in (layer.keys, layer.values)) for layer in cache.layers
        ]
        contexts = [lm.decode_raw([*self._prompt[1:], *row]) for row in tokens.tolist()]
        cosines = _Cosines(self._continuations, lm, contexts, directions, unguided.shape[1])
        if options.guide == "gradient":
            logits = self._guided(newest, past, unguided, cosines)
        else:
            potentials, likeliest = self._potentials(unguided, cosines)
            logits = torch.full_like(unguided, -math.inf).scatter(1, likeliest, potentials.log())
            if options.guide == "clip_and_lm":
                logits = logits + unguided
        guided = self._with_factors(logits, tokens, step).log_softmax(-1)
        for row in (~guided.isfinite().any(1)).nonzero().flatten().tolist():
            raise InputError(
                f"no token can follow '{contexts[row].strip()}': all {options.candidates} candidates are forbidden, or "
                f"step_size={options.step_size} moves the language model too far"
            )
        if options.fusion == 1:
            return guided
        mixed = options.fusion * guided + (1 - options.fusion) * unguided
        return mixed.masked_fill(guided == -math.inf, -math.inf)  # a tiny share of -inf would be NaN

    @torch.enable_grad()
    def _guided(self, newest: Tensor, past: Past, unguided: Tensor, cosines: "_Cosines") -> Tensor:
        """Equations 2 to 5: move the context by gradient descent.

        Args:
            newest: (R, 1, width) word embedding of the newest token.
            past: the context.
            unguided: (R, V) log-probabilities of the next token in the context as it was.
            cosines: of each image with the texts of its beams.

        Returns:
            (R, V) logits of the next token in the moved context.
        """
        options = self.options
        moved = [x.float() for pair in past for x in pair]  # 2 * N of (R, H, L, D)
        for _ in range(options.iterations):
            moved = [x.detach().requires_grad_() for x in moved]
            log_probs = self._logits_after(newest, moved).log_softmax(-1)  # (R, V)
            # Equation 3: the likeliest tokens, and how well they match the image.
            potentials, likeliest = self._potentials(log_probs.detach(), cosines)  # (R, K)
            # Equation 2: the loss of CLIP, and the divergence from the unguided language model.
            clip_loss = -(potentials * log_probs.gather(1, likeliest)).sum()
            language_loss = (log_probs.exp() * (log_probs - unguided)).sum()
            gradients = torch.autograd.grad(clip_loss + options.language_weight * language_loss, moved)
            norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients])  # (2 * N, R)
            # Beams whose gradient is not finite stay where they are.
            finite = norms.isfinite().all(0)  # (R,)
            skipped = int((~finite).sum())
            if skipped:
                self.skipped += skipped
                gradients = tuple(gradient.where(finite[:, None, None, None], 0) for gradient in gradients)
                norms = norms.where(finite, 1)
            # Equation 5: a step against the normalized gradient.
            scales = -options.step_size / norms.clamp_min(1e-15) ** options.gradient_power
            with torch.no_grad():
                moved = [
                    torch.addcmul(x, gradient, scale[:, None, None, None])
                    for x, gradient, scale in zip(moved, gradients, scales, strict=True)
                ]
        with torch.no_grad():
            return self._logits_after(newest, moved)

    def _logits_after(self, newest: Tensor, moved: list[Tensor]) -> Tensor:
        """(R, V) logits after the newest token, in the context of 2 * N keys and values."""
        cache = DynamicCache()
        for layer in range(len(moved) // 2):
            keys, values = (x.to(newest.dtype) for x in moved[2 * layer : 2 * layer + 2])
            cache.update(keys, values, layer)
        return self.language_model.step(newest, cache)

    def _potentials(self, log_probs: Tensor, cosines: "_Cosines") -> tuple[Tensor, Tensor]:
        """Equation 3: the (R, K) potentials of the likeliest tokens, which sum to one; and (R, K) these tokens."""
        likeliest = log_probs.topk(min(self.options.candidates, log_probs.shape[1])).indices
        return (cosines(likeliest) / self.options.temperature).softmax(-1), likeliest

    def _with_factors(self, logits: Tensor, tokens: Tensor, step: int) -> Tensor:
        """Apply the factors on repeated, capitalized, ending and forbidden tokens to (R, V) logits."""
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
        """The one token whose text this is. Raises InputError, naming the option, if there is no such token."""
        tokens: list[int] = self.language_model.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(tokens) != 1:
            raise InputError(f"{option}: '{text}' is {len(tokens)} tokens of '{self.language_model.name}': give one")
        return tokens[0]


class _Cosines:
    """Cosines of images with texts that are continued by one token, each computed when it is first asked for.

    Args:
        continuations: embeds the texts.
        lm: whose tokens continue them.
        contexts: R texts.
        directions: (R, dim) image embeddings of unit length.
        vocabulary: V.
    """

    def __init__(
        self, continuations: Continuations, lm: LanguageModel, contexts: list[str], directions: Tensor, vocabulary: int
    ) -> None:
        self._continuations, self._lm, self._directions = continuations, lm, directions
        self._contexts = list(dict.fromkeys(contexts))  # at the first step all images share one
        index = {context: number for number, context in enumerate(self._contexts)}
        self._context_of = torch.tensor([index[context] for context in contexts], device=directions.device)  # (R,)
        self._known = torch.full((len(contexts), vocabulary), math.nan, device=directions.device)  # (R, V)

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """(R, K) tokens -> (R, K) cosines."""
        cosines = self._known.gather(1, tokens)
        rows, columns = cosines.isnan().nonzero(as_tuple=True)
        if not len(rows):
            return cosines
        # Each pair of context and token is embedded once, however many images share it.
        vocabulary, new = self._known.shape[1], tokens[rows, columns]
        pairs, inverse = torch.unique(self._context_of[rows] * vocabulary + new, return_inverse=True)
        pieces = self._lm.token_strings((pairs % vocabulary).tolist())
        embeddings = self._continuations.encode(self._contexts, (pairs // vocabulary).tolist(), pieces)
        self._known[rows, new] = (embeddings[inverse] * self._directions[rows]).sum(-1)
        return self._known.gather(1, tokens)
