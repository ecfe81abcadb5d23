"""Numbers that come from a GPU without anyone waiting for it."""

from typing import Any

import torch
from torch import Tensor


class Arriving:
    """A tensor on its way to the host. To ask for it at once makes the program wait for the GPU; a step later it is
    there.

    Args:
        value: on any device; not to be changed in place.
    """

    def __init__(self, value: Tensor) -> None:
        self._value = value.detach().to("cpu", non_blocking=True)  # into pinned memory
        self._copied = torch.cuda.current_stream().record_event() if value.is_cuda else None

    def get(self) -> Any:
        """What is in it, as `Tensor.tolist` gives it."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._value.tolist()
