"""Captions a second, by a clock that the test sets."""

from types import SimpleNamespace
from typing import Any

import pytest

from prefixcap.training import throughput
from prefixcap.training.throughput import Throughput


def test_validation_and_the_first_batch_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, logged = 0.0, []
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now)
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.append((metrics, step)))
    trainer, measured = SimpleNamespace(world_size=2, global_step=4, loggers=[logger]), Throughput()

    def batch(seconds: float, captions: int) -> None:
        nonlocal now
        now += seconds
        measured.on_train_batch_end(trainer, None, None, SimpleNamespace(caption_rows=[0] * captions), 0)  # type: ignore[arg-type]

    def validation(*between: Any) -> None:
        nonlocal now
        now += 0.5  # a checkpoint is written
        measured.on_validation_start()
        now += 100
        measured.on_validation_end()

    assert measured.captions_per_second is None
    batch(30, 7)  # code is compiled
    assert measured.captions_per_second is None
    batch(2, 40)
    validation()
    batch(2, 40)
    batch(1, 20)
    now += 0.5
    measured.on_train_end(trainer, None)  # type: ignore[arg-type]
    expected = 2 * (40 + 40 + 20) / (2 + 0.5 + 2 + 1 + 0.5)
    assert measured.captions_per_second == pytest.approx(expected)
    assert logged == [({"captions_per_second": pytest.approx(expected)}, 3)]
