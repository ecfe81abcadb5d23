"""What a prefix says: the tokens nearest to each of its vectors (Mokady et al. 2021, section 4, "Prefix
Interpretability", and Figure 6).

Prefix vectors and word embeddings lie in one space. Where mapper and language model were trained together, the nearest
tokens are salient words of the image; where the language model was frozen, they are hardly readable, as the prefix also
steers it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.captioner import Captioner, Images
from prefixcap.errors import InputError


@torch.inference_mode()
def interpret(captioner: Captioner, images: Images, count: int = 1) -> list[list[list[tuple[str, float]]]]:
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
    if not 1 <= count <= len(words):
        raise InputError(
            f"the {count} nearest tokens are asked for: give 1 to {len(words)}, the size of the vocabulary"
        )
    vectors = captioner.prefix(captioner.embed(images))  # (N, P, dim)
    cosines: Tensor = F.normalize(vectors.float(), dim=-1) @ F.normalize(words.float(), dim=-1).T
    values, tokens = cosines.topk(count)  # (N, P, count)
    spell = captioner.language_model.spell
    return [
        [
            [(spell([token]), value) for token, value in zip(of_vector, row, strict=True)]
            for of_vector, row in zip(of_image, rows, strict=True)
        ]
        for of_image, rows in zip(tokens.tolist(), values.tolist(), strict=True)
    ]
