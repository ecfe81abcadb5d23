"""Packed captions of images with prompts beside captions that are read one at a time after prefix and prompt."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.packing import Batch, BatchShape, lay_out, pack
from tests.conftest import IDENTITY, small_lm
from tests.decoding import random_lm
from tests.test_packing import OWNERS, some_captions

LENGTHS = [3, 0, 1, 7, 5, 0, 2, 12, 4, 1]  # of prompts; image 2 has no caption


def some_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(40, (length,), generator=generator).tolist() for length in LENGTHS]


def captioner(kind: str) -> Captioner:
    """In float64, all of it trained."""
    model = random_lm(kind, 0).requires_grad_(True)
    return Captioner(model, IDENTITY, {"name": "mlp", "prefix_length": 4}).eval().double()


def alone(model: Captioner, embedding: Tensor, prompt: list[int], caption: list[int], first: bool = False) -> Tensor:
    """(L,) losses of a caption's tokens, read by itself, by transformers' own head and positions."""
    lm = model.language_model.model
    read, words = (lm.get_input_embeddings()(torch.tensor([ids], dtype=torch.long)) for ids in (prompt, caption[:-1]))
    prefix = model.prefix(embedding[None])
    inputs = torch.cat((read, prefix, words) if first else (prefix, read, words), dim=1)
    return F.cross_entropy(lm(inputs_embeds=inputs).logits[0, -len(caption) :], torch.tensor(caption), reduction="none")


def packed(model: Captioner, batch: Batch) -> Tensor:
    """(T,) losses of a batch's targets, 0 for those of weight 0."""
    logits = model.language_model.head(model.states(batch))
    return F.cross_entropy(logits, batch.targets, reduction="none") * batch.weights


def losses_and_gradients(model: Captioner, losses: Tensor) -> list[Tensor]:
    """The losses, and the gradients of their sum with unequal weights."""
    model.zero_grad()
    (losses * torch.linspace(-1, 2, len(losses), dtype=losses.dtype)).sum().backward()
    return [losses.detach(), *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]


def assert_close(one: list[Tensor], other: list[Tensor], kind: str = "gpt2") -> None:
    """Llama computes its norms and rotations in float32, whatever the precision of its weights."""
    assert len(one) == len(other) > 10
    tolerance = 1e-5 if kind == "llama" else 1e-9
    for value, expected in zip(one, other, strict=True):
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_losses_and_gradients_are_those_of_a_plain_loop(
    kind: str, grouped: bool, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefixcap.packing._ROW", 60)
    model, captions, prompts = captioner(kind), some_captions(40), some_prompts()
    embeddings = torch.randn(10, 16)
    losses = [alone(model, embeddings[i], prompts[i], c, first) for i, c in zip(OWNERS, captions, strict=True)]
    expected = losses_and_gradients(model, torch.cat(losses))
    if grouped:
        batch = pack(embeddings, captions, OWNERS, 4, prompts=prompts, prompts_first=first)
    else:
        own = [prompts[owner] for owner in OWNERS]
        batch = pack(embeddings[OWNERS], captions, range(len(captions)), 4, prompts=own, prompts_first=first)
    assert len(batch.images) > 1
    assert_close(losses_and_gradients(model, packed(model, batch)), expected, kind)
    torch.testing.assert_close(model.loss(batch).double(), expected[0].sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [False, True])
def test_a_start_token_that_is_learned_follows_the_prefix(first: bool) -> None:
    lm, mapper = small_lm("full"), {"name": "mlp", "prefix_length": 3}
    model = Captioner(lm, IDENTITY, mapper, start_token=True).eval().double()
    captions, prompts, embeddings = some_captions(40), some_prompts(), torch.randn(10, 16)
    losses = [alone(model, embeddings[i], prompts[i], c, first) for i, c in zip(OWNERS, captions, strict=True)]
    for owner in OWNERS:
        mapped = model.mapper(embeddings[owner][None].double())
        read = lm.embed(torch.tensor([prompts[owner] if first else []], dtype=torch.long))
        logits = lm.model(inputs_embeds=torch.cat((read, mapped), dim=1)).logits[0, -1:]
        losses.append(F.cross_entropy(logits, torch.tensor([lm.start_token]), reduction="none"))
    expected = losses_and_gradients(model, torch.cat(losses))
    batch = pack(embeddings, captions, OWNERS, 4, start_token=lm.start_token, prompts=prompts, prompts_first=first)
    assert_close(losses_and_gradients(model, packed(model, batch)), expected)


@pytest.mark.parametrize(("kind", "first"), [("gpt2", False), ("llama", False), ("gpt2", True)])
def test_padded_batches_have_the_same_losses_and_gradients(kind: str, first: bool) -> None:
    model, captions, prompts = captioner(kind), some_captions(40), some_prompts()
    embeddings = torch.randn(10, 16)
    batch = pack(embeddings, captions, OWNERS, 4, prompts=prompts, prompts_first=first)
    own = batch.shape
    shape = BatchShape(own.images + 3, own.rows + 2, own.length + 16, own.input_ids + 5, own.targets + 7)
    at_once = pack(embeddings, captions, OWNERS, 4, shapes=[shape], prompts=prompts, prompts_first=first)
    assert batch.padded(shape).shape == at_once.shape == shape
    expected = losses_and_gradients(model, packed(model, batch))
    for other in (batch.padded(own), batch.padded(shape), at_once):
        assert_close(losses_and_gradients(model, packed(model, other)[: own.targets]), expected, kind)
    lengths, owners = np.array(list(map(len, captions))), np.array(OWNERS)
    tight = lay_out(lengths, owners, 10, 4, shapes=[own], prompt_lengths=np.array(LENGTHS) + 1)
    assert tight.padded is None and tight.shape.input_ids == own.input_ids + 10  # ten tokens more than it holds


def test_prompts_are_read_and_not_predicted() -> None:
    captions, prompts = [[5, 6, 0], [7, 0], [8, 9, 0]], [[3, 4], []]
    batch = pack(torch.zeros(2, 2), captions, [0, 0, 1], 2, prompts=prompts)
    assert batch.input_ids.tolist() == [3, 4, 5, 6, 7, 8, 9] and batch.targets.tolist() == [5, 6, 0, 7, 0, 8, 9, 0]
    assert batch.images.flatten().tolist() == [0] * 7 + [1] * 4 + [-1] * 5
    assert batch.captions.flatten().tolist() == [-1, -1, -1, -1, 0, 0, 1, -1, -1, 2, 2] + [-1] * 5
    assert batch.position_ids.flatten().tolist() == [0, 1, 2, 3, 4, 5, 4, 0, 1, 2, 3] + [0] * 5
    assert batch.logit_index.tolist() == [3, 4, 5, 3, 6, 8, 9, 10]
    attended = batch.attention_mask()[0, 0]
    assert attended[3].nonzero().flatten().tolist() == [0, 1, 2, 3]  # the prompt's last token
    assert attended[6].nonzero().flatten().tolist() == [0, 1, 2, 3, 6]  # the second caption's


def test_prompts_are_read_first() -> None:
    captions, prompts = [[5, 6, 0], [7, 0], [8, 9, 0]], [[3, 4], []]
    batch = pack(torch.zeros(2, 2), captions, [0, 0, 1], 2, prompts=prompts, prompts_first=True)
    usual = pack(torch.zeros(2, 2), captions, [0, 0, 1], 2, prompts=prompts)
    assert batch.input_index.tolist() == [2, 3, 7, 8, 0, 1, 4, 5, 6, 9, 10]  # prefixes, prompts, captions
    for name in ("input_ids", "images", "captions", "position_ids", "targets", "logit_index"):
        assert vars(batch)[name].tolist() == vars(usual)[name].tolist()


@pytest.mark.parametrize("first", [False, True])
def test_empty_prompts_change_nothing(first: bool) -> None:
    captions = some_captions(40)
    usual = pack(torch.zeros(10, 2), captions, OWNERS, 4, start_token=7)
    empty = pack(torch.zeros(10, 2), captions, OWNERS, 4, start_token=7, prompts=[[]] * 10, prompts_first=first)
    for name, value in vars(usual).items():
        if isinstance(value, Tensor):
            other = vars(empty)[name]
            assert value.dtype == other.dtype and torch.equal(value, other), name
