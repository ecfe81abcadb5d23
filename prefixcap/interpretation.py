"""What a prefix says: the tokens nearest to each of its vectors (Mokady et al. 2021, section 4, "Prefix
Interpretability", and Figure 6).

Prefix vectors and word embeddings lie in one space. Where mapper and language model were trained together, the nearest
tokens are salient words of the image; where the language model was frozen, they are hardly readable, as the prefix also
steers it.
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

Tokens = list[list[tuple[str, float]]]  # of an image: for each prefix vector, tokens and their cosines


@torch.inference_mode()
def interpret(captioner: Captioner, images: Images, count: int = 1) -> list[Tokens]:
    """The tokens whose word embeddings have the highest cosine with each prefix vector.

    Args:
        captioner: with P prefix vectors an image.
        images: N paths or PIL images, or embeddings, as `Captioner.caption` takes them.
        count: how many tokens for each vector.

    Returns:
        For each of N images, for each of P vectors, `count` tokens as text with their cosines, the nearest first.

    Raises:
        InputError: as `Captioner.prefix`; an image cannot be read; or count is not 1 to the size of the vocabulary.
    """
    words = captioner.language_model.model.get_input_embeddings().weight[: len(captioner.language_model.tokenizer)]
    if not 1 <= (count := check_value("count", count, int)) <= len(words):
        raise InputError(
            f"the {count} nearest tokens are asked for: give 1 to {len(words)}, the size of the vocabulary"
        )
    made = captioner.mapper.prefix_length  # a start token behind them says nothing of an image
    embeddings = captioner.embed(images)
    vectors = captioner.prefix(embeddings)[:, :made]  # (N, P, dim)
    check_finite(embeddings)
    cosines: Tensor = F.normalize(vectors.float(), dim=-1) @ F.normalize(words.float(), dim=-1).T
    values, tokens = cosines.topk(count)  # (N, P, count)
    decode_raw = captioner.language_model.decode_raw
    return [
        [
            [(decode_raw([token]), value) for token, value in zip(of_vector, row, strict=True)]
            for of_vector, row in zip(of_image, rows, strict=True)
        ]
        for of_image, rows in zip(tokens.tolist(), values.tolist(), strict=True)
    ]


def table(tokens: Tokens) -> str:
    """What `interpret` says of an image as a text table, a line for each prefix vector."""
    words = [[(_visible(token), cosine) for token, cosine in row] for row in tokens]
    width = max(len(word) for row in words for word, _ in row)
    heading = "vector" + f"  {'token':{width}} cosine" * len(words[0])
    rows = ("".join(f"  {word:{width}} {cosine:6.3f}" for word, cosine in row) for row in words)
    return "\n".join([heading, *(f"{number:6}{row}" for number, row in enumerate(rows, 1))])


def draw(images: Sequence[Image.Image], captions: Sequence[str], interpretations: Sequence[Tokens]) -> "Figure":
    """Images, each with its caption and the nearest token of each of its prefix vectors, in order (as Figure 6).
    It needs matplotlib.
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
    """A token without the space before it; of one that is nothing else, its code."""
    return token.strip() or repr(token)[1:-1]
