"""Interpret a prefix: the tokens nearest to each of its vectors (Mokady et al. 2021, section 4, "Prefix
Interpretability", and Figure 6).

Prefix vectors and word embeddings are in the same space. If mapper and language model were trained together, the
nearest tokens are salient words of the image; if the language model was frozen, they are hardly readable, because the
prefix also has to steer the model.
"""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.encoders.inputs import Images, check_finite
from prefixcap.errors import InputError
from prefixcap.utils.colour import to_rgb
from prefixcap.utils.options import check_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tokens = list[list[tuple[str, float]]]  # for each prefix vector of an image, tokens and their cosines


@torch.inference_mode()
def interpret(captioner: Captioner, images: Images, count: int = 1) -> list[Tokens]:
    """The tokens whose word embeddings have the highest cosine with each prefix vector.

    Args:
        captioner: with P prefix vectors for each image.
        images: N paths or PIL images, or embeddings, as `Captioner.caption` takes them.
        count: how many tokens for each vector.

    Returns:
        For each of N images, for each of P vectors, `count` tokens as text with their cosines, the nearest first.

    Raises:
        InputError: as `Captioner.prefix`; an image cannot be read; or count is not 1 to the size of the vocabulary.

    Examples:
        >>> from prefixcap.captioner import load
        >>> (prefix,) = interpret(load("best.ckpt"), ["photo.jpg"], count=2)
        >>> len(prefix[0])
        2
    """
    lm = captioner.language_model
    vocabulary = lm.model.get_input_embeddings().weight[: len(lm.tokenizer)]  # (V, dim)
    if not 1 <= (count := check_value("count", count, int)) <= len(vocabulary):
        raise InputError(f"count must lie between 1 and {len(vocabulary)}, the size of the vocabulary, not {count}")
    embeddings = captioner.embed(images)
    prefix = captioner.prefix(embeddings)[:, : captioner.mapper.prefix_length]  # (N, P, dim) without a start token
    check_finite(embeddings)
    cosines: Tensor = F.normalize(prefix.float(), dim=-1) @ F.normalize(vocabulary.float(), dim=-1).T  # (N, P, V)
    values, tokens = cosines.topk(count)  # (N, P, count)
    return [
        [
            [(lm.decode_raw([token]), cosine) for token, cosine in zip(*nearest, strict=True)]
            for nearest in zip(*vectors, strict=True)
        ]
        for vectors in zip(tokens.tolist(), values.tolist(), strict=True)
    ]


def table(tokens: Tokens) -> str:
    """The result of `interpret` for one image as a text table, a line for each prefix vector."""
    words = [[(_visible(token), cosine) for token, cosine in row] for row in tokens]
    width = max(len(word) for row in words for word, _ in row)
    heading = "vector" + f"  {'token':{width}} cosine" * len(words[0])
    rows = ("".join(f"  {word:{width}} {cosine:6.3f}" for word, cosine in row) for row in words)
    return "\n".join([heading, *(f"{number:6}{row}" for number, row in enumerate(rows, 1))])


def draw(images: Sequence[Image.Image], captions: Sequence[str], interpretations: Sequence[Tokens]) -> "Figure":
    """A figure of images, each with its caption and the nearest token of each prefix vector, in order (as Figure 6).
    Needs matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.4 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 2, width_ratios=(1, 2.4), squeeze=False)
    for (left, right), image, caption, tokens in zip(axes, images, captions, interpretations, strict=True):
        left.imshow(to_rgb(image))
        words = "  ".join(_visible(row[0][0]) for row in tokens)
        texts = ((0.95, "caption", caption, 64, 11), (0.5, "nearest token of each prefix vector", words, 72, 10))
        for height, heading, text, columns, size in texts:
            right.text(0, height, heading, size=8, color="dimgrey", va="top", transform=right.transAxes)
            wrapped = textwrap.fill(text, columns).replace("$", r"\$")  # not as mathematics
            right.text(0, height - 0.1, wrapped, size=size, va="top", transform=right.transAxes)
        left.axis("off")
        right.axis("off")
    return figure


def _visible(token: str) -> str:
    """A token without surrounding spaces; a token of spaces only as an escape sequence."""
    return token.strip() or repr(token)[1:-1]
