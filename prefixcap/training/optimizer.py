"""AdamW (Loshchilov and Hutter 2019), with mistakes in its arguments reported in one line, and its learning rate."""

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prefixcap.errors import InputError
from prefixcap.utils.deferred import deferred

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import AdamW, Optimizer
    from torch.optim.lr_scheduler import LambdaLR
else:
    AdamW = deferred("torch.optim.AdamW")
    LambdaLR = deferred("torch.optim.lr_scheduler.LambdaLR")

OPTIONS = [name for name in inspect.signature(AdamW).parameters if name not in ("params", "lr", "weight_decay")]


def adamw(weights: "Iterable[Parameter]", learning_rate: float, weight_decay: float, **options: Any) -> "AdamW":
    """`torch.optim.AdamW` with checked arguments.

    Args:
        weights: the parameters to optimize.
        learning_rate: `lr`.
        weight_decay: `weight_decay`.
        options: other arguments of `torch.optim.AdamW`, by their names there.

    Raises:
        InputError: AdamW has no such argument, or does not take the value.

    Examples:
        >>> import torch
        >>> adamw([torch.nn.Parameter(torch.zeros(2))], 1e-3, 0.01, betas=[0.9, 0.98], eps=1e-6).defaults["betas"]
        (0.9, 0.98)
    """
    if unknown := options.keys() - set(OPTIONS):
        raise InputError(f"AdamW has no option '{min(unknown)}': it has {', '.join(OPTIONS)}")
    try:
        if "betas" in options:
            options["betas"] = tuple(options["betas"])  # YAML has lists
        return AdamW(weights, lr=learning_rate, weight_decay=weight_decay, **options)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:  # AdamW checks its arguments itself
        raise InputError(f"AdamW: {' '.join(str(error).split())}") from error


def linear_schedule(optimizer: "Optimizer", warmup: int, total: int) -> "LambdaLR":
    """The learning rate rises linearly from zero in `warmup` steps, then falls linearly to zero at step `total`.

    Equal to `transformers.get_linear_schedule_with_warmup`, whose module takes seconds to import.

    Examples:
        >>> import torch
        >>> schedule = linear_schedule(adamw([torch.nn.Parameter(torch.zeros(2))], 1.0, 0.0), warmup=2, total=4)
        >>> [schedule.lr_lambdas[0](step) for step in range(6)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """

    def factor(step: int) -> float:
        return step / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))

    return LambdaLR(optimizer, factor)
