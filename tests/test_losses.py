"""Cross-entropy with a padded head, in chunks, and as a GPU computes it."""

import copy
import gc
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from prefixcap import losses
from prefixcap.losses import token_cross_entropy
from tests.conftest import ROOT

WORDS = 70  # padded to 128


def loss_and_gradient(hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    hidden = hidden.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = token_cross_entropy(hidden, head, bias, targets)
    return loss.detach(), torch.autograd.grad(loss, hidden)[0]


def plain(hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same by torch's function, from logits in bfloat16."""
    hidden = hidden.detach().requires_grad_()
    logits = (hidden.bfloat16() @ head.detach().bfloat16().T).float()
    loss = F.cross_entropy(logits if bias is None else logits + bias.detach(), targets, reduction="sum")
    return loss.detach(), torch.autograd.grad(loss, hidden)[0]


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_padded_head_has_the_losses_and_gradients_of_the_head(with_bias: bool, trained: bool) -> None:
    torch.manual_seed(0)
    hidden, targets = torch.randn(9, 32), torch.randint(WORDS, (9,))
    head, bias = torch.randn(WORDS, 32).mul(0.2).requires_grad_(trained), torch.randn(WORDS, requires_grad=trained)
    given = hidden, head, bias if with_bias else None, targets
    for actual, expected in zip(loss_and_gradient(*given), plain(*given), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02)
    if trained:
        with torch.autocast("cpu", torch.bfloat16):
            token_cross_entropy(*given).backward()
        probabilities = (hidden @ head.T + (bias if with_bias else 0)).softmax(-1)
        grad_logits = (probabilities - F.one_hot(targets, WORDS)).detach()
        torch.testing.assert_close(head.grad, grad_logits.T @ hidden, rtol=0.1, atol=0.1)
        if with_bias:
            torch.testing.assert_close(bias.grad, grad_logits.sum(0), rtol=0.1, atol=0.1)


def test_the_padded_copy_of_a_frozen_head_follows_the_head() -> None:
    torch.manual_seed(0)
    hidden, head, targets = torch.randn(9, 32), torch.nn.Parameter(torch.randn(WORDS, 32), False), torch.arange(9)

    def same(head: Tensor) -> bool:
        pairs = zip(loss_and_gradient(hidden, head, None, targets), plain(hidden, head, None, targets), strict=True)
        return all(torch.allclose(actual, expected, rtol=0.02, atol=0.02) for actual, expected in pairs)

    with torch.inference_mode():
        token_cross_entropy(hidden.bfloat16(), head, None, targets)
    kept = losses._frozen[head][1]
    assert same(head) and losses._frozen[head][1] is kept and kept.shape == (128, 32)
    head.copy_(-head)  # in place, as by load_state_dict
    assert same(head)
    head.data = torch.randn(WORDS, 32)  # as by a move to another device
    assert same(head)
    assert "_frozen" not in vars(copy.deepcopy(head))
    gc.collect()  # what other tests left
    before = len(losses._frozen)
    del head
    gc.collect()
    assert len(losses._frozen) == before - 1


@pytest.mark.parametrize(("tokens", "device", "sizes"), [
    (0, "cpu", []), (440, "cpu", [220, 220]), (440, "cuda", [440]), (14_000, "cuda", [2334] * 5 + [2330]),
])  # fmt: skip
def test_chunks_are_few_and_of_one_size(tokens: int, device: str, sizes: list[int]) -> None:
    chunks = losses._chunks(tokens, 50_257, device)
    assert [len(range(tokens)[rows]) for rows in chunks] == sizes
    assert [token for rows in chunks for token in range(tokens)[rows]] == list(range(tokens))


@pytest.mark.parametrize("trained", [False, True])
def test_a_gpu_is_not_waited_for(trained: bool) -> None:
    """Only shapes are computed: numbers that the CPU asks for, or tensors of the CPU, would raise."""
    with FakeTensorMode(), torch.device("cuda"):
        hidden = torch.empty(3500, 768, dtype=torch.bfloat16, requires_grad=True)
        head, bias = torch.empty(50_257, 768, requires_grad=trained), torch.empty(50_257, requires_grad=trained)
        targets, weights = torch.empty(3500, dtype=torch.long), torch.empty(3500)
        loss = token_cross_entropy(hidden, head, bias, targets, weights)  # computes the gradients, too
        assert loss.device.type == "cuda" and loss.dtype == torch.float32
        assert losses._padded(head, torch.bfloat16).shape == (50_304, 768)


INTERPRETED = """
import torch
from prefixcap.losses import kernel, token_cross_entropy

kernel._BLOCK = 32
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    torch.manual_seed(0)
    values, targets = [torch.randn(5, 32), torch.randn(70, 32) / 5], torch.tensor([0, 69, 31, 32, 7])
    weights = torch.randn(5)
    found = []
    for by_kernel in (False, True):
        leaves = [value.clone().requires_grad_() for value in values]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = token_cross_entropy(*leaves, None, targets, weights, by_kernel)
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6 if dtype == torch.float32 else 0.02)
    print(dtype, found[1][0].item())
"""


def test_the_kernel_gives_the_losses_and_gradients_of_torch() -> None:
    """Triton's interpreter runs it on the CPU, in a process that has not imported Triton otherwise."""
    pytest.importorskip("triton")
    variables = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=variables, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3, done.stderr


def test_the_kernel_compiles_for_gpus() -> None:
    """To machine code of compute capability 9.0, which needs no GPU."""
    pytest.importorskip("triton")
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from prefixcap.losses import kernel

    types = {"logits": "*bf16", "targets": "*i64", "losses": "*fp32", "width": "i32", "stride": "i32"}
    divisible = {(argument,): [["tt.divisibility", 16]] for argument in range(5)}
    source = ASTSource(kernel._cross_entropy, {**types, "BLOCK": "constexpr"}, {"BLOCK": kernel._BLOCK}, divisible)
    compiled = compile_kernel(source, target=GPUTarget("cuda", 90, 32), options=kernel._OPTIONS)
    assert "ld.global.v4" in compiled.asm["ptx"]  # 16 bytes at a time
