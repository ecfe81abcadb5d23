"""Batches, and losses in them, beside captions that are read one at a time."""

import math
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from prefixcap import losses
from prefixcap.captioner import Captioner
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel
from prefixcap.losses import token_cross_entropy
from prefixcap.packing import BatchShape, fill, lay_out, pack
from tests.conftest import IDENTITY, plain_loss, small_captioner
from tests.decoding import random_lm

OWNERS = [0, 0, 0, 1, 3, 3, 4, 5, 5, 5, 5, 5, 6, 7, 8, 8, 9]  # image 2 has no caption


def some_captions(vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 13, (len(OWNERS),), generator=generator).tolist()
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]


def with_model(model: LanguageModel) -> Captioner:
    model.requires_grad_(True)
    return Captioner(model, IDENTITY, {"name": "mlp", "prefix_length": 4}).eval()


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama", "eager"])
def test_losses_and_gradients_are_those_of_captions_read_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefixcap.packing._ROW", 40)
    captioner = with_model(random_lm("gpt2" if kind == "eager" else kind, 0))
    if kind == "eager":
        captioner.language_model.model.set_attn_implementation("eager")
    captions = some_captions(40)
    embeddings = torch.randn(10, 16)
    batch = pack(embeddings, captions, OWNERS, 4)
    assert len(batch.images) > 2
    weights_of = torch.linspace(-1, 2, len(captions)) / sum(map(len, captions))
    weights = weights_of[torch.repeat_interleave(torch.tensor(list(map(len, captions))))]

    expected = torch.stack([plain_loss(captioner, embeddings[i], c) for i, c in zip(OWNERS, captions, strict=True)])
    (expected * weights_of).sum().backward()
    gradients = {name: weight.grad for name, weight in captioner.named_parameters() if weight.grad is not None}
    captioner.zero_grad()
    loss = captioner.loss(batch, weights)
    loss.backward()
    torch.testing.assert_close(loss, (expected * weights_of).sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(captioner.loss(batch), expected.sum(), rtol=1e-5, atol=1e-5)
    assert len(gradients) > 10
    for name, weight in captioner.named_parameters():
        if name in gradients:
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-4, atol=1e-5)


def test_grouped_captions_have_the_losses_and_gradients_of_ungrouped_ones() -> None:
    """Each caption with a prefix of its own, or all captions of an image after one."""
    captioner = small_captioner("full").eval()
    captions, embeddings = some_captions(300), torch.randn(10, 16)
    found = []
    for batch in (
        pack(embeddings, captions, OWNERS, 4),
        pack(embeddings[OWNERS], captions, range(len(captions)), 4),
    ):
        captioner.zero_grad()
        loss = captioner.loss(batch) / len(batch.targets)
        loss.backward()
        found.append([loss.detach(), *(weight.grad for weight in captioner.parameters())])
    for grouped, ungrouped in zip(*found, strict=True):
        torch.testing.assert_close(grouped, ungrouped, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_a_padded_batch_has_the_losses_and_gradients_of_the_batch(kind: str) -> None:
    captioner = with_model(random_lm(kind, 0))
    embeddings = torch.randn(10, 16)
    batch = pack(embeddings, some_captions(40), OWNERS, 4)
    own = batch.shape
    shape = BatchShape(own.images + 3, own.rows + 2, own.length + 16, own.input_ids + 5, own.targets + 7)
    found = []
    for one in (batch, batch.padded(own), batch.padded(shape)):
        captioner.zero_grad()
        loss = captioner.loss(one) / one.weights.sum()
        loss.backward()
        found.append([loss.detach(), *(w.grad.clone() for w in captioner.parameters() if w.grad is not None)])
    assert batch.padded(shape).shape == shape and len(found[0]) > 10
    for values in zip(*found, strict=True):
        for other in values[1:]:
            torch.testing.assert_close(other, values[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be padded"):
        batch.padded(BatchShape(own.images, own.rows, own.length, own.input_ids, own.targets - 1))


@pytest.mark.parametrize("start_token", [None, 7])
def test_a_batch_is_that_of_a_plain_loop(start_token: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefixcap.packing._ROW", 40)
    captions, prefix = some_captions(99), 3
    batch = pack(torch.zeros(10, 2), captions, OWNERS, prefix, start_token=start_token)
    sizes = [prefix + sum(len(c) - 1 for o, c in zip(OWNERS, captions, strict=True) if o == i) for i in range(10)]
    rows: list[list[int]] = [[] for _ in range(math.ceil(sum(sizes) / 40))]  # the images of each, in order
    for image in sorted(range(10), key=lambda image: -sizes[image]):
        min(rows, key=lambda row: sum(sizes[each] for each in row)).append(image)
    length = math.ceil(max(sum(sizes[each] for each in row) for row in rows) / 8) * 8
    images, at, offsets = (torch.full((len(rows), length), fill) for fill in (-1, -1, 0))
    prefix_index: dict[int, list[int]] = {}
    token_index: dict[int, list[int]] = {}
    logit_index: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        column = 0
        for image in row:
            images[number, column : column + sizes[image]] = image
            prefix_index[image] = [number * length + column + place for place in range(prefix)]
            offsets[number, column : column + prefix] = torch.arange(prefix)
            column += prefix
            for caption in [c for c, owner in enumerate(OWNERS) if owner == image]:
                read = len(captions[caption]) - 1
                at[number, column : column + read] = caption
                offsets[number, column : column + read] = prefix + torch.arange(read)
                token_index[caption] = [number * length + column + place for place in range(read)]
                logit_index[caption] = [prefix_index[image][-1], *token_index[caption]]
                column += read
    assert torch.equal(batch.images, images) and torch.equal(batch.captions, at)
    assert torch.equal(batch.position_ids, offsets)
    inputs = [prefix_index[image] for image in range(10)] + [token_index[caption] for caption in range(len(captions))]
    assert batch.input_index.tolist() == list(chain(*inputs))
    starts = [] if start_token is None else [prefix_index[owner][-2] for owner in OWNERS]
    assert batch.logit_index.tolist() == [*chain(*(logit_index[caption] for caption in range(len(captions)))), *starts]
    assert batch.input_ids.tolist() == [token for caption in captions for token in caption[:-1]]
    assert batch.targets.tolist() == [*chain(*captions), *[start_token] * len(starts)]
    assert batch.weights.tolist() == [1.0] * len(batch.targets)


@pytest.mark.parametrize(("prompted", "first"), [(False, False), (True, False), (True, True)])
def test_a_batch_is_made_on_a_gpu_without_waiting_for_it(
    prompted: bool, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake tensor has no values: to ask for one, as what depends on data or waits does, is an error."""
    captions = some_captions(40)
    lengths, owner = np.array(list(map(len, captions))), np.array(OWNERS)
    prompts, prompt_lengths = (np.arange(20), np.array([2, 0] * 5) * 2) if prompted else (None, None)
    rows = None if prompts is None else [[1] * length for length in prompt_lengths.tolist()]
    usual = pack(torch.zeros(10, 2), captions, OWNERS, 3, start_token=7, prompts=rows, prompts_first=first)
    own = usual.shape
    shape = BatchShape(own.images + 1, own.rows + 1, own.length, own.input_ids + 5, own.targets + 5)
    padded = usual.padded(shape)
    with FakeTensorMode():
        cuda = torch.device("cuda")
        monkeypatch.setattr(
            "prefixcap.packing.to_device",
            lambda numbers, device: torch.empty(numbers.shape, dtype=torch.int64, device=device),
        )
        embeddings, tokens = torch.empty(10, 2, device=cuda), torch.empty(999, dtype=torch.int32, device=cuda)
        for shapes, expected in (((), usual), ((shape,), padded)):
            layout = lay_out(lengths, owner, 10, 3, True, shapes, prompt_lengths)
            batch = fill(
                layout, embeddings, tokens, np.cumsum(lengths) - lengths, 7, prompts=prompts, prompts_first=first
            )
            assert batch.shape == (shape if shapes else own)
            for name, value in vars(batch).items():
                if isinstance(value, torch.Tensor):
                    other = getattr(expected, name)
                    assert value.device.type == "cuda", name
                    assert (value.shape, value.dtype) == (other.shape, other.dtype), name


def test_a_batch_has_each_token_once_and_little_padding() -> None:
    captions = some_captions(99)
    batch = pack(torch.zeros(10, 2), captions, OWNERS, 3, range(100, 117), range(10))
    assert batch.targets.tolist() == [token for caption in captions for token in caption]
    assert batch.input_ids.tolist() == [token for caption in captions for token in caption[:-1]]
    assert len(set(batch.input_index.tolist())) == len(batch.input_index) == 10 * 3 + len(batch.input_ids)
    assert (batch.images >= 0).sum() == len(batch.input_index)
    assert batch.caption_rows == list(range(100, 117)) and batch.image_rows == list(range(10))
    many = pack(torch.zeros(400, 2), some_captions(99)[:10] * 40, range(400), 10)
    assert len(many.input_index) > 0.9 * many.images.numel()
    assert pack(torch.zeros(2, 2), [], [], 3).targets.tolist() == []


@pytest.mark.parametrize("chunk", [1, 3 * 50, 1 << 24])
def test_cross_entropy_is_that_of_torch(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_CHUNK", chunk)
    torch.manual_seed(0)
    values = [torch.randn(11, 8), torch.randn(50, 8), torch.randn(50)]
    targets, weights = torch.randint(50, (11,)), torch.randn(11)
    ours = [value.clone().requires_grad_() for value in values]
    theirs = [value.clone().requires_grad_() for value in values]
    loss = token_cross_entropy(*ours, targets, weights)
    (2.5 * loss).backward()
    expected = (F.cross_entropy(F.linear(*theirs), targets, reduction="none") * weights).sum()
    (2.5 * expected).backward()
    torch.testing.assert_close(loss, expected)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_cross_entropy_under_autocast() -> None:
    hidden = torch.randn(9, 32, requires_grad=True)
    head, targets = torch.randn(70, 32, requires_grad=True), torch.randint(70, (9,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = token_cross_entropy(hidden, head, None, targets)
    loss.backward()
    assert loss.dtype == torch.float32 and hidden.grad is not None and hidden.grad.dtype == torch.float32
    expected = F.cross_entropy(hidden @ head.T, targets, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.1)
    torch.testing.assert_close(hidden.grad, *torch.autograd.grad(expected, hidden), rtol=0.1, atol=0.1)


def test_a_language_model_that_cannot_be_trained_is_named() -> None:
    captioner = small_captioner()
    captioner.language_model.model.config.logit_scale = 0.5
    with pytest.raises(InputError, match="'random' has logit_scale"):
        captioner.language_model.check_trainable()
    model: PreTrainedModel = captioner.language_model.model
    del model.config.logit_scale

    def forward(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> None:
        raise AssertionError

    model.base_model.forward = forward  # type: ignore[method-assign]
    with pytest.raises(InputError, match="'random' computes its positions itself"):
        captioner.language_model.check_trainable()
