"""Cross-entropy of tokens from a language model's hidden states: torch's own, and one that never holds all logits.

Shapes: T target tokens, H width of the last hidden states, V words in the vocabulary, C tokens of a chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1 << 24  # logits in memory at the same time: C · V


def plain_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """The negative log-probability of each token, in nats, by `torch.nn.functional.cross_entropy`.

    All (T, V) logits are in memory. `token_cross_entropy` computes the same sum without them.

    Args:
        hidden: (T, H) last hidden states, from which each token is predicted.
        weight: (V, H) weight of the language model's head.
        bias: (V,) bias of the head, or None.
        targets: (T,) token ids.

    Returns:
        (T,) float32.

    Examples:
        >>> hidden, head, targets = torch.randn(5, 8), torch.nn.Linear(8, 100), torch.randint(100, (5,))
        >>> losses = plain_cross_entropy(hidden, head.weight, head.bias, targets)
        >>> torch.allclose(losses.sum(), token_cross_entropy(hidden, head.weight, head.bias, targets))
        True
    """
    logits = F.linear(hidden, weight, bias)  # (T, V)
    return F.cross_entropy(logits.float(), targets, reduction="none")


def token_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """The weighted sum of the tokens' negative log-probabilities, in nats.

    Logits are computed for a chunk of tokens at a time (as for attention in Rabe and Staats 2021), and their gradient
    in the same pass (as in Hsu et al. 2024, "Liger Kernel"). Under autocast the matrix products are computed in its
    precision; probabilities and the sum are in float32.

    Args:
        hidden: (T, H) last hidden states, from which each token is predicted.
        weight: (V, H) weight of the language model's head.
        bias: (V,) bias of the head, or None.
        targets: (T,) token ids.
        weights: (T,) float32 weights of the tokens, without a gradient; None: all 1.

    Returns:
        () float32.
    """
    if weights is None:
        weights = torch.ones(len(targets), device=hidden.device)
    total: Tensor = _CrossEntropy.apply(hidden, weight, bias, targets, weights)
    return total


class _CrossEntropy(torch.autograd.Function):
    """The forward pass computes the gradients, too, for a gradient of 1 of the sum; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor
    ) -> Tensor:
        device = hidden.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        states, head = hidden.to(precision), weight.to(precision)  # (T, H), (V, H)
        grad_hidden = torch.empty_like(states) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
        total = torch.zeros((), device=hidden.device)
        chunk = max(1, _CHUNK // len(weight))
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets), chunk):
                rows = slice(start, start + chunk)
                target, token_weight = targets[rows, None], weights[rows, None]  # (C, 1)
                logits = states[rows] @ head.T  # (C, V)
                if bias is not None:
                    logits = logits.float() + bias.float()
                probabilities = logits.softmax(-1, torch.float32)  # (C, V)
                # (C, 1) logsumexp of the logits, from a softmax, one kernel in place of a dozen passes over them: the
                # greatest logit less the logarithm of its probability, which is exact as that is at least 1 / V.
                logsumexp = logits.amax(-1, keepdim=True).float() - probabilities.amax(-1, keepdim=True).log()
                total += ((logsumexp - logits.gather(1, target).float()) * token_weight).sum()
                if not any(ctx.needs_input_grad):
                    continue
                # Gradient with respect to the logits: (probabilities - one-hot target) * weight of the token.
                grad_logits = probabilities.scatter_add_(1, target, torch.full_like(logsumexp, -1.0))
                grad_logits = grad_logits.mul_(token_weight).to(precision)  # (C, V)
                if grad_hidden is not None:
                    torch.mm(grad_logits, head, out=grad_hidden[rows])
                if grad_weight is not None:
                    grad_weight += grad_logits.T @ states[rows]
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.hidden_dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = (
            None if gradient is None else gradient * grad_outputs[0].to(gradient.dtype)
            for gradient in ctx.saved_tensors
        )
        return None if grad_hidden is None else grad_hidden.to(ctx.hidden_dtype), grad_weight, grad_bias, None, None
