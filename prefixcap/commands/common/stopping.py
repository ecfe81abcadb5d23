"""Ctrl-C and SIGTERM while a command writes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """A context in which Ctrl-C and SIGTERM raise KeyboardInterrupt, but not before a `deferred` block has ended.

    Attributes:
        signal: the number of the signal that was received; None: none was.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._is_deferring = False

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A context that a signal does not interrupt; it is raised at the end."""
        self._is_deferring = True
        try:
            yield
        finally:
            self._is_deferring = False
        if self.signal is not None:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if not self._is_deferring:
            raise KeyboardInterrupt
