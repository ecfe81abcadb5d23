"""A decoder of your own: greedy search that never says some words.

python docs/examples/add_decoder.py ckpt=best.ckpt data=demo decode=greedy decode.method=avoiding '+decode.words=[red]'
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from prefixcap.commands.common.hydra_main import run
from prefixcap.commands.eval import main
from prefixcap.decoding import DECODERS
from prefixcap.decoding.rules import GenerationLimits
from prefixcap.decoding.stepwise import generate
from prefixcap.language import LanguageModel


@torch.inference_mode()
def avoiding(
    language_model: LanguageModel, prefix: Tensor, limits: GenerationLimits, words: Sequence[str] = ()
) -> list[list[list[int]]]:
    """The likeliest next token that begins none of `words`; see `prefixcap.decoding.decode`.

    Args:
        language_model: writes.
        prefix: (batch, length, dim) what it reads first.
        limits: limits of a caption, which `generate` keeps to.
        words: that no caption says after its first.
    """
    spelled = [language_model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    first_tokens = torch.tensor([tokens[0] for tokens in spelled], dtype=torch.long, device=prefix.device)
    end = language_model.eos_token_id

    def choose(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        return logits.index_fill(-1, first_tokens, -float("inf")).argmax(-1)  # (rows, vocabulary) -> (rows,)

    written = generate(language_model, prefix, limits, choose, end)
    return [[[token for token in caption if token != end]] for caption in written]  # one caption for each image


DECODERS["avoiding"] = avoiding

if __name__ == "__main__":
    run(main, "eval")
