"""MAGIC (Su et al., "Language Models Can See: Plugging Visual Controls in Text Generation", 2022).

Contrastive search in which a CLIP has a say: of the k tokens v that are likeliest after the text x, the one is written
that has the highest

    (1 - alpha) p(v | x) - alpha max_j cos(h_v, h_j) + beta f(v)

where h are the language model's last hidden states, of v and of all positions before it, and f is the softmax over the
k tokens of CLIP's cosines of the image with the texts [x: v], divided by a temperature. Nothing is optimized, nothing
is learned from images; the language model is fine-tuned on captions alone, see `prefixcap.zeroshot.caption_lm`.

The released code (https://github.com/yxuansu/MAGIC) writes one image at a time, on beyond the end token until it has 16
tokens with the start token (20 with a language model of Flickr30k's captions), and cuts at the first end token. Here
images are written together, and one whose caption has ended leaves the batch; the captions are the same. A candidate
that is a special token adds nothing to what CLIP reads, as in the released code, whose CLIP takes "<|endoftext|>" for
the end of its own text.
"""

from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt, Interval
from torch import Tensor

from prefixcap.decoding import decode
from prefixcap.decoding.stepwise import divided
from prefixcap.encoders import Encoder
from prefixcap.encoders.inputs import Images
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel
from prefixcap.utils.options import Positive, Proportion, check_options
from prefixcap.zeroshot.continuations import Continuations
from prefixcap.zeroshot.inputs import directions, prompt_tokens


class Magic:
    """Captions images with a language model that never saw one.

    Args:
        encoder: any CLIP; one that reads texts causally is many times quicker, see `Continuations`.
        language_model: writes; a transformer, on the encoder's device.
        prompt: what every caption goes on from; CLIP reads it, and it is not part of the caption.
        top_k: k, how many of the likeliest tokens to choose from. The paper's 45 is for a language model fine-tuned on
            COCO's captions; it has 25 for Flickr30k's.
        alpha: of staying away from what was written already; 0.0 to 1.0.
        beta: of the image; 0.0: contrastive search, which ignores it.
        temperature: of f. CLIP's own is 0.01, a logit scale of 100.
        max_tokens: most tokens of a caption, the end token included. The released code's `decoding_len`, 16 for COCO's
            captions and 20 for Flickr30k's, counts the start token, so that it is 15 and 19 here.
        start: the token that stands before every text; None: the language model's begin token, or else its end token,
            as in `prefixcap.zeroshot.caption_lm`. The released language models have "<-start_of_text->".

    Raises:
        InputError: a value is out of its range, there is no such start token, or the prompt does not fit.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> from prefixcap.language import load_language_model
        >>> magic = Magic(load_encoder("demo"), load_language_model("demo"))  # or clip:ViT-B/32, and what train-lm made
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
        words = language_model.head.out_features
        if top_k > words:
            raise InputError(f"top_k must lie between 1 and {words}, the words of the language model, not {top_k}")
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
            images: paths or PIL images, or (batch, dim) embeddings of any length, as the encoder gives them.
            batch_size: images that are captioned together.
            progress: show a progress bar on stderr, if it takes longer than a second.

        Raises:
            InputError: an image cannot be read, embeddings have another width, NaN or infinite numbers, or the language
                model keeps no keys and values.
        """
        return [
            self.language_model.detokenize(tokens)
            for part in directions(images, self.encoder, batch_size, progress)
            for tokens in self._search(part)
        ]

    @torch.no_grad()
    def _search(self, images: Tensor) -> list[list[int]]:
        """(batch, dim) embeddings of length one -> the tokens of each image's caption, without the end token."""

        def guide(rows: Tensor, tokens: Tensor, words: Tensor) -> Tensor:
            return self.beta * divided(self._cosines(images[rows], tokens, words), self.temperature).softmax(-1)

        lm = self.language_model
        read = torch.tensor([self._prompt], device=images.device).expand(len(images), -1)
        written = decode(
            lm, lm.embed(read), "contrastive",
            top_k=self.top_k, penalty=self.alpha, max_tokens=self.max_tokens, guide=guide,
        )  # fmt: skip
        return [tokens for (tokens,) in written]

    def _cosines(self, images: Tensor, tokens: Tensor, words: Tensor) -> Tensor:
        """(open, top_k) cosines of each image with its text so far and each of its candidates."""
        lm = self.language_model
        contexts = [lm.decode_raw([*self._prompt[1:], *row]) for row in tokens.tolist()]
        of = np.repeat(np.arange(len(contexts)), words.shape[1]).tolist()
        texts = self._continuations.encode(contexts, of, lm.token_strings(words.flatten().tolist()))
        return (texts.view(*words.shape, -1) @ images.unsqueeze(2)).squeeze(2)
