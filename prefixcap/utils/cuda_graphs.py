"""CUDA graphs: what a GPU did once, it does again without Python, which launches its kernels one by one."""

import threading
from collections.abc import Callable
from functools import cache
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

_CAPTURING = threading.Lock()  # of all threads only one may capture at a time, or use the streams of captures


class CudaGraphs(Generic[T]):
    """Captures on a stream that nothing else uses. Its graphs share their memory, as only one runs at a time (see "CUDA
    graphs" in PyTorch's notes on CUDA).

    Args:
        device: the GPU, which need not be the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool, self._stream = torch.cuda.graph_pool_handle(), _stream(device)

    def warm_up(self, function: Callable[[], T]) -> T:
        """Run a function as it will be captured."""
        current = torch.cuda.current_stream(self._stream.device)
        with _CAPTURING:
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                result = function()
            current.wait_stream(self._stream)
        return result

    def capture(self, function: Callable[[], T]) -> Callable[[], T]:
        """A function that does the same again; its result is always in the same memory. Nothing is done yet."""
        graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[self._stream.device_index]
        state = generator.clone_state()
        # After a capture that fails, older versions of PyTorch stay on its stream, and the generator in its state.
        before = torch.cuda.stream(torch.cuda.current_stream(self._stream.device))
        try:
            # Only this thread's calls are checked: another may be pinning the next batch.
            capture = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
            with _CAPTURING, before, capture:
                result = function()
        except RuntimeError:
            generator.graphsafe_set_state(state)
            raise

        def replay() -> T:
            graph.replay()
            return result

        return replay


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for each GPU, as cuBLAS keeps memory for each stream that it was used on."""
    return torch.cuda.Stream(device)
