"""Small language models in folders, and captioners over them, for the tests of loading and tuning."""

from pathlib import Path

import torch

from prefixcap.captioner import Captioner
from prefixcap.language import LanguageModel, load_tokenizer
from prefixcap.packing import Batch, pack
from tests.conftest import IDENTITY
from tests.decoding import random_lm

KINDS = ("gpt2", "opt", "llama")


def save_language_model(kind: str, folder: Path) -> str:
    """Save a model with random weights that knows the words of the small world; -> the folder."""
    language_model = random_lm(kind, seed=0, words=len(load_tokenizer("demo")), width=64)  # 4-bit blocks are 64 wide
    language_model.model.save_pretrained(folder)
    language_model.tokenizer.save_pretrained(folder)
    return str(folder)


def captioner_of(language_model: LanguageModel) -> Captioner:
    """A captioner with a random mapper, always the same."""
    torch.manual_seed(1)
    return Captioner(language_model, IDENTITY, {"name": "mlp", "prefix_length": 4}).eval()


def some_batch(language_model: LanguageModel) -> Batch:
    """Two images with three captions."""
    tokens = language_model.tokenize(["A red star.", "A star at night.", "A blue ring in the snow."])
    return pack(torch.randn(2, 16, generator=torch.Generator().manual_seed(2)), tokens, [0, 0, 1], prefix_length=4)
