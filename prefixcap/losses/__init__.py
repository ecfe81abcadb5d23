"""Cross-entropy of tokens from a language model's hidden states: torch's own, and one that never holds all logits.

Shapes: T target tokens, H width of the last hidden states, V words in the vocabulary, W the rows of the head with its
padding, C tokens of a chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

# Logits in memory at the same time, C · V. On a GPU large products are quicker, and the gradient of a trained head is
# summed over fewer chunks; with probabilities and gradients, 1 << 27 logits take 1.1 GB in 16 bits.
_CHUNK, _CHUNK_GPU = 1 << 24, 1 << 27
_MULTIPLE = 64  # W is a multiple of this: GPUs fall back to slow kernels where rows of a matrix are not aligned


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
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor | None = None,
    kernel: bool = False,
) -> Tensor:
    """The weighted sum of the tokens' negative log-probabilities, in nats.

    Logits are computed for a chunk of tokens at a time (as for attention in Rabe and Staats 2021), and their gradient
    in the same pass (as in Hsu et al. 2024, "Liger Kernel"). Under autocast the matrix products are computed in its
    precision; probabilities and the sum are in float32. A copy of the head that is cast, or on a GPU, is padded to a
    multiple of 64 rows; if the head is frozen, the copy is kept. Nothing waits for a GPU.

    Args:
        hidden: (T, H) last hidden states, from which each token is predicted.
        weight: (V, H) weight of the language model's head.
        bias: (V,) bias of the head, or None.
        targets: (T,) token ids.
        weights: (T,) float32 weights of the tokens, without a gradient; None: all 1.
        kernel: on a GPU, read and write the logits less often, by one Triton kernel in place of torch's.

    Returns:
        () float32.
    """
    if weights is None:
        weights = torch.ones(len(targets), device=hidden.device)
    total: Tensor = _CrossEntropy.apply(hidden, weight, bias, targets, weights, kernel)
    return total


class _CrossEntropy(torch.autograd.Function):
    """The forward pass computes the gradients, too, for a gradient of 1 of the sum; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        kernel: bool,
    ) -> Tensor:
        device = hidden.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        states, head = hidden.to(precision), _padded(weight, precision)  # (T, H), (W, H)
        words, padding = len(weight), len(head) - len(weight)  # V, W - V
        grad_hidden = torch.empty_like(states) if needs_hidden else None
        grad_weight: Tensor | None = None
        grad_bias: Tensor | None = None
        total = torch.zeros((), device=hidden.device)
        with torch.autocast(device, enabled=False):
            for rows in _chunks(len(targets), words, device):
                target, token_weight = targets[rows, None], weights[rows, None]  # (C, 1)
                logits = states[rows] @ head.T  # (C, W)
                if bias is not None:
                    logits = logits.float() + F.pad(bias.float(), (0, padding))
                logits[:, words:].fill_(-torch.inf)  # padding has a probability of 0, and so no gradient
                losses, grad_logits = _fused(logits, target) if kernel else _by_torch(logits, target)
                total += (losses * token_weight).sum()
                if not any(ctx.needs_input_grad):
                    continue
                # The tokens' weights multiply what is smaller than the logits: hidden states and their gradients.
                grad_logits, token_weight = grad_logits.to(precision), token_weight.to(precision)
                if grad_hidden is not None:
                    torch.mm(grad_logits, head, out=grad_hidden[rows]).mul_(token_weight)
                if needs_weight:
                    grad_weight = _sum(grad_weight, (grad_logits.T @ (states[rows] * token_weight))[:words], weight)
                if bias is not None and needs_bias:
                    grad_bias = _sum(grad_bias, (grad_logits.T @ token_weight)[:words, 0], bias)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.hidden_dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = (
            None if gradient is None else gradient * grad_outputs[0].to(gradient.dtype)
            for gradient in ctx.saved_tensors
        )
        return None if grad_hidden is None else grad_hidden.to(ctx.hidden_dtype), grad_weight, grad_bias, *[None] * 3


def _by_torch(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(C, W) logits, (C, 1) target -> (C, 1) losses, and their (C, W) gradient with respect to the logits."""
    probabilities = logits.softmax(-1, torch.float32)  # (C, W)
    # (C, 1) logsumexp of the logits, from a softmax, one kernel in place of a dozen passes over them: the greatest
    # logit less the logarithm of its probability, which is exact as that is at least 1 / V.
    logsumexp = logits.amax(-1, keepdim=True).float() - probabilities.amax(-1, keepdim=True).log()
    losses = logsumexp - logits.gather(1, target).float()
    # Gradient: probabilities - one-hot target.
    return losses, probabilities.scatter_add_(1, target, torch.full_like(losses, -1.0))


def _fused(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """As `_by_torch`; the gradient takes the place of the logits."""
    from prefixcap.losses.kernel import cross_entropy_

    return cross_entropy_(logits, target.squeeze(1)).unsqueeze(1), logits


def _chunks(tokens: int, words: int, device: str) -> list[slice]:
    """The tokens of each chunk: as few chunks as memory allows, and all of about the same size."""
    most = max(1, (_CHUNK_GPU if device == "cuda" else _CHUNK) // words)
    size = -(-tokens // max(1, -(-tokens // most)))
    return [slice(start, start + size) for start in range(0, tokens, size)] if tokens else []


def _sum(total: Tensor | None, part: Tensor, like: Tensor) -> Tensor:
    """The sum of a gradient over chunks, in the precision of its parameter."""
    return part.to(like.dtype) if total is None else total.add_(part)


# The padded copies of frozen weights, and the state of the weight that each was made from: its memory and version. They
# go when the weight goes, and are made anew when it was moved or changed.
_frozen: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _padded(weight: Tensor, precision: torch.dtype) -> Tensor:
    """A (V, H) weight as (W, H) in a precision, with rows of 0 beyond V.

    A CPU needs no padding: where it computes in the precision of the weight, it is the weight itself.
    """
    words, width = weight.shape
    rows = -(-words // _MULTIPLE) * _MULTIPLE
    if weight.dtype == precision and (rows == words or not weight.is_cuda):
        return weight
    state = StorageWeakRef(weight.untyped_storage()), weight._version, precision
    kept = None if weight.requires_grad else _frozen.get(weight)
    if kept is not None and kept[0] == state:
        return kept[1]  # type: ignore[no-any-return]
    padded = weight.new_empty((rows, width), dtype=precision)  # (W, H)
    padded[:words].copy_(weight)
    padded[words:].zero_()
    if not weight.requires_grad:
        _frozen[weight] = state, padded
    return padded
