"""A decoder of your own: greedy search that avoids some words. It is in every command that this file runs.

python docs/examples/add_decoder.py caption photo.jpg --ckpt best.ckpt --decode avoiding --set words=red
python docs/examples/add_decoder.py eval ckpt=best.ckpt data=demo decode=greedy decode.method=avoiding +decode.words=red
"""

import torch
from torch import Tensor

from prefixcap.commands import main
from prefixcap.decoding import DECODERS, GenerationLimits
from prefixcap.decoding.padded import PaddedPrefix
from prefixcap.decoding.stepwise import generate
from prefixcap.language import LanguageModel


@torch.inference_mode()
def avoiding(
    language_model: LanguageModel, prefix: Tensor | PaddedPrefix, limits: GenerationLimits, words: str = ""
) -> list[list[list[int]]]:
    """Greedy search that avoids some words.

    Args:
        language_model: the model to decode with.
        prefix: (batch, length, dim) embeddings that the captions continue, padded where some are shorter.
        limits: limits of a caption, which `generate` observes.
        words: separated by spaces; none of them is in a caption, except as its first word.
    """
    token_ids = [language_model.tokenizer.encode(f" {word}", add_special_tokens=False) for word in words.split()]
    first_tokens = torch.tensor([ids[0] for ids in token_ids], dtype=torch.long, device=prefix.device)
    end = language_model.eos_token_id

    def choose(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        return logits.index_fill(-1, first_tokens, -float("inf")).argmax(-1)  # (rows, vocabulary) -> (rows,)

    captions = generate(language_model, prefix, limits, choose, end)
    return [[[token for token in caption if token != end]] for caption in captions]  # one caption for each image


DECODERS["avoiding"] = avoiding

if __name__ == "__main__":
    main()
