"""Cross-entropy and its gradient by one Triton kernel, which reads the logits twice and writes them once.

The pieces in torch read and write each logit several times, mostly in float32. The idea is that of Hsu et al. 2024,
"Liger Kernel"; the sum of exponentials is computed online (Milakov and Gimelshein 2018).

Shapes: C tokens of a chunk, W the words of the vocabulary and its padding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 8192  # logits that a program reads at a time
_OPTIONS = {"num_warps": 16, "enable_fp_fusion": True}  # groups of 32 threads of a program; a * b + c in one operation


def cross_entropy_(logits: Tensor, targets: Tensor) -> Tensor:
    """The negative log-probability of each token, in nats; the logits become its gradient with respect to them.

    Args:
        logits: (C, W) on a GPU, of any floating-point dtype; probabilities are computed in float32. Those of padding
            are -inf.
        targets: (C,) token ids.

    Returns:
        (C,) float32.
    """
    losses = torch.empty(len(logits), device=logits.device)
    width, stride = logits.shape[1], logits.stride(0)
    _cross_entropy[(len(logits),)](logits, targets, losses, width, stride, BLOCK=_BLOCK, **_OPTIONS)
    return losses


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy(logits, targets, losses, width, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row of the logits."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    target_logit = tl.load(logits + target).to(tl.float32)
    # The greatest logit so far, and the sum of the exponentials of all logits less that one.
    greatest = float("-inf")
    total = 0.0
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(logits + columns, mask=columns < width, other=float("-inf")).to(tl.float32)
        greater = tl.maximum(greatest, tl.max(values, 0))
        total = total * tl.exp(greatest - greater) + tl.sum(tl.exp(values - greater), 0)
        greatest = greater
    logsumexp = greatest + tl.log(total)
    tl.store(losses + row, logsumexp - target_logit)
    # Gradient with respect to the logits: probabilities - one-hot target.
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(logits + columns, mask=columns < width, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(values - logsumexp) - tl.where(columns == target, 1.0, 0.0)
        tl.store(logits + columns, gradient.to(logits.dtype.element_ty), mask=columns < width)
