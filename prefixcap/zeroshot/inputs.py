"""The inputs of ZeroCap and MAGIC: image embeddings of unit length, and the prompt to continue."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from prefixcap.encoders import Encoder, embed_images
from prefixcap.encoders.inputs import Images, check_finite, check_images
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel
from prefixcap.utils.options import Positive, check_value


def directions(images: Images, encoder: Encoder, batch_size: int, progress: bool) -> Iterator[Tensor]:
    """Image embeddings scaled to unit length, in batches.

    Args:
        images: paths or PIL images, or (images, dim) embeddings of any length, as the encoder returns them.
        encoder: embeds images.
        batch_size: images in a batch.
        progress: show a progress bar on stderr; it advances when the next batch is asked for.

    Yields:
        (at most `batch_size`, dim) float32, on the encoder's device.

    Raises:
        InputError: an image cannot be read, or embeddings have the wrong width or NaN or infinite values.
    """
    batch_size = check_value("batch_size", batch_size, Positive)
    given, dim = check_images(images), encoder.identity.dim
    if isinstance(given, Tensor):
        if given.ndim != 2 or given.shape[1] != dim:
            raise InputError(f"embeddings of shape {tuple(given.shape)}: give (batch, {dim})")
        check_finite(given)
    with tqdm(total=len(given), unit=" images", disable=not progress, delay=1) as bar:
        for start in range(0, len(given), batch_size):
            part = given[start : start + batch_size]
            embeddings = part if isinstance(part, Tensor) else embed_images(encoder, part)
            yield F.normalize(embeddings.to(encoder.device, torch.float32), dim=-1).clone()  # no inference tensor
            bar.update(len(embeddings))


def start_token(language_model: LanguageModel, text: str | None = None) -> int:
    """The id of the token before every text: the one called `text`; None: the language model's own.

    Raises:
        InputError: there is no such token.
    """
    if text is None:
        return language_model.start_token
    vocabulary: dict[str, int] = language_model.tokenizer.get_vocab()
    if text not in vocabulary:
        raise InputError(f"language model '{language_model.name}' has no token '{text}': leave out start")
    return vocabulary[text]


def prompt_tokens(
    prompt: str, language_model: LanguageModel, encoder: Encoder, max_tokens: int, start: str | None = None
) -> list[int]:
    """The tokens that a caption of at most `max_tokens` continues: the start token and those of the prompt.

    Raises:
        InputError: prompt and caption exceed the language model's context, or the prompt fills the encoder's.
    """
    lm, tower = language_model, encoder.text_tower
    tokens = [start_token(lm, start), *lm.tokenize_prompt(prompt)]
    if lm.context is not None and len(tokens) + max_tokens > lm.context:
        raise InputError(
            f"a prompt of {len(tokens)} tokens and max_tokens={max_tokens} exceed the context of language model "
            f"'{lm.name}' ({lm.context}): shorten them"
        )
    if tower is not None and len(tower.tokenize([prompt])[0]) > tower.context - 3:
        raise InputError(
            f"the prompt fills the context of {encoder.identity.name} ({tower.context} tokens): give a shorter one"
        )
    return tokens
