"""Nearest tokens of prefix vectors, beside a plain loop over the vocabulary."""

import numpy as np
import pytest
import torch

from prefixcap.captioner import Captioner
from prefixcap.errors import InputError
from prefixcap.interpretation import interpret
from tests.conftest import small_captioner


def test_beside_a_loop_over_the_vocabulary() -> None:
    captioner, embeddings = small_captioner(), torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    found = interpret(captioner, embeddings, 2)
    words = captioner.language_model.model.get_input_embeddings().weight.detach().numpy().astype(float)
    tokenizer = captioner.language_model.tokenizer
    for image, vectors in enumerate(captioner.prefix(embeddings).detach().numpy().astype(float)):
        for place, vector in enumerate(vectors):
            cosines = [vector @ word / np.linalg.norm(vector) / np.linalg.norm(word) for word in words]
            best = sorted(range(len(words)), key=lambda token, of=cosines: -of[token])[:2]
            assert [text for text, _ in found[image][place]] == [tokenizer.decode([token]) for token in best]
            assert [cosine for _, cosine in found[image][place]] == pytest.approx([cosines[token] for token in best])


def test_a_prefix_of_words_says_these_words() -> None:
    captioner = small_captioner()
    tokens = [5, 60, 200, 31]
    captioner.prefix = lambda _: captioner.language_model.embed(torch.tensor([tokens]))  # type: ignore[method-assign]
    found = interpret(captioner, torch.zeros(1, 16))
    assert [text for [(text, _)] in found[0]] == [captioner.language_model.decode_raw([token]) for token in tokens]


@pytest.mark.parametrize("count", [0, 100_000])
def test_a_count_out_of_range(count: int) -> None:
    with pytest.raises(InputError, match="size of the vocabulary"):
        interpret(small_captioner(), torch.zeros(1, 16), count)


def test_a_start_token_is_none_of_an_images_vectors() -> None:
    small = small_captioner()
    behind = Captioner(small.language_model, small.encoder_identity, small.mapper_options, start_token=True)
    behind.mapper = small.mapper
    embeddings = torch.randn(2, 16)
    assert interpret(behind, embeddings) == interpret(small, embeddings)
