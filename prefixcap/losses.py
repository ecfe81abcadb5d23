"""Cross-entropy of tokens from hidden states, without the whole (tokens x vocabulary) matrix of logits."""

from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 24  # logits that exist at the same time


def token_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """The sum of the tokens' negative log-probabilities, each times its weight: one number, in nats.

    Logits are made for some tokens at a time, and their gradient in the same pass (the first is from the memory
    efficient attention of Rabe and Staats 2021, both are as in Hsu et al. 2024, "Liger Kernel"). Under autocast the
    products are computed in its precision; probabilities and the sum are in float32.

    Args:
        hidden: (tokens, dim) the language model's last hidden states, from which each token is predicted.
        weight: (vocabulary, dim) of the language model's head.
        bias: (vocabulary,) of the head, or None.
        targets: (tokens,) ids.
        weights: (tokens,) float32; None: all 1. No gradient goes to them.
    """
    if weights is None:
        weights = torch.ones(len(targets), device=hidden.device)
    total: Tensor = _CrossEntropy.apply(hidden, weight, bias, targets, weights)
    return total


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor
    ) -> Tensor:
        kind = hidden.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        states, head = hidden.to(precision), weight.to(precision)
        grad_hidden = torch.empty_like(states) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
        total = torch.zeros((), device=hidden.device)
        size = max(1, _CHUNK // len(weight))
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(targets), size):
                rows = slice(start, start + size)
                target, share = targets[rows, None], weights[rows, None]
                logits = states[rows] @ head.T
                if bias is not None:
                    logits = logits.float() + bias.float()
                # torch's softmax is one kernel; logsumexp and exp are a dozen passes over the logits. The greatest
                # probability is at least 1 / vocabulary, so that its logarithm is exact.
                error = logits.softmax(-1, torch.float32)
                norm = logits.amax(-1, keepdim=True).float() - error.amax(-1, keepdim=True).log()
                total += ((norm - logits.gather(1, target).float()) * share).sum()
                if not any(ctx.needs_input_grad):
                    continue
                error.scatter_add_(1, target, torch.full_like(norm, -1.0))
                error = error.mul_(share).to(precision)
                if grad_hidden is not None:
                    torch.mm(error, head, out=grad_hidden[rows])
                if grad_weight is not None:
                    grad_weight += error.T @ states[rows]
                if grad_bias is not None:
                    grad_bias += error.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.precision = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        scaled = (
            None if each is None else each * outer[0].to(each.dtype) for each in (grad_hidden, grad_weight, grad_bias)
        )
        grad_hidden, grad_weight, grad_bias = scaled
        return None if grad_hidden is None else grad_hidden.to(ctx.precision), grad_weight, grad_bias, None, None
