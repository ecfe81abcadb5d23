"""How fast a run trains."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from prefixcap.packing import Batch


class Throughput(Callback):
    """Measures the training captions a second of a run, of all its processes, and logs them when training ends.

    The first batch, before which workers start and with which code is compiled, does not count, nor does validation.
    """

    def __init__(self) -> None:
        self._captions, self._seconds = 0, 0.0
        self._since: float | None = None  # when what is being measured began; None: nothing is

    @property
    def captions_per_second(self) -> float | None:
        """The measured rate; None: there were not two batches."""
        return self._captions / self._seconds if self._captions else None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self._captions += len(batch.caption_rows) * trainer.world_size
            self._seconds += now - self._since
        self._since = now

    def on_validation_start(self, *_: Any) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since

    def on_validation_end(self, *_: Any) -> None:
        if self._since is not None:
            self._since = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
        if self.captions_per_second is not None:
            for logger in trainer.loggers:
                metrics = {"captions_per_second": self.captions_per_second}
                logger.log_metrics(metrics, step=trainer.global_step - 1)  # Lightning counts from 0
