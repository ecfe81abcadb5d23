"""Values copied from a GPU without waiting for it."""

from typing import Any

import torch
from torch import Tensor


class AsyncValue:
    """A tensor on its way to the host. To read it at once waits for the GPU; a step later it has arrived.

    Args:
        value: on any device; not to be changed in place.
    """

    def __init__(self, value: Tensor) -> None:
        self._value = value.detach().to("cpu", non_blocking=True)  # into pinned memory
        self._copied = torch.cuda.current_stream(value.device).record_event() if value.is_cuda else None

    def get(self) -> Any:
        """Its content, as from `Tensor.tolist`."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._value.tolist()
