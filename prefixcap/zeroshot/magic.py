"""MAGIC (Su et al., "Language Models Can See: Plugging Visual Controls in Text Generation", 2022).

Contrastive search guided by a CLIP: of the k likeliest tokens v after the text x, it chooses the one with the highest

    (1 - alpha) p(v | x) - alpha max_j cos(h_v, h_j) + beta f(v)

where h are the language model's last hidden states, of v and of all positions before it, and f is the softmax over the
k tokens of CLIP's cosines between the image and the texts [x: v], divided by a temperature. Nothing is optimized, and
nothing is learned from images; the language model is fine-tuned only on captions, see `prefixcap.zeroshot.caption_lm`.

The released code (https://github.com/yxuansu/MAGIC) captions one image at a time, always with 16 tokens including the
start token (20 with a language model of Flickr30k's captions), and cuts at the first end token. Here images are
captioned in batches, which an image leaves as soon as its caption has ended; the captions are the same. A candidate
that is a special token adds nothing to the text that CLIP reads, as in the released code, whose CLIP takes
"<|endoftext|>" for the end of its own text.
"""

from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt, Interval
from torch import Tensor

from prefixcap.decoding import decode
from prefixcap.decoding.stepwise import divide
from prefixcap.encoders import Encoder
from prefixcap.encoders.inputs import Images
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel
from prefixcap.utils.options import Positive, Proportion, check_options
from prefixcap.zeroshot.continuations import Continuations
from prefixcap.zeroshot.inputs import directions, prompt_tokens


class Magic:
    """Captions images with a language model that was never trained on images.

    Args:
        encoder: any CLIP; one that reads texts causally is many times faster, see `Continuations`.
        language_model: the model to decode with, on the encoder's device.
        prompt: the text that every caption continues; CLIP reads it too, and it is not part of the caption.
        top_k: k, how many of the likeliest tokens to choose from. The paper uses 45 with a language model fine-tuned on
            COCO's captions, and 25 with one of Flickr30k's.
        alpha: weight of the penalty for tokens similar to earlier ones, 0.0 to 1.0.
        beta: weight of the image; 0.0: contrastive search without the image.
        temperature: of f. CLIP's own is 0.01, a logit scale of 100.
        max_tokens: maximum number of tokens of a caption, the end token included. The released code's `decoding_len`,
            16 for COCO's captions and 20 for Flickr30k's, counts the start token too, so that it is 15 and 19 here.
        start: the token before every text; None: the language model's begin token, or else its end token, as in
            `prefixcap.zeroshot.caption_lm`. The released language models have "<-start_of_text->".

    Raises:
        InputError: a value is out of range, there is no such start token, or the prompt is too long.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> from prefixcap.language import load_language_model
        >>> magic = Magic(load_encoder("demo"), load_language_model("demo"))  # or clip:ViT-B/32, and a caption LM
        >>> len(magic.caption(["photo.jpg"]))
        1
    """

    def __init__(
        self,
        encoder: Encoder,
        language_model: LanguageModel,
        *,
        prompt: str = "",
        top_k: Positive = 45,
        alpha: Proportion = 0.1,
        beta: Annotated[float, Interval(ge=0.0, le=1e6)] = 2.0,
        temperature: Annotated[float, Gt(0.0)] = 0.01,
        max_tokens: Positive = 15,
        start: str | None = None,
    ) -> None:
        given = {"prompt": prompt, "top_k": top_k, "alpha": alpha, "beta": beta, "temperature": temperature}
        check_options("magic", Magic, given | {"max_tokens": max_tokens, "start": start}, positional=2)
        vocabulary = language_model.head.out_features
        if top_k > vocabulary:
            raise InputError(f"top_k must lie between 1 and {vocabulary}, the size of the vocabulary, not {top_k}")
        self.encoder, self.language_model = encoder, language_model.eval()
        self.top_k, self.alpha, self.beta, self.temperature = top_k, alpha, beta, temperature
        self.max_tokens = max_tokens
        self._prompt = prompt_tokens(prompt, language_model, encoder, max_tokens, start)
        self._continuations = Continuations(encoder)

    def caption(
        self,
        images: Images,
        batch_size: int = 8,
        progress: bool = False,
    ) -> list[str]:
        """A caption of each image, without the prompt.

        Args:
            images: paths or PIL images, or (batch, dim) embeddings of any length, as the encoder returns them.
            batch_size: images that are captioned together.
            progress: show a progress bar on stderr, if it takes longer than a second.

        Raises:
            InputError: an image cannot be read, embeddings have the wrong width or NaN or infinite values, or the
                language model has no key/value cache.
        """
        return [
            self.language_model.detokenize(tokens)
            for part in directions(images, self.encoder, batch_size, progress)
            for tokens in self._search(part)
        ]

    @torch.no_grad()
    def _search(self, images: Tensor) -> list[list[int]]:
        """(batch, dim) image embeddings of unit length -> the tokens of each image's caption, without the end token."""

        def guide(rows: Tensor, tokens: Tensor, candidates: Tensor) -> Tensor:
            """beta * f(v), (B, k), of B open captions: rows (B,), tokens so far (B, T), candidates (B, k)."""
            cosines = self._cosines(images[rows], tokens, candidates)
            return self.beta * divide(cosines, self.temperature).softmax(-1)

        lm = self.language_model
        prompt = torch.tensor([self._prompt], device=images.device).expand(len(images), -1)  # (batch, tokens)
        generated = decode(
            lm, lm.embed(prompt), "contrastive",
            top_k=self.top_k, penalty=self.alpha, max_tokens=self.max_tokens, guide=guide,
        )  # fmt: skip
        return [tokens for (tokens,) in generated]

    def _cosines(self, images: Tensor, tokens: Tensor, candidates: Tensor) -> Tensor:
        """(B, dim) images, (B, T) tokens so far, (B, k) candidates -> (B, k) cosines of image and continued text."""
        lm = self.language_model
        contexts = [lm.decode_raw([*self._prompt[1:], *row]) for row in tokens.tolist()]
        context_of = np.repeat(np.arange(len(contexts)), candidates.shape[1]).tolist()  # (B * k,)
        pieces = lm.token_strings(candidates.flatten().tolist())
        texts = self._continuations.encode(contexts, context_of, pieces)  # (B * k, dim)
        return (texts.view(*candidates.shape, -1) @ images.unsqueeze(2)).squeeze(2)
